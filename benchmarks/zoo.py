"""Does every CNN family of torchvision go through the whole chain?

    python benchmarks/zoo.py --data folder:tiny-imagenet-200 --minutes 30

Each network of zoo.txt, 200 classes, weights scaled on real images so that its logits differ (no pretrained weights are at
hand): a plain .pt -> `prune --ranker l1 --macs 0.5` (which inspects and ranks) -> slim checkpoint -> in a fresh process
`export`, which loads it, writes ONNX and compares it with PyTorch on 64 test images in ONNX Runtime. `masked_sliced` is the
largest difference between masked and sliced logits in float64 over the logits' spread; `parity` the same between ONNX
Runtime and PyTorch in float32 (limit 1e-4); `moved` is how far the cut itself moved them (were it 0, nothing would be
shown). `pinned`: groups that cannot be cut, by reason. Rows are saved as they come. `--inspect` asks less, of every CNN
constructor that torchvision has: random weights through `inspect` (results/zoo_inspect.json).

`--timm` takes the networks of zoo_timm.txt, which was committed before any result: every convolutional family of timm 1.0,
at 64 pixels (96 where 64 are too few), exported in the same process (results/zoo_timm.json). Layer scales and gains that
start at nothing are set to 0.2 to 0.5, or the blocks behind them would not count. `reloaded` is the difference between the
slim file's network and the sliced one, over the spread.
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
from slimrank.compress.network.hf_models import weights
from slimrank.compress.pruning.surgery import cut
from slimrank.evaluate.data import Preprocessing, open_data

HERE = Path(__file__).parent
LARGER = ("inception_resnet_v2", "inception_v3", "inception_v4", "nasnetalarge", "pnasnet5large", "legacy_xception")
sys.path.insert(0, str(HERE.parent / "tests"))
from toy_models import lively  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--inspect", action="store_true")
    parser.add_argument("--timm", action="store_true")
    args = parser.parse_args()
    if args.inspect:
        return inspected(args.minutes)
    kind = "zoo_timm" if args.timm else "zoo"
    rows = Rows(kind, args.minutes, torch=torch.__version__)
    try:
        for name in (HERE / f"{kind}.txt").read_text().split():
            full, size = (f"timm/{name}", 96 if name in LARGER else 64) if args.timm else (name, None)
            rows.row(name, lambda full=full, size=size: tried(lambda: measure(full, args.data, size)))
    except OutOfTime:
        print("out of time; run again to go on")
    passed = [n for n, row in rows.value["rows"].items() if passes(row)]
    print(f"{len(passed)} of {len(rows.value['rows'])} passed")


def passes(row: dict) -> bool:
    """Within 2 % of half of the MACs, masked == sliced, parity."""
    exact = row.get("parity", 1) < 1e-4 and row.get("masked_sliced", 1) < 1e-9
    return exact and 0.49 <= row["macs"] <= 0.51


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


def awake(model: torch.nn.Module) -> torch.nn.Module:
    """Give layer scales and gains that start at nothing a value."""
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and float(parameter.detach().abs().max()) <= 1e-4:
            parameter.data.uniform_(0.2, 0.5)
    return model


def measure(name: str, spec: str, smaller: int | None) -> dict:
    """Make one row. `smaller`: pixels a side, where the network's own size takes too long; then in this process alone."""
    torch.manual_seed(0)
    size = smaller or zoo.preprocessing(name, 3).shape[1]
    x = pictures(spec, size)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.pt"
        torch.save(lively(awake(zoo.build(name, {"num_classes": 200})), x).state_dict(), given)
        return chain(given, {"model": name, "size": size}, x, spec, afresh=not smaller)


def pictures(spec: str, size: int) -> torch.Tensor:
    """16 training images, as a network of that size sees them."""
    images = open_data(spec, Preprocessing.default(3, size), limit=16).split("train")
    return images.preprocessing.normalise(images.pixels(torch.arange(16)))


def chain(given: Path, reading: dict, x: torch.Tensor, spec: str, afresh: bool) -> dict:
    """Take a checkpoint through the whole chain; `reading`: how it is read; `afresh`: export in a process of its own."""
    began = time.perf_counter()
    slim, onnx = given.with_name("slim.safetensors"), given.with_name("slim.onnx")
    said = [word for key, value in reading.items() for word in (f"--{key}", value)]
    done = run("prune", given, *said, "--ranker", "l1", "--macs", 0.5, "-o", slim)
    model = load(given, **reading).model.double()
    channels = channel_map(model, x[:1].double())
    gone = channels.removed(done["keep"])
    with torch.inference_mode():
        plain = model(x[:4].double())
    with torch.inference_mode(), masked(model, channels, gone):
        expected = model(x[:4].double())
    with torch.inference_mode():
        found = cut(model, channels, gone)(x[:4].double())
        reloaded = load(slim).model.double()(x[:4].double())
    row = {
        "macs": round(done["macs_after"] / done["macs_before"], 4),
        "params": round(done["params_after"] / done["params_before"], 4),
        "masked_sliced": float((found - expected).abs().max() / expected.std()),
        "reloaded": float((found - reloaded).abs().max() / expected.std()),
        "moved": float((expected - plain).abs().max() / plain.std()),
        "pinned": dict(Counter(group.why for group in channels.groups if not group.prunable)),
        "prunable": sum(group.prunable for group in channels.groups),
    }
    words = ["export", slim, "--data", spec, "--limit", 64, "-o", onnx]
    try:
        fresh = run_afresh(*words) if afresh else run(*words)
    except RuntimeError as error:
        return {**row, "failed": str(error)}
    row |= {"parity": fresh["relative"], "agreement": fresh["agreement"], "images": fresh["images"]}
    bytes_before = weights(given).stat().st_size
    return {**row, "onnx_bytes": [bytes_before, fresh["bytes"]], "seconds": round(time.perf_counter() - began, 1)}


def run(*words) -> dict:
    """A verb in this process; its JSON."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()) as told:
        status = slimrank([*map(str, words), "--json"])
    if status:
        raise RuntimeError(told.getvalue().strip().splitlines()[-1])
    return json.loads(out.getvalue())


def run_afresh(*words) -> dict:
    """A verb in a process of its own; its JSON."""
    made = subprocess.run([sys.executable, "-m", "slimrank.cli", *map(str, words), "--json"], capture_output=True, text=True)
    if made.returncode:
        raise RuntimeError(made.stderr.strip().splitlines()[-1])
    return json.loads(made.stdout)


if __name__ == "__main__":
    main()
