"""report.html: one self-contained page from plain dicts."""

from html import escape
from typing import Any

from .plots import bars, widths

STYLE = """
:root { color-scheme: light; --ink: #1c2733; --pale: #5b6b7a; --line: #dde3e9; --good: #1b7a43; --bad: #a63a24 }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 980px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 36px 0 8px }
p { margin: 6px 0 } .pale { color: var(--pale) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 }
.card { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px }
.card b { display: block; font-size: 22px; line-height: 1.25 } .card span { color: var(--pale); font-size: 13px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child, th.text { text-align: left } td.text { text-align: left; white-space: normal; min-width: 180px }
th { color: var(--pale); font-weight: 600 } .good { color: var(--good) } .bad { color: var(--bad) }
svg { max-width: 100%; height: auto; display: block } .wide svg { min-width: 620px }
"""


def html(report: dict[str, Any]) -> str:
    """The report of one `compress` run; every figure comes from the dict."""
    stages = {s["name"]: s for s in report["stages"]}
    parts = [
        _head(report, stages),
        _cards(report),
        section("Before and after", _sides(report), _accuracy_note(report)),
        section("Latency in ONNX Runtime", _latency(stages["bench"]), _machine(report)),
    ]
    rows = stages.get("rivals", {}).get("rows")
    if rows:
        note = "The simple ways, given the same images and epochs. Where one of them wins, take it."
        parts.append(section("Beside the simple ways", _rivals(report, rows, stages), note))
    prune = stages["prune"]
    kept = prune["keep"]
    chart = widths({n: w[0] for n, w in prune["widths"].items()}, {n: w[1] for n, w in prune["widths"].items()})
    note = "Filters of each group, named after its first layer: outline before, filled after."
    parts.append(section("Widths", f'<div class="scroll wide">{chart}</div>', note))
    chart = bars(stages["rank"]["scores"], kept)
    note = f"Score of every filter by {escape(stages['rank']['ranker'])}, higher = keep; filters that were cut are pale."
    parts.append(section("Ranking", f'<div class="scroll wide">{chart}</div>', note))
    if "result" in stages.get("specialize", {}):
        parts.append(_head_section(report, stages["specialize"]))
    parts.append(section("What each stage did", _stages(report["stages"]), f"{report['seconds']:.0f} s in all."))
    body = "\n".join(parts)
    title = f"slimrank: {escape(str(report['model']))}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def section(title: str, content: str, note: str = "") -> str:
    told = f'<p class="pale">{note}</p>' if note else ""
    return f"<h2>{escape(title)}</h2>\n{told}\n{content}"


def table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(h if h.startswith("<th") else f"<th>{h}</th>" for h in head)
    body = "\n".join("<tr>" + "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(report: dict[str, Any], stages: dict[str, Any]) -> str:
    data = report["options"].get("data")
    budget = ", ".join(f"{k} {v:g}" for k, v in stages["prune"]["budget"].items())
    on = f"on <code>{escape(data)}</code>" if data else "without data"
    return (
        f"<h1>{escape(str(report['model']))}, compressed</h1>\n"
        f'<p class="pale">Ranked by {escape(stages["rank"]["ranker"])}, budget {escape(budget)}, {on}. '
        f"slimrank {escape(report['slimrank'])}.</p>"
    )


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2%}"


def _cards(report: dict[str, Any]) -> str:
    before, after = report["baseline"], report["compressed"]
    cards = []
    for new, old in zip(after["latency"], before["latency"], strict=True):
        ratio = old["median_ms"] / new["median_ms"]
        label = f"as fast, batch {new['batch']}" + (f", {new['threads']} threads" if new["threads"] > 1 else "")
        cards.append((f"{ratio:.2f}x", label, "good" if ratio > 1.02 else "bad"))
    cards.append((f"{after['macs'] / before['macs']:.0%}", "of the MACs", ""))
    cards.append((f"{after['bytes'] / before['bytes']:.0%}", "of the ONNX file", ""))
    if after["top1"] is not None:
        cards.append((f"{100 * (after['top1'] - before['top1']):+.2f}", "points of top-1 (test)", ""))
    made = "".join(f'<div class="card"><b class="{c}">{b}</b><span>{s}</span></div>' for b, s, c in cards)
    return f'<div class="cards">{made}</div>'


def _sides(report: dict[str, Any]) -> str:
    before, after = report["baseline"], report["compressed"]
    rows = [["top-1, test", _percent(before["top1"]), _percent(after["top1"]), ""]]
    if after["top1"] is not None:
        rows[0][3] = f"{100 * (after['top1'] - before['top1']):+.2f} points"
    for key, label in (
        ("macs", "MACs an image"),
        ("flops", "FLOPs an image"),
        ("params", "parameters"),
        ("bytes", "bytes, ONNX"),
    ):
        rows.append([label, f"{before[key]:,}", f"{after[key]:,}", f"{after[key] / before[key]:.1%}"])
    return table(["", "before", "after", "kept"], rows)


def _accuracy_note(report: dict[str, Any]) -> str:
    n = report["test_images"]
    if n is None:
        return "No data was given: accuracy is not measured, parity was checked on random inputs."
    seen = report["validation_seen_in_training"]
    if seen is None and str(report["options"].get("validation", "")).startswith("train"):
        told = (
            " It is not known whether the checkpoint saw the validation images in training; "
            "<code>--validation test:0.2</code> is the safe choice for a foreign checkpoint."
        )
    else:
        told = ""
    return f"Accuracy on {n:,} test images, which nothing was chosen on.{told}"


def _latency(bench: dict[str, Any]) -> str:
    base = {(r["provider"], r["batch"], r["threads"]): r["median_ms"] for r in bench["results"] if r["model"] == "baseline"}
    rows = []
    for r in bench["results"]:
        ratio = base[r["provider"], r["batch"], r["threads"]] / r["median_ms"]
        rows.append([
            escape(r["model"]), str(r["batch"]), f"{r['median_ms']:.3f}", "" if r["model"] == "baseline" else f"{ratio:.2f}x",
            f"{r['p10_ms']:.3f}", f"{r['p90_ms']:.3f}", str(r["threads"]), r["provider"],
        ])  # fmt: skip
    return table(["model", "batch", "median ms", "speedup", "p10", "p90", "threads", "provider"], rows)


def _machine(report: dict[str, Any]) -> str:
    m = report["machine"]
    return escape(
        f"All models in one interleaved run. {m['processor']}, {m['cores']} cores, onnxruntime {m['onnxruntime']}, "
        f"torch {m['torch']}, Python {m['python']}."
    )


def _rivals(report: dict[str, Any], rows: list[dict[str, Any]], stages: dict[str, Any]) -> str:
    ours = report["compressed"]
    times = {(r["model"], r["batch"]): r["median_ms"] for r in stages["bench"]["results"]}
    batch = min(r["batch"] for r in stages["bench"]["results"])
    made = [["<b>this model</b>", _percent(ours["top1"]), f"{ours['macs']:,}", f"{times['compressed', batch]:.3f}"]]
    for row in rows:
        key = "baseline" if row["name"].startswith("dense") else row["name"].split(",")[0]
        made.append(
            [
                f'<td class="text">{escape(row["name"])}</td>',
                _percent(row["top1"]),
                f"{row['macs']:,}",
                f"{times[key, batch]:.3f}",
            ]
        )
    return table(["", "top-1, test", "MACs", f"ms, batch {batch}"], made)


def _head_section(report: dict[str, Any], stage: dict[str, Any]) -> str:
    result = stage["result"]
    classes = report["classes"] or [str(i) for i in range(len(result["indices"]))]
    rows = []
    for name, index in list(zip(classes, result["indices"], strict=True))[:200]:
        shown = ", ".join(map(str, index[:64])) + (" ..." if len(index) > 64 else "")
        rows.append([escape(name), f'<td class="text">{shown}</td>'])
    note = (
        f"{escape(stage['says'])}. For each class, the {result['k2']} features (numbered as in the input checkpoint) that its "
        f"logit can be told from (chosen by {result['select']}, fitted by {result['fit']}). On validation: dense "
        f"{_percent(result['top1_dense'])}, subspaces {_percent(result['top1_head'])}; head MACs "
        f"{result['head_macs_before']:,} to {result['head_macs_after']:,}."
    )
    return section("Class-specific subspaces", table(["class", '<th class="text">features</th>'], rows), note)


def _stages(stages: list[dict[str, Any]]) -> str:
    rows = [[escape(s["name"]), f"{s['seconds']:.1f}", f'<td class="text">{escape(s["says"])}</td>'] for s in stages]
    return table(["stage", "seconds", '<th class="text">what</th>'], rows)
