"""How much time do half of the MACs save in ONNX Runtime, and does --latency 0.5 keep its word?

    python benchmarks/prune_latency.py --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200

resnet18 (the Tiny ImageNet checkpoint, 64x64), resnet50, mobilenet_v2 and vgg16_bn (ImageNet's shapes, random weights: time
does not depend on them). L1, layer scope. `plain`: uniform widths at half of the MACs, any number of channels. `aligned`: the
same in blocks of the runtime. `timed`: --macs 0.5 --timed, every layer's cost measured first, cut where time goes. `latency`:
--latency 0.5 at batch 1, one thread. `latency batch N`: the same at that batch. Costs are measured once, at both batches.
Every file runs interleaved with the dense one; speedups are ratios of medians in that run. For resnet18 also what each cut
costs: top-1 on test as cut (BatchNorm recalibrated) and after one epoch of 20,000 images. Rows are saved as they come.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load
from slimrank.compress.pruning.budget import costs_for, plan
from slimrank.compress.pruning.options import Cut
from slimrank.compress.pruning.plan import PruningPlan
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.stages.repair import recalibrated
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data
from slimrank.evaluate.latency import compare, machine
from slimrank.evaluate.timing import Timing
from slimrank.export.to_onnx import export

NETWORKS = {"resnet18": (64, (1, 32)), "resnet50": (224, (1, 8)), "mobilenet_v2": (224, (1, 32)), "vgg16_bn": (224, (1, 8))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-checkpoint", type=Path, required=True)
    parser.add_argument("--tiny", required=True)
    parser.add_argument("--only", choices=list(NETWORKS))
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    rows = Rows("prune_latency", args.minutes, **machine().to_dict())
    try:
        for name in [args.only] if args.only else NETWORKS:
            rows.row(name, lambda name=name: measure(name, args.tiny_checkpoint))
        for way in rows["resnet18"]["keep"] if "resnet18" in rows else ():
            keep = rows["resnet18"]["keep"][way]
            rows.row(f"resnet18 top-1, {way}", lambda keep=keep: accuracies(args.tiny_checkpoint, args.tiny, keep))
    except OutOfTime:
        print("out of time; run again to go on")


def measure(name: str, tiny: Path) -> dict:
    began = time.perf_counter()
    torch.manual_seed(0)
    size, batches = NETWORKS[name]
    model = (load(tiny, model="resnet18", size=size).model if name == "resnet18" else zoo.build(name)).eval()
    example = torch.randn(2, 3, size, size)
    channels = channel_map(model, example[:1])
    scores = RANKERS["l1"](model, channels)
    cuts = {
        "plain": (Cut(macs=0.5, align=1), batches),
        "aligned": (Cut(macs=0.5), batches),
        "timed": (Cut(macs=0.5, timed=True), batches),
        "latency": (Cut(latency=0.5), batches[:1]),
        f"latency batch {batches[1]}": (Cut(latency=0.5), batches[1:]),
    }
    costs = None  # measured once, at both batch sizes
    row: dict = {"macs": {}, "params": {}, "asked": {}, "seconds": {}, "keep": {}}
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": export(model, example, Path(folder) / "dense.onnx", {})}
        for way, (cut, clocked) in cuts.items():
            start = time.perf_counter()
            costs = costs or costs_for(cut, model, channels, example, Timing(batch=batches))
            made = plan(
                model, channels, scores, cut, example, costs=costs if cut.clocked else None, timing=Timing(batch=clocked)
            )
            row["macs"][way] = round(made.macs_after / made.macs_before, 4)
            row["params"][way] = round(
                channels.params(model, channels.removed(made.keep)) / channels.params(model, channels.removed({})), 4
            )
            row["asked"][way] = made.budget
            if name == "resnet18":
                row["keep"][way] = made.keep
            row["seconds"][way] = round(time.perf_counter() - start, 1)
            files[way] = export(apply_plan(model, channels, made, example), example, Path(folder) / f"{way}.onnx", {})
        found = compare(files, batches=batches, threads=(1, 2), seconds=2.0)
    row["speedup"] = {
        way: {f"batch {s.batch}, threads {s.threads}": round(s.speedup, 3) for s in found.speedups if s.model == way}
        for way in cuts
    }
    row["dense_ms"] = {
        f"batch {r.batch}, threads {r.threads}": round(r.median_ms, 3) for r in found.results if r.model == "dense"
    }
    row["minutes"] = round((time.perf_counter() - began) / 60, 1)
    return row


def accuracies(tiny: Path, spec: str, keep: dict[str, list[int]]) -> dict:
    checkpoint = load(tiny, model="resnet18", size=64)
    data = open_data(spec, checkpoint.preprocessing, validation="test:0.2")
    channels = channel_map(checkpoint.model, checkpoint.example())
    model = apply_plan(checkpoint.model, channels, PruningPlan(keep, 0, 0, {}, "layer", "l1"), checkpoint.example(2))
    model = recalibrated(model, data, PruneOptions(calibration_images=2000))
    before = accuracy(predictor(model), data.test.batches(), 200).top1
    model, training = train(model, data.train, data.validation, Recipe(1, 0.02))
    after = accuracy(predictor(model), data.test.batches(), 200).top1
    return {"before": round(before, 4), "after": round(after, 4), "seconds": round(training.seconds)}


if __name__ == "__main__":
    main()
