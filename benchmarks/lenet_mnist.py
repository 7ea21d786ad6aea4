"""LeNet-5 on MNIST cut to 5-7-45-20 and retrained: Table 2 of "Neuron ranking" (Adamczewski & Park). How small can it get?

    python benchmarks/lenet_mnist.py --mnist mnist:DIR [--minutes M]

LeNet 10-20-100-25 is trained (10 epochs), ranked, cut to the widths given and retrained for 20 epochs (SGD, momentum 0.9,
weight decay 5e-4, lr 0.1 falling to 1e-4, shifts of up to three pixels; the epoch that validates best is kept: early stop).
Rivals: random filters, and the same widths from scratch for all 30 epochs. Error on the 10,000 test images, seed 0.
`padding`: the paper mixes two counts, 17K parameters (padding 2: 17,622) and 137K FLOPs (no padding: 134,140 MACs, 137,543 with
biases; that network has 7,227 parameters). The paper: 1.0 %.
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

LAYERS = ("conv1", "conv2", "fc1", "fc2")
PAPER = (5, 7, 45, 20)
SMALLER = [(4, 7, 32, 16), (4, 6, 24, 12)]
FIRST, SECOND = 10, 20  # epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = Rows("lenet_mnist", args.minutes, epochs=[FIRST, SECOND], seed=0, torch=torch.__version__)
    bench = Bench(args.mnist, rows)
    try:
        for name in ("shapley", "from scratch", "switch", "random"):
            bench.add(PAPER, name, 0)
        for widths in SMALLER:
            for name in ("shapley", "from scratch"):
                bench.add(widths, name, 0)
        for name in ("shapley", "from scratch"):
            bench.add(PAPER, name, 2)
        for name in ("car", "l1"):
            bench.add(PAPER, name, 0)
    except OutOfTime:
        print("out of time; run again to go on")


class Bench:
    def __init__(self, spec: str, rows: Rows):
        self.spec, self.rows, self.known = spec, rows, {}

    def add(self, widths, name: str, padding: int) -> None:
        how = name if name == "from scratch" else f"by {name}"
        key = f"{'-'.join(map(str, widths))} {how}, padding {padding}"
        self.rows.row(key, lambda: self.scratch(widths, padding) if name == "from scratch" else self.cut(name, widths, padding))

    def net(self, widths, padding: int):
        arguments = {"widths": list(widths), "padding": padding}
        checkpoint = fresh("lenet5", arguments, list("0123456789"), 1, None, 0)
        return checkpoint, open_data(self.spec, checkpoint.preprocessing)

    def dense(self, padding: int):
        """The 10-20-100-25 network, trained once a call of this script."""
        if padding not in self.known:
            checkpoint, data = self.net((10, 20, 100, 25), padding)
            model, _ = train(checkpoint.model, data.split("train"), data.validation, recipe(FIRST))
            self.known[padding] = (checkpoint, data, model)
            key = f"dense 10-20-100-25, padding {padding}"
            self.rows.row(key, lambda: self.measured(model, checkpoint, data, padding))
        return self.known[padding]

    def cut(self, ranker: str, widths, padding: int) -> dict:
        checkpoint, data, model = self.dense(padding)
        channels = channel_map(model, checkpoint.example())
        images = data.split(RANKERS[ranker].split or "validation")
        batches = images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:2000]).batches()
        scores = RANKERS[ranker](model, channels, batches, classes=10, seed=0)
        keep = {layer: sorted(scores.order(layer)[-width:]) for layer, width in zip(LAYERS, widths, strict=True)}
        smaller = apply_plan(model, channels, PruningPlan(keep, 0, 0, {}, "layer", ranker), checkpoint.example(2))
        before = accuracy(predictor(smaller), data.split("test").batches(), 10).top1
        smaller, training = train(smaller, data.split("train"), data.validation, recipe(SECOND))
        found = self.measured(smaller, checkpoint, data, padding)
        return {**found, "error_before_retraining": round(100 * (1 - before), 2), "best_epoch": training.best_epoch}

    def scratch(self, widths, padding: int) -> dict:
        checkpoint, data = self.net(widths, padding)
        model, training = train(checkpoint.model, data.split("train"), data.validation, recipe(FIRST + SECOND))
        return {**self.measured(model, checkpoint, data, padding), "best_epoch": training.best_epoch}

    def measured(self, model, checkpoint, data, padding: int) -> dict:
        counted = count(model, checkpoint.preprocessing.shape)
        top1 = accuracy(predictor(model), data.split("test").batches(), 10).top1
        valid = accuracy(predictor(model), data.split("validation").batches(), 10).top1
        return {
            "error": round(100 * (1 - top1), 2), "validation_error": round(100 * (1 - valid), 2), "params": counted.params,
            "macs": counted.macs, "padding": padding,
        }  # fmt: skip


def recipe(epochs: int) -> Recipe:
    return Recipe(epochs, 0.1, augment="shift", batch=128, precision="fp32")


if __name__ == "__main__":
    main()
