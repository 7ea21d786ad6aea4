"""What does a cut cost before and without training, once least squares has put back what it can? Does the ranker still matter?

    python benchmarks/reconstruction.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg \
        --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200 [--tuned FILE] \
        [--lite0 efficientnet-lite0-57934424.pth --imagenet folder:imagenet-sample-1000] --minutes 60 [--only cuts]

Networks: ResNet-20 on CIFAR-10 (JPEG); ResNet-18 on Tiny ImageNet, 64 pixels; and `tuned`: ResNet-20 after eight epochs on
these pixels (lr 0.05, all training images; 14 minutes on two threads), unless --tuned gives it: the one that CAR is asked
about, since two epochs from its cut are the best that was had without repair.

cuts: 1.33x, 2x and 3x fewer MACs, no alignment, by every ranker, scope global as well where scores are comparable; ResNet-18
aligned first. Rivals first: torch-pruning alone; as cut; BatchNorm recalibrated; every layer's mean output set right, front
to back (bias correction; Nagel et al. 2019, section 4.2). Then reconstructed: no label is read and nothing trained.
latency: ResNet-18, aligned halving against `--latency` at the time that it was measured to take (batch 1, one thread), by
ranker reconstruct, scopes layer and global; reconstructed; all timed again in one interleaved run. On an idle machine only.
images: half of the MACs, fpgm, by the number of images; seconds and peak memory, each in a process of its own.
time: ResNet-50 at 224 pixels, random weights, 512 random images. lite0: EfficientNet-Lite0 to 75 % of the MACs, 500 images to
calibrate on, agreement with the dense network on the other 500, ONNX Runtime's speedup on one thread.
epochs: from half of the MACs, 1, 2 and 4 epochs of 10,000 images, with labels and distilled, at three learning rates; the dense
network given the same. question: which ranker is best, and by how much, recalibrated and reconstructed.

Validation is a fifth of the test split, test figures are of the rest; what is called best validates best. Rows are saved as
they come to results/reconstruction.json; run again to go on.
"""

import statistics
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torchvision
from rivals import bias_corrected, torch_pruned
from rows import RESULTS, OutOfTime, Rows, two_networks
from torch import Tensor, nn

from slimrank.compress.channels import channels_of
from slimrank.compress.channels.groups import ChannelMap
from slimrank.compress.network.checkpoint import Checkpoint, load, save
from slimrank.compress.pruning.budget import costs_for, plan
from slimrank.compress.pruning.options import Cut
from slimrank.compress.pruning.plan import PruningPlan
from slimrank.compress.pruning.reconstruct import reconstruct
from slimrank.compress.pruning.select import runtime_block, select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.compress.rankers.scores import FilterScores
from slimrank.compress.stages.finetune import finetune
from slimrank.compress.training.loop import bf16, train
from slimrank.compress.training.recalibrate import recalibrate
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, decisions, predictor
from slimrank.evaluate.data import Data, Preprocessing, open_data
from slimrank.evaluate.latency import compare
from slimrank.evaluate.macs import count
from slimrank.evaluate.timing import Timing
from slimrank.export.to_onnx import export

CUTS = {"1.33x": 3 / 4, "2x": 1 / 2, "3x": 1 / 3}
RANDOM = [f"random {seed}" for seed in range(3)]
WAYS = ["fpgm", "reconstruct", *RANDOM, "l1", "influential", "switch"]
OF_TUNED = ["fpgm", "car", "car greedy", "reconstruct", *RANDOM]
STEPS = ("as cut", "recalibrated", "bias corrected", "reconstructed")
PARTS = ("cuts", "latency", "images", "time", "lite0", "epochs", "question")
NETWORKS = ("resnet20", "tuned", "resnet18")
CALIBRATE = 2000  # images for recalibration and bias correction
REPAIR = {"resnet18": 4000}  # images for reconstruction; 2,000 for the others
RANK = {"switch": 2000, "reconstruct": 2000, "car": 500}  # images; 10,000 for the others
COUNTS = {"resnet20": (128, 512, 2000, 4000, 10_000), "resnet18": (128, 512, 2000, 4000)}
EPOCHS = {"resnet20": (2, 4, 1), "tuned": (2, 4, 1), "resnet18": (2,)}
RATES = (0.005, 0.02, 0.002)
STARTS = {  # ranker, scope, alignment of the halves that are trained
    "resnet20": (("fpgm", "layer", 1), ("reconstruct", "global", 1)),
    "tuned": (("reconstruct", "global", 1), ("car greedy", "global", 1)),
    "resnet18": (("reconstruct", "global", runtime_block()), ("fpgm", "layer", 1)),
}


@dataclass
class Bench:
    """One network, its data and what was made of it."""

    name: str
    checkpoint: Checkpoint
    data: Data
    rows: Rows
    repaired: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def dense(self) -> nn.Module:
        return self.checkpoint.model.eval()

    @property
    def channels(self) -> ChannelMap:
        return channels_of(self.checkpoint)

    def images(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """Training images in batches; their labels are read by no repair."""
        return list(self.data.split("train").sample(n, 0).batches(100))

    def measured(self, model: nn.Module) -> dict:
        """Top-1 on both splits."""
        classes = len(self.data.classes)
        tops = {s: accuracy(predictor(model), self.data.split(s).batches(), classes).top1 for s in ("validation", "test")}
        return {split: round(top1, 4) for split, top1 in tops.items()}

    def scores(self, way: str) -> FilterScores:
        """Scores by a ranker, saved as a row."""

        def made() -> dict:
            name, _, word = way.partition(" ")
            batches, options = None, {"greedy": True} if word == "greedy" else {"seed": int(word or 0)}
            if RANKERS[name].split:
                batches = self.data.split(RANKERS[name].split).sample(RANK.get(name, 10_000), 0).batches()
            found = RANKERS[name](self.dense, self.channels, batches, classes=len(self.data.classes), **options)
            kept = ("scores", "ties", "comparable", "seconds", "images")
            return {"ranker": way, **{key: value for key, value in found.to_dict().items() if key in kept}}

        return FilterScores(**self.rows.row(f"{self.name} scores {way}", made))

    def plan(self, way: str, share: float, scope: str = "layer", align: int = 1) -> PruningPlan:
        return select(self.dense, self.channels, self.scores(way), macs=share, scope=scope, align=align)

    def cut(self, plan: PruningPlan) -> nn.Module:
        return apply_plan(self.dense, self.channels, plan, self.checkpoint.example(2))

    def reconstructed(self, plan: PruningPlan, smaller: nn.Module, images: list[tuple[Tensor, Tensor]]) -> nn.Module:
        return reconstruct(self.dense, smaller, self.channels, self.channels.removed(plan.keep), images).model

    def cuts(self, ways: list[str]) -> None:
        """Rows of all cuts, rivals first, the deepest question (half) before the others."""
        self.rows.row(f"{self.name} dense", lambda: self.measured(self.dense))
        for cut in ("2x", "3x", "1.33x"):
            for way, scope in (("fpgm", "layer"), ("reconstruct", "global")) if self.name == "resnet18" else ():
                key = f"{self.name} {cut} {way} {scope} aligned"
                self.rows.row(key, lambda w=way, cut=cut, s=scope: self.steps(self.plan(w, CUTS[cut], s, runtime_block())))
            self.rows.row(f"{self.name} {cut} torch-pruning", lambda cut=cut: self.by_torch_pruning(CUTS[cut]))
            for way in ways:
                for scope in ("layer", "global") if self.scores(way).comparable else ("layer",):
                    key = f"{self.name} {cut} {way} {scope}"
                    self.rows.row(key, lambda way=way, cut=cut, s=scope: self.steps(self.plan(way, CUTS[cut], s)))

    def steps(self, plan: PruningPlan) -> dict:
        """Accuracy of one cut after each way to repair it, and what each took."""
        began = time.perf_counter()
        smaller = self.cut(plan)
        seconds = {"as cut": round(time.perf_counter() - began, 2)}
        row = {"macs": round(plan.macs_after / plan.macs_before, 4), "as cut": self.measured(smaller)}
        some, many = self.images(CALIBRATE), self.images(REPAIR.get(self.name, CALIBRATE))
        repairs = {
            "recalibrated": lambda: recalibrate(smaller, some),
            "bias corrected": lambda: bias_corrected(self.dense, smaller, self.channels, plan, [x for x, _ in some]),
            "reconstructed": lambda: self.reconstructed(plan, smaller, many),
        }
        for name, repair in repairs.items():
            began = time.perf_counter()
            model = repair()
            seconds[name] = round(time.perf_counter() - began, 1)
            row[name] = self.measured(model)
        return {**row, "seconds": seconds}

    def by_torch_pruning(self, share: float) -> dict:
        """Their pruner by their own dependency graph and magnitude, and the same recalibrated."""
        model, kept = torch_pruned(self.dense, self.checkpoint, self.channels, share)
        shape = self.checkpoint.preprocessing.shape
        macs = count(model, shape).macs / count(self.dense, shape).macs
        again = recalibrate(model, self.images(CALIBRATE))
        row = {"macs": round(macs, 4), "as cut": self.measured(model), "recalibrated": self.measured(again)}
        return {**row, "left whole": kept}

    def start(self, way: str, scope: str, align: int, name: str) -> nn.Module:
        """Half of the MACs, recalibrated or reconstructed: where training sets out from."""
        key = f"{way} {scope} {align} {name}"
        if key not in self.repaired:
            plan = self.plan(way, 1 / 2, scope, align)
            smaller = self.cut(plan)
            if name == "recalibrated":
                self.repaired[key] = recalibrate(smaller, self.images(CALIBRATE))
            else:
                self.repaired[key] = self.reconstructed(plan, smaller, self.images(REPAIR.get(self.name, CALIBRATE)))
        return self.repaired[key]

    def epochs(self) -> None:
        starts = {"dense": lambda: self.dense}
        for way, scope, align in STARTS[self.name]:
            for name in ("reconstructed", "recalibrated"):
                told = f"{way} {scope}{' aligned' if align > 1 else ''} {name}"
                starts[told] = lambda way=way, scope=scope, align=align, name=name: self.start(way, scope, align, name)
        order = [*list(starts)[1:3], "dense", *list(starts)[3:]]
        runs = [(t, e, s, lr) for t in (True, False) for e in EPOCHS[self.name] for s in order for lr in RATES]
        for taught, epochs, start, lr in runs:
            key = f"{self.name} {start}, {epochs} epochs, {'distilled' if taught else 'labels'}, lr {lr}"
            self.rows.row(key, lambda t=taught, n=epochs, r=lr, s=start: self.trained(starts[s](), Recipe(n, r), t))

    def trained(self, model: nn.Module, recipe: Recipe, taught: bool) -> dict:
        some = self.data.split("train").sample(10_000, 0)
        made, training = train(model, some, self.data.validation, recipe, teacher=self.dense if taught else None)
        return {**self.measured(made), "seconds": round(training.seconds)}


def tuned(args: Namespace) -> Checkpoint:
    """ResNet-20 after eight epochs on the pixels of CIFAR-10 (JPEG), as prune_accuracy.py trains it; trained now if need be."""
    kept = args.tuned or RESULTS / "reconstruction_tuned.safetensors"
    if not kept.exists():
        given = load(args.checkpoint, model="resnet20-cifar")
        data = open_data(args.data, given.preprocessing, validation="test:0.2")
        save(finetune(given, data, Recipe(8, 0.05)).checkpoint, kept)
    return load(kept)


def bench(args: Namespace, name: str, rows: Rows) -> Bench:
    checkpoint = {
        "resnet20": lambda: load(args.checkpoint, model="resnet20-cifar"),
        "resnet18": lambda: load(args.tiny_checkpoint, model="resnet18", size=64),
        "tuned": lambda: tuned(args),
    }[name]()
    data = open_data(args.tiny if name == "resnet18" else args.data, checkpoint.preprocessing, validation="test:0.2")
    return Bench(name, checkpoint, data, rows)


def alone(args: Namespace, name: str, n: int) -> dict:
    """Reconstruct half of a network from `n` images in this process, which has done nothing else: seconds and peak memory."""
    torch.set_num_threads(args.threads)
    if name == "resnet50":
        made = Checkpoint(torchvision.models.resnet50().eval(), name, {}, Preprocessing.default(3, 224))
        one = Bench(name, made, None, None)
        images = [(x, x) for x in torch.randn(n, 3, 224, 224).split(50)]
    else:
        one = bench(args, name, None)
        images = one.images(n)
    scores = RANKERS["fpgm"](one.dense, one.channels)
    plan = select(one.dense, one.channels, scores, macs=1 / 2)
    smaller, before, began = one.cut(plan), peak(), time.perf_counter()
    model = one.reconstructed(plan, smaller, images)
    row = {"seconds": round(time.perf_counter() - began, 1), "peak_mb": peak(), "peak_mb_before": before}
    return row if one.data is None else {**one.measured(model), **row}


def peak() -> int:
    """This process's peak memory in MB. Not ru_maxrss, which a new process takes over from the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def apart(args: Namespace, name: str, n: int) -> dict:
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(alone, (args, name, n))


def efficientnet_lite0(num_classes: int = 1000) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


def lite0(args: Namespace, rows: Rows) -> None:
    """Rows of EfficientNet-Lite0: agreement on the half of the images that nothing was fitted on."""
    words = {"mean": (0.498,) * 3, "std": (0.502,) * 3, "size": 224}
    made = load(args.lite0, model=f"{__name__}:efficientnet_lite0", **words)
    data = open_data(args.imagenet, made.preprocessing, validation="test:0.5")
    one = Bench("lite0", made, replace(data, train=data.validation), rows)
    images, judges = one.images(500), data.split("test").batches(50)
    expected = decisions(predictor(one.dense), judges)

    def agreement(model: nn.Module) -> float:
        return round(float((decisions(predictor(model), judges) == expected).double().mean()), 4)

    def row(way: str, align: int) -> dict:
        plan = one.plan(way, 3 / 4, align=align)
        smaller = one.cut(plan)
        found = {"macs": round(plan.macs_after / plan.macs_before, 4), "as cut": agreement(smaller)}
        found["recalibrated"] = agreement(recalibrate(smaller, images))
        began = time.perf_counter()
        model = one.reconstructed(plan, smaller, images)
        found |= {"reconstructed": agreement(model), "seconds": round(time.perf_counter() - began, 1)}
        with tempfile.TemporaryDirectory() as folder:
            files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "cut")}
            for name, network in (("dense", one.dense), ("cut", model)):
                export(network, made.example(), files[name], {})
            speedups = compare(files, batches=(1, 8), seconds=5).speedups
        return {**found, "speedup": {f"batch {s.batch}": round(s.speedup, 3) for s in speedups}}

    for align in (runtime_block(), 1):
        for way in ("fpgm", "reconstruct", *RANDOM):
            rows.row(f"lite0 {way} {'aligned' if align > 1 else 'plain'}", lambda way=way, align=align: row(way, align))


def latency(one: Bench) -> dict:
    """Aligned halving and what `--latency` makes of the same measured time: speedup, MACs, top-1 after reconstruction."""
    half = one.plan("fpgm", 1 / 2, align=runtime_block())
    example, timing = one.checkpoint.example(2), Timing(batch=(1,))
    with tempfile.TemporaryDirectory() as folder:

        def exported(name: str, model: nn.Module) -> Path:
            return export(model, one.checkpoint.example(), Path(folder) / f"{name}.onnx", {})

        files = {"dense": exported("dense", one.dense), "aligned half": exported("half", one.cut(half))}
        share = 1 / compare(files, batches=(1,), seconds=4).speedups[-1].speedup
        costs = costs_for(Cut(latency=share), one.dense, one.channels, example, timing)
        plans = {"aligned half": half}
        for way, scope in (("reconstruct", "layer"), ("reconstruct", "global")):
            cut = Cut(latency=share, scope=scope)
            name = f"latency {share:.3f}, {way} {scope}"
            plans[name] = plan(one.dense, one.channels, one.scores(way), cut, example, costs=costs, timing=timing)
            files[name] = exported(f"{way}-{scope}", one.cut(plans[name]))
        timed = {batch: compare(files, batches=(batch,), seconds=4).speedups for batch in (1, 8)}
    row = {}
    for name, chosen in plans.items():
        speedups = {f"batch {b}": round(next(s.speedup for s in found if s.model == name), 3) for b, found in timed.items()}
        model = one.reconstructed(chosen, one.cut(chosen), one.images(REPAIR["resnet18"]))
        macs = round(chosen.macs_after / chosen.macs_before, 4)
        row[name] = {"macs": macs, "speedup": speedups, "reconstructed": one.measured(model)}
    return row


def question(rows: Rows) -> None:
    """Print, for each network and cut, the best ranker, the mean of rankers and random ones, before and after the repair."""
    print(f"  {'test top-1':28}{'best ranker':>36}{'mean of rankers':>18}{'random, spread of 3':>22}")
    for name in NETWORKS:
        for cut in CUTS:
            start = f"{name} {cut} "
            found = {k.removeprefix(start): r for k, r in rows.value["rows"].items() if k.startswith(start) and STEPS[3] in r}
            chance = [row for key, row in found.items() if key.startswith("random")]
            ranked = {key: row for key, row in found.items() if not key.startswith("random") and not key.endswith("aligned")}
            if not ranked or not chance:
                continue
            for step in STEPS[1:]:
                best = max(ranked, key=lambda key: ranked[key][step]["validation"])
                mean = statistics.mean(row[step]["test"] for row in ranked.values())
                tops = [row[step]["test"] for row in chance]
                print(
                    f"  {start}{step:20} {best:>24} {ranked[best][step]['test']:8.1%} {mean:16.1%} "
                    f"{statistics.mean(tops):12.1%} ({max(tops) - min(tops):.1%})"
                )


def main() -> None:
    parser = two_networks(__doc__)
    for name in ("tuned", "lite0"):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE")
    parser.add_argument("--imagenet", metavar="SPEC", help="the sample of ImageNet's images that lite0 is judged on")
    parser.add_argument("--only", choices=PARTS, help="part of it")
    parser.add_argument("--network", choices=NETWORKS, help="one network of cuts, images and epochs")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("reconstruction", args.minutes, torch=torch.__version__, threads=args.threads, bf16=bf16(Recipe(1, 0.1)))
    parts = PARTS if args.only is None else (args.only,)
    chosen = [n for n in NETWORKS if args.network in (None, n)]
    try:
        for name in chosen:
            if "cuts" in parts:
                bench(args, name, rows).cuts(OF_TUNED if name == "tuned" else WAYS)
            for n in COUNTS.get(name, ()) if "images" in parts else ():
                rows.row(f"{name} 2x fpgm, {n} images", lambda name=name, n=n: apart(args, name, n))
        if "latency" in parts:
            one = bench(args, "resnet18", rows)
            rows.row("resnet18 at equal time", lambda: latency(one))
        if "time" in parts:
            rows.row("resnet50 2x fpgm, 512 images", lambda: apart(args, "resnet50", 512))
        if "lite0" in parts and args.lite0:
            lite0(args, rows)
        for name in chosen if "epochs" in parts else ():
            if name in EPOCHS:
                bench(args, name, rows).epochs()
    except OutOfTime:
        print("out of time; run again to go on")
    question(rows)


if __name__ == "__main__":
    main()
