"""Does every CNN family of torchvision go through the whole chain?

    python benchmarks/zoo.py --data folder:tiny-imagenet-200 --minutes 30

Each network of zoo.txt, 200 classes, weights scaled on real images so that its logits differ (no pretrained weights are at
hand): a plain .pt -> `prune --ranker l1 --macs 0.5` (which inspects and ranks) -> slim checkpoint -> in a fresh process
`export`, which loads it, writes ONNX and compares it with PyTorch on 64 test images in ONNX Runtime. `masked_sliced` is the
largest difference between masked and sliced logits in float64 over the logits' spread; `parity` the same between ONNX
Runtime and PyTorch in float32 (limit 1e-4); `moved` is how far the cut itself moved them (were it 0, nothing would be
shown). `pinned`: groups that cannot be cut, by reason. Rows are saved as they come. `--inspect` asks less, of every CNN
constructor that torchvision has: random weights through `inspect` (results/zoo_inspect.json).
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.cli import main as slimrank
from slimrank.compress.channels.masking import masked
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load
from slimrank.compress.pruning.surgery import cut
from slimrank.evaluate.data import Preprocessing, open_data

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from toy_models import lively  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--inspect", action="store_true")
    args = parser.parse_args()
    if args.inspect:
        return inspected(args.minutes)
    rows = Rows("zoo", args.minutes, torch=torch.__version__)
    try:
        for name in (HERE / "zoo.txt").read_text().split():
            rows.row(name, lambda name=name: tried(lambda: measure(name, args.data)))
    except OutOfTime:
        print("out of time; run again to go on")
    passed = [n for n, row in rows.value["rows"].items() if row.get("parity", 1) < 1e-4 and row.get("masked_sliced", 1) < 1e-9]
    print(f"{len(passed)} of {len(rows.value['rows'])} passed")


def inspected(minutes: float | None) -> None:
    rows = Rows("zoo_inspect", minutes, torch=torch.__version__)

    def row(name: str) -> dict:
        model, size = zoo.build(name).eval(), zoo.preprocessing(name, 3).shape[1]
        channels = channel_map(model, torch.randn(1, 3, size, size))
        groups = channels.groups
        return {
            "classifier": channels.classifier, "groups": len(groups), "prunable": sum(g.prunable for g in groups),
            "macs": channels.macs(model, channels.removed({})), "why": dict(Counter(g.why for g in groups if not g.prunable)),
        }  # fmt: skip

    networks = [name for name in zoo.names() if name not in zoo.OWN]
    for name in networks:
        rows.row(name, lambda name=name: tried(lambda: row(name)))
    print(f"{sum('failed' not in rows[name] for name in networks)} of {len(networks)} pass inspect")


def tried(make) -> dict:
    try:
        return make()
    except Exception as error:  # a crash is a result
        return {"failed": f"{type(error).__name__}: {error}"}


def measure(name: str, spec: str) -> dict:
    began = time.perf_counter()
    torch.manual_seed(0)
    size = zoo.preprocessing(name, 3).shape[1]
    images = open_data(spec, Preprocessing.default(3, size), limit=16).split("train")
    x = images.preprocessing.normalise(images.pixels(torch.arange(16)))
    with tempfile.TemporaryDirectory() as folder:
        given, slim, onnx = (Path(folder) / n for n in ("given.pt", "slim.safetensors", "slim.onnx"))
        torch.save(lively(zoo.build(name, {"num_classes": 200}), x).state_dict(), given)
        done = run("prune", given, "--model", name, "--ranker", "l1", "--macs", 0.5, "-o", slim)
        model = load(given, model=name).model.double()
        channels = channel_map(model, x[:1].double())
        gone = channels.removed(done["keep"])
        with torch.inference_mode():
            plain = model(x[:4].double())
        with torch.inference_mode(), masked(model, channels, gone):
            expected = model(x[:4].double())
        with torch.inference_mode():
            found = cut(model, channels, gone)(x[:4].double())
        row = {
            "macs": round(done["macs_after"] / done["macs_before"], 4),
            "params": round(done["params_after"] / done["params_before"], 4),
            "masked_sliced": float((found - expected).abs().max() / expected.std()),
            "moved": float((expected - plain).abs().max() / plain.std()),
            "pinned": dict(Counter(group.why for group in channels.groups if not group.prunable)),
            "prunable": sum(group.prunable for group in channels.groups),
        }
        words = ["export", slim, "--data", spec, "--limit", 64, "--json", "-o", onnx]
        made = subprocess.run([sys.executable, "-m", "slimrank.cli", *map(str, words)], capture_output=True, text=True)
        if made.returncode:
            return {**row, "failed": made.stderr.strip().splitlines()[-1]}
        fresh = json.loads(made.stdout)
        row |= {"parity": fresh["relative"], "agreement": fresh["agreement"], "images": fresh["images"]}
        row["onnx_bytes"] = [given.stat().st_size, fresh["bytes"]]
    return {**row, "seconds": round(time.perf_counter() - began, 1)}


def run(*words) -> dict:
    """A verb in this process; its JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as told:
        status = slimrank([*map(str, words), "--json"])
    if status:
        raise RuntimeError(told.getvalue().strip().splitlines()[-1])
    return json.loads(out.getvalue())


if __name__ == "__main__":
    main()
