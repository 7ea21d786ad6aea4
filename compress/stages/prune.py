"""Cut a checkpoint to a budget: in one shot, in steps with recovery between them, or as deep as accuracy allows."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ...evaluate.data import Data
from ...evaluate.macs import Macs, count
from ...processes import alone
from ..channels import channels_of
from ..network.checkpoint import Checkpoint, load, save
from ..pruning import surgery
from ..pruning.accuracy_budget import Trial, holds_to, within_drop
from ..pruning.budget import costs_for, plan, reached_by
from ..pruning.costs import Costs
from ..pruning.options import Cut
from ..pruning.plan import PruningPlan
from ..rankers import DEFAULT
from ..rankers.scores import FilterScores
from ..training.gates import cut_along
from ..training.loop import train
from ..training.result import Training
from .measure import Decided, accuracy_on, agreement, decided
from .options import PruneOptions
from .place import Place
from .rank import rank
from .repair import RECONSTRUCTED, Repaired, RepairFigures, figures, repair
from .trials import Trials

Say = Callable[[str], None]
Keep = dict[str, list[int]]


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A checkpoint that was cut, and what it cost.

    `keep[group]` and `widths[group]` (before, after) are in the numbers of the network that was given; `plan` is the last
    step's. `training`: of the trial that was taken, where trials were trained. `validation_top1_before` and `_after`: with
    `max_drop`. `agreement`: share of `images` test images on which both networks decide alike. `repair`: what the last cut
    cost as it was made and repaired, where it was repaired and not trained. `missed`: the result loses more than `max_drop`
    on validation.
    """

    checkpoint: Checkpoint
    plan: PruningPlan
    keep: Keep
    budget: dict[str, float]
    steps: int
    before: Macs
    after: Macs
    top1_before: float | None
    top1_after: float | None
    agreement: float | None = None
    images: int = 0
    repair: RepairFigures | None = None
    trials: list[Trial] = field(default_factory=list)
    validation_top1_before: float | None = None
    validation_top1_after: float | None = None
    missed: bool = False
    training: Training | None = None
    validation_seen: bool | None = False

    @property
    def widths(self) -> dict[str, list[int]]:
        widths: dict[str, list[int]] = self.checkpoint.history[-1]["widths"]
        return widths

    def to_dict(self) -> dict[str, Any]:
        searched = {"trials": [[t.macs, t.top1] for t in self.trials], "validation_top1_before": self.validation_top1_before}
        return {
            "macs_before": self.before.macs, "macs_after": self.after.macs, "params_before": self.before.params,
            "params_after": self.after.params, "top1_before": self.top1_before, "top1_after": self.top1_after,
            "agreement": self.agreement, "repair": self.repair and self.repair.to_dict(), "budget": self.budget,
            "ranker": self.plan.ranker, "widths": self.widths, "keep": self.keep, "note": self.plan.note, "table": str(self),
            "validation_seen_in_training": self.validation_seen,
            **(searched if self.trials else {}),
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [str(self.plan) if self.steps == 1 else f"the last of {self.steps} steps:\n{self.plan}"]
        if self.top1_before is not None and self.top1_after is not None:
            tuned = "before fine-tuning" if self.training is None else f"after {self.training.epochs} epochs"
            lines.append(f"  top-1 {self.top1_before:.4f} -> {self.top1_after:.4f} on test, {tuned}")
        elif self.agreement is not None:
            lines.append(f"  agrees with the dense network on {self.agreement:.1%} of {self.images:,} test images")
        if self.repair is not None:
            lines.append(f"  {self.repair}")
        lines.append(f"  parameters {self.before.params:,} -> {self.after.params:,}")
        return "\n".join(lines)


@dataclass
class _Job:
    """One `prune` on its way. `costs` are the given network's; those of the network after a step are near enough."""

    given: Checkpoint
    data: Data | None
    options: PruneOptions
    place: Place | None
    say: Say
    costs: Costs | None = None

    def cut(self, checkpoint: Checkpoint, scores: FilterScores, cut: Cut) -> Repaired:
        """Cut once and repair the cut, without training."""
        o, channels, example = self.options, channels_of(checkpoint), checkpoint.example(2)

        def chosen_by_the_clock() -> PruningPlan:
            if self.costs is None:
                self.costs = costs_for(cut, checkpoint.model, channels, example, o.clock)
            return plan(checkpoint.model, channels, scores, cut, example, costs=self.costs, timing=o.clock)

        chosen = alone(chosen_by_the_clock)
        smaller = surgery.apply_plan(checkpoint.model, channels, chosen, example)
        return repair(checkpoint.model, channels, chosen, smaller, self.data, o)

    def train(self, model: nn.Module, epochs: int, progress: str | None = None) -> tuple[nn.Module, Training]:
        assert self.data is not None
        taught = self.options.distill or self.data.classes is None
        return train(
            model, self.data.split("train"), self.data.validation, self.options.recipe(epochs),
            keep_start=self.given.judged_fairly(self.data), teacher=self.given.model if taught else None,
            progress=self.place.at(progress) if self.place and progress else None,
        )  # fmt: skip

    def validated(self, model: nn.Module) -> float:
        assert self.data is not None
        classes = len(self.data.classes_for("`max_drop`"))
        return accuracy_on(model, self.data.split("validation"), classes, self.options.device).top1


def prune(
    checkpoint: Checkpoint,
    data: Data | None,
    options: PruneOptions,
    *,
    scores: FilterScores | None = None,
    place: Place | None = None,
    before: Decided | None = None,
    measured: bool = True,
    say: Say = lambda line: None,
) -> Pruned:
    """Rank and cut to the budget; with data, and where `measured`, test accuracy before and after, and agreement.

    `scores`: of the first cut, made before, by `options.ranker` where it is named. `place`: a folder that keeps what a
    kill must not lose. `before`: what the given network decides on test images, where it is known. Raises
    SlimrankError for a budget that cannot be met and for scores of another network.
    """
    options.check(data is not None, scores is not None, labels=data is None or data.classes is not None)
    if data is not None:
        checkpoint = checkpoint.with_classes(data)
    if scores is None:
        scores = rank(checkpoint, options.ranker or DEFAULT, data, seed=options.seed, device=options.device)
    job = _Job(checkpoint, data, options, place, say)
    seen = scores.extra.get("validation_seen_in_training", False)
    found = _in_steps(job, scores) if options.cut.max_drop is None else _within_drop(job, scores)
    if data is not None and options.cut.max_drop is not None:
        seen = checkpoint.validation_seen(data)
    shape = checkpoint.preprocessing.shape
    after = repaired = None
    if data is not None and measured:
        before = before or decided(checkpoint.model, data, device=options.device)
        after = decided(found.model, data, device=options.device)
        repaired = figures(before, found.repaired, after, data, options) if found.repaired else None
    return Pruned(
        checkpoint=_written(job, found), plan=found.plan, keep=found.keep, budget=_budget(found.plan, options.cut),
        steps=options.steps, before=count(checkpoint.model, shape), after=count(found.model, shape),
        top1_before=before.top1 if before else None, top1_after=after.top1 if after else None,
        agreement=agreement(before, after) if before and after else None, images=len(after.classes) if after else 0,
        repair=repaired, trials=found.trials, validation_top1_before=found.validation_before,
        validation_top1_after=found.validation_after,
        missed=found.validation_before is not None and found.validation_after is not None
        and not holds_to(options.cut.max_drop or 0.0, found.validation_before, found.validation_after),
        training=found.training, validation_seen=seen,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The network that a search or the last step came to. `trained`: its weights moved since the cut."""

    model: nn.Module
    plan: PruningPlan
    keep: Keep
    repaired: Repaired | None = None  # of the last step
    training: Training | None = None
    trained: bool = False
    trials: list[Trial] = field(default_factory=list)
    validation_before: float | None = None
    validation_after: float | None = None


def _budget(chosen: PruningPlan, cut: Cut) -> dict[str, float]:
    name, asked = cut.budget
    return {**chosen.budget, name: asked}


def _written(job: _Job, found: _Found) -> Checkpoint:
    """The checkpoint of the result, its last step of history among it; gates stay where the weights did."""
    channels = channels_of(job.given)
    step: dict[str, Any] = {
        "step": "prune", "ranker": found.plan.ranker, "budget": _budget(found.plan, job.options.cut),
        "scope": found.plan.scope,
        "widths": {name: [channels.group(name).units, len(kept)] for name, kept in found.keep.items()},
    }  # fmt: skip
    if job.options.steps > 1:
        step |= {"steps": job.options.steps, "recover": job.options.recover}
    if found.repaired is not None and found.repaired.taken == RECONSTRUCTED:
        step |= {"reconstructed": found.repaired.images}
    if found.training is not None:
        step |= {"epochs": found.training.epochs, "lr": job.options.training.lr}
    result = job.given.then(found.model, **step)
    if found.trained and job.data is not None:
        return result.taught(job.data)
    if not found.trained:
        result = replace(result, gates=cut_along(job.given.gates, channels, channels.removed(found.keep)))
    return result


def _in_steps(job: _Job, scores: FilterScores) -> _Found:
    """Rank, cut and recover `steps` times; the last cut is not trained. What a step left is kept in the job's place."""
    o, current, keep = job.options, job.given, {}
    trained = False
    for number in range(o.steps - 1):
        recovered, cut_only = (job.place and job.place.at(f"step-{number + 1}{end}.safetensors") for end in ("", "-cut"))
        if recovered and recovered.exists():
            current = load(recovered, model=job.given.name)
            keep, trained = current.history[-1]["keep"], o.recover > 0
            continue
        if cut_only and cut_only.exists():  # killed while it recovered: what a clock chose is not chosen again
            current = load(cut_only, model=job.given.name)
            keep = current.history[-1]["keep"]
        else:
            cut, keep = _step(job, current, scores if number == 0 else None, number, keep)
            current = job.given.then(cut.model, step=f"cut {number + 1} of {o.steps}", keep=keep)
            if cut_only:
                save(current, cut_only)
        if o.recover:
            model, _ = job.train(current.model, o.recover, f"step-{number + 1}.part")
            trained = True
            current = job.given.then(model, step=f"cut {number + 1} of {o.steps}, recovered", keep=keep)
        if recovered and job.place:
            save(current, recovered)
            job.place.at(f"step-{number + 1}.part").unlink(missing_ok=True)
    cut, keep = _step(job, current, scores if o.steps == 1 else None, o.steps - 1, keep)
    return _Found(model=cut.model, plan=cut.plan, keep=keep, repaired=cut, trained=trained)


def _step(job: _Job, current: Checkpoint, scores: FilterScores | None, number: int, keep: Keep) -> tuple[Repaired, Keep]:
    """One cut of several; `keep` in and out is in the given network's numbers."""
    o = job.options
    if scores is None:
        scores = rank(current, o.ranker or DEFAULT, job.data, seed=o.seed, device=o.device)
    reached = 1.0
    if number:
        dense = job.given
        reached = alone(
            lambda: reached_by(o.cut, dense.model, channels_of(dense), current.model, keep, dense.example(2), o.clock)
        )
    cut = job.cut(current, scores, o.cut.step(number, o.steps, reached))
    return cut, {name: [keep[name][i] for i in kept] if name in keep else kept for name, kept in cut.plan.keep.items()}


def _within_drop(job: _Job, scores: FilterScores) -> _Found:
    """The largest cut within `max_drop`; the network of the trial that was taken is the result."""
    o = job.options
    before = job.validated(job.given.model)
    trials = Trials(job.place, job.given)

    def run(cut: Cut) -> float:
        assert cut.macs is not None
        known = trials.top1(cut.macs)
        if known is not None:
            return known
        trial = job.cut(job.given, scores, cut)
        model, training = trial.model, None
        if o.training.epochs:
            model, training = job.train(model, o.training.epochs)
        reached = job.validated(model)
        trials.keep(cut.macs, reached, trial.plan, model, training)
        return reached

    taken, rows = within_drop(o.cut, run, before, job.say)
    assert taken.macs is not None
    if not trials.holds(taken.macs):  # its accuracy is remembered, its network is gone
        trials.forget(taken.macs)
        run(taken)
    chosen, model, training = trials.network(taken.macs)
    return _Found(
        model=model, plan=chosen, keep=chosen.keep, training=training, trained=training is not None, trials=rows,
        validation_before=before, validation_after=job.validated(model),
    )  # fmt: skip
