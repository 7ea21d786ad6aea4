"""What does a head cost in accuracy, by how features are chosen, weights fitted, classes grouped and rescored?

    python benchmarks/head_accuracy.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg \
        --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200 --minutes 40

The network is untouched: everything but the last rows works on what the classifier reads. ResNet-20 on CIFAR-10 (JPEG), whose
checkpoint saw other pixels, and ResNet-18 on Tiny ImageNet (200 classes, 512 features). Rivals: random features, low rank of
equal MACs (of the weights, and of the logits), plain and rescored, and the dense layer trained as the heads are.
joint: one epoch over all training images, network and head together (lr 0.01), the dense network beside it, equally long;
two levels: of 20 groups the best few are computed.
distilled: the untouched network is the teacher of both.
Validation is a fifth of the test split and decides what training keeps; test figures are of the rest. `agreement` with the
dense decisions is of validation. Rows are saved as they come to results/head_accuracy.json; run again to go on.
"""

import torch
import torch.nn.functional as F
from rows import OutOfTime, Rows, two_networks
from torch import nn

from slimrank.compress.channels.features import Moments, Votes, cached, classifier, features, survey
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.head.cluster import Subspaces, cocluster
from slimrank.compress.head.fit import assemble, decisions, refitted, top1, trained, truncated
from slimrank.compress.head.fold import fold
from slimrank.compress.head.install import with_head
from slimrank.compress.head.low_rank import low_rank
from slimrank.compress.head.options import SELECTS, VOTING
from slimrank.compress.head.select import centred, choose_features, saliency
from slimrank.compress.head.two_level import confusable, mean_scores, probe_recall, trained_scores
from slimrank.compress.network.checkpoint import load
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data


class Bench:
    def __init__(self, name: str, checkpoint, spec: str, rows: Rows):
        self.name, self.rows, self.checkpoint = name, rows, checkpoint
        self.data = open_data(spec, checkpoint.preprocessing, validation="test:0.2")
        self.model = checkpoint.model.eval()
        self.channels = channel_map(self.model, checkpoint.example())
        self.layer, dense = classifier(self.model, self.channels, checkpoint.example())
        self.weight, self.bias = dense.weight.detach(), dense.bias.detach()
        self.target = centred(self.weight, self.bias)
        self.classes, self.m = self.weight.shape
        read = lambda split: cached(features(self.model, self.layer, self.data.split(split).batches()))  # noqa: E731
        self.train, self.validation, self.test = read("train"), read("validation"), read("test")
        self.moments = Moments()
        survey([(self.train.x, self.train.labels)], self.moments.add)
        self.dense = F.linear(self.validation.x, self.weight, self.bias).argmax(1)

    def measured(self, head) -> dict:
        head = head.eval().requires_grad_(False)
        return {
            "macs": head.weight.numel() if isinstance(head, nn.Linear) else head.macs(()),
            "validation_top1": round(top1(head, self.validation), 4), "test_top1": round(top1(head, self.test), 4),
            "agreement": round(float((decisions(head, self.validation) == self.dense).double().mean()), 4),
        }  # fmt: skip

    def linear(self) -> nn.Linear:
        made = nn.Linear(self.m, self.classes)
        made.weight.data, made.bias.data = (t.clone() for t in self.target)
        return made

    def fitted(self, spaces: Subspaces, fit: str):
        target = (self.weight, self.bias) if fit == "truncate" else self.target
        made = truncated(*target, spaces) if fit == "truncate" else refitted(*target, self.moments, spaces)
        return assemble(*made, spaces, self.m, "tiled" if spaces.reorder is not None else "dense")

    def row(self, key: str, spaces, fits=("truncate", "refit", "train")) -> None:
        for fit in fits:

            def make(fit=fit):
                chosen = spaces()
                head, told = self.fitted(chosen, fit), {}
                if fit == "train":
                    head, done = trained(head, self.target, self.train, self.validation)
                    told = {"distilled": done.share, "seconds": round(done.seconds)}
                found = self.measured(head)
                return {**found, "macs": head.weight.numel(), "captured": chosen.captured, **told}

            self.rows.row(f"{self.name} {key} {fit}", make)

    def scattered(self, k: int) -> None:
        def spaces(select):
            votes = None
            if select in VOTING:
                votes = Votes(self.classes, k)
                votes.add(self.train.x, self.train.labels)
            if select == "random":
                drawn = torch.rand(self.classes, self.m, generator=torch.Generator().manual_seed(0))
                return Subspaces(drawn.topk(k, 1).indices.sort(1).values)
            return Subspaces(choose_features(select, self.weight, self.moments, votes, k))

        for select in (*SELECTS, "random"):
            fits = ("truncate", "refit", "train") if select in ("histogram", "contribution", "omp") else ("truncate", "refit")
            self.row(f"{select} k2={k}", lambda s=select: spaces(s), fits)

    def tiles(self, groups: int, tile: int, k: int, adjacent: bool) -> Subspaces:
        return cocluster(saliency(self.weight, self.moments), groups, tile, k, adjacent=adjacent)

    def tiled(self, k: int, shapes) -> None:
        for groups, tile, adjacent in shapes:
            key = f"{groups} groups{' of adjacent classes' if adjacent else ''}, tiles of {tile}, k2={k}"
            self.row(key, lambda g=groups, t=tile, a=adjacent: self.tiles(g, t, k, a), ("refit", "train"))

    def rescored(self, k: int, groups: int, tile: int, counts) -> None:
        """The refitted tiles' shortlists, and those of low rank at equal MACs, the rescoring counted."""
        chosen = self.tiles(groups, tile, k, False)
        weight, bias = refitted(*self.target, self.moments, chosen)
        for n in (0, *counts):
            key = f"{self.name} {groups} groups, tiles of {tile}, k2={k}, {n} rescored"
            words = {"full": self.target, "rescore": n} if n else {}
            self.rows.row(key, lambda w=words: self.measured(assemble(weight, bias, chosen, self.m, "tiled", **w)))
            for what in ("weights", "logits"):
                given = (self.moments.mean, self.moments.covariance) if what == "logits" else None
                made = lambda g=given, n=n: self.measured(low_rank(*self.target, k * self.classes, g, rescore=n))  # noqa: E731
                self.rows.row(f"{self.name} low rank of the {what}, k2={k}, {n} rescored", made)

    def two_levels(self, k: int, groups: int, tile: int, probes, again: int) -> None:
        """Of the groups only the best are computed: classes grouped by confusion, and at random; scores trained, and means.

        `recall`: share of validation images whose decision by all groups lies in those computed. Weights refitted.
        """
        mixed = torch.randperm(self.classes, generator=torch.Generator().manual_seed(0))
        orders = {"confusable": confusable(self.weight, self.moments.covariance, groups), "random": mixed}
        for name, order in orders.items():
            chosen = cocluster(saliency(self.weight, self.moments), groups, tile, k, order=order)
            weight, bias = refitted(*self.target, self.moments, chosen)
            kinds = {"trained": trained_scores(*self.target, order, groups, self.train)}
            if name == "confusable":
                kinds["mean"] = mean_scores(*self.target, order, groups)
            for kind, scores in kinds.items():
                for probe in probes:
                    for n in (0, again):
                        if n > probe * (self.classes // groups):
                            continue
                        words = {"coarse": scores, "probe": probe, "rescore": n, "full": self.target if n else None}

                        def make(weight=weight, bias=bias, chosen=chosen, words=words):
                            head = assemble(weight, bias, chosen, self.m, "tiled", **words).eval()
                            recall = round(probe_recall(head, self.validation), 4)
                            return {**self.measured(head), "recall": recall, "macs": head.macs(())}

                        key = f"{self.name} {groups} {name} groups, {kind} scores, {probe} probed, k2={k}, {n} rescored"
                        self.rows.row(key, make)

    def joint(self, k: int, shape: tuple[int, int] | None, taught: bool = False) -> None:
        """One epoch of network and head, from the fitted head; and of the dense network. `taught`: from the trained head,
        with the untouched dense network as teacher of both."""
        recipe = Recipe(1, 0.01)

        def make(specialised: bool):
            model = self.model
            if specialised and shape:
                chosen = self.tiles(shape[0], shape[1], k, False)
                head = self.fitted(chosen, "refit")
                if taught:
                    head, _ = trained(head, self.target, self.train, self.validation)
                model = fold(model, self.channels, self.layer, self.checkpoint.example(2), chosen.reorder)
                head.reorder = None
                model = with_head(model, self.layer, head)
            elif specialised:
                chosen = Subspaces(choose_features("omp", self.weight, self.moments, None, k))
                model = with_head(model, self.layer, self.fitted(chosen, "refit"))
            before = self.whole(model)
            teacher = self.model if taught else None
            tuned, training = train(model, self.data.train, self.data.validation, recipe, teacher=teacher)
            return {"before": before, "after": self.whole(tuned), "seconds": round(training.seconds)}

        what = f"{shape[0]} groups, tiles of {shape[1]}, k2={k}" if shape else f"omp k2={k}"
        how = "joint, distilled" if taught else "joint"
        self.rows.row(f"{self.name} dense {how}", lambda: make(False))
        self.rows.row(f"{self.name} {what} {how}", lambda: make(True))

    def whole(self, model) -> dict:
        found = {}
        for split in ("validation", "test"):
            found[split] = round(accuracy(predictor(model), self.data.split(split).batches(), self.classes).top1, 4)
        return found


def main() -> None:
    parser = two_networks(__doc__)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("head_accuracy", args.minutes, torch=torch.__version__)
    try:
        small = Bench("resnet20", load(args.checkpoint, model="resnet20-cifar"), args.data, rows)
        large = Bench("resnet18", load(args.tiny_checkpoint, model="resnet18", size=64), args.tiny, rows)
        for bench in (small, large):
            bench.rows.row(f"{bench.name} dense", lambda b=bench: b.measured(b.linear()))
        small.scattered(5)
        large.tiled(
            64, [(40, 8, False), (20, 8, False), (8, 8, False), (40, 16, False), (8, 16, False), (40, 8, True), (8, 8, True)]
        )
        large.rescored(64, 40, 8, (4, 8, 16, 25))
        large.two_levels(64, 20, 8, (1, 2, 4, 8), 16)
        large.scattered(64)
        for bench in (small, large):
            again = lambda b=bench: b.measured(trained(b.linear(), b.target, b.train, b.validation)[0])  # noqa: E731
            bench.rows.row(f"{bench.name} dense trained", again)
        small.joint(5, None)
        large.joint(64, (40, 8))
        large.joint(64, (40, 8), taught=True)
        small.tiled(16, [(5, 4, False), (2, 4, False)])
        small.scattered(10)
        large.tiled(32, [(40, 8, False), (8, 8, False)])
        large.scattered(32)
    except OutOfTime:
        print("out of time; run again to go on")


if __name__ == "__main__":
    main()
