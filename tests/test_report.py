"""`slimrank report`: runs side by side, what nothing beats, folders that hold no run; and the page in a browser."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank import __version__
from slimrank.evaluate.pages.merged import Merged, front, grouped, read_runs
from slimrank.evaluate.pages.report import report_page
from slimrank.evaluate.pages.run import run_of

from .golden.play import call
from .test_pages import report


def folder(parent: Path, name: str, **changes) -> Path:
    """A run's folder; `changes` by dotted key, as in `compressed__top1`."""
    made = {**report(), "slimrank": __version__}
    for key, value in changes.items():
        at = made
        *where, last = key.split("__")
        for part in where:
            at = at[part]
        at[last] = value
    (parent / name).mkdir()
    (parent / name / "report.json").write_text(json.dumps(made))
    return parent / name


def times(made: dict, factor: float) -> dict:
    """The report of the same run on a machine, or in an hour, that is slower by `factor`."""
    for stage in made["stages"]:
        for row in stage.get("results", []):
            row["median_ms"] *= factor
    return made


# -- fronts -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4) | st.none()), max_size=8))
def test_a_front_is_what_nothing_beats(points):
    rows = [SimpleNamespace(top1=good, macs=cost, n=n) for n, (good, cost) in enumerate(points)]
    found = {row.n for row in front(rows, "top1", "macs")}
    for row in rows:
        better = [
            other for other in rows
            if None not in (row.macs, other.macs) and other.top1 >= row.top1 and other.macs <= row.macs
            and (other.top1 > row.top1 or other.macs < row.macs)
        ]  # fmt: skip
        assert (row.n in found) is (row.macs is not None and not better)


def test_rows_are_the_dense_network_once_then_each_run_with_its_rivals():
    runs = [run_of({**report(), "options": {"data": "digits", "checkpoint": "a"}}, name) for name in ("one", "two")]
    (group,) = grouped(runs)
    assert [(row.kind, row.run.name) for row in group.rows] == [
        ("dense", "one"), ("slimrank", "one"), ("rival", "one"), ("slimrank", "two"), ("rival", "two"),
    ]  # fmt: skip
    assert group.rows[2].bytes == runs[0].report.baseline.bytes  # the dense model, trained on


@pytest.mark.parametrize("taken", [True, False])
def test_the_float_file_stands_beside_the_one_in_int8(taken):
    made = report()
    int8 = {"taken": taken, "says": "int8 says so", "float": {"top1": 0.89, "agreement": 0.9, "bytes": 3000}}
    made["stages"].append({"name": "export", "seconds": 1.0, "says": "", "int8": int8})
    bench = next(stage for stage in made["stages"] if stage["name"] == "bench")
    if taken:
        bench["results"].append({**bench["results"][1], "model": "compressed, float", "median_ms": 0.4})
    run = run_of(made)
    found = [(row.name, row.top1, row.bytes, row.macs, row.latency) for row in grouped([run])[0].rows if row.kind == "float"]
    assert found == ([("the same before int8", 0.89, 3000, 1000, 0.4)] if taken else [])
    assert "int8 says so" in report_page(Merged([run]))


def test_intervals_stand_below_the_speedups_where_they_were_measured():
    made = report()
    bench = next(stage for stage in made["stages"] if stage["name"] == "bench")
    told = {"model": "compressed", "provider": "cpu", "batch": 1, "threads": 1, "speedup": 2.01, "low": 1.9, "high": 2.1}
    bench["speedups"] = [told]
    assert grouped([run_of(made)])[0].rows[1].latency == pytest.approx(0.5 / 2.01)
    assert "1.90–2.10" in report_page(Merged([run_of(made)]))
    assert "1.90–2.10" not in report_page(Merged([run_of(report())]))


def test_times_of_a_slow_hour_are_set_to_the_pace_of_all():
    asked = {"options": {"data": "digits", "checkpoint": "a"}}
    runs = [run_of(times({**report(), **asked}, factor), name) for factor, name in ((1, "quiet"), (3, "busy"))]
    (group,) = grouped(runs)
    latency = {(row.kind, row.run.name): row.latency for row in group.rows}
    assert latency["slimrank", "quiet"] == pytest.approx(latency["slimrank", "busy"])
    assert latency["dense", "quiet"] == pytest.approx(2 * latency["slimrank", "busy"])


def test_one_run_has_the_times_that_were_measured():
    (group,) = grouped([run_of(report())])
    assert [row.latency for row in group.rows] == [0.5, 0.25, 0.5]


def test_no_front_of_latency_across_machines():
    other = {**report(), "machine": {**report()["machine"], "processor": "another"}}
    (group,) = grouped([run_of(report(), "a"), run_of(other, "b")])
    assert group.machines == 2
    assert all(row.latency is None and "latency" not in row.front for row in group.rows)
    assert "2 different machines" in report_page(Merged([run_of(report(), "a"), run_of(other, "b")]))


TESTED = {
    "same": ({}, 1),
    "other data": ({"data": "mnist:x"}, 2),
    "other validation from train": ({"validation": "train:0.2"}, 1),
    "validation from test": ({"validation": "test:0.2"}, 2),
    "other limit": ({"limit": 100}, 2),
    "other seed": ({"seed": 3}, 1),
}


@pytest.mark.parametrize(("changes", "groups"), TESTED.values(), ids=TESTED)
def test_runs_are_compared_on_the_same_test_images_only(changes, groups):
    options = {"data": "digits", "validation": "train:0.1", "limit": None, "seed": 0}
    runs = [run_of({**report(), "options": {**options, **more}}, name) for name, more in (("a", {}), ("b", changes))]
    merged = Merged(runs)
    assert len(merged.groups) == groups
    assert ("not to be compared" in str(merged)) is (groups > 1)


def test_the_page_says_that_test_images_differ():
    runs = [run_of({**report(), "options": {"data": data}}, data) for data in ("digits", "mnist:x")]
    assert "not to be compared" in report_page(Merged(runs))
    assert "not to be compared" not in report_page(Merged([run_of(report(), name) for name in ("a", "b")]))


# -- the verb ---------------------------------------------------------------------------------------------------------------


def test_the_verb_writes_a_page_and_tells_the_rows(tmp_path):
    one, two = folder(tmp_path, "one"), folder(tmp_path, "two", compressed__top1=0.8, compressed__macs=500)
    outcome = call(f"report {one} {two} -o {tmp_path}/page.html --json")
    assert outcome.status == 0
    assert outcome.error_lines()[0].startswith("on 100 test images of digits")
    found = json.loads(outcome.stdout)
    ours = {row["run"]: row for row in found["rows"] if row["kind"] == "slimrank"}
    assert ours[f"{one}"]["front"] == ["latency", "macs", "bytes"]
    assert ours[f"{two}"]["front"] == ["macs"]
    assert found["groups"] == [
        {
            "images": "100 test images of digits", "measure": "top1", "machines": 1,
            "setting": {"provider": "cpu", "threads": 1, "batch": 1},
        }
    ]  # fmt: skip
    assert "2 runs side by side" in (tmp_path / "page.html").read_text()


def test_an_older_run_is_shown_with_a_warning(tmp_path):
    outcome = call(f"report {folder(tmp_path, 'old', slimrank='0.7.0')} -o {tmp_path}/page.html")
    assert outcome.status == 0
    assert "warning: " in outcome.stderr
    assert f"is of slimrank 0.7.0, this is {__version__}" in outcome.stderr


def half(parent: Path) -> str:
    made = folder(parent, "half")
    (made / "report.json").unlink()
    (made / "state.json").write_text(json.dumps({"asked": {}, "stages": [{"name": "baseline"}, {"name": "rank"}]}))
    return str(made)


def begun_anew(parent: Path) -> str:
    """A run whose stages are done again: its report is of before."""
    made = folder(parent, "anew")
    (made / "state.json").write_text(json.dumps({"asked": {}, "stages": [{"name": "baseline"}]}))
    return str(made)


def text(parent: Path, name: str, content: str) -> str:
    (parent / name).mkdir()
    (parent / name / "report.json").write_text(content)
    return str(parent / name)


REFUSED = {
    "no folder": (lambda at: f"{at}/nothing", "is no folder"),
    "a file": (lambda at: f"{folder(at, 'x')}/report.json", "is no folder"),
    "no run": (lambda at: str(at), "has no report.json"),
    "half finished": (half, "is half finished, rank is its last stage"),
    "begun anew": (begun_anew, "is half finished, baseline is its last stage"),
    "twice": (lambda at: f"{folder(at, 'x')} {at}/../{at.name}/x", "is given twice"),
    "not json": (lambda at: text(at, "x", "{"), "is not JSON"),
    "a list": (lambda at: text(at, "x", "[]"), "holds no JSON object"),
    "nothing in it": (lambda at: text(at, "x", "{}"), "of no version of slimrank"),
    "another version": (lambda at: str(folder(at, "x", slimrank="0.2", baseline={})), "of slimrank 0.2, is none that this"),
    "other stages": (lambda at: str(folder(at, "x", stages=[{"name": "rank"}])), "missing the stage"),
    "stages of no kind": (lambda at: str(folder(at, "x", stages=3)), "is none that this version reads"),
    "a share of 7": (lambda at: str(folder(at, "x", baseline__top1=7)), "is none that this version reads"),
    "no number": (lambda at: str(folder(at, "x", baseline__top1=float("nan"))), "is none that this version reads"),
    "no MACs": (lambda at: str(folder(at, "x", baseline__macs=0)), "is none that this version reads"),
}


@pytest.mark.parametrize(("words", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_run_is_told_in_one_line(tmp_path, words, told):
    outcome = call(f"report {words(tmp_path)} -o {tmp_path}/page.html")
    (line,) = outcome.error_lines()
    assert outcome.status == 1
    assert told in line
    assert not (tmp_path / "page.html").exists()


def test_a_page_is_named_as_one(tmp_path):
    assert "must end in .html" in call(f"report {folder(tmp_path, 'x')} -o {tmp_path}/x/report.json").error_lines()[0]


# -- in a browser -----------------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """<script>
const all = (what, where = document) => [...where.querySelectorAll(what)];
const table = document.querySelector("table.sort");
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[0].textContent.trim());
const given = names();
table.tHead.rows[0].cells[2].querySelector("button").click();
const beyond = all("body > *, h1, summary, svg, p").filter((part) => part.getBoundingClientRect().right > innerWidth + 1);
const scrolling = all(".scroll").filter((part) => part.scrollWidth > part.clientWidth);
document.title = JSON.stringify({
  given, rows: names(), sorted: [...table.tBodies[0].rows].map((row) => Number(row.cells[2].dataset.v)),
  wide: beyond.map((part) => part.tagName), page: document.documentElement.scrollWidth, window: innerWidth,
  ground: getComputedStyle(document.body).backgroundColor, scrolling: scrolling.length,
  hint: scrolling.every((part) => getComputedStyle(part).backgroundImage.includes("gradient")),
});
</script>"""


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """A page's DOM after its script ran in headless Chromium."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; apt-get install chromium")
    place = tmp_path_factory.mktemp("browser")

    def dom(html: str, *words: str) -> str:
        (place / "page.html").write_text(html, encoding="utf-8")
        usual = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place}/profile", "--dump-dom", *words]
        return subprocess.run(
            [CHROMIUM, *usual, f"file://{place}/page.html"], capture_output=True, text=True, timeout=120, check=True
        ).stdout

    return dom


@pytest.fixture(scope="module")
def long_page():
    name = "x" * 200
    made = report(name=name, classes=("ant", name), layer=name)
    return report_page(Merged([run_of(made, "a" * 200), run_of(made, "b")]))


def test_the_script_runs_under_the_page_s_own_policy(browse, long_page):
    assert "<th><button>network</button></th>" in browse(long_page)


@pytest.mark.parametrize(("scheme", "ground"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(18, 23, 29)")], ids=["light", "dark"])
def test_the_page_at_phone_width(browse, long_page, scheme, ground):
    """Nothing but tables goes beyond the edge, these say so, columns sort, and the system's colours are taken."""
    probed = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", long_page).replace("</body>", f"{PROBE}</body>")
    dom = browse(probed, "--window-size=500,900", f"--blink-settings=preferredColorScheme={scheme}")
    found = json.loads(unescape(re.search(r"<title>(.*?)</title>", dom, re.S)[1]))
    assert found["wide"] == []
    assert found["page"] <= found["window"]
    assert found["hint"]
    assert found["scrolling"]
    assert found["sorted"] == sorted(found["sorted"])
    assert sorted(found["rows"]) == sorted(found["given"])
    assert found["rows"] != found["given"]
    assert found["ground"] == ground


def test_read_runs_keeps_their_order(tmp_path):
    assert [run.name for run in read_runs([folder(tmp_path, "b"), folder(tmp_path, "a")])] == [f"{tmp_path}/b", f"{tmp_path}/a"]
