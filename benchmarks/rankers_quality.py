"""Which ranker keeps most accuracy? All rankers and three random seeds, before and after fine-tuning.

    python benchmarks/rankers_quality.py --mnist mnist:DIR --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg

LeNet 10-20-100-25 (trained here, 8 epochs) on MNIST, ResNet-20 on CIFAR-10 (JPEG); cut to shares of the MACs, no alignment,
both scopes. Rankers see the images that they ask for (their records): 1,000 of validation for CAR, 400 for Shapley, 2,000 to
5,000 training images for taylor and the switch, the training split for influential. Accuracy before fine-tuning on
validation and on test (LeNet's 10,000; for ResNet-20 8,000, the rest is validation). After: the best three rankers before
tuning (chosen on validation, each at its better scope there) and random, 2 epochs of 10,000 images, and the dense network
tuned as long. Writes results/rankers_quality.json and .svg.
"""

import argparse

import torch
from rows import RESULTS, OutOfTime, Rows

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network.checkpoint import load
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import DATA_FREE, RANKERS
from slimrank.compress.rankers.scores import FilterScores
from slimrank.compress.stages.finetune import fresh
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data

CUTS = {"resnet20": (0.75, 0.5, 0.25), "lenet5": (0.5, 0.25, 0.1)}
TUNED = {"lenet5": CUTS["lenet5"], "resnet20": (0.5,)}
WAYS = {
    "car greedy": ("car", {"greedy": True}),
    **{name: (name, {}) for name in RANKERS if name != "random"},
    **{f"random {seed}": ("random", {"seed": seed}) for seed in range(3)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = Rows("rankers_quality", args.minutes, torch=torch.__version__)
    try:
        for name in CUTS:
            Bench(name, args, rows).run()
    except OutOfTime:
        print("out of time; run again to go on")
    chart(rows)


class Bench:
    def __init__(self, name: str, args: argparse.Namespace, rows: Rows):
        self.name, self.rows = name, rows
        if name == "lenet5":
            self.checkpoint = fresh("lenet5", None, list("0123456789"), 1, None, 0)
            self.data = open_data(args.mnist, self.checkpoint.preprocessing)
            kept = RESULTS / "rankers_quality_lenet5.pt"  # not committed; made again where it is missing
            if kept.exists():
                self.checkpoint.model.load_state_dict(torch.load(kept, weights_only=True))
                self.model = self.checkpoint.model
            else:
                self.model = self.tune(self.checkpoint.model, 8, 0.05, whole=True)
                torch.save(self.model.state_dict(), kept)
        else:
            self.checkpoint = load(args.checkpoint, model="resnet20-cifar")
            self.data = open_data(args.data, self.checkpoint.preprocessing, validation="test:0.2")
            self.model = self.checkpoint.model
        self.model.eval()
        self.channels = channel_map(self.model, self.checkpoint.example())

    def run(self) -> None:
        self.rows.row(f"{self.name} dense", lambda: self.measured(self.model))
        for way in WAYS:
            if self.name == "lenet5" and way == "bn-scale":
                continue
            self.rows.row(f"{self.name} scores {way}", lambda way=way: self.scores(way))
            for macs in CUTS[self.name]:
                for scope in ("layer", "global"):
                    key = f"{self.name} {macs} {way} {scope} before"
                    self.rows.row(key, lambda way=way, macs=macs, scope=scope: self.measured(self.cut(way, macs, scope)))
        self.rows.row(f"{self.name} dense after", lambda: self.measured(self.tune(self.model, 2, 0.02)))
        for macs in TUNED[self.name]:
            for way, scope in [*self.best(macs), ("random 0", "layer")]:
                key = f"{self.name} {macs} {way} {scope} after"
                self.rows.row(
                    key, lambda way=way, macs=macs, scope=scope: self.measured(self.tune(self.cut(way, macs, scope), 2, 0.02))
                )

    def scores(self, way: str) -> dict:
        ranker, options = WAYS[way]
        options = {"seed": 0, **options}
        batches = None
        if ranker not in DATA_FREE:
            images = self.data.split(RANKERS[ranker].split)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            most = {"car": 1000, "shapley": 400}.get(ranker) or (RANKERS[ranker].enough or len(images))
            batches = images.subset(order[:most]).batches()
        made = RANKERS[ranker](self.model, self.channels, batches, classes=10, **options)
        return {
            "ranker": way,
            "scores": made.scores,
            "ties": made.ties,
            "comparable": made.comparable,
            "seconds": made.seconds,
            "images": made.images,
        }

    def cut(self, way: str, macs: float, scope: str):
        scores = FilterScores(**self.rows[f"{self.name} scores {way}"])
        plan = select(self.model, self.channels, scores, macs=macs, scope=scope)
        return apply_plan(self.model, self.channels, plan, self.checkpoint.example(2))

    def best(self, macs: float) -> list[tuple[str, str]]:
        """The three rankers that validate best before fine-tuning, each at its better scope."""
        found = {}
        for way in WAYS:
            if way.startswith("random") or f"{self.name} {macs} {way} layer before" not in self.rows:
                continue
            for scope in ("layer", "global"):
                value = self.rows[f"{self.name} {macs} {way} {scope} before"]["validation_top1"]
                if value > found.get(way, (-1.0, ""))[0]:
                    found[way] = (value, scope)
        return [(way, scope) for way, (_, scope) in sorted(found.items(), key=lambda item: -item[1][0])[:3]]

    def tune(self, model, epochs: int, lr: float, whole: bool = False):
        images = self.data.split("train")
        if not whole:
            images = images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:10000])
        return train(model, images, self.data.validation, Recipe(epochs, lr, precision="fp32"))[0]

    def measured(self, model) -> dict:
        found = {}
        for split in ("validation", "test"):
            found[f"{split}_top1"] = round(accuracy(predictor(model), self.data.split(split).batches(), 10).top1, 4)
        return found


def chart(rows: Rows) -> None:
    """Test accuracy before fine-tuning against the share of MACs, each ranker at its better scope (on validation)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for i, (name, cuts) in enumerate(CUTS.items()):
        axes = figure.add_subplot(1, 2, i + 1)
        for way in WAYS:
            points = []
            for macs in cuts:
                keys = [f"{name} {macs} {way} {scope} before" for scope in ("layer", "global")]
                there = [rows[key] for key in keys if key in rows]
                if there:
                    points.append((macs, max(there, key=lambda row: row["validation_top1"])["test_top1"]))
            if points:
                style = {"color": "#999", "linestyle": ":"} if way.startswith("random") else {"marker": "o", "markersize": 3}
                axes.plot(*zip(*points, strict=True), label=way, linewidth=1, **style)
        axes.set_title(f"{name}, before fine-tuning", fontsize=8, loc="left")
        axes.set_xlabel("share of MACs kept", fontsize=7)
        axes.set_ylabel("top-1, test", fontsize=7)
        axes.tick_params(labelsize=6)
        axes.legend(fontsize=5)
    figure.savefig(RESULTS / "rankers_quality.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
