"""The recipes that ship, beside `compress` without any and beside plain pruning: accuracy against latency, MACs and bytes.

    python benchmarks/recipes.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg \
        --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200

Every row is a `slimrank compress` with the same images of each split, seed and epochs (recipe no-labels: none, it trains
nothing); then all files are timed in one interleaved run, one image on one thread. Rivals: the dense network and random
filters, trained equally long; `plain`: uniform L1 pruning to half of the MACs, as it is usually done, without slimrank's
alignment and repair. Folders of runs stay in --work, so a second call goes on. The rows, merged by `slimrank report`, go to
results/recipes.json, and the picture of the README to docs/front.svg (--picture alone draws it from that file).
"""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace

from rows import RESULTS, two_networks

from slimrank.cli import main as slimrank
from slimrank.evaluate.latency import compare
from slimrank.evaluate.pages.front import Panel, Point, front
from slimrank.evaluate.pages.merged import Merged, read_runs
from slimrank.evaluate.pages.merged import front as front_of
from slimrank.evaluate.pages.plots import alone
from slimrank.files import write_json

PICTURE = Path(__file__).parents[1] / "docs" / "front.svg"
TRAINED = ("--epochs", "1", "--head", "linear")
RUNS = {
    "default": ("--epochs", "1", "--batch", "1", "--rivals"),
    "plain": (*TRAINED, "--batch", "1", "--ranker", "l1", "--align", "1", "--no-reconstruct", "--no-recalibrate"),
    "fastest-cpu": (*TRAINED, "--recipe", "fastest-cpu"),
    "smallest-file": (*TRAINED, "--batch", "1", "--recipe", "smallest-file"),
    "no-labels": ("--batch", "1", "--head", "linear", "--recipe", "no-labels"),
}


def merged(network: str, words: list[str], folder: Path, end: float) -> dict:
    """Run what is not done yet of one network's runs, and begin none after `end`; those that are done, merged."""
    for name, more in RUNS.items():
        if not (folder / name / "report.json").exists() and time.monotonic() < end:
            print(f"{network}: {name}", flush=True)
            if slimrank(["compress", *words, *more, "-o", str(folder / name)]):
                raise SystemExit(f"{network}: {name} failed")
    found = Merged(read_runs([folder / name for name in RUNS if (folder / name / "report.json").exists()]))
    rows = [{**row, "run": Path(row["run"]).name} for row in found.to_dict()["rows"]]
    kind, _, place = words[words.index("--data") + 1].partition(":")
    groups = [
        {**group, "images": group["images"].replace(f"{kind}:{place}", f"{kind}:{Path(place).name}")}  # of this machine
        for group in found.to_dict()["groups"]
    ]
    told = [word.replace(place, Path(place).name) for word in words[1:]]
    return {"words": told, "groups": groups, "rows": rows, **timed_together(rows, folder)}


def timed_together(rows: list[dict], folder: Path) -> dict:
    """Time all files in one interleaved run, in place of each run's own times; the machine, and what it was busy with."""
    files = {f"{i}": file_of(row, folder) for i, row in enumerate(rows)}
    timed = compare(files, batches=[1], seconds=3.0)
    speedups = {row.model: (row.speedup, row.low, row.high) for row in timed.speedups}
    for i, row in enumerate(rows):
        row["speedup"], *row["interval"] = speedups.get(f"{i}", (1.0, 1.0, 1.0))
        row["latency_ms"] = timed.results[i].median_ms
        del row["latency"]
    some = [SimpleNamespace(top1=row["top1"], latency=1 / row["speedup"], row=row) for row in rows]
    best = [one.row for one in front_of(some, "top1", "latency")]
    for row in rows:
        row["front"] = [cost for cost in row["front"] if cost != "latency"] + (["latency"] if row in best else [])
    return {"machine": timed.machine.to_dict(), "remarks": timed.remarks()}


def file_of(row: dict, folder: Path) -> Path:
    dense = row["kind"] == "dense" or row["name"].startswith("dense model")
    kinds = {"slimrank": "model.onnx", "float": "model-float.onnx", "rival": "stages/rival-random.onnx"}
    return folder / row["run"] / ("stages/dense.onnx" if dense else kinds[row["kind"]])


def picture(found: dict) -> str:
    """The fronts of one network, as an SVG file: time as a share of the dense network's, and bytes."""
    costs = {
        "latency": ("time of an image on one thread, dense = 1", lambda row: 1 / row["speedup"]),
        "bytes": ("ONNX file, MB", lambda row: row["bytes"] / 1e6),
    }
    panels = []
    for on, (label, cost) in costs.items():
        points = [
            Point(cost(row), row["top1"], named(row), looks(row), on in row["front"], named(row), f"{on}-{i}")
            for i, row in enumerate(found["rows"])
        ]
        panels.append(Panel(label, points))
    return alone(front(panels, "top-1 on test images", width=4.6, height=3.1))


def named(row: dict) -> str:
    """A row in a word or three: the run, or what stands beside it."""
    others = {"dense": "dense", "float": f"{row['run']}, float", "rival": row["name"].split(",")[0]}
    return others.get(row["kind"], row["run"]).replace("dense model", "dense, trained on")


def looks(row: dict) -> str:
    return "rival" if row["run"] == "plain" else row["kind"]


def main() -> None:
    parser = two_networks(__doc__)
    for action in parser._actions:
        action.required = False
    parser.add_argument("--work", type=Path, default=Path("recipes-runs"))
    parser.add_argument("--limit", type=int, default=1500)
    parser.add_argument("--picture", action="store_true", help="draw the picture from results/recipes.json, run nothing")
    args: argparse.Namespace = parser.parse_args()
    if not args.picture:
        limit = ["--validation", "test:0.2", "--limit", str(args.limit)]
        networks = {
            "resnet18": [args.tiny_checkpoint, "--model", "resnet18", "--size", "64", "--data", args.tiny],
            "resnet20": [args.checkpoint, "--model", "resnet20-cifar", "--data", args.data],
        }
        end = time.monotonic() + 60 * (args.minutes if args.minutes is not None else 1e6)
        made = {
            name: merged(name, [*map(str, words), *limit], args.work / name, end)
            for name, words in networks.items()
            if words[0] is not None
        }
        write_json(RESULTS / "recipes.json", made)
    found = json.loads((RESULTS / "recipes.json").read_text())
    PICTURE.write_text(picture(found["resnet18"]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
