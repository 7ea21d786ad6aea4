"""The class-specific classifier as a stage: choose features, fit weights, lay out, rescore, measure."""

import copy
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.accuracy import predictor
from ...evaluate.data import Data, Images
from ...evaluate.latency import Comparison
from ..channels.features import Cached, Coverage, Keeper, Moments, Votes, cached, classifier, features, survey
from ..channels.groups import ChannelMap
from ..channels.tracing import channel_map
from ..network.checkpoint import Checkpoint
from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear, check_probe
from ..pruning.surgery import cut
from ..training import gates
from . import two_level as coarse
from .cluster import Subspaces, cocluster, fold
from .fit import Trained, assemble, decisions, refitted, top1, trained, truncated
from .options import VOTING, HeadOptions, default_k
from .result import HeadResult, NotFaster
from .select import centred, choose, saliency
from .timing import Timed, candidates, fastest_first, two_level_groups

CACHE = 2**31  # bytes of features that training a head may hold
WIDTH = 16  # channels that ONNX Runtime pays for together: unread features are cut in such steps


def specialize(
    checkpoint: Checkpoint, data: Data, options: HeadOptions, *, judge: Images | None = None
) -> tuple[Checkpoint, HeadResult]:
    """Replace the classifier by class-specific subspaces.

    Features are chosen and weights fitted on the training split; what is measured to decide anything (`auto`, training)
    is measured on the validation split; the result is accuracy on `judge` (default: the test split). Raises
    SlimrankError for what does not fit the classifier.
    """
    began = time.perf_counter()
    options.check()
    stage = Stage(checkpoint.with_classes(data), data, options)
    head, spaces, training = stage.head()
    model, folded, unread = stage.installed(head)
    made = model.get_submodule(stage.layer)
    assert isinstance(made, SubspaceLinear)
    images = judge or data.split("test")
    seen = cached(features(checkpoint.model, stage.layer, images.batches()))
    dense = F.linear(seen.x, stage.dense.weight.detach(), stage.dense.bias).argmax(1)
    whole = predictor(model)
    ours = torch.cat([whole(x).argmax(1).cpu() for x, _ in images.batches()])
    before, after = (float((d == seen.labels).double().mean()) for d in (dense, ours))
    recall = shortlist_recall(head, seen, dense) if head.rescore else None
    probed = coarse.probe_recall(head, seen) if head.probe else None
    blocks = spaces.order is not None or spaces.reorder is not None
    result = HeadResult(
        layer=stage.layer, select="all" if head.layout == INT8 else "blocks" if blocks else options.chosen_by,
        fit=options.fit, k1=stage.k1, k2=head.weight.shape[1], features=stage.m, layout=head.layout, groups=len(head.index),
        tile=head.tile, folded=folded, rescore=head.rescore, probe=head.probe, images=stage.images,
        top1_dense=before, top1_head=after,
        top1_dense_trained=stage.dense_trained(seen) if training and options.rival else None, ratio=after / max(before, 1e-12),
        agreement=float((dense == ours).double().mean()), shortlist_recall=recall, probe_recall=probed, n=len(seen.labels),
        head_macs_before=stage.dense.weight.numel(), head_macs_after=made.macs(()), features_cut=unread,
        seconds=time.perf_counter() - began, indices=head.indices().tolist(),
        training=training, latency=stage.timed, note="; ".join(stage.notes),
    )  # fmt: skip
    said = ("select", "fit", "k1", "k2", "layout", "groups", "tile", "rescore", "probe", "folded", "features_cut")
    return stage.checkpoint.then(model, step="specialize", **{key: getattr(result, key) for key in said}), result


class Stage:
    """One classifier on its way to subspaces: statistics are gathered once, heads of any shape are made from them."""

    def __init__(self, checkpoint: Checkpoint, data: Data, options: HeadOptions):
        self.checkpoint, self.data, self.options = checkpoint, data, options
        self.channels: ChannelMap = channel_map(checkpoint.model, checkpoint.example())
        self.layer, self.dense = classifier(checkpoint.model, self.channels, options.layer)
        self.classes, self.m = self.dense.weight.shape
        self.place = (checkpoint.model, self.channels, self.layer, checkpoint.example(2))
        self.notes: list[str] = []
        self.timed: Comparison | None = None
        for name, k in (("k2", options.k2), ("k1", options.k1)):
            if isinstance(k, int) and not 1 <= k <= self.m:
                raise SlimrankError(f"`{name}` is {k}, the classifier reads {self.m} features; choose 1 to {self.m}")
        if isinstance(options.rescore, int) and not 0 <= options.rescore <= self.classes:
            raise SlimrankError(
                f"`rescore` is {options.rescore}, must lie in 0..{self.classes}: there are {self.classes} classes"
            )
        if options.layout == "tiled":
            self.tile(options.k2 if isinstance(options.k2, int) else None)
        if options.groups is not None and options.groups > self.classes:
            raise SlimrankError(f"`groups` is {options.groups}, the classifier has {self.classes} classes; choose fewer")
        if options.probe:
            few, again = (value if isinstance(value, int) else 1 for value in (options.probe, options.rescore))
            check_probe(few, self.groups(), again if options.probe != "auto" else 0, self.classes)
        if options.chosen_by == "gates" and options.layout != "tiled":
            if checkpoint.gates is None:
                raise SlimrankError("`select` gates: this checkpoint has no gates; train them with `slimrank train --csg`")
            gates.choose(checkpoint.gates, self.dense.weight.detach().cpu(), 1)
        bias = torch.zeros(self.classes) if self.dense.bias is None else self.dense.bias.detach().cpu()
        weight = self.dense.weight.detach().cpu()
        # the paper truncates the dense weights; whatever is fitted leaves out what all classes share
        self.target = (weight, bias) if options.fit == "truncate" else centred(weight, bias)
        self.weight = weight

    def seen(self) -> None:
        """One pass over the training images; two where k1 is a coverage."""
        o, train = self.options, self.data.split("train")
        most = CACHE // (4 * self.m)
        if o.fit == "train" and len(train) > most:
            order = torch.randperm(len(train), generator=torch.Generator().manual_seed(o.seed))
            self.notes.append(f"fitted on {most:,} of {len(train):,} training images: their features fill {CACHE >> 30} GiB")
            train = train.subset(order[:most].sort().values)
        batches = lambda images: features(self.checkpoint.model, self.layer, images.batches())  # noqa: E731
        k1 = o.k1
        self.moments = Moments()
        voting = o.chosen_by in VOTING and o.layout != "tiled"
        if voting and isinstance(k1, float):
            coverage = Coverage()
            survey(batches(train), coverage.add)
            k1 = coverage.least(k1)
        if voting and k1 is None:
            k1 = o.k2 if isinstance(o.k2, int) else default_k(self.m)
        self.k1 = int(k1) if voting and k1 is not None else None
        self.votes = Votes(self.classes, self.k1) if self.k1 is not None else None
        keepers: list[Keeper] = [self.moments.add, *([self.votes.add] if self.votes else [])]
        if o.fit == "train":
            self.cache = cached(batches(train))
            self.images = survey([(self.cache.x, self.cache.labels)], *keepers)
        else:
            self.images = survey(batches(train), *keepers)
        self.judge: Cached = cached(batches(self.data.split("validation")))
        if o.fit != "truncate" and self.images < 2 * self.m:
            ridge = (
                ", and a ridge holds the fit" if self.images <= (o.k2 if isinstance(o.k2, int) else default_k(self.m)) else ""
            )
            self.notes.append(f"only {self.images} training images for {self.m} features: expect little of it{ridge}")
        empty = int((torch.bincount(train.labels, minlength=self.classes) == 0).sum())
        if empty:
            self.notes.append(f"{empty} classes have no training images")

    # -- one head --------------------------------------------------------------------------------------------------

    def tile(self, k2: int | None) -> int:
        """The width of a tile: as asked for, else the widest up to 16 that leaves a group at least four."""
        asked = self.options.tile
        wide = asked or next(t for t in (16, 8, 4, 2, 1) if (self.m % t == 0 and (k2 or default_k(self.m)) >= 4 * t) or t == 1)
        if asked is None and k2 is not None:
            while k2 % wide:
                wide //= 2
        if self.m % wide or (k2 is not None and k2 % wide):
            both = f"`k2` {k2} and the" if k2 else "the"
            raise SlimrankError(f"`tile` {wide} does not divide {both} classifier's {self.m} features; choose another")
        return wide

    def k2(self, layout: str) -> int:
        """As asked for, else an eighth, in whole tiles; int8 keeps all."""
        if layout == INT8:
            return self.m
        if isinstance(self.options.k2, int):
            return self.options.k2
        k, t = default_k(self.m), self.tile(None) if layout == "tiled" else 1
        return max(t, k // t * t)

    def groups(self) -> int:
        """As asked for; else of 25 classes, or as many as a group has classes where the best of them are probed."""
        return self.options.groups or (
            two_level_groups(self.classes) if self.options.probe else min(self.classes, max(2, self.classes // 25))
        )

    def spaces(self, layout: str, groups: int, k2: int, adjacent: bool, probing: bool) -> Subspaces:
        if layout == "tiled":
            worth, seed = saliency(self.weight, self.moments), self.options.seed
            order = coarse.confusable(self.weight, self.moments.covariance, groups, seed) if probing else None
            return cocluster(worth, groups, self.tile(k2), k2, seed, adjacent=adjacent, order=order)
        if layout == INT8:
            return Subspaces(torch.arange(self.m)[None])
        if self.options.chosen_by == "gates":
            assert self.checkpoint.gates is not None
            return Subspaces(gates.choose(self.checkpoint.gates, self.weight, k2))
        return Subspaces(choose(self.options.chosen_by, self.weight.double(), self.moments, self.votes, k2))

    def fitted(self, spaces: Subspaces, layout: str) -> tuple[SubspaceLinear, Trained | None]:
        weight, bias = self.target
        if self.options.fit == "truncate" or layout == INT8:
            made = truncated(weight, bias, spaces)
        else:
            made = refitted(weight, bias, self.moments, spaces)
        # a class at a time, the multiplied-out matrix trains faster than gathers
        head = assemble(*made, spaces, self.m, layout if layout == "tiled" else "dense")
        training = None
        if self.options.fit == "train":
            head, training = trained(head, self.target, self.cache, self.judge, seed=self.options.seed)
        return self.laid_out(head, spaces, layout), training

    def laid_out(
        self, head: SubspaceLinear, spaces: Subspaces, layout: str,
        *, rescore: int = 0, probe: int = 0, scores: tuple[Tensor, Tensor] | None = None,
    ) -> SubspaceLinear:  # fmt: skip
        """The same weights, in a layout, with or without rescoring and probing."""
        made = assemble(
            head.weight.detach(), head.bias.detach(), spaces, self.m, layout,
            full=self.target if rescore else None, rescore=rescore, coarse=scores if probe else None, probe=probe,
        )  # fmt: skip
        return made.eval().requires_grad_(False)

    def scores(self, spaces: Subspaces) -> tuple[Tensor, Tensor]:
        """The groups' coarse scores: trained where features are cached, else their mean logits."""
        order, groups = spaces.rows(self.classes), len(spaces.index)
        if self.options.fit == "train":
            return coarse.trained_scores(*self.target, order, groups, self.cache, self.options.seed)
        return coarse.mean_scores(*self.target, order, groups)

    def dense_trained(self, seen: Cached) -> float:
        """Top-1 of the dense layer trained as the head was: the gap to it is what sparsity costs."""
        linear = nn.Linear(self.m, self.classes)
        linear.weight.data, linear.bias.data = (t.clone() for t in self.target)
        made, _ = trained(linear, self.target, self.cache, self.judge, seed=self.options.seed)
        return top1(made, seen)

    # -- the choice ------------------------------------------------------------------------------------------------

    def head(self) -> tuple[SubspaceLinear, Subspaces, Trained | None]:
        """The head that the options describe; its layout the fastest that is accurate enough, where that is left open."""
        o = self.options
        found = self.by_the_clock() if o.layout == "auto" else []
        if o.only_faster and not found:
            raise NotFaster("; ".join(self.notes))
        self.seen()
        if o.layout != "auto":
            return self.made(o.layout, self.groups() if o.layout == "tiled" else self.classes, o.adjacent, o.probe)
        dense = top1(self.dense, self.judge)
        for timed in found:
            head, spaces, training = self.made(timed.layout, timed.groups, timed.adjacent, timed.probe)
            reached = top1(head, self.judge)
            if reached >= dense - o.drop:
                self.notes.append(f"{timed}; validation top-1 {reached:.4f}, dense {dense:.4f}")
                return head, spaces, training
            if timed is found[-1]:
                self.notes.append(
                    f"faster than the dense layer: {len(found)} of the layouts; within --max-drop {o.drop} of its "
                    f"validation top-1 {dense:.4f}: none ({timed.name}: {reached:.4f})"
                )
        if o.only_faster:
            raise NotFaster("; ".join(self.notes))
        return self.made("dense", self.classes, False, 0)

    def by_the_clock(self) -> list[Timed]:
        """Shapes that beat the dense layer at every batch size, fastest first; their weights do not matter to the clock."""
        o, k2 = self.options, self.k2("gather")
        t = self.tile(None) if o.k2 is None else self.tile(k2)
        rescore = o.rescore if isinstance(o.rescore, int) else min(8, self.classes)
        free = fold(*self.place, torch.arange(self.m).flip(0)) is not None
        shapes = candidates(
            self.m, self.classes, k2, t, groups=o.groups, adjacent=o.adjacent, reorder=not free, rescore=rescore, seed=o.seed,
            probe=o.probe if isinstance(o.probe, int) else 0, int8=o.any_layout and o.providers == ("cpu",),
        )  # fmt: skip
        found, self.timed, told = fastest_first(shapes, self.m, self.classes, o.batch, o.threads[0], o.providers[0])
        self.notes += [told] if told else []
        return found

    def made(
        self, layout: str, groups: int, adjacent: bool, probe: int | str
    ) -> tuple[SubspaceLinear, Subspaces, Trained | None]:
        """A head of one shape: k2, probing and rescoring found where they are left open."""
        o = self.options
        k2 = self.k2(layout) if o.k2 != "auto" or layout == INT8 else self.smallest(layout, groups, adjacent, bool(probe))
        spaces = self.spaces(layout, groups, k2, adjacent, bool(probe))
        head, training = self.fitted(spaces, layout)
        whole = layout in ("dense", INT8)
        if whole and o.rescore:
            self.notes.append(f"nothing rescored: the {layout} layout computes every logit already")
        if whole or not (o.rescore or probe):
            return head, spaces, training
        scores = self.scores(spaces) if probe else None
        few = self.few(head, spaces, scores) if probe == "auto" and scores else int(probe)
        words: dict[str, Any] = {"probe": few, "scores": scores}
        rescore = self.enough(head, spaces, layout, words) if o.rescore == "auto" else int(o.rescore)
        again = self.laid_out(head, spaces, layout, rescore=rescore, **words)
        if rescore:
            plain = self.laid_out(head, spaces, layout, **words)
            before, after = top1(plain, self.judge), top1(again, self.judge)
            if after < before:
                self.notes.append(
                    f"rescoring brings the dense layer's decisions back, not better ones: top-1 {before:.4f} -> {after:.4f}"
                )
        return again, spaces, training

    def smallest(self, layout: str, groups: int, adjacent: bool, probing: bool) -> int:
        """The smallest k2 whose validation top-1 stays within --max-drop of the dense layer's, by bisection."""
        o = self.options
        step = self.tile(None) if layout == "tiled" else 1
        floor = top1(self.dense, self.judge) - o.drop

        def holds(count: int) -> bool:
            head, _ = self.fitted(self.spaces(layout, groups, count * step, adjacent, probing), layout)
            return top1(head, self.judge) >= floor

        low, high = 0, self.m // step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        self.notes.append(f"k2 {high * step} is the smallest within --max-drop {o.drop} on validation")
        return high * step

    def few(self, head: SubspaceLinear, spaces: Subspaces, scores: tuple[Tensor, Tensor]) -> int:
        """The fewest groups that hold what all of them decide as often as asked for, on validation; with rescoring, what the
        dense layer decides, and half of the misses that are allowed are left to that."""
        wanted, allowed = decisions(head, self.judge), 1 - self.options.least_agreement
        if self.options.rescore:
            wanted, allowed = F.linear(self.judge.x, *self.target).argmax(1), allowed / 2
        few, held = coarse.fewest(scores, spaces.rows(self.classes), wanted, self.judge.x, 1 - allowed)
        whose = "the dense layer's" if self.options.rescore else "all groups'"
        self.notes.append(f"{few} of {len(spaces.index)} groups hold {held:.1%} of {whose} decisions on validation")
        return few

    def enough(self, head: SubspaceLinear, spaces: Subspaces, layout: str, words: dict[str, Any]) -> int:
        """The smallest N whose rescored decisions agree with the dense layer's as asked for, on validation."""
        dense = F.linear(self.judge.x, *self.target).argmax(1)
        asked, most = self.options.least_agreement, self.classes
        if words["probe"]:
            most = words["probe"] * (self.classes // len(spaces.index))

        def holds(count: int) -> bool:
            tried = decisions(self.laid_out(head, spaces, layout, rescore=count, **words), self.judge)
            return float((tried == dense).double().mean()) >= asked

        high = 1
        while high < most and not holds(high):
            high = min(most, 2 * high)
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        if high == most < self.classes and not holds(high):
            self.notes.append(f"even all {most} classes of the probed groups do not reach {asked:.1%} of the dense decisions")
        else:
            self.notes.append(f"{high} classes rescored for {asked:.1%} of the dense decisions on validation")
        return high

    # -- into the network ------------------------------------------------------------------------------------------

    def installed(self, head: SubspaceLinear) -> tuple[nn.Module, bool, int]:
        """The network with the head: feature order folded into the layers before where that can be, unread features cut."""
        model, folded, head = self.checkpoint.model, False, copy.deepcopy(head)
        if head.reorder is not None:
            other = fold(*self.place, head.reorder)
            if other is not None:
                model, folded = other, True
                head.reorder = None
            else:
                self.notes.append("the features' order cannot be written into the layers before; they are copied into it")
        made = with_head(model, self.layer, head.to(next(model.parameters()).device).requires_grad_(True))
        made, unread = (made, 0) if head.rescore or head.layout == "tiled" else self.without_unread(made, head)
        return made, folded, unread

    def without_unread(self, model: nn.Module, head: SubspaceLinear) -> tuple[nn.Module, int]:
        """Cut channels that nothing reads any more, in steps that ONNX Runtime pays for; a residual trunk is read by others."""
        units = self.channels.reads[self.layer]
        group = next((g for g in self.channels.groups if g.offset <= int(units[0]) < g.offset + g.units), None)
        if group is None or not group.prunable or len(set(units.tolist())) != len(units) or len(units) != group.units:
            return model, 0
        if self.channels.readers(group) != [self.layer]:
            return model, 0
        read = torch.zeros(self.m, dtype=torch.bool)
        read[head.index.flatten()] = True
        read[torch.tensor([i for i, u in enumerate(units.tolist()) if u - group.offset in group.fixed], dtype=torch.long)] = (
            True
        )
        width = -(-int(read.sum()) // WIDTH) * WIDTH
        if width >= self.m:
            return model, 0
        spread = self.moments.covariance.diagonal().masked_fill(read, torch.inf)
        keep = torch.zeros(self.m, dtype=torch.bool)
        keep[spread.topk(width).indices] = True
        again = channel_map(model, self.checkpoint.example())
        gone = again.removed({})
        gone[again.reads[self.layer][~keep]] = True
        return cut(model, again, gone), self.m - width


def with_head(model: nn.Module, layer: str, head: nn.Module) -> nn.Module:
    """A copy of the model with another classifier."""
    model = copy.deepcopy(model)
    owner, _, leaf = layer.rpartition(".")
    setattr(model.get_submodule(owner), leaf, head)
    return model


def shortlist_recall(head: SubspaceLinear, seen: Cached, dense: Tensor) -> float:
    """Share of images whose dense decision is among the classes that the subspaces choose for rescoring."""
    plain = copy.copy(head)
    plain.rescore = 0
    with torch.inference_mode():
        best = torch.cat([plain(x).topk(head.rescore, 1).indices for x in seen.x.split(1000)])
    return float((best == dense[:, None]).any(1).double().mean())
