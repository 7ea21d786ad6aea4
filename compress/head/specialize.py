"""The class-specific classifier: choose features, fit weights, choose a layout, put it into the network, measure it."""

import copy
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...evaluate.accuracy import predictor
from ...evaluate.data import Data, Images
from ...evaluate.latency import Comparison
from ..channels.features import Cached, cached
from ..network.checkpoint import Checkpoint
from ..network.layout_names import INT8
from ..network.subspace import SubspaceLinear
from . import two_level
from .build import Problem, Shape
from .classifier import Classifier, check_fitting
from .fit import top1, trained
from .install import Installed, install
from .options import HeadOptions
from .result import HeadResult
from .search import Built, Refused, built, by_the_clock, search
from .statistics import gather_statistics, remarks

RECORDED = ("select", "fit", "k1", "k2", "layout", "groups", "tile", "rescore", "probe", "folded", "features_cut")


@dataclass(frozen=True)
class Specialized:
    """A checkpoint with a class-specific head, or as it was, and then `kept_dense_because` says why.

    `result`: of the head; where the dense layer was kept, of the subspaces that were fitted for the report alone.
    `report`: of subspaces that show which features each class lives on: `result`, but for an int8 head, which has none.
    """

    checkpoint: Checkpoint
    result: HeadResult
    report: HeadResult
    kept_dense_because: str = ""


@dataclass(frozen=True)
class Judged:
    """The images that a result is measured on, what the classifier reads of them, and what the dense layer decides.

    `labelled`: whether they have classes of their own; else `seen.labels` are the dense layer's.
    """

    images: Images
    seen: Cached
    dense: Tensor
    labelled: bool


def specialize(checkpoint: Checkpoint, data: Data, options: HeadOptions, *, judge: Images | None = None) -> Specialized:
    """Replace the classifier by class-specific subspaces.

    Features are chosen and weights fitted on the training split; what is measured to decide anything (`auto`, training)
    is measured on the validation split; the result is accuracy on `judge` (default: the test split). Without labels, the
    dense layer's decisions stand in their place, and accuracy is agreement with it. Raises SlimrankError for what does not
    fit the classifier.
    """
    began = time.perf_counter()
    options.check()
    classifier = Classifier.of(checkpoint.with_classes(data), options.layer)
    check_fitting(classifier, options)
    race = by_the_clock(classifier, options) if options.layout == "auto" else None
    problem = Problem(classifier, gather_statistics(classifier, data, options), options)
    notes = [race.note] if race and race.note else []
    outcome: Built | Refused = Refused(())
    if not (race and not race.faster and options.only_faster):
        notes += remarks(problem.statistics, classifier.features, options)
        outcome = search(problem, race)
    notes += outcome.notes
    judged = judged_on(classifier, judge or data.split("test"), data.classes is not None)
    if isinstance(outcome, Refused):
        result = report_only(problem, judged, began)
        return Specialized(checkpoint, result, result, "; ".join(notes))
    installed = install(classifier, outcome.head, variance(problem))
    notes += [installed.note] if installed.note else []
    latency = race.comparison if race else None
    result = measured(problem, outcome, installed, judged, latency, "; ".join(notes), began)
    step = {key: getattr(result, key) for key in RECORDED}
    specialized = classifier.checkpoint.then(installed.model, step="specialize", **step).taught(data)
    report = report_only(problem, judged, began) if options.report and result.layout == INT8 else result
    return Specialized(specialized, result, report)


def judged_on(classifier: Classifier, images: Images, labelled: bool) -> Judged:
    seen = cached(classifier.seen(images.batches(), labelled))
    return Judged(images, seen, classifier.decided(seen.x), labelled)


def variance(problem: Problem) -> Tensor:
    return problem.statistics.moments.covariance.diagonal()


def report_only(problem: Problem, judged: Judged, began: float) -> HeadResult:
    """The result of subspaces that nobody installs: least squares, no clock, for the report of what each class lives on."""
    options = replace(problem.options, layout="dense", fit="refit", rescore=0, probe=0, only_faster=False)
    problem = replace(problem, options=options)
    head = built(problem, Shape("dense", problem.classifier.classes))
    installed = install(problem.classifier, head.head, variance(problem))
    notes = [*remarks(problem.statistics, problem.classifier.features, options), *head.notes]
    notes += [installed.note] if installed.note else []
    return measured(problem, head, installed, judged, None, "; ".join(notes), began)


def measured(
    problem: Problem, built: Built, installed: Installed, judged: Judged, latency: Comparison | None, note: str, began: float
) -> HeadResult:
    """Set the network with its head beside the dense one, on the same images."""
    classifier, statistics, options, head = problem.classifier, problem.statistics, problem.options, built.head
    network = predictor(installed.model)
    ours = torch.cat([network(x).argmax(1).cpu() for x, _ in judged.images.batches()])
    before, after = (float((decided == judged.seen.labels).double().mean()) for decided in (judged.dense, ours))
    in_blocks = built.spaces.order is not None or built.spaces.reorder is not None
    rival = dense_trained(problem, judged.seen) if built.training and options.rival and judged.labelled else None
    return HeadResult(
        layer=classifier.layer, select="all" if head.layout == INT8 else "blocks" if in_blocks else options.chosen_by,
        fit=options.fit, k1=statistics.k1, k2=head.weight.shape[1], features=classifier.features, layout=head.layout,
        groups=len(head.index), tile=head.tile, folded=installed.folded, rescore=head.rescore, probe=head.probe,
        images=statistics.images, crops=statistics.crops, top1_dense=before if judged.labelled else None,
        top1_head=after if judged.labelled else None, top1_dense_trained=rival,
        ratio=after / max(before, 1e-12), agreement=float((judged.dense == ours).double().mean()),
        shortlist_recall=shortlist_recall(head, judged) if head.rescore else None,
        probe_recall=two_level.probe_recall(head, judged.seen) if head.probe else None, n=len(judged.seen.labels),
        head_macs_before=classifier.dense.weight.numel(), head_macs_after=installed.head.macs(()),
        features_cut=installed.features_cut, seconds=time.perf_counter() - began, indices=head.indices().tolist(),
        training=built.training, latency=latency, note=note,
    )  # fmt: skip


def dense_trained(problem: Problem, seen: Cached) -> float:
    """Top-1 of the dense layer trained as the head was: the gap to it is what sparsity costs."""
    classifier, statistics, options = problem.classifier, problem.statistics, problem.options
    linear = nn.Linear(classifier.features, classifier.classes)
    linear.weight.data, linear.bias.data = (t.clone() for t in problem.target)
    trained_linear, _ = trained(linear, problem.target, statistics.trainable, statistics.validation, seed=options.seed)
    return top1(trained_linear, seen)


def shortlist_recall(head: SubspaceLinear, judged: Judged) -> float:
    """Share of images whose dense decision is among the classes that the subspaces choose for rescoring."""
    plain = copy.copy(head)
    plain.rescore = 0
    with torch.inference_mode():
        best = torch.cat([plain(x).topk(head.rescore, 1).indices for x in judged.seen.x.split(1000)])
    return float((best == judged.dense[:, None]).any(1).double().mean())
