"""Which ranker, scope, alignment and recipe should `compress` take? The paper's ResNet-20, CIFAR-10 (JPEG).

    python benchmarks/compress_defaults.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg

Every row: prune to a share of the MACs, fine-tune (2 epochs of 15,000 images, lr 0.05, seed 0), accuracy on validation (a
fifth of the test split, what the choice is made on) and on the rest of it, and ONNX Runtime speedup against dense on one
thread in one interleaved run. `recalibrated`: BatchNorm's statistics anew before training; `taught`: distilled from the
checkpoint. Rivals: the dense model fine-tuned equally long, random filters. Rows are saved as they come to
results/compress_defaults.json; a second call goes on.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network.checkpoint import load
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.stages.repair import recalibrated as anew
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data
from slimrank.evaluate.latency import compare
from slimrank.export.to_onnx import export
from slimrank.files import write_json

RESULTS = Path(__file__).parent / "results" / "compress_defaults.json"
ROWS = [
    {"ranker": "dense"},
    *({"ranker": r, "scope": "layer", "align": 16, "budget": 0.5} for r in ("l1", "influential", "random")),
    *({"ranker": r, "scope": "layer", "align": 1, "budget": 0.5} for r in ("l1", "random")),
    {"ranker": "l1", "scope": "global", "align": 16, "budget": 0.5},
    {"ranker": "l1", "scope": "layer", "align": 8, "budget": 0.5},
    {"ranker": "l1", "scope": "layer", "align": 16, "budget": 0.75},
    {"ranker": "l1", "scope": "layer", "align": 1, "budget": 0.27},  # as fast as 0.5 aligned
    *(
        {"ranker": r, "scope": "layer", "align": 16, "budget": 0.5, "recalibrated": True}
        for r in ("l1", "fpgm", "lamp", "taylor", "influential", "random")
    ),
    {"ranker": "dense", "taught": True},
    *(
        {"ranker": r, "scope": "layer", "align": 16, "budget": 0.5, "recalibrated": True, "taught": True}
        for r in ("l1", "fpgm", "random")
    ),
]
OPTIONS = ("ranker", "scope", "align", "budget", "recalibrated", "taught")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=15)
    args = parser.parse_args()
    stop = time.monotonic() + 60 * args.minutes
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for options in ROWS:
        if any({k: row[k] for k in OPTIONS if k in row} == options for row in found["rows"]):
            continue
        if time.monotonic() > stop:
            print("out of time; call again to go on")
            break
        found["rows"].append({**options, **measure(args.checkpoint, args.data, **options)})
        print(found["rows"][-1], flush=True)
        write_json(RESULTS, found)


def measure(
    path: str, spec: str, ranker: str,
    scope: str = "layer", align: int = 1, budget: float = 0.5, recalibrated: bool = False, taught: bool = False,
) -> dict:  # fmt: skip
    checkpoint = load(path, model="resnet20-cifar")
    data = open_data(spec, checkpoint.preprocessing, validation="test:0.2")
    some = open_data(spec, checkpoint.preprocessing, validation="test:0.2", limit=15_000).train
    model, row = checkpoint.model, {}
    if ranker != "dense":
        channels = channel_map(model, checkpoint.example())
        scores = RANKERS[ranker](model, channels, some.batches(), classes=10, seed=0)
        plan = select(model, channels, scores, macs=budget, scope=scope, align=align)
        model = apply_plan(model, channels, plan, checkpoint.example(2))
        model = anew(model, data, PruneOptions(calibration_images=2000)) if recalibrated else model
        row["macs"] = round(plan.macs_after / plan.macs_before, 4)
    row["test_before"] = accuracy(predictor(model), data.test.batches(), 10).top1
    model, training = train(model, some, None, Recipe(2, 0.05, precision="fp32"), teacher=checkpoint.model if taught else None)
    row["seconds"] = round(training.seconds, 1)
    row["validation"] = accuracy(predictor(model), data.validation.batches(), 10).top1
    row["test"] = accuracy(predictor(model), data.test.batches(), 10).top1
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": checkpoint.model, "cut": model}
        paths = {n: export(m, checkpoint.example(), Path(folder) / f"{n}.onnx", {}) for n, m in files.items()}
        timed = compare(paths, batches=(1, 32))
    row["speedup"] = {f"batch {s.batch}": round(s.speedup, 2) for s in timed.speedups}
    row["machine"] = timed.machine.to_dict()
    return row


if __name__ == "__main__":
    main()
