"""int8 after pruning: how fast, how small, how right, and what the strongest simple rivals come to.

    python benchmarks/int8.py --checkpoint resnet18-tiny-imagenet.pt --data folder:tiny-imagenet-200 \
        [--lite0 efficientnet-lite0-57934424.pth --images images:imagenet-sample-1000/test] [--cache FOLDER] [--rerun]

resnet18 on Tiny ImageNet: half of the MACs by fpgm, whole blocks of channels, repaired on 4,000 training images, nothing
trained; validation images, which int8 is decided on, are a fifth of val/, accuracy is on 5,000 of the others. Rivals: the
dense network in int8, the pruned one in float, and plain int8: every layer, least and greatest values, no search.
EfficientNet-Lite0 on the sample of ImageNet without labels (published preprocessing), 200 images each to calibrate, to decide
and to judge: decisions as the dense network's. mobilenet_v2 has random weights: time alone. Files lie in --cache; times of all
files of a network are from one interleaved run on one thread, at batch 1 and 8, against dense float; `--rerun` takes them
anew. Times want a quiet machine: without one, run with `--no-times` and again later. What the clock decides (which layers
stay float) was then decided on a busy one.
Rows are saved as they come to results/int8.json, with the processor. Printed figures are those of docs/results.md.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.compress.network.checkpoint import Checkpoint, load, save
from slimrank.compress.network.zoo import build
from slimrank.compress.pruning.options import Cut
from slimrank.compress.stages.export import CALIBRATION_IMAGES, onnx_metadata
from slimrank.compress.stages.measure import Decided, agreement, decided_by
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.stages.prune import prune
from slimrank.evaluate.data import Data, Preprocessing, open_data
from slimrank.evaluate.latency import compare, machine
from slimrank.evaluate.runner import Runner
from slimrank.evaluate.timing import Timing
from slimrank.export.calibration import calibrate
from slimrank.export.int8 import OPS, FloatFile, int8_to_time
from slimrank.export.mixed import mixed
from slimrank.export.to_onnx import export as to_onnx
from slimrank.export.to_onnx import size

BATCHES = (1, 8)


def halved(given: Checkpoint, data: Data, path: Path) -> Checkpoint:
    """Half of the MACs, repaired; kept in `path`."""
    if not path.exists():
        options = PruneOptions(ranker="fpgm", cut=Cut(macs=0.5))
        save(prune(given, data, options, measured=False).checkpoint, path)
    return load(path, model=given.name)


def plain(path: Path, out: Path, data: Data) -> Path:
    """int8 as a few lines around ONNX Runtime make it: every layer, least and greatest values."""
    if not out.exists():
        images = data.split("train").sample(CALIBRATION_IMAGES, 0)
        FloatFile(path).write(out, calibrate(path, (x for x, _ in images.batches(4)), OPS)["minmax"])
    return out


def judged(path: Path, data: Data, dense: Decided | None) -> tuple[Decided, dict]:
    """What a file decides on test images; its top-1, and how often it decides as the dense network does."""
    found = decided_by(Runner(path, threads=torch.get_num_threads()), data)
    same = 1.0 if dense is None else agreement(dense, found)
    return found, {"bytes": size(path), "top1": found.top1, "agreement": round(same, 4), "images": len(found.classes)}


def searched(path: Path, out: Path, data: Data) -> dict:
    """Our own int8 of a float file: what the search came to. Where int8 does not pay, there is no file."""
    calibration, validation = (
        data.split(split).sample(n, 0) for split, n in (("train", CALIBRATION_IMAGES), ("validation", 1000))
    )
    found = mixed(path, out, calibration, validation, Timing(batch=(1,))).to_dict()
    return {key: found[key] for key in ("taken", "method", "methods", "layers", "floats", "images")}


def network(rows: Rows, name: str, given: Checkpoint, data: Data, folder: Path) -> None:
    """Every file of a network: its bytes and decisions."""
    folder.mkdir(parents=True, exist_ok=True)
    dense: list[Decided] = []

    def row(path: Path, **more) -> dict:
        if not dense:
            dense.append(judged(folder / "dense.onnx", data, None)[0])
        return {**judged(path, data, dense[0])[1], **more}

    for source in ("dense", "fpgm") if name == "resnet18" else ("dense",):
        path = folder / f"{source}.onnx"
        if not path.exists():
            made = given if source == "dense" else halved(given, data, folder / "fpgm.safetensors")
            to_onnx(made.model, made.example(), path, onnx_metadata(made))
        rival, ours = (folder / f"{source}-{kind}.onnx" for kind in ("plain", "int8"))
        rows.row(f"{name} {source} float", lambda p=path: row(p))
        rows.row(f"{name} {source} plain int8", lambda p=path, out=rival: row(plain(p, out, data)))
        rows.row(f"{name} {source} int8", lambda p=path, out=ours: in_int8(p, out, data, row))


def in_int8(path: Path, out: Path, data: Data, row: Callable[..., dict]) -> dict:
    search = searched(path, out, data)
    return row(out if search["taken"] else path, search=search)


def mobilenet(folder: Path) -> None:
    """mobilenet_v2 with random weights, half of it, and both in int8: for their time."""
    if folder.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    made = Checkpoint(build("mobilenet_v2").eval(), "mobilenet_v2", {}, Preprocessing.default(3, 224))
    cut = prune(made, None, PruneOptions(ranker="l1", cut=Cut(macs=0.5)), measured=False).checkpoint
    for name, one in (("dense", made), ("l1", cut)):
        path = to_onnx(one.model, one.example(), folder / f"{name}.onnx", {})
        int8_to_time(path, folder / f"{name}-plain.onnx", made.example(2))


def times(rows: Rows, name: str, folder: Path, rerun: bool) -> None:
    """All files of a network in one interleaved run."""
    files = {path.stem: path for path in sorted(folder.glob("*.onnx"), key=lambda path: path.stem != "dense")}
    if rerun:
        rows.value["rows"].pop(f"{name} times", None)

    def timed() -> dict:
        found = compare(files, batches=BATCHES, threads=(1,), seconds=3)
        speedups = {(row.model, row.batch): (row.speedup, row.low, row.high) for row in found.speedups}
        return {
            "processor": machine().to_dict(), "busy": found.busy,
            "rows": [
                {"file": r.model, "batch": r.batch, "ms": round(r.median_ms, 3), "speedup": speedups.get((r.model, r.batch))}
                for r in found.results
            ],
        }  # fmt: skip

    rows.row(f"{name} times", timed)


def table(rows: Rows, name: str) -> None:
    """Print the files of a network: speedups, bytes, top-1 and agreement with the dense network."""
    found = rows.value["rows"]
    timed = {(r["file"], r["batch"]): r["speedup"] or (1.0,) for r in found.get(f"{name} times", {}).get("rows", [])}
    print(f"  {name:32}{'batch 1':>9}{'batch 8':>9}{'bytes':>12}{'top-1':>8}{'agreement':>11}")
    for key, row in found.items():
        if not key.startswith(f"{name} ") or "bytes" not in row:
            continue
        source, kind = key.removeprefix(f"{name} ").split(" ", 1)
        file = {"float": source, "plain int8": f"{source}-plain", "int8": f"{source}-int8"}[kind]
        speeds = "".join(f"{timed.get((file, batch), (float('nan'),))[0]:8.2f}x" for batch in BATCHES)
        top1 = "" if row["top1"] is None else f"{row['top1']:.4f}"
        print(f"  {key.removeprefix(name + ' '):32}{speeds}{row['bytes']:12,}{top1:>8}{row['agreement']:11.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="resnet18 on Tiny ImageNet")
    parser.add_argument("--data", metavar="SPEC", help="Tiny ImageNet")
    parser.add_argument("--lite0", type=Path, metavar="FILE", help="EfficientNet-Lite0")
    parser.add_argument("--images", metavar="SPEC", help="pictures of ImageNet, unlabelled")
    parser.add_argument("--cache", type=Path, default=Path("int8-files"), help="folder of the files that are made")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--rerun", action="store_true", help="time anew")
    parser.add_argument("--no-times", action="store_true", help="leave out what wants a quiet machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows("int8", args.minutes, torch=torch.__version__, processor=machine().to_dict())
    names = []
    try:
        if args.checkpoint and args.data:
            names.append("resnet18")
            given = load(args.checkpoint, model="resnet18", size=64)
            data = open_data(args.data, given.preprocessing, validation="test:0.2", limit=5000)
            network(rows, "resnet18", given.with_classes(data), data, args.cache / "resnet18")
        if args.lite0 and args.images:
            names.append("lite0")
            seen = {"size": 224, "resize": 256, "interpolation": "bilinear", "mean": (0.498,) * 3, "std": (0.502,) * 3}
            given = load(args.lite0, model="head_imagenet:lite0", **seen)
            data = open_data(args.images, given.preprocessing, validation="train:0.5", limit=200)
            network(rows, "lite0", given, data, args.cache / "lite0")
        names.append("mobilenet_v2")
        mobilenet(args.cache / "mobilenet_v2")
        for name in names if not args.no_times else ():
            times(rows, name, args.cache / name, args.rerun)
    except OutOfTime:
        print("out of time; run again to go on")
    for name in names:
        table(rows, name)


if __name__ == "__main__":
    main()
