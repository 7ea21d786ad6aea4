"""The class-specific head on a thousand classes: EfficientNet-Lite0, 1,280 features, fitted without one label.

    pip install efficientnet-lite-pytorch
    python benchmarks/head_imagenet.py --checkpoint efficientnet-lite0-57934424.pth --images imagenet-sample-1000/test \
        --cache FOLDER [--minutes 30] [--rerun]

Images are seen as the network was published: the shorter side at 256 pixels, 224 from the middle. The sample has an image of
each class. Folders, so classes, are drawn into halves with a fixed seed: one half calibrates (a fifth of it is validation, on
which training and every `auto` is decided), with --crops random crops of each image; the other half judges, and nothing is
fitted or chosen on it. No label is read: an image's class is what the dense layer decides, and `agreement` is with that
decision, on the judging half (`agreement_crops`: on it and four crops of each image, harder ones).
Every head: MACs, agreement, and ONNX Runtime's time on one thread against the dense layer, in one interleaved run: of the layer
alone, and up to 32 of the whole network. What the trunk gives is kept in --cache; rows are saved as they come to
results/head_imagenet.json, `--rerun` takes the timings anew. Best on a quiet machine.
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import OutOfTime, Rows
from torch import Tensor, nn

from slimrank.compress.channels.features import Cached, Moments, Votes
from slimrank.compress.head.build import Problem, Shape
from slimrank.compress.head.classifier import Classifier
from slimrank.compress.head.crops import with_crops
from slimrank.compress.head.fit import decisions
from slimrank.compress.head.install import install, with_head
from slimrank.compress.head.low_rank import low_rank
from slimrank.compress.head.options import HeadOptions
from slimrank.compress.head.search import built
from slimrank.compress.head.statistics import Statistics
from slimrank.compress.network.checkpoint import load
from slimrank.compress.network.subspace import SubspaceLinear
from slimrank.evaluate.data import Images
from slimrank.evaluate.data.unlabelled import NO_LABEL
from slimrank.evaluate.latency import compare, machine
from slimrank.evaluate.runner import Runner
from slimrank.export.to_onnx import export

BATCHES = (1, 8, 32, 128)
WHOLE = (  # heads that the whole network is timed with
    "dense", "histogram, k=50, truncated (the paper)", "contribution, k=50", "omp, k=50", "int8", "tiles, 8 groups, k=320",
    "tiles, 8 groups, k=320, rescored", "two levels, 32 groups, k=320, rescored", "low rank, 1/4 of the MACs, rescored",
)  # fmt: skip
K = 50  # the paper's k1 and k2 for ImageNet
SEED = 0


def lite0(num_classes: int = 1000) -> nn.Module:
    """The network of PyPI's efficientnet-lite-pytorch."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)


@dataclass(frozen=True)
class Sample:
    """What the classifier reads: of calibration images and crops, of validation and of judging images, and crops of these."""

    fit: Tensor
    validation: Tensor
    judge: Tensor
    judge_crops: Tensor


def halves(images: Images) -> dict[str, Images]:
    """Folders drawn into two halves; a fifth of the first is validation."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
    first, half = len(images) // 10, len(images) // 2
    parts = {"validation": order[:first], "fit": order[first:half], "judge": order[half:]}
    return {name: images.subset(index.sort().values) for name, index in parts.items()}


def sample(classifier: Classifier, images: Images, crops: int, cache: Path) -> Sample:
    """Run the trunk in ONNX Runtime, or read what an earlier run left in `cache`."""
    checkpoint, parts = classifier.checkpoint, halves(images)
    wanted = {"fit": crops, "validation": crops, "judge": 0, "judge_crops": 4}
    cache.mkdir(parents=True, exist_ok=True)
    shape = "x".join(map(str, checkpoint.preprocessing.shape))
    trunk = cache / f"trunk-{shape}.onnx"
    if not trunk.exists():
        export(with_head(checkpoint.model, classifier.layer, nn.Identity()), checkpoint.example(), trunk, {})
    found: dict[str, Tensor] = {}
    for name, count in wanted.items():
        kept = cache / f"{name}-{shape}-{count}.pt"
        if not kept.exists():
            batches = with_crops(parts[name.removesuffix("_crops")].batches(50), count, SEED + (name == "judge_crops"))
            runner = Runner(trunk, threads=torch.get_num_threads())
            torch.save(torch.cat([runner(x) for x, _ in batches]), kept)
            print(name, "kept", flush=True)
        found[name] = torch.load(kept)
    return Sample(**found)


def heads(classifier: Classifier, features: Sample) -> dict[str, Callable[[], tuple[nn.Module, dict]]]:
    """How each head is made, by name; with what was found on the way."""
    cache, validation = (Cached(x, classifier.decided(x)) for x in (features.fit, features.validation))
    moments, votes = Moments(), Votes(classifier.classes, K)
    moments.add(cache.x)
    votes.add(cache.x, cache.labels)
    statistics = Statistics(moments, K, votes, cache, validation, 0, 0, 0, 0)

    def head(shape: Shape, **options) -> tuple[nn.Module, dict]:
        options = {"layout": shape.layout, "fit": "refit", **options}
        found = built(Problem(classifier, statistics, HeadOptions(**options)), shape)
        return found.head, {"note": "; ".join(found.notes), "rescored": found.head.rescore, "probed": found.head.probe}

    def rank(share: float, rescore: int) -> tuple[nn.Module, dict]:
        given = (moments.mean, moments.covariance)
        macs = int(share * classifier.weight.numel())
        return low_rank(*classifier.target("refit"), macs, given, rescore=rescore), {"rescored": rescore}

    def enough(make: Callable[[int], tuple[nn.Module, dict]]) -> tuple[nn.Module, dict]:
        """The fewest classes, doubled, whose rescoring reaches 99 % of the dense decisions on validation."""
        for rescore in (4, 8, 16, 32, 64, 128):
            found = make(rescore)
            if float((decisions(found[0], validation) == validation.labels).double().mean()) >= 0.99:
                break
        return found

    alone, every = Shape("gather", classifier.classes), {"agreement": 0.99}
    made: dict[str, Callable[[], tuple[nn.Module, dict]]] = {
        f"histogram, k={K}, truncated (the paper)": lambda: head(alone, select="histogram", fit="truncate", k1=K, k2=K),
        f"histogram, k={K}, refitted": lambda: head(alone, select="histogram", k1=K, k2=K),
        f"contribution, k={K}": lambda: head(alone, select="contribution", k2=K),
        f"omp, k={K}": lambda: head(alone, select="omp", k2=K),
        f"omp, k={K}, trained": lambda: head(alone, select="omp", k2=K, fit="train"),
        "int8": lambda: head(Shape("int8", 1), fit="truncate"),
    }
    for groups, k2 in ((4, 80), (8, 160), (40, 160), (8, 320), (40, 320), (8, 640)):
        tiles = Shape("tiled", groups)
        made[f"tiles, {groups} groups, k={k2}"] = lambda t=tiles, k=k2: head(t, k2=k)
        made[f"tiles, {groups} groups, k={k2}, rescored"] = lambda t=tiles, k=k2: head(t, k2=k, rescore="auto", **every)
    for groups, k2 in ((32, 320), (32, 1280), (100, 1280)):
        levels, words = Shape("tiled", groups, probe="auto"), {"probe": "auto", **every}
        name = f"two levels, {groups} groups, k={k2}"
        made[name] = lambda s=levels, k=k2, w=words: head(s, k2=k, **w)
        made[f"{name}, rescored"] = lambda s=levels, k=k2, w=words: head(s, k2=k, rescore="auto", **w)
    for share in (1 / 16, 1 / 8, 1 / 4):
        made[f"low rank, 1/{round(1 / share)} of the MACs"] = lambda s=share: rank(s, 0)
        made[f"low rank, 1/{round(1 / share)} of the MACs, rescored"] = lambda s=share: enough(lambda n, s=s: rank(s, n))
    return made


def interval(share: float, n: int) -> list[float]:
    """Wilson's 95 % interval of a share of n."""
    z = 1.96
    centre, half = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return [round((centre + sign * half) / (1 + z * z / n), 4) for sign in (-1, 1)]


class Bench:
    def __init__(self, classifier: Classifier, features: Sample, rows: Rows, folder: Path):
        self.classifier, self.features, self.rows, self.folder = classifier, features, rows, folder

    def made(self, name: str, make: Callable[[], tuple[nn.Module, dict]]) -> nn.Module:
        """The head of that name, and its row of MACs and agreement. It is kept in the cache's folder."""
        kept = self.kept(name, "head.pt")
        if not kept.exists() or name not in self.rows:
            for stale in ("layer.onnx", "network.onnx"):
                self.kept(name, stale).unlink(missing_ok=True)
            module, told = make()
            torch.save(module.eval().requires_grad_(False), kept)

            def row() -> dict:
                found = {"macs": module.macs(()), **told}
                for what in ("validation", "judge", "judge_crops"):
                    x = getattr(self.features, what)
                    same = float((decisions(module, Cached(x, x[:, 0])) == self.classifier.decided(x)).double().mean())
                    key = {"judge": "agreement", "judge_crops": "agreement_crops"}.get(what, what)
                    found |= {key: round(same, 4), f"{key}_interval": interval(same, len(x))}
                return found

            self.rows.row(name, row)
        return torch.load(kept, weights_only=False)  # our own file of a moment ago

    def timed(self, modules: dict[str, nn.Module], whole: bool, seconds: float) -> None:
        """Speedups over the dense layer, or over the dense network: one interleaved run a batch size."""
        key = "whole network, times" if whole else "layer, times"
        for batch in BATCHES[:3] if whole else BATCHES:
            self.rows.row(f"{key}, batch {batch}", lambda b=batch: self.speedups(modules, whole, b, seconds))

    def speedups(self, modules: dict[str, nn.Module], whole: bool, batch: int, seconds: float) -> dict:
        paths = {name: self.exported(name, head, whole) for name, head in modules.items()}
        found, base = compare(paths, batches=[batch], seconds=seconds), next(iter(modules))
        told = {r.model: {"median_us": round(1e3 * r.median_ms, 1), "p10_us": round(1e3 * r.p10_ms, 1)} for r in found.results}
        return {
            name: {**row, "speedup": round(told[base]["median_us"] / row["median_us"], 3)} for name, row in told.items()
        } | {"load": open("/proc/loadavg").read().split()[0]}

    def exported(self, name: str, head: nn.Module, whole: bool) -> Path:
        """The head, or the network with it, as ONNX in the cache's folder."""
        checkpoint, layer = self.classifier.checkpoint, self.classifier.layer
        path = self.kept(name, "network.onnx" if whole else "layer.onnx")
        if path.exists():
            return path
        if not whole:
            return export(in_place(head), torch.zeros(1, self.classifier.features), path, {})
        model = checkpoint.model if name == "dense" else with_head(checkpoint.model, layer, head)
        if isinstance(head, SubspaceLinear):
            model = install(self.classifier, head, torch.ones(self.classifier.features)).model
        return export(model, checkpoint.example(), path, {})

    def kept(self, name: str, what: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.{what}"


def in_place(head: nn.Module) -> nn.Module:
    """The head as it stands in its network, where the features' order is written into the conv before, at no cost."""
    head = copy.deepcopy(head)
    if isinstance(head, SubspaceLinear) and head.reorder is not None:
        del head.reorder
        head.reorder = None
    return head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--untimed", action="store_true", help="agreement alone")
    parser.add_argument("--rerun", action="store_true", help="take the timings anew")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = Rows("head_imagenet", args.minutes, machine=machine().to_dict(), crops=args.crops)
    if args.rerun:
        rows.value["rows"] = {key: row for key, row in rows.value["rows"].items() if "times, batch" not in key}
    given = load(
        args.checkpoint, model="head_imagenet:lite0", model_arg={"num_classes": 1000}, resize=256, size=224,
        mean=(0.498,) * 3, std=(0.502,) * 3,
    )  # fmt: skip
    classifier = Classifier.of(given)
    pictures = sorted(args.images.rglob("*.jpg"))
    images = Images(pictures, torch.full((len(pictures),), NO_LABEL), given.preprocessing)
    try:
        bench = Bench(classifier, sample(classifier, images, args.crops, args.cache), rows, args.cache)
        names = {name: bench.made(name, make) for name, make in heads(classifier, bench.features).items()}
        dense = nn.Linear(classifier.features, classifier.classes)
        dense.weight.data, dense.bias.data = classifier.weight.clone(), classifier.bias.clone()
        modules = {"dense": dense.eval(), **names}
        if not args.untimed:
            bench.timed(modules, False, args.seconds)
            bench.timed({name: modules[name] for name in WHOLE}, True, args.seconds)
    except OutOfTime:
        print("out of time; run again to go on")


if __name__ == "__main__":
    main()
