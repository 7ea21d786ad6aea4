"""report.html and explain.html: they stand alone, and text from the user stays text."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from msgspec import ValidationError

from slimrank.evaluate.pages.explain import explain_page
from slimrank.evaluate.pages.merged import Merged
from slimrank.evaluate.pages.render import short
from slimrank.evaluate.pages.report import report_page
from slimrank.evaluate.pages.run import run_of

HOSTILE = "<script>alert('x')</script> & \"quoted\" $\\frac{$"


class Page(HTMLParser):
    """Tags of a page, the addresses that it links to, and its text by the elements that it stands in."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], {}
        self.feed(html)
        self.close()
        assert self.open == [], "elements are not closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href") and tag != "use"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(text)

    def holds(self, tag, text):
        return any(text in found for found in self.texts.get(tag, []))


def report(name="lenet5", classes=("ant", "bee"), note="asked for", layer="conv1"):
    def side(macs, median_ms):
        timing = {"model": "baseline", "provider": "cpu", "batch": 1, "threads": 1, "median_ms": median_ms}
        row = {**timing, "p10_ms": median_ms, "p90_ms": median_ms, "runs": 15}
        return {
            "top1": 0.9, "agreement": 0.912, "macs": macs, "flops": 2 * macs, "params": macs, "bytes": macs, "latency": [row],
        }  # fmt: skip

    before, after = side(2000, 0.5), side(1000, 0.25)
    results = [*before["latency"], {**after["latency"][0], "model": "compressed"}]
    head = {
        "indices": [[0, 1], [1, 2]], "k2": 2, "select": "omp", "fit": "train", "top1_dense": 0.9, "top1_head": 0.9,
        "head_macs_before": 40, "head_macs_after": 20,
    }  # fmt: skip
    prune = {"budget": {"macs": 0.5}, "widths": {layer: [3, 2]}, "keep": {layer: [0, 2]}}
    rival = {
        "name": "dense model, fine-tuned",
        "model": "baseline",
        "top1": 0.9,
        "macs": 2000,
        "seconds": 1.0,
        "file": "dense.onnx",
    }
    stages = {
        "rank": {"ranker": "fpgm", "scores": {layer: [3.0, 1.0, 2.0]}}, "prune": prune, "rivals": {"rows": [rival]},
        "specialize": {"head": "tiled", "result": head}, "bench": {"results": results},
    }  # fmt: skip
    return {
        "model": name, "classes": list(classes), "baseline": before, "compressed": after, "test_images": 100,
        "stages": [{"name": stage, "seconds": 1.0, "says": note, **rest} for stage, rest in stages.items()],
        "options": {"data": "digits", "validation": "train:0.1"}, "seconds": 5.0, "slimrank": "0.7.0",
        "machine": {"processor": "CPU", "cores": 2, "onnxruntime": "1", "torch": "2", "python": "3"},
        "validation_seen_in_training": None,
    }  # fmt: skip


def explanation(name="lenet5", classes=("ant", "bee"), note="there is no colour part"):
    unit = {
        "car": 0.1, "serves": [(classes[0], 0.1)], "hinders": [(classes[1], -0.1)], "colour": 0.5,
        "concept": {"name": classes[0], "category": "object", "iou": 0.5},
    }  # fmt: skip
    layer = {
        "filters": [unit, unit], "order": [1, 0], "tied": ["conv1"], "mean_colour": 0.5, "colour_under_car": None,
        "redundancy": {"mean_pruned": 0.5, "mean_kept": None},
    }  # fmt: skip
    measures = ("whole", "influential_replaced", "random_replaced", "others_replaced")
    noise = {measure: [0.9, 0.8] for measure in measures} | {f"mean_{measure}": 0.85 for measure in measures}
    one, other = classes
    rows = [
        {"name": one, "carried": 0.9, "features": [(0, 1.0, 1.0, 0.9)], "shared_with": [(other, 1)]},
        {"name": other, "carried": None, "features": [(0, 1.0, 1.0, None)], "shared_with": []},
    ]
    detected = {"units": [(one, "object", 0.5)], "detectors": 1, "unique": 1, "by_category": {}, "chance": {"unique": 0}}
    return {
        "model": name, "data": "digits", "filter_images": 1000, "validation": "train:0.1", "classes": rows, "k1": 1, "k2": 1,
        "validation_seen_in_training": None, "features": 8, "noise": noise, "kernel_order": "Most important first.",
        "overlap": {"all_pairs": 0.1, "different_classes": 0.1, "chance": 0.1}, "layers": {"conv1": layer}, "notes": [note],
        "dissection": {
            "layers": {"conv1": detected}, "images": 10, "concepts": 2, "iou_over": 0.04, "unique": 1, "denominator": "union",
        },
    }  # fmt: skip


def explained(**words):
    pictures = {"maps": "data:image/png;base64,aa", "best": [0], "worst": [1], "strips": {0: "data:,", 1: "data:,"}}
    return explain_page(explanation(**words), {"conv1": pictures}, "data:image/png;base64,aa")


def page_of(*reports):
    """The page about one report, or several, in folders called run0, run1, ..."""
    return report_page(Merged([run_of(one, f"run{i}" if len(reports) > 1 else "") for i, one in enumerate(reports)]))


def reported(**words):
    return page_of(report(**words))


def side_by_side(**words):
    return page_of(report(**words), report(**words))


PAGES = {"report": reported, "many": side_by_side, "explain": explained}
PLACES = [
    ("report", {"name": HOSTILE}, "title"),
    ("report", {"name": HOSTILE}, "h1"),
    ("report", {"classes": ("ant", HOSTILE)}, "td"),
    ("report", {"note": HOSTILE}, "td"),
    ("report", {"note": HOSTILE}, "p"),
    ("report", {"layer": HOSTILE}, "text"),
    ("many", {"name": HOSTILE}, "td"),
    ("many", {"name": HOSTILE}, "summary"),
    ("many", {"note": HOSTILE}, "td"),
    ("explain", {"name": HOSTILE}, "title"),
    ("explain", {"name": HOSTILE}, "h1"),
    ("explain", {"classes": ("ant", HOSTILE)}, "td"),
    ("explain", {"classes": (HOSTILE, "bee")}, "b"),
    ("explain", {"note": HOSTILE}, "p"),
]


@pytest.mark.parametrize(("page", "words", "tag"), PLACES, ids=[f"{p}-{'-'.join(w)}-{tag}" for p, w, tag in PLACES])
def test_text_from_the_user_is_escaped(page, words, tag):
    html = PAGES[page](**words)
    seen = Page(html)
    assert seen.tags.count("script") == html.count("<script") == 1
    assert seen.holds(tag, HOSTILE)


TURNED = "\u202eegami\u2067x a\x07b \udcff a\u2060b\u2028"


@pytest.mark.parametrize("page", PAGES)
def test_no_name_turns_its_neighbours_or_hides(page):
    html = PAGES[page](name=TURNED, classes=("ant", TURNED), note=TURNED, **({} if page == "explain" else {"layer": TURNED}))
    odd = [c for c in TURNED if not c.isprintable()]
    assert len(odd) == 6
    assert all(f"[U+{ord(c):04X}]" in html and c not in html for c in odd)
    assert html.encode()


def test_letters_of_other_scripts_stay_as_they_are():
    persian = "می\u200cخواهم"
    assert Page(reported(classes=("ant", persian))).holds("bdi", persian)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_stands_alone(page):
    seen = Page(PAGES[page]())
    assert not {"link", "iframe", "object", "base"} & set(seen.tags)
    assert all(link.startswith(("data:", "#")) for link in seen.links)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_allows_its_own_script_and_no_request(page):
    html = PAGES[page]()
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


@pytest.mark.parametrize(("seen", "warned"), [(None, True), (False, False), (True, False)], ids=["unknown", "not-seen", "seen"])
def test_the_report_doubts_unknown_validation_images_only(seen, warned):
    assert ("test:0.2" in page_of({**report(), "validation_seen_in_training": seen})) is warned


def test_the_report_says_that_nothing_was_measured_without_data():
    without = report() | {"test_images": None, "options": {}}
    for side in ("baseline", "compressed"):
        without[side]["top1"] = None
    html = page_of(without)
    assert "No data was given" in html
    assert "not measured" in html


def repair(top1=(0.12, 0.36, 0.7), agreement=(0.13, 0.4, 0.8), note=""):
    steps = [{"top1": one, "agreement": other} for one, other in zip(top1, agreement, strict=True)]
    figures = dict(zip(["as_cut", "recalibrated", "reconstructed"], steps, strict=True))
    return {**figures, "images": 4000, "seconds": 9.0, "note": note}


REPAIRS = {
    "labels": (repair(), "top-1, test", ["12.00%", "36.00%", "70.00%"]),
    "no-labels": (repair(top1=(None,) * 3), "agreement with before, test", ["13.00%", "40.00%", "80.00%"]),
    "recalibrated": (repair() | {"reconstructed": None}, "top-1, test", ["12.00%", "36.00%"]),
    "note": (repair(note=HOSTILE), "top-1, test", ["12.00%", "36.00%", "70.00%"]),
}


@pytest.mark.parametrize(("repaired", "measure", "shares"), REPAIRS.values(), ids=REPAIRS)
def test_the_report_shows_what_repair_brought_back(repaired, measure, shares):
    made = report()
    next(stage for stage in made["stages"] if stage["name"] == "prune")["repair"] = repaired
    seen = Page(page_of(made))
    cells = [text.strip() for text in seen.texts["td"]]
    assert seen.tags.count("script") == 1
    assert any(cells[i : i + 1 + len(shares)] == [measure, *shares] for i in range(len(cells)))


@pytest.mark.parametrize("without", [{}, {"repair": None}], ids=["older-run", "not-repaired"])
def test_the_report_shows_no_repair_where_there_was_none(without):
    made = report()
    next(stage for stage in made["stages"] if stage["name"] == "prune").update(without)
    assert "BatchNorm recalibrated" not in page_of(made)


def test_a_figure_that_is_missing_is_an_error_and_not_an_empty_cell():
    broken = report()
    del broken["machine"]["processor"]
    with pytest.raises(ValidationError, match="processor"):
        run_of(broken)


@pytest.mark.parametrize(("lost", "tone"), [(0.025, "bad"), (0.011, "bad"), (0.005, ""), (0.0, "good"), (-0.01, "good")])
def test_lost_accuracy_is_marked(lost, tone):
    made = report()
    made["compressed"]["top1"] = 0.9 - lost
    assert f'<b class="{tone}">{-100 * lost + 0.0:+.2f}</b>' in page_of(made)


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 K"),
        (9994, "9.99 K"),
        (9995, "10.0 K"),
        (999499, "999 K"),
        (999500, "1.00 M"),
        (None, "–"),
    ],
)
def test_numbers_are_told_with_three_digits(number, told):
    assert short(number) == told
