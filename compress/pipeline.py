"""rank -> prune -> finetune -> specialize -> export -> bench -> report, resumable.

Every stage leaves its artefact and its result in DIR before the next one starts; both appear whole or not at all. A run
that was killed goes on after the last stage that finished. DIR belongs to one checkpoint and one set of options.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..errors import SlimrankError
from ..evaluate.accuracy import accuracy, predictor
from ..evaluate.data import Data, open_data
from ..evaluate.latency import compare
from ..evaluate.macs import count
from ..evaluate.pages.report import report_page
from ..export.to_onnx import export, size
from ..files import read_json, ready, write_json, write_text
from .channels.groups import ChannelMap, stays
from .channels.tracing import channel_map
from .head.specialize import specialize
from .network.checkpoint import SEEN, Checkpoint, load, save
from .network.layout_names import INT8
from .options import Options, typed
from .pruning.budget import Cut, kept_trials, reached_by, within_drop
from .pruning.budget import plan as planned
from .pruning.costs import Costs
from .pruning.plan import PruningPlan
from .pruning.select import guarded, uniform
from .pruning.surgery import prune
from .rankers import ranker
from .rankers.scores import FilterScores
from .stages.evaluation import compared, onnx_metadata
from .stages.ranking import calibration, scored
from .training.loop import train
from .training.recalibrate import recalibrate


def start(path: str | Path, out: str | Path, options: Options, **reading: Any) -> "Run":
    """Open DIR for this checkpoint and these options; an unfinished run of the same goes on.

    `reading` goes to `checkpoint.load`. Raises SlimrankError when DIR belongs to something else.
    """
    options.check()
    path, out = Path(path), Path(out)
    checkpoint = load(path, **reading)
    asked = {
        "checkpoint": hashlib.sha256(path.read_bytes()).hexdigest(),
        **{k: list(v) if isinstance(v, tuple) else v for k, v in {**asdict(options), **reading}.items()},
        "slimrank": __version__,
    }
    if out.exists() and not out.is_dir():
        raise SlimrankError(f"cannot write into {out}: it is a file; name a folder with --out")
    state = {"asked": asked, "stages": []}
    if (out / "state.json").exists():
        anew = f"remove the folder {out} to start anew, or name another --out"
        state = read_json(out / "state.json", "the state in", anew)
        old = state.get("asked")
        if not isinstance(old, dict) or not isinstance(state.get("stages"), list):
            raise SlimrankError(f"{out / 'state.json'} is damaged; {anew}")
        for key, value in asked.items():
            if old.get(key) != value:
                option = {"name": "model", "arguments": "model-arg"}.get(key, key.replace("_", "-"))
                shown = [typed(v) for v in (old.get(key), value)]
                what = "another checkpoint" if key == "checkpoint" else f"--{option} {shown[0]}, not {shown[1]}"
                raise SlimrankError(f"{out} was made with {what}; name another --out, or remove the folder")
    run = Run(checkpoint, out, options, state)
    ready(out / "state.json")
    (out / "stages").mkdir(exist_ok=True)
    return run


class Run:
    """One `compress` on its way. Artefacts lie in DIR/stages, results in DIR/state.json."""

    def __init__(self, checkpoint: Checkpoint, out: Path, options: Options, state: dict[str, Any]):
        self.input, self.out, self.options, self.state = checkpoint, out, options, state
        self.data: Data | None = None
        if options.data:
            self.data = open_data(
                options.data, checkpoint.preprocessing,
                validation=options.validation, limit=options.limit, seed=options.seed,
                download=options.download,
            )  # fmt: skip
            self.input = checkpoint.with_classes(self.data)
        self.costs: Costs | None = None
        self.say: Callable[[str], None] = lambda line: None
        self.seen = None if self.data is None else self.input.validation_seen(self.data)
        self.classes = self.input.outputs()
        channels = self.least()
        head = self.input.model.get_submodule(channels.classifier)
        for name, k in (("k1", options.k1), ("k2", options.k2)):
            if isinstance(k, int) and not 1 <= k <= getattr(head, "in_features", k):
                raise SlimrankError(f"--{name} is {k}, the classifier reads {head.in_features} features; choose 1 to that")

    def finish(self, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
        """Run what is left; returns the report (also report.json and report.html in DIR)."""
        if self.data is not None and self.seen is not False and self.data.validation_from.startswith("train"):
            say(SEEN)
        self.say = say
        stages = [self.baseline, self.rank, self.prune, self.finetune, self.rivals, self.specialize, self.export, self.bench]
        for stage in stages:
            name = stage.__name__
            done = self.result(name)
            if done is None:
                began = time.perf_counter()
                result = stage()
                done = {"name": name, **result, "seconds": round(time.perf_counter() - began, 2)}
                self.state["stages"].append(done)
                write_json(self.out / "state.json", self.state)
                say(f"{name:10} {done['seconds']:7.1f} s  {done['says']}")
            else:
                say(f"{name:10}    done     {done['says']}")
        report = self.report()
        write_json(self.out / "report.json", report)
        write_text(self.out / "report.html", report_page(report))
        return report

    # -- helpers -----------------------------------------------------------------------------------------------------

    def result(self, name: str) -> dict[str, Any] | None:
        return next((s for s in self.state["stages"] if s["name"] == name), None)

    def at(self, name: str) -> Path:
        return self.out / "stages" / name

    def top1(self, model: nn.Module) -> float | None:
        """Accuracy on the test split; reported, never chosen on."""
        if self.data is None:
            return None
        return accuracy(predictor(model), self.data.split("test").batches(), self.classes).top1

    def train_images(self):
        assert self.data is not None
        return self.data.split("train")

    def tune(
        self, model: nn.Module, epochs: int, lr: float, *, taught: bool = False, progress: str | None = None
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Fine-tune as the options say; `taught`: with the input as teacher; `progress`: goes on where it was stopped."""
        assert self.data is not None
        tuned, training = train(
            model, self.train_images(), self.data.validation, self.options.recipe(epochs, lr),
            teacher=self.input.model if taught else None, progress=None if progress is None else self.at(progress),
        )  # fmt: skip
        return tuned, training.to_dict()

    def original(self, indices: list[list[int]]) -> list[list[int]]:
        """Feature numbers of the pruned network as those of the input checkpoint."""
        channels = channel_map(self.input.model, self.input.example())
        gone = channels.removed((self.result("prune") or {})["keep"])
        kept = stays(channels.reads[channels.classifier], gone).nonzero().flatten().tolist()
        return [[kept[i] for i in row] for row in indices]

    # -- stages ------------------------------------------------------------------------------------------------------

    def baseline(self) -> dict[str, Any]:
        counted = count(self.input.model, self.input.preprocessing.shape)
        path = export(self.input.model, self.input.example(), self.at("dense.onnx"), onnx_metadata(self.input))
        top1 = self.top1(self.input.model)
        return {
            "top1": top1, "macs": counted.macs, "params": counted.params, "bytes": size(path),
            "says": f"{counted.macs:,} MACs, {counted.params:,} parameters{_top1(top1)}",
        }  # fmt: skip

    def rank(self) -> dict[str, Any]:
        o = self.options
        scores = scored(self.input, o.ranker, self.data, seed=o.seed)
        scores.save(self.at("scores.json"))
        return {"ranker": o.ranker, "scores": scores.scores, "says": f"{o.ranker}: {len(scores.scores)} filter groups"}

    def least(self) -> ChannelMap:
        """The input's channels; a budget that cannot be met shows now, not after an hour."""
        channels = channel_map(self.input.model, self.input.example())
        cut = replace(self.options.cut, timed=False)
        guarded(channels, cut.protect)
        if cut.max_drop is None and cut.latency is None:  # these two show when they are timed or tried
            planned(self.input.model, channels, FilterScores.flat("none", channels), cut, self.input.example())
        return channels

    def smaller(self, model: nn.Module, ranked: FilterScores, cut: Cut) -> tuple[PruningPlan, nn.Module]:
        """Cut, and BatchNorm's statistics taken anew where there are images."""
        example = self.input.example(2)
        channels = channel_map(model, example[:1])
        if self.costs is None:  # of the input; a step's network is near enough
            self.costs = cut.costs(model, channels, example)
        plan = planned(model, channels, ranked, cut, example, self.costs)
        made = prune(model, channels, plan, example)
        return plan, made if self.data is None else recalibrate(made, calibration(self.data, self.options.seed))

    def prune(self) -> dict[str, Any]:
        o, ranked = self.options, FilterScores.load(self.at("scores.json"))
        cut = o.cut
        tried: dict[str, Any] = {"trials": []}
        if cut.max_drop is not None:
            cut, tried = self.search(ranked, cut)
        model, before = self.input.model, count(self.input.model, self.input.preprocessing.shape).macs
        keep: dict[str, list[int]] = {}
        for number in range(o.steps):
            last, done = number + 1 == o.steps, self.at(f"step-{number + 1}.safetensors")
            if not last and done.exists():
                before_it = load_own(done, self.input)
                model, keep = before_it.model, before_it.history[-1]["keep"]
                continue
            cut_at = self.at(f"step-{number + 1}-cut.safetensors")
            if not last and cut_at.exists():  # it was killed while it recovered: what a clock chose is not chosen again
                before_it = load_own(cut_at, self.input)
                model, keep = before_it.model, before_it.history[-1]["keep"]
            else:
                if number:
                    ranked = scored(replace(self.input, model=model), o.ranker, self.data, seed=o.seed)
                reached = 1.0 if number == 0 else reached_by(cut, self.input.model, model, keep, self.input.example(2))
                plan, model = self.smaller(model, ranked, cut.step(number, o.steps, reached))
                keep = {name: [keep[name][i] for i in kept] if name in keep else kept for name, kept in plan.keep.items()}
            if not last:
                save(self.input.then(model, step=f"cut {number + 1} of {o.steps}", keep=keep), cut_at)
                if o.recover:
                    model, _ = self.tune(model, o.recover, o.lr, taught=o.distill, progress=f"{done.stem}.part")
                save(self.input.then(model, step=f"cut {number + 1} of {o.steps}, recovered", keep=keep), done)
                self.at(f"{done.stem}.part").unlink(missing_ok=True)
        first = channel_map(self.input.model, self.input.example())
        widths = {name: [first.group(name).units, len(kept)] for name, kept in keep.items()}
        name, asked = o.cut.budget
        budget = {**plan.budget, name: asked}
        step = {"step": "prune", "ranker": plan.ranker, "budget": budget, "scope": plan.scope, "widths": widths}
        save(self.input.then(model, **step, steps=o.steps), self.at("pruned.safetensors"))
        top1 = self.top1(model)
        note = f" ({plan.note})" if plan.note else ""
        rounds = "" if o.steps == 1 else f" in {o.steps} steps"
        return {
            "budget": budget, "scope": plan.scope, "keep": keep, "widths": widths, "steps": o.steps, **tried,
            "macs_before": before, "macs_after": plan.macs_after, "top1": top1, "note": plan.note,
            "says": f"{plan.macs_after / before:.1%} of the MACs kept{rounds}{_top1(top1)} before fine-tuning{note}",
        }  # fmt: skip

    def search(self, ranked: FilterScores, cut: Cut) -> tuple[Cut, dict[str, Any]]:
        """The largest cut within --max-drop, and what was tried for it; trials are kept as they end."""
        assert self.data is not None
        judge, o = self.data.split("validation"), self.options
        top1 = accuracy(predictor(self.input.model), judge.batches(), self.classes).top1

        def trial(cut: Cut) -> float:
            _, made = self.smaller(self.input.model, ranked, cut)
            if o.epochs:
                made, _ = self.tune(made, o.epochs, o.lr, taught=o.distill)
            return accuracy(predictor(made), judge.batches(), self.classes).top1

        cut, trials = within_drop(cut, kept_trials(trial, self.at("trials.json")), top1, self.say)
        return cut, {"trials": trials, "validation_top1_before": top1}

    def finetune(self) -> dict[str, Any]:
        pruned = load_own(self.at("pruned.safetensors"), self.input)
        if self.data is None or self.options.epochs == 0:
            save(pruned, self.at("finetuned.safetensors"))
            why = "no data" if self.data is None else "--epochs 0"
            return {"top1": None, "training": None, "says": f"left out: {why}"}
        o = self.options
        model, training = self.tune(pruned.model, o.epochs, o.lr, taught=o.distill, progress="finetune.part")
        step = {"step": "finetune", "epochs": training["epochs"], "lr": o.lr}
        save(pruned.then(model, **step), self.at("finetuned.safetensors"))
        top1, missed = self.top1(model), ""
        if o.max_drop is not None:
            before, reached = (self.result("prune") or {})["validation_top1_before"], max(training["validation_top1"])
            if reached < before - o.max_drop - 1e-9:
                missed = f"; validation {before:.4f} -> {reached:.4f}, more than --max-drop {o.max_drop} allows"
        self.at("finetune.part").unlink(missing_ok=True)
        return {"top1": top1, "training": training, "says": f"{training['epochs']} epochs{_top1(top1)}{missed}"}

    def rivals(self) -> dict[str, Any]:
        """The simple ways with the same data and epochs: the dense model tuned on, random filters cut, plain widths."""
        o = self.options
        rows: list[dict[str, Any]] = []
        if not o.rivals:
            return {"rows": rows, "says": "left out: add --rivals for the dense model and random filters, trained equally"}
        assert self.data is not None
        epochs = max(1, o.epochs)
        rows.append(self.rival("dense model, fine-tuned equally long", *self.tune(self.input.model, epochs, o.lr), timed=False))
        channels = channel_map(self.input.model, self.input.example())
        scores = ranker("random")(self.input.model, channels, None, classes=self.classes, seed=o.seed)
        done = self.result("prune") or {}
        cut = replace(
            o.cut, ratio=None, params=None, latency=None, max_drop=None, macs=done["macs_after"] / done["macs_before"]
        )
        model = self.smaller(self.input.model, scores, cut)[1]
        rows.append(self.rival("random filters, same budget, fine-tuned equally long", *self.tune(model, epochs, o.lr)))
        if o.scratch_epochs:
            plan = uniform(self.input.model, channels, done["macs_after"] / done["macs_before"])
            model = prune(self.input.model, channels, plan, self.input.example(2))
            torch.manual_seed(o.seed)
            for module in model.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
            name = f"plain uniform widths, from scratch, {o.scratch_epochs} epochs as all of training took"
            rows.append(self.rival(name, *self.tune(model, o.scratch_epochs, 0.1)))
        return {"rows": rows, "says": "; ".join(f"{r['name'].split(',')[0]} {r['top1']:.4f}" for r in rows)}

    def rival(self, name: str, model: nn.Module, training: dict[str, Any], timed: bool = True) -> dict[str, Any]:
        path = self.at(f"rival-{name.split()[0]}.onnx") if timed else self.at("dense.onnx")  # same shapes, same time
        if timed:
            export(model, self.input.example(), path, {})
        macs = count(model, self.input.preprocessing.shape).macs
        return {"name": name, "top1": self.top1(model), "macs": macs, "seconds": training["seconds"], "file": path.name}

    def specialize(self) -> dict[str, Any]:
        tuned = load_own(self.at("finetuned.safetensors"), self.input)
        o = self.options
        head = tuned.model.get_submodule(channel_map(tuned.model, tuned.example()).classifier)
        why = "--head linear" if o.head == "linear" else "no data" if self.data is None else ""
        if not why and o.head == "auto" and not isinstance(head, nn.Linear):
            why = f"it is a {type(head).__name__}, and only a linear layer is told apart by class so far"
        if why:
            save(tuned, self.out / "slim.safetensors")
            return {"head": "linear", "says": f"classifier kept: {why}"}
        assert self.data is not None
        left = getattr(head, "in_features", 0)  # pruning may have left fewer features than k1 or k2
        k1 = min(o.k1, left) if isinstance(o.k1, int) else o.k1
        k2 = min(o.k2, left) if isinstance(o.k2, int) else o.k2
        asked, judge = replace(o.subspaces, k1=k1, k2=k2), self.data.split("validation")
        made = specialize(tuned, self.data, asked, judge=judge)
        taken, kind = f"{made.result.layout}; {made.result.note or 'asked for'}", made.result.layout
        if made.kept_dense_because:
            taken, kind = f"dense classifier kept: {made.kept_dense_because}", "linear"
        elif kind == INT8:
            taken = f"{taken}, {made.result.ratio:.1%} of its top-1"
        result = replace(made.report, indices=self.original(made.report.indices))
        save(made.checkpoint, self.out / "slim.safetensors")
        shown = f"{result.ratio:.1%} of its top-1 on validation"
        says = f"{result.k2} of {result.features} features a class, {shown}; {taken}"
        return {"head": kind, "result": result.to_dict(), "says": says}

    def export(self) -> dict[str, Any]:
        slim = load_own(self.out / "slim.safetensors", self.input)
        counted = count(slim.model, slim.preprocessing.shape)
        path = export(slim.model, slim.example(), self.out / "model.onnx", onnx_metadata(slim))
        found = compared(slim, path, self.data, self.options.seed)
        top1 = self.top1(slim.model)
        return {
            "top1": top1, "macs": counted.macs, "params": counted.params, "bytes": size(path),
            "parity": found.to_dict(), "says": f"{size(path):,} bytes; {found}",
        }  # fmt: skip

    def bench(self) -> dict[str, Any]:
        o = self.options
        models: dict[str, str | Path] = {"baseline": self.at("dense.onnx"), "compressed": self.out / "model.onnx"}
        for row in (self.result("rivals") or {}).get("rows", []):
            if row["file"] != "dense.onnx":
                models[row["name"].split(",")[0]] = self.at(row["file"])
        found = compare(models, providers=o.providers, batches=o.batch, threads=o.threads)
        ours = [s for s in found.speedups if s.model == "compressed"]
        shown = ", ".join(f"{s.speedup:.2f}x at batch {s.batch}" for s in ours)
        slower = [s for s in ours if s.speedup < 1.02]
        why = "; not faster: ONNX Runtime pays for whole blocks of channels, and these layers stay in theirs" if slower else ""
        return {**found.to_dict(), "table": str(found), "says": shown + why}

    # -- report ------------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, Any]:
        stages = self.state["stages"]
        by_name = {s["name"]: s for s in stages}
        side = {}
        for key, stage in (("baseline", "baseline"), ("compressed", "export")):
            found = by_name[stage]
            rows = [r for r in by_name["bench"]["results"] if r["model"] == key]
            side[key] = {k: found[k] for k in ("top1", "macs", "params", "bytes")}
            side[key]["flops"] = 2 * found["macs"]
            side[key]["latency"] = rows
        return {
            "model": self.input.name, "classes": self.input.classes, **side, "stages": stages,
            "options": self.state["asked"], "machine": by_name["bench"]["machine"],
            "test_images": None if self.data is None else len(self.data.split("test")),
            "validation_seen_in_training": self.seen, "slimrank": __version__,
            "seconds": round(sum(s["seconds"] for s in stages), 1),
        }  # fmt: skip


def load_own(path: Path, like: Checkpoint) -> Checkpoint:
    """A slim file that this run wrote: the model's name is the one the user gave."""
    return load(path, name=like.name)


def _top1(top1: float | None) -> str:
    return "" if top1 is None else f", top-1 {top1:.4f}"
