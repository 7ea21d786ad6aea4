"""A head of a given shape: its features chosen, its weights fitted, laid out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear
from ..training import gates
from . import two_level
from .classifier import Classifier, tile_for
from .cluster import Subspaces, cocluster
from .fit import Trained, assemble, refitted, trained, truncated
from .options import BY_GATES, HeadOptions
from .select import choose_features, saliency
from .statistics import Statistics


@dataclass(frozen=True)
class Problem:
    """All that a head is made from: the dense classifier, the statistics of its features, what was asked for."""

    classifier: Classifier
    statistics: Statistics
    options: HeadOptions

    @property
    def target(self) -> tuple[Tensor, Tensor]:
        return self.classifier.target(self.options.fit)


@dataclass(frozen=True)
class Shape:
    """What is fixed of a head before its features are chosen. `probe`: groups of classes computed of each image; 0: all."""

    layout: str
    class_groups: int
    adjacent: bool = False
    probe: int | str = 0


@dataclass(frozen=True)
class Extras:
    """What is computed beside the subspaces: rescored classes, and probed groups by their coarse (weight, bias)."""

    rescore: int = 0
    probe: int = 0
    coarse: tuple[Tensor, Tensor] | None = None


def subspaces(problem: Problem, shape: Shape, k2: int) -> Subspaces:
    """Choose the features: co-clustered for tiles, all of them for int8, else as `select` says."""
    classifier, statistics, options = problem.classifier, problem.statistics, problem.options
    weight, moments = classifier.weight, statistics.moments
    if shape.layout == "tiled":
        order = None
        if shape.probe:
            order = two_level.confusable(weight, moments.covariance, shape.class_groups, options.seed)
        tile = tile_for(classifier.features, options.tile, k2)
        return cocluster(
            saliency(weight, moments), shape.class_groups, tile, k2, options.seed, adjacent=shape.adjacent, order=order
        )
    if shape.layout == INT8:
        return Subspaces(torch.arange(classifier.features)[None])
    if options.chosen_by == BY_GATES:
        assert classifier.checkpoint.gates is not None
        return Subspaces(gates.choose(classifier.checkpoint.gates, weight, k2))
    return Subspaces(choose_features(options.chosen_by, weight.double(), moments, statistics.votes, k2))


def fitted(problem: Problem, spaces: Subspaces, layout: str) -> tuple[SubspaceLinear, Trained | None]:
    """Fit the weights at the chosen features as `fit` says; also what training did, where there was any."""
    (weight, bias), options, statistics = problem.target, problem.options, problem.statistics
    if options.fit == "truncate" or layout == INT8:
        kept_weight, kept_bias = truncated(weight, bias, spaces)
    else:
        kept_weight, kept_bias = refitted(weight, bias, statistics.moments, spaces)
    # a class at a time, the multiplied-out matrix trains faster than gathers
    fast_layout = layout if layout == "tiled" else "dense"
    head = assemble(kept_weight, kept_bias, spaces, problem.classifier.features, fast_layout)
    training = None
    if options.fit == "train":
        head, training = trained(head, problem.target, statistics.trainable, statistics.validation, seed=options.seed)
    return laid_out(problem, head, spaces, layout), training


def laid_out(
    problem: Problem, head: SubspaceLinear, spaces: Subspaces, layout: str, extras: Extras | None = None
) -> SubspaceLinear:
    """The same weights, in a layout, with or without rescoring and probing."""
    extras = extras or Extras()
    again = assemble(
        head.weight.detach(), head.bias.detach(), spaces, problem.classifier.features, layout,
        full=problem.target if extras.rescore else None, rescore=extras.rescore,
        coarse=extras.coarse if extras.probe else None, probe=extras.probe,
    )  # fmt: skip
    return again.eval().requires_grad_(False)


def coarse_scores(problem: Problem, spaces: Subspaces) -> tuple[Tensor, Tensor]:
    """The scores of the groups of classes, (weight, bias): trained where features are cached, else their mean logits."""
    weight, bias = problem.target
    order, class_groups = spaces.rows(problem.classifier.classes), len(spaces.index)
    if problem.options.fit == "train":
        cache = problem.statistics.trainable
        return two_level.trained_scores(weight, bias, order, class_groups, cache, problem.options.seed)
    return two_level.mean_scores(weight, bias, order, class_groups)
