"""VGG-16 on CIFAR-10 (JPEG), cut by ranking to the paper's two rows and retrained: Table 3 of "Neuron ranking".

    python benchmarks/vgg_cifar.py --data folder:cifar10-jpeg [--device cuda] [--epochs 60] [--minutes M]

Thirteen convs and two hidden linear layers; the paper: 8.6 % error at 34-34-...-62, 9.1 % at 39-39-...-62 (on the original
CIFAR-10; this is recompressed). Training VGG-16 takes hours on two cores: without a GPU the rows say "not run".
"""

import argparse

import torch
from rows import OutOfTime, Rows

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.pruning.plan import PruningPlan
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.compress.stages.finetune import fresh
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data
from slimrank.evaluate.macs import count

PAPER = {
    "8.6 %": (34, 34, 68, 68, 75, 106, 101, 92, 102, 92, 92, 67, 67, 62, 62),
    "9.1 %": (39, 39, 63, 48, 55, 98, 97, 52, 62, 22, 42, 47, 47, 42, 62),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    rows = Rows("vgg_cifar", args.minutes, epochs=args.epochs, seed=0, torch=torch.__version__)
    if args.device == "cpu":
        for error, widths in PAPER.items():
            rows.value["rows"][f"{'-'.join(map(str, widths))} (paper: {error})"] = "not run: no GPU"
        rows.save()
        print("not run: no GPU (--device cuda)")
        return
    classes = [str(i) for i in range(10)]
    checkpoint = fresh("vgg16-cifar", None, classes, 3, None, 0)
    data = open_data(args.data, checkpoint.preprocessing)
    test = data.split("test").batches(device=args.device)

    def tuned(model, epochs: int):
        return train(model, data.split("train"), data.validation, Recipe(epochs, 0.1, device=args.device))[0]

    def measured(model) -> dict:
        top1 = accuracy(predictor(model.to(args.device)), test, 10).top1
        counted = count(model.cpu(), checkpoint.preprocessing.shape)
        return {"error": round(100 * (1 - top1), 2), "params": counted.params, "macs": counted.macs}

    try:
        dense = tuned(checkpoint.model, args.epochs)
        rows.row("dense", lambda: measured(dense))
        channels = channel_map(dense.cpu(), checkpoint.example())
        training = data.split("train").subset(torch.randperm(len(data.split("train")))[:5000]).batches(device=args.device)
        for ranker in ("switch", "l1", "random"):
            scores = RANKERS[ranker](dense.to(args.device), channels, training, classes=10, seed=0)
            for error, widths in PAPER.items():
                keep = {n: sorted(scores.order(n)[-w:]) for n, w in zip(channels.chosen(None), widths, strict=True)}
                smaller = apply_plan(dense.cpu(), channels, PruningPlan(keep, 0, 0, {}, "layer", ranker), checkpoint.example(2))
                key = f"{'-'.join(map(str, widths))} by {ranker} (paper: {error})"
                rows.row(key, lambda smaller=smaller: measured(tuned(smaller, args.epochs)))
    except OutOfTime:
        print("out of time; run again to go on")


if __name__ == "__main__":
    main()
