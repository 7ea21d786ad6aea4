"""explain.html: one self-contained page from plain dicts and data URIs."""

from html import escape
from typing import Any

from .report import STYLE, section, table

TEXT = '<th class="text">{}</th>'
KERNELS = "Each scaled to its largest weight; grey is zero. "
MORE = """
body { max-width: 1240px }
img { display: block; max-width: 100%; height: auto; border-radius: 3px }
.strip { width: 252px; max-width: none; height: 48px } .maps { max-width: none; image-rendering: pixelated }
.tall { max-height: 620px; overflow: auto; border: 1px solid var(--line); border-radius: 8px }
.tall .scroll { overflow: visible } .tall thead th { position: sticky; top: 0; background: #fff }
td.text b { font-weight: 600 } h3 { font-size: 15px; margin: 22px 0 6px } td { vertical-align: top }
nav a { margin-right: 14px; color: #2463a6 } figure { margin: 8px 0 16px } figcaption { color: var(--pale); font-size: 13px }
"""


def html(found: dict[str, Any], shown: dict[str, dict[str, Any]], kernels: str | None) -> str:
    """The page; every figure comes from `found`, every picture from `shown` and `kernels`."""
    parts = [_head(found), _cards(found)]
    if found.get("classes"):
        parts.append(_classes(found))
    if found.get("gates"):
        parts.append(_gates(found))
    parts.append(_layers(found))
    if kernels:
        first = f'<figure><img class="maps" src="{kernels}" alt="first-layer kernels"></figure>'
        parts.append(section("First-layer kernels", first, KERNELS + found["kernel_order"]))
    parts += [_layer(name, layer, shown[name], found) for name, layer in found["layers"].items()]
    if found.get("dissection"):
        parts.append(_dissection(found["dissection"]))
    if found["notes"]:
        parts.append(section("Notes", "".join(f"<p>{escape(note)}</p>" for note in found["notes"])))
    title = f"slimrank explain: {escape(found['model'])}"
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}{MORE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def _text(content: str) -> str:
    return f'<td class="text">{content}</td>'


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _small(p: float) -> str:
    return "< 0.01" if p < 0.01 else f"= {p:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _head(found: dict[str, Any]) -> str:
    n = f"{found['filter_images']:,} validation images"
    seen = ""
    if found["validation_seen_in_training"] is not False and found["validation"].startswith("train"):
        seen = " They may have been trained on: <code>--validation test:0.2</code> is the safe choice for a foreign checkpoint."
    return (
        f"<h1>{escape(found['model'])}, explained</h1>\n"
        f'<p class="pale">On <code>{escape(found["data"])}</code>. Filters were scored and watched on {n}.{seen}</p>'
    )


def _cards(found: dict[str, Any]) -> str:
    cards = []
    if found.get("classes"):
        noise = found["noise"]
        cards = [
            (f"{found['k2']} of {found['features']}", "features a class lives on"),
            (_percent(noise["mean_whole"]), "mean accuracy of a class"),
            (_percent(noise["mean_influential_replaced"]), "its influential features replaced by noise"),
            (_percent(noise["mean_others_replaced"]), "all its other features replaced"),
        ]
    if found.get("dissection"):
        cards.append((str(found["dissection"]["unique"]), "unique detectors, summed over layers"))
    made = "".join(f'<div class="card"><b>{b}</b><span>{escape(s)}</span></div>' for b, s in cards)
    return f'<div class="cards">{made}</div>'


def _classes(found: dict[str, Any]) -> str:
    noise, sets = found["noise"], found["overlap"]
    rows = []
    for i, c in enumerate(found["classes"]):
        shown = ", ".join(f"<b>{j}</b>" + ("" if share is None else f" {share:.0%}") for j, _, _, share in c["features"][:10])
        near = ", ".join(f"{escape(name)} ({n})" for name, n in c["shared_with"][:4]) or "none"
        accuracy = [_percent(noise[key][i]) for key in ("whole", "influential_replaced", "random_replaced", "others_replaced")]
        rows.append([escape(c["name"]), _percent(c["carried"]), _text(shown), _text(near), *accuracy])
    head = [
        "class", "share of logit", '<th class="text">features and their shares</th>', '<th class="text">shares them with</th>',
        "accuracy", "influential replaced", "random replaced", "others replaced",
    ]  # fmt: skip
    note = (
        f"The {found['k2']} features that are most often among the {found['k1']} largest of a class's training images (Badola "
        "et al., Algorithm 1; the ten largest shares are shown, all are in explain.json). Share: of the class's mean logit on "
        "its training images, less what all classes have in common. Replaced: accuracy on the class's test images when those "
        "features become noise with each feature's own mean and spread. Mutual information of two classes' sets: mean "
        f"{sets['all_pairs']:.4f} nats over all pairs, the diagonal included (as the authors count), "
        f"{sets['different_classes']:.4f} over different classes, {sets['chance']:.4f} for random sets."
    )
    made = table(head, rows)
    return section("What each class lives on", f'<div class="tall">{made}</div>' if len(rows) > 20 else made, note)


def _gates(found: dict[str, Any]) -> str:
    g = found["gates"]
    rows = [
        ["density, |G|₁ / (m c)", f"{g['density']:.3f}"], ["top-1, plain path", _percent(g["top1"])],
        ["top-1, gated path (given the true class)", _percent(g["top1_gated"])],
        ["top-1, each class's logit through its own gates", _percent(g["top1_own"])],
        ["largest information of a filter on one class, mean", f"{g['mean_largest_information']:.3f} nats"],
        ["overlap of index sets by gates, all pairs", f"{g['overlap']['all_pairs']:.4f} nats"],
        ["of different classes", f"{g['overlap']['different_classes']:.4f} nats"],
    ]  # fmt: skip
    return section(
        "Class-specific gates", table(["", ""], rows), "Gates interpret, they do not predict: the gated path knows the class."
    )


def _layers(found: dict[str, Any]) -> str:
    rows = []
    for name, layer in found["layers"].items():
        r, c = layer["redundancy"], layer["colour_under_car"]
        order = "–" if c is None else f"{c['selective']} of {c['pruned']} (by chance {c['expected']:g}, p {_small(c['p'])})"
        rows.append([
            escape(name), str(len(layer["filters"])), _number(layer["mean_colour"], ".3f"), order,
            _number(r["mean_pruned"], ".3f"), _number(r["mean_kept"], ".3f"),
        ])  # fmt: skip
    head = [
        "layer", "filters", "colour selectivity", "selective among pruned", "pruned like kept", "kept among themselves",
    ]  # fmt: skip
    note = (
        "Pruned: the quarter that CAR (accuracy lost without the filter) would cut first. Selective: the more colour-selective "
        "half of a layer. Like: the largest correlation of a filter's response with a kept one's, position by position; mean."
    )
    return section("Filters, layer by layer", table(head, rows), note)


def _layer(name: str, layer: dict[str, Any], shown: dict[str, Any], found: dict[str, Any]) -> str:
    tied = f", tied to {len(layer['tied']) - 1} more" if len(layer["tied"]) > 1 else ""
    maps = (
        f'<figure><div class="scroll"><img class="maps" src="{shown["maps"]}" alt="feature maps of {escape(name)}"></div>'
        "<figcaption>An image, then the maps (as the next conv layer reads them) of the most important filters "
        f"({', '.join(map(str, shown['best']))}), a gap, the least important ({', '.join(map(str, shown['worst']))}); "
        "dark is silent.</figcaption></figure>"
    )
    rows = []
    for unit in (*shown["best"], *shown["worst"]):
        f = layer["filters"][unit]
        serves, hinders = (
            ", ".join(f"{escape(c)} {100 * v:+.1f}" for c, v in f[key]) or "none" for key in ("serves", "hinders")
        )
        concept = f.get("concept")
        detects = "" if concept is None else f"{escape(concept['name'])} ({concept['category']}, IoU {concept['iou']:.3f})"
        rows.append([
            str(unit), f"{100 * f['car']:+.2f}", f'<td><img class="strip" src="{shown["strips"][unit]}" alt="top images"></td>',
            _text(serves), _text(hinders), _number(f["colour"]), *([_text(detects)] if "dissection" in found else []),
        ])  # fmt: skip
    head = [
        "filter", "CAR, points", TEXT.format("images that move it most"), TEXT.format("classes it serves, points"),
        TEXT.format("classes better without it"), "colour",
        *([TEXT.format("nearest concept")] if "dissection" in found else []),
    ]  # fmt: skip
    note = f"{len(layer['filters'])} filters{tied}. Every filter is in explain.json."
    return section(f"Layer {name}", maps + table(head, rows), note)


def _dissection(d: dict[str, Any]) -> str:
    rows = []
    for name, layer in d["layers"].items():
        best: dict[str, tuple[float, int, str]] = {}
        for unit, (concept, category, iou) in enumerate(layer["units"]):
            if iou > d["iou_over"] and iou > best.get(concept, (0.0, 0, ""))[0]:
                best[concept] = (iou, unit, category)
        found = sorted(best.items(), key=lambda item: -item[1][0])
        told = ", ".join(f"<b>{escape(c)}</b> (filter {u}, {iou:.2f})" for c, (iou, u, _) in found) or "none"
        kinds = ", ".join(f"{n} {k}" for k, n in layer["by_category"].items()) or "none"
        rows.append([
            escape(name), str(layer["detectors"]), str(layer["unique"]), str(layer["chance"]["unique"]),
            _text(kinds), _text(told),
        ])  # fmt: skip
    head = [
        "layer",
        "detectors",
        "unique",
        "by chance",
        '<th class="text">by category</th>',
        '<th class="text">concepts, best filter, IoU</th>',
    ]
    note = (
        f"{d['images']:,} images, {d['concepts']} concepts; a filter detects the concept of its largest IoU if it is over "
        f"{d['iou_over']} ({d['denominator']}). By chance: the same masks laid over other images."
    )
    return section("Network dissection", table(head, rows), note)
