"""rank -> prune -> finetune -> specialize -> export -> bench -> report: the verbs in a row, resumable.

Every stage leaves its artefact and its row in DIR before the next one starts; both appear whole or not at all. A run that
was killed goes on after the last stage that finished. DIR belongs to one checkpoint and one set of options.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from torch import nn

from .. import __version__
from ..errors import SlimrankError
from ..evaluate.data import Data
from ..evaluate.latency import compare
from ..evaluate.macs import count
from ..evaluate.pages.merged import Merged
from ..evaluate.pages.report import report_page
from ..evaluate.pages.run import run_of
from ..evaluate.runner import Runner
from ..export.to_onnx import export as to_onnx
from ..export.to_onnx import size
from ..files import write_json, write_text
from ..processes import alone
from .channels import channels_of
from .channels.groups import stays
from .folder import Folder
from .head.specialize import specialize
from .network.checkpoint import SEEN, Checkpoint, load, save
from .network.layout_names import INT8
from .options import CompressOptions
from .pruning.budget import plan
from .pruning.select import guarded
from .rankers.scores import FilterScores
from .recipes.recipe import RECIPE, written_recipe
from .rows import ROWS, BaselineRow, BenchRow, ExportRow, FinetuneRow, PruneRow, RankRow, RivalsRow, Row, SpecializeRow
from .stages.export import export, onnx_metadata
from .stages.finetune import finetune
from .stages.measure import Decided, agreement, decided, decided_by, left_to_lose
from .stages.place import Place, identity
from .stages.prune import prune
from .stages.rank import rank
from .stages.rivals import rivals

DENSE = "dense.onnx"
FLOAT = "model-float.onnx"  # beside model.onnx, where this is in int8
R = TypeVar("R", bound=Row)


@dataclass
class Run:
    """One `compress` on its way. Artefacts lie in DIR/stages, rows in DIR/state.json (folder.py).

    `recipe`: the text of DIR/recipe.toml, which repeats it.
    """

    given: Checkpoint
    data: Data | None
    options: CompressOptions
    folder: Folder
    recipe: str
    say: Callable[[str], None] = lambda line: None

    @property
    def out(self) -> Path:
        return self.folder.path

    @property
    def place(self) -> Place:
        return self.folder.place

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        return self.folder.done

    @property
    def asked(self) -> Mapping[str, Any]:
        return self.folder.asked

    def at(self, name: str) -> Path:
        return self.place.at(name)

    def slim(self, path: Path) -> Checkpoint:
        """Load a slim file that this run wrote: the model's name is the one the user gave."""
        try:
            return load(path, model=self.given.name)
        except SlimrankError as error:
            raise SlimrankError(f"{path} is not as this run left it; {self.folder.anew}") from error

    def row(self, kind: type[R]) -> R:
        """What a stage that is done came to. Raises SlimrankError where state.json does not hold it as it was written."""
        try:
            return msgspec.convert(self.done[kind.STAGE], kind)
        except msgspec.ValidationError as error:
            raise SlimrankError(f"{self.out / 'state.json'} is damaged ({error}); {self.folder.anew}") from error

    def decided(self, model: nn.Module) -> Decided | None:
        """Decisions and accuracy on the test split; reported, never chosen on."""
        return None if self.data is None else decided(model, self.data, device=self.options.device)

    @cached_property
    def dense(self) -> Decided | None:
        """What the given network decides on test images; taken anew where a stopped run goes on."""
        return self.decided(self.given.model)

    @property
    def unlearnable(self) -> str:
        """Why there are no classes to learn from, for people; empty where there are."""
        return "no data" if self.data is None else "no labels" if self.data.classes is None else ""

    @property
    def seen(self) -> bool | None:
        return None if self.data is None else self.given.validation_seen(self.data)

    def finish(self, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Run what is left; returns the report (also report.json and report.html in DIR)."""
        with self.folder:
            return self._finish(say)

    def _finish(self, say: Callable[[str], None]) -> dict[str, Any]:
        data = None if self.unlearnable else self.data
        if self.folder.taken_over:
            say(self.folder.taken_over)
        if data is not None and self.seen is not False and data.validation_from.startswith("train"):
            say(SEEN)
        self.say = say
        for name, stage in STAGES.items():
            if name in self.done:
                say(f"{name:10}    done     {self.row(ROWS[name]).says}")
                continue
            began = time.perf_counter()
            row = (alone(partial(stage, self)) if name in ALONE else stage(self)).to_dict()
            self.folder.finish(name, {"name": name, **row, "seconds": round(time.perf_counter() - began, 2)})
            say(f"{name:10} {self.done[name]['seconds']:7.1f} s  {row['says']}")
        report = self.report()
        write_json(self.out / "report.json", report)
        write_text(self.out / "report.html", report_page(Merged([run_of(report)])))
        write_text(self.out / RECIPE, self.recipe)
        return report

    def report(self) -> dict[str, Any]:
        bench = self.done["bench"]
        sides = {}
        for side, row in (("baseline", self.row(BaselineRow)), ("compressed", self.row(ExportRow))):
            latency = [timed for timed in bench["results"] if timed["model"] == side]
            sides[side] = {
                "top1": row.top1, "agreement": row.agreement, "macs": row.macs, "params": row.params, "bytes": row.bytes,
                "flops": 2 * row.macs, "latency": latency,
            }  # fmt: skip
        return {
            "model": self.given.name, "classes": self.given.classes, **sides, "stages": list(self.done.values()),
            "options": self.asked, "machine": bench["machine"],
            "test_images": None if self.data is None else len(self.data.split("test")),
            "validation_seen_in_training": self.seen, "slimrank": __version__,
            "seconds": round(sum(row["seconds"] for row in self.done.values()), 1),
        }  # fmt: skip


def compress(
    path: str | Path,
    out: str | Path,
    options: CompressOptions | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    **reading: Any,
) -> dict[str, Any]:
    """Compress a checkpoint into a folder, going on where a run of the same was stopped; returns the report.

    `reading` goes to `load`. Raises SlimrankError for options that contradict themselves and for a folder of another run.
    """
    return start(path, out, options or CompressOptions(), **reading).finish(say)


def start(path: str | Path, out: str | Path, options: CompressOptions, **reading: Any) -> Run:
    """Open DIR for this checkpoint and these options; an unfinished run of the same goes on.

    `reading` goes to `checkpoint.load`. Raises SlimrankError when DIR belongs to something else, and for a budget that
    cannot be met, before any work.
    """
    options.check()
    path, out = Path(path), Path(out)
    checkpoint = load(path, **reading)
    named = {{"model": "name", "model_arg": "arguments"}.get(key, key): value for key, value in reading.items()}
    asked = identity(path, {**options.to_dict(), **named})  # the report's keys are 0.7.0's
    data = options.data.open(checkpoint.preprocessing) if options.data else None
    if data is not None:
        checkpoint = checkpoint.with_classes(data)
    checkpoint.outputs()
    _check_reach(checkpoint, options)
    fingerprint = "" if data is None else data.fingerprint
    folder = Folder.open(out, asked, fingerprint, tuple(STAGES), path)
    return Run(checkpoint, data, options, folder, written_recipe(path, options, reading))


def _check_reach(checkpoint: Checkpoint, options: CompressOptions) -> None:
    """A budget or a k that cannot be met shows now, not after an hour; times and drops show when they are measured."""
    channels, cut = channels_of(checkpoint), replace(options.cut, timed=False)
    guarded(channels, cut.protect)
    if cut.max_drop is None and cut.latency is None:
        plan(checkpoint.model, channels, FilterScores.flat("none", channels), cut, checkpoint.example())
    head = checkpoint.model.get_submodule(channels.classifier)
    for name in ("k1", "k2"):
        k = getattr(options.subspaces, name)
        if isinstance(k, int) and not 1 <= k <= getattr(head, "in_features", k):
            raise SlimrankError(f"`{name}` is {k}, the classifier reads {head.in_features} features; choose 1 to that")


# -- stages, each a row -----------------------------------------------------------------------------------------------------


def _baseline(run: Run) -> BaselineRow:
    given = run.given
    counted = count(given.model, given.preprocessing.shape)
    path = alone(lambda: to_onnx(given.model, given.example(), run.at(DENSE), onnx_metadata(given)))
    top1 = None if run.dense is None else run.dense.top1
    says = f"{counted.macs:,} MACs, {counted.params:,} parameters{_top1(top1)}"
    same = None if run.dense is None else 1.0
    return BaselineRow(
        top1=top1, agreement=same, macs=counted.macs, params=counted.params, bytes=size(path), says=says
    )  # fmt: skip


def _rank(run: Run) -> RankRow:
    name = run.asked["ranker"]
    scores = rank(run.given, name, run.data, seed=run.options.seed, device=run.options.device)
    scores.save(run.at("scores.json"))
    return RankRow(ranker=name, scores=scores.scores, says=f"{name}: {len(scores.scores)} filter groups")


def _prune(run: Run) -> PruneRow:
    scores = FilterScores.load(run.at("scores.json"))
    cut = prune(
        run.given, run.data, run.options.prune, scores=scores, place=run.place, before=run.dense, say=run.say
    )  # fmt: skip
    save(cut.checkpoint, run.at("pruned.safetensors"))
    rounds = "" if cut.steps == 1 else f" in {cut.steps} steps"
    note = f" ({cut.plan.note})" if cut.plan.note else ""
    tuned = "before fine-tuning" if cut.training is None else f"after {cut.training.epochs} epochs"
    measured = f"{_top1(cut.top1_after)} {tuned}"
    if cut.top1_after is None and cut.agreement is not None:
        measured = f", agrees with the dense network on {cut.agreement:.1%} of {cut.images:,} images"
    if cut.repair is not None:
        measured += f" ({cut.repair})"
    missed = ""
    if cut.missed:
        missed = (
            f"; validation {cut.validation_top1_before:.4f} -> {cut.validation_top1_after:.4f}, "
            f"more than `max_drop` {run.options.cut.max_drop} allows"
        )
    kept = f"{cut.after.macs / cut.before.macs:.1%} of the MACs kept{rounds}"
    return PruneRow(
        budget=cut.budget, scope=cut.plan.scope, keep=cut.keep, widths=cut.widths, steps=cut.steps,
        trials=[[trial.macs, trial.top1] for trial in cut.trials], validation_top1_before=cut.validation_top1_before,
        macs_before=cut.before.macs, macs_after=cut.after.macs, top1=cut.top1_after, agreement=cut.agreement,
        note=cut.plan.note, repair=None if cut.repair is None else cut.repair.to_dict(),
        training=None if cut.training is None else cut.training.to_dict(),
        says=f"{kept}{measured}{note}{missed}",
    )  # fmt: skip


def _finetune(run: Run) -> FinetuneRow:
    options, cut = run.options, run.row(PruneRow)
    smaller = run.slim(run.at("pruned.safetensors"))
    if run.data is None or options.finetuning.epochs == 0 or cut.training is not None:
        save(smaller, run.at("finetuned.safetensors"))
        if cut.training is not None:  # the trial that was taken is the result
            says = f"{cut.training['epochs']} epochs{_top1(cut.top1)}, in the trial that was taken"
            return FinetuneRow(top1=cut.top1, training=cut.training, says=says)
        return FinetuneRow(top1=None, training=None, says=f"left out: {run.unlearnable or '`epochs` 0'}")
    taught = options.pruning.distill or run.data.classes is None
    tuned = finetune(
        smaller, run.data, options.finetuning, teacher=run.given if taught else None, progress=run.at("finetune.part")
    )  # fmt: skip
    save(tuned.checkpoint, run.at("finetuned.safetensors"))
    run.at("finetune.part").unlink(missing_ok=True)
    says = f"{tuned.training.epochs} epochs{_top1(tuned.top1_after)}"
    if tuned.agreement_after is not None:
        says = f"{tuned.training.epochs} epochs, agrees with the dense network on {tuned.agreement_after:.1%}"
    return FinetuneRow(top1=tuned.top1_after, training=tuned.training.to_dict(), says=says)


def _rivals(run: Run) -> RivalsRow:
    options, cut = run.options, run.row(PruneRow)
    if not options.rivals:
        return RivalsRow(rows=[], says="left out: add `rivals` for the dense model and random filters, trained equally")
    assert run.data is not None
    recipe = replace(options.finetuning, epochs=max(1, options.finetuning.epochs))
    rows = rivals(
        run.given, run.data, options.prune, recipe, cut.macs_after / cut.macs_before, run.place.folder,
        dense_file=DENSE, scratch_epochs=options.scratch_epochs,
    )  # fmt: skip
    return RivalsRow(rows=rows, says="; ".join(f"{row.name.split(',')[0]} {row.top1:.4f}" for row in rows))


def _specialize(run: Run) -> SpecializeRow:
    tuned, options = run.slim(run.at("finetuned.safetensors")), run.options
    head = tuned.model.get_submodule(channels_of(tuned).classifier)
    why = "`head` linear" if options.head == "linear" else "no data" if run.data is None else ""
    if not why and options.head == "auto" and not isinstance(head, nn.Linear):
        why = f"it is a {type(head).__name__}, and only a linear layer is told apart by class so far"
    if why:
        save(tuned, run.out / "slim.safetensors")
        return SpecializeRow(head="linear", result=None, says=f"classifier kept: {why}")
    assert run.data is not None
    left = getattr(head, "in_features", 0)  # pruning may have left fewer features than k1 or k2
    k1, k2 = options.subspaces.k1, options.subspaces.k2
    asked = replace(
        options.specialize, k1=min(k1, left) if isinstance(k1, int) else k1, k2=min(k2, left) if isinstance(k2, int) else k2
    )  # fmt: skip
    special = specialize(tuned, run.data, asked, judge=run.data.split("validation"))
    save(special.checkpoint, run.out / "slim.safetensors")
    measure = "top-1" if run.data.classes else "decisions"
    kind = "linear" if special.kept_dense_because else special.result.layout
    taken = f"{kind}; {special.result.note or 'asked for'}"
    if special.kept_dense_because:
        taken = f"dense classifier kept: {special.kept_dense_because}"
    elif kind == INT8:
        taken = f"{taken}, {special.result.ratio:.1%} of its {measure}"
    shown = replace(special.report, indices=_original(run, special.report.indices))
    says = f"{shown.k2} of {shown.features} features a class, {shown.ratio:.1%} of its {measure} on validation; {taken}"
    return SpecializeRow(head=kind, result=shown.to_dict(), says=says)


def _original(run: Run, indices: list[list[int]]) -> list[list[int]]:
    """Feature numbers of the pruned network as those of the input checkpoint."""
    channels = channels_of(run.given)
    gone = channels.removed(run.row(PruneRow).keep)
    kept = stays(channels.reads[channels.classifier], gone).nonzero().flatten().tolist()
    return [[kept[i] for i in row] for row in indices]


def _export(run: Run) -> ExportRow:
    slim = run.slim(run.out / "slim.safetensors")
    counted = count(slim.model, slim.preprocessing.shape)
    asked, after, int8 = run.options.export, run.decided(slim.model), None
    if asked.int8:
        to_onnx(slim.model, slim.example(), run.out / FLOAT, onnx_metadata(slim))
        assert run.data is not None
        allowed, top1 = run.options.cut.max_drop, run.row(PruneRow).validation_top1_before
        if allowed is not None and top1 is not None:
            left = left_to_lose(allowed, top1, slim.model, run.data, device=run.options.device)
            asked = replace(asked, max_drop=left)
    file = export(slim, run.out / "model.onnx", run.data, asked, seed=run.options.seed)
    if file.int8 is not None:
        assert run.data is not None
        float_file = {"top1": after and after.top1, "agreement": _same(run, after), "bytes": size(run.out / FLOAT)}
        int8 = {**file.int8.to_dict(), "float": float_file}
        if file.int8.taken:
            after = decided_by(Runner(run.out / "model.onnx"), run.data)
        else:
            (run.out / FLOAT).unlink()
    return ExportRow(
        top1=None if after is None else after.top1, agreement=_same(run, after), macs=counted.macs, params=counted.params,
        bytes=file.bytes, parity=file.parity.to_dict(), int8=int8,
        says=f"{file.bytes:,} bytes; {file.parity}" if file.int8 is None else f"{file.bytes:,} bytes; {file.int8}",
    )  # fmt: skip


def _same(run: Run, after: Decided | None) -> float | None:
    return agreement(run.dense, after) if run.dense and after else None


def _bench(run: Run) -> BenchRow:
    timing = run.options.timing
    models: dict[str, str | Path] = {"baseline": run.at(DENSE), "compressed": run.out / "model.onnx"}
    exported = run.row(ExportRow).int8
    if exported is not None and exported["taken"]:
        models["compressed, float"] = run.out / FLOAT
    models |= {rival.model: run.at(rival.file) for rival in run.row(RivalsRow).rows if rival.file != DENSE}
    timed = compare(models, providers=timing.providers, batches=timing.batch, threads=timing.threads)
    ours = [row for row in timed.speedups if row.model == "compressed"]
    says = ", ".join(f"{row.speedup:.2f}x at batch {row.batch}" for row in ours)
    if any(row.speedup < 1.02 for row in ours):
        says += "; not faster: ONNX Runtime pays for whole blocks of channels, and these layers stay in theirs"
    found = timed.to_dict()
    return BenchRow(
        results=found["results"], speedups=found["speedups"], machine=found["machine"], table=str(timed), says=says,
        remarks="; ".join(timed.remarks()),
    )  # fmt: skip


def _top1(top1: float | None) -> str:
    return "" if top1 is None else f", top-1 {top1:.4f}"


STAGES: dict[str, Callable[[Run], Row]] = {
    "baseline": _baseline, "rank": _rank, "prune": _prune, "finetune": _finetune, "rivals": _rivals,
    "specialize": _specialize, "export": _export, "bench": _bench,
}  # fmt: skip
ALONE = ("specialize", "export", "bench")  # of several processes the first does these: the clock decides in them
