"""What does a cut cost in accuracy, by which ranker, and what does fine-tuning bring back?

    python benchmarks/prune_accuracy.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg \
        --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200 --minutes 60

ResNet-20 on CIFAR-10 (JPEG), whose checkpoint saw other pixels and is fine-tuned on these first (8 epochs, lr 0.05): that is
`dense`. ResNet-18 on Tiny ImageNet, as it is. At 2x and 3x fewer MACs, no alignment:
before: every ranker, both scopes, as cut and with BatchNorm recalibrated on 2,000 training images;
short: the best three (chosen on validation after recalibration) and random, 2 epochs of 10,000 images, with and without
distillation from dense; long (ResNet-20): the best, 16 epochs of all 50,000 images with distillation, and the dense network
given the same 16 epochs; longer (ResNet-20 at 2x): 24 epochs, with the teacher's share of the loss that validates best after
the short recipe, and the dense network taught by itself as long. Validation is a fifth of the test split, test figures are
of the rest; the epoch kept is the one that validates best. Rows are saved as they come to results/prune_accuracy.json; run
again to go on.
"""

from dataclasses import replace
from pathlib import Path

import torch
from rows import RESULTS, OutOfTime, Rows, two_networks

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network.checkpoint import load, save
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import DATA_FREE, RANKERS
from slimrank.compress.rankers.scores import FilterScores
from slimrank.compress.training.loop import bf16, train
from slimrank.compress.training.recalibrate import recalibrate
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data

CUTS = {"2x": 1 / 2, "3x": 1 / 3}
WAYS = {
    "car greedy": ("car", {"greedy": True}),
    **{name: (name, {}) for name in RANKERS if name != "random"},
    **{f"random {seed}": ("random", {"seed": seed}) for seed in range(3)},
}
LEFT_OUT = {"resnet20": (), "resnet18": ("car greedy", "shapley")}  # hours at 4,800 filters
LONGER, LONG, SHORT = Recipe(24, 0.05), Recipe(16, 0.05), Recipe(2, 0.02)
SHARES = (0.5, 0.7, 0.9)  # of the loss that is the teacher's
PARTS = ("resnet20", "resnet18", "dense long", "longer", "dense longer")


def main() -> None:
    parser = two_networks(__doc__)
    parser.add_argument("--only", choices=PARTS, help="part of it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("prune_accuracy", args.minutes, torch=torch.__version__, bf16=bf16(Recipe(1, 0.1)))
    try:
        if args.only != "resnet18":
            small = Bench("resnet20", load(args.checkpoint, model="resnet20-cifar"), args.data, rows)
            small.tune_dense()
            if args.only == "dense long":
                return small.dense_long()
            if args.only in ("longer", "dense longer"):
                return small.longer(args.only)
            small.before()
            small.long()
            small.dense_long()
            small.short()
            small.longer("longer")
            small.longer("dense longer")
        if args.only in (None, "resnet18"):
            large = Bench("resnet18", load(args.tiny_checkpoint, model="resnet18", size=64), args.tiny, rows)
            large.before()
            large.short()
    except OutOfTime:
        print("out of time; run again to go on")


class Bench:
    def __init__(self, name: str, checkpoint, spec: str, rows: Rows):
        self.name, self.rows, self.checkpoint = name, rows, checkpoint
        self.data = open_data(spec, checkpoint.preprocessing, validation="test:0.2")
        self.classes = len(self.data.classes)
        self.dense = checkpoint.model.eval()
        self.rows.row(f"{name} given", lambda: self.measured(self.dense))
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(0))
        self.some, self.calibration = self.data.train.subset(order[:10_000]), self.data.train.subset(order[:2000])
        self.channels = channel_map(self.dense, checkpoint.example())

    def tune_dense(self) -> None:
        """The dense network on this data; its weights are kept beside the rows, uncommitted."""
        kept = RESULTS / "prune_accuracy_resnet20.safetensors"
        if not kept.exists():
            progress = RESULTS / "prune_accuracy_resnet20.part"
            model, training = train(self.dense, self.data.train, self.data.validation, Recipe(8, 0.05), progress=progress)
            save(self.checkpoint.with_classes(self.data).then(model, step="finetune", seconds=training.seconds), kept)
        made = load(kept)
        self.dense = made.model.eval()
        self.rows.row("resnet20 dense", lambda: {**self.measured(self.dense), "seconds": made.history[-1]["seconds"]})

    def before(self) -> None:
        for way in WAYS:
            if way in LEFT_OUT[self.name]:
                continue
            self.rows.row(f"{self.name} scores {way}", lambda way=way: self.scores(way))
            for cut in CUTS:
                for scope in ("layer", "global"):
                    key = f"{self.name} {cut} {way} {scope} before"
                    self.rows.row(key, lambda way=way, cut=cut, scope=scope: self.uncured(way, cut, scope))

    def uncured(self, way: str, cut: str, scope: str) -> dict:
        model = self.cut(way, cut, scope)
        again = recalibrate(model, self.calibration.batches())
        return {**self.measured(model), **{f"recalibrated_{k}": v for k, v in self.measured(again).items()}}

    def short(self) -> None:
        for taught in (False, True):
            key = f"{self.name} dense short{' taught' if taught else ''}"
            self.rows.row(key, lambda taught=taught: self.tuned(self.dense, SHORT, self.some, taught))
        for cut in CUTS:
            for way, scope in [*self.best(cut), ("random 0", "layer")]:
                for taught in (False, True):
                    key = f"{self.name} {cut} {way} {scope} short{' taught' if taught else ''}"
                    model = self.cut(way, cut, scope)
                    self.rows.row(key, lambda model=model, taught=taught: self.tuned(model, SHORT, self.some, taught))

    def long(self) -> None:
        for cut in CUTS:
            way, scope = self.best(cut)[0]
            model = recalibrate(self.cut(way, cut, scope), self.calibration.batches())
            key = f"{self.name} {cut} {way} {scope} long taught"
            progress = RESULTS / f"prune_accuracy_{cut}.part"
            self.rows.row(key, lambda model=model, p=progress: self.tuned(model, LONG, self.data.train, True, p))

    def dense_long(self) -> None:
        progress = RESULTS / "prune_accuracy_dense.part"
        self.rows.row(f"{self.name} dense long", lambda: self.tuned(self.dense, LONG, self.data.train, False, progress))

    def longer(self, part: str) -> None:
        way, scope = self.best("2x")[0]
        cut = recalibrate(self.cut(way, "2x", scope), self.calibration.batches())
        found = {}
        for share in SHARES:
            recipe = replace(SHORT, teacher_share=share)
            key = f"{self.name} 2x {way} {scope} recalibrated, short taught {share}"
            found[share] = self.rows.row(key, lambda r=recipe: self.tuned(cut, r, self.some, True))["validation_top1"]
        recipe = replace(LONGER, teacher_share=max(found, key=lambda share: found[share]))
        progress = RESULTS / f"prune_accuracy_{part.replace(' ', '_')}.part"
        model, key = (self.dense, "dense") if part == "dense longer" else (cut, f"2x {way} {scope}")
        self.rows.row(f"{self.name} {key} longer taught", lambda: self.tuned(model, recipe, self.data.train, True, progress))

    def scores(self, way: str) -> dict:
        ranker, options = WAYS[way]
        options = {"seed": 0, **options}
        batches = None
        if ranker not in DATA_FREE:
            images = self.data.split(RANKERS[ranker].split)
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            small = self.name == "resnet20"
            most = {"car": 500 if small else 200, "shapley": 200, **({} if small else {"switch": 1000})}.get(ranker)
            most = most or min(RANKERS[ranker].enough or 10_000, 10_000)
            batches = images.subset(order[:most]).batches()
        made = RANKERS[ranker](self.dense, self.channels, batches, classes=self.classes, **options)
        return {
            "ranker": way, "scores": made.scores, "ties": made.ties, "comparable": made.comparable,
            "seconds": made.seconds, "images": made.images,
        }  # fmt: skip

    def cut(self, way: str, cut: str, scope: str):
        scores = FilterScores(**self.rows[f"{self.name} scores {way}"])
        plan = select(self.dense, self.channels, scores, macs=CUTS[cut], scope=scope)
        return apply_plan(self.dense, self.channels, plan, self.checkpoint.example(2))

    def best(self, cut: str) -> list[tuple[str, str]]:
        """The three rankers that validate best before fine-tuning, recalibrated, each at its better scope."""
        found: dict[str, tuple[float, str]] = {}
        for way in WAYS:
            for scope in ("layer", "global"):
                key = f"{self.name} {cut} {way} {scope} before"
                if way.startswith("random") or key not in self.rows:
                    continue
                found[way] = max(found.get(way, (-1.0, "")), (self.rows[key]["recalibrated_validation_top1"], scope))
        return [(way, scope) for way, (_, scope) in sorted(found.items(), key=lambda item: -item[1][0])[:3]]

    def tuned(self, model, recipe: Recipe, images, taught: bool, progress: Path | None = None) -> dict:
        teacher = self.dense if taught else None
        made, training = train(model, images, self.data.validation, recipe, teacher=teacher, progress=progress)
        done = {"epochs": training.epochs, "images": training.images, "seconds": round(training.seconds)}
        done |= {"teacher_share": recipe.teacher_share} if taught else {}
        return {**self.measured(made), **done, "best_epoch": training.best_epoch, "validation": training.validation_top1}

    def measured(self, model) -> dict:
        found = {}
        for split in ("validation", "test"):
            top1 = accuracy(predictor(model), self.data.split(split).batches(), self.classes).top1
            found[f"{split}_top1"] = round(top1, 4)
        return found


if __name__ == "__main__":
    main()
