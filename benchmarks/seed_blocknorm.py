"""Varshneya et al.: does block norm make units interpretable? Unique detectors, weight decay against block norm.

    python benchmarks/seed_blocknorm.py --data folder:cifar10-jpeg --concepts generated

The paper (Places365, AlexNet, sum of unique detectors over layers, Broden): weight decay 130, norm alone 173, with the
activation and spatial terms 185. Ours: five conv layers (24-48-64-64-48, AlexNet's plan at a size that trains here),
CIFAR-10 (JPEG), 15,000 images, 8 epochs, lr 0.05, with and without BatchNorm (then lr 0.02), three seeds; weight decay 5e-4
against p=2, q=1 in 5 groups. Lambda was chosen on seed 100 on validation top-1 alone: the largest of 0.01, 0.1, 0.3, 1
within one point of weight decay; `tuned` is the weight decay of 5e-4, 2e-3 and 5e-3 that validates best on that seed.
Dissected on 1,000 generated images with 61 concepts (evaluate/concepts/), network as trained, vanished groups cut.
Validation is a tenth of the training split, top-1 of the test split. Rows are saved as they come to
results/seed_blocknorm.json; run again to go on.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
from rows import OutOfTime, Rows
from torch import Tensor, nn

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.explain.responses import Responses
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import BlockNorm, Recipe
from slimrank.compress.training.vanished import without_vanished
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.concepts import Concepts, dissect, generate
from slimrank.evaluate.data import Preprocessing, open_data

PAPER = {"weight decay": 130, "weight decay, tuned": None, "block norm": 173, "all three": 185}
DECAYS = (2e-3, 5e-3)  # beside 5e-4
LAMBDAS = (1e-2, 1e-1, 3e-1, 1.0)
EPOCHS, IMAGES, SEEDS, CHOOSING = 8, 15_000, (0, 1, 2), 100
TERMS = (0.1, 0.1)  # weights of the activation and the spatial term
WIDTHS = (24, 48, 64, 64, 48)


class Small(nn.Module):
    """AlexNet's plan, five conv layers, for 32x32 images."""

    def __init__(self, norm: bool):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(channels, width, 5 if i == 0 else 3, padding=2 if i == 0 else 1, bias=not norm)]
            layers += [nn.BatchNorm2d(width)] if norm else []
            layers += [nn.ReLU(), *([nn.MaxPool2d(2)] if i in (0, 1, 4) else [])]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Bench:
    def __init__(self, data: str, concepts: Concepts, rows: Rows):
        self.rows, self.concepts, self.preprocessing = rows, concepts, Preprocessing.default(3, 32)
        self.data = open_data(data, self.preprocessing)
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(0))
        self.images = self.data.train.subset(order[:IMAGES])

    def run(self) -> None:
        for norm in (True, False):
            with_norm = "BatchNorm" if norm else "no BatchNorm"
            tried = {}
            for strength in (None, *LAMBDAS):
                key = f"{with_norm}, choosing, lambda {strength}"
                tried[strength] = self.rows.row(key, lambda n=norm, s=strength: self.chosen(n, s))["validation_top1"]
            good = [s for s in LAMBDAS if tried[s] >= tried[None] - 0.01]
            best = max(good) if good else min(LAMBDAS)
            decayed = {5e-4: tried[None]}
            for decay in DECAYS:
                key = f"{with_norm}, choosing, weight decay {decay}"
                decayed[decay] = self.rows.row(key, lambda n=norm, d=decay: self.chosen(n, None, d))["validation_top1"]
            tuned = max(decayed, key=lambda decay: decayed[decay])
            for seed in SEEDS:
                for name in PAPER:
                    terms = TERMS if name == "all three" else ()
                    options = None if name.startswith("weight decay") else BlockNorm(2, 1, 5, best, *terms)
                    decay = tuned if name.endswith("tuned") else 5e-4
                    key = f"{with_norm}, {name}, seed {seed}"
                    self.rows.row(key, lambda n=norm, o=options, s=seed, d=decay: self.measured(n, o, s, d))

    def train(self, norm: bool, options: BlockNorm | None, seed: int, decay: float):
        torch.manual_seed(seed)
        recipe = Recipe(EPOCHS, 0.05 if norm else 0.02, weight_decay=decay, seed=seed, block_norm=options)
        model, training = train(Small(norm), self.images, self.data.validation, recipe, keep_best=False)
        return model, training

    def chosen(self, norm: bool, strength: float | None, decay: float = 5e-4) -> dict:
        options = None if strength is None else BlockNorm(2, 1, 5, strength)
        _, training = self.train(norm, options, CHOOSING, decay)
        return {"validation_top1": training.validation_top1[-1], "seconds": round(training.seconds)}

    def measured(self, norm: bool, options: BlockNorm | None, seed: int, decay: float) -> dict:
        model, training = self.train(norm, options, seed, decay)
        example = torch.zeros(1, 3, 32, 32)
        found: dict = {"weight_decay": decay} if options is None else {}
        if options is not None:
            model, gone = without_vanished(model, channel_map(model, example), options, torch.randn(16, 3, 32, 32))
            found = {"lambda": options.strength, "vanished": gone.gone, "filters_cut": gone.filters}
        channels = channel_map(model, example)
        layers = [group.name for group in channels.groups if group.prunable]
        seen = dissect(Responses(model, channels, layers), self.concepts, self.preprocessing)
        return {
            **found, "top1": round(accuracy(predictor(model), self.data.split("test").batches(), 10).top1, 4),
            "unique": seen.unique, "unique_by_layer": {name: layer.unique for name, layer in seen.layers.items()},
            "detectors": sum(layer.detectors for layer in seen.layers.values()),
            "unique_by_chance": sum(layer.chance["unique"] for layer in seen.layers.values()),
            "categories": {name: layer.by_category for name, layer in seen.layers.items()}, "seconds": round(training.seconds),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--concepts", default="generated", help="a folder in Broden's layout, or generated (default)")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("seed_blocknorm", args.minutes, torch=torch.__version__, concepts=args.concepts)
    with tempfile.TemporaryDirectory() as folder:
        place = generate(Path(folder) / "concepts", 1000) if args.concepts == "generated" else Path(args.concepts)
        try:
            Bench(args.data, Concepts(place), rows).run()
        except OutOfTime:
            print("out of time; run again to go on")
    print(f"  {'':32} paper   unique (sd)  by chance  detectors   top-1  filters cut")
    for norm in ("BatchNorm", "no BatchNorm"):
        for name, paper in PAPER.items():
            found = [rows[key] for seed in SEEDS if (key := f"{norm}, {name}, seed {seed}") in rows]
            if len(found) > 1:
                unique = [r["unique"] for r in found]
                rest = [mean(r.get(key, 0) for r in found) for key in ("unique_by_chance", "detectors", "top1", "filters_cut")]
                print(
                    f"  {norm + ', ' + name:32} {paper or '':5} {mean(unique):6.1f} ({stdev(unique):3.1f}) {rest[0]:10.1f} "
                    f"{rest[1]:10.1f} {rest[2]:7.4f} {rest[3]:12.1f}"
                )


if __name__ == "__main__":
    main()
