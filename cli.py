"""slimrank VERB: a table of verbs, and one short function for each; parse, call, print. No logic lives here."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimrank.arguments import Verb, flags, parser
from slimrank.compress.explain.options import ExplainOptions
from slimrank.compress.head.options import FinalLayerOptions, HeadOptions
from slimrank.compress.network.reading import Reading
from slimrank.compress.options import CompressOptions
from slimrank.compress.rankers import RANKERS
from slimrank.compress.stages.options import (
    BenchOptions,
    Common,
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    InspectOptions,
    PruneOptions,
    RankOptions,
    ScoresOption,
    SensitivityOptions,
    StartOption,
    SweepOption,
    TeacherOptions,
)  # fmt: skip
from slimrank.compress.training.recipe import Interpretable, Recipe
from slimrank.endings import ending, written_out
from slimrank.errors import SlimrankError, flagged, flagged_json, warnings_to
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.imagespec import ImageSpec
from slimrank.files import output
from slimrank.option import built, flat, options

if TYPE_CHECKING:
    from slimrank.compress.network.checkpoint import Checkpoint
    from slimrank.compress.pipeline import Run
    from slimrank.evaluate.data import Data

Result = tuple[dict[str, Any], str]


def train(args: argparse.Namespace) -> Result:
    """train a network (or go on from a checkpoint) and write a slim checkpoint"""
    from slimrank.compress.network.checkpoint import save
    from slimrank.compress.stages.finetune import finetune, untrained

    output(args.out, ".safetensors", args.start)
    reading, spec = asked(Reading(), args), spec_of(args)
    recipe = asked(Interpretable(), args).added_to(asked(TRAINING, args), from_scratch=args.start is None)
    if args.start is not None:
        given = reading.load(args.start)
    elif reading.model is None:
        raise SlimrankError("train needs `model` NAME (a fresh network) or `start` CKPT")
    else:
        given = untrained(reading.model, dict(reading.model_arg), spec, seed=args.seed, images=reading.images)
    done = finetune(given, spec.open(given.preprocessing), recipe, progress=part(args.out), step="train")
    save(done.checkpoint, args.out)
    part(args.out).unlink(missing_ok=True)
    result = {"top1": done.top1_after, "epochs": done.training.epochs, **done.to_dict(), "out": str(args.out)}
    return result, f"{done}\nwritten: {args.out}"


def inspect(args: argparse.Namespace) -> Result:
    """layers, filter groups, what can be pruned, what not and why"""
    from slimrank.compress.stages.inspect import inspect

    found = inspect(asked(Reading(), args).load(args.checkpoint), asked(InspectOptions(), args))
    return found.to_dict(), str(found)


def evaluate(args: argparse.Namespace) -> Result:
    """accuracy of a checkpoint or an .onnx file on the test split"""
    from slimrank.compress.stages.evaluate import evaluate, evaluate_onnx

    if args.checkpoint.suffix == ".onnx":
        seen = asked(ImageSpec(), args)
        found = evaluate_onnx(args.checkpoint, spec_of(args), split=args.split, provider=args.providers[0], images=seen)
    else:
        checkpoint, data = given(args)
        found = evaluate(checkpoint, data, split=args.split, device=args.device)
    return found.to_dict(), str(found)


def rank(args: argparse.Namespace) -> Result:
    """score every filter; writes a scores file and a bar chart"""
    from slimrank.compress.stages.rank import rank
    from slimrank.evaluate.pages.plots import bars
    from slimrank.files import ready, write_text

    chart = args.out.with_suffix(".svg")
    output(args.out, ".json")
    ready(chart)
    own = {name: value for name in RANKER_OPTIONS if (value := getattr(args, name)) is not None and value is not False}
    checkpoint, data = perhaps(args)
    layers = None if args.layer is None else list(args.layer)
    scores = rank(checkpoint, args.ranker, data, layers=layers, seed=args.seed, device=args.device, **own)
    scores.save(args.out)
    write_text(chart, bars(scores.scores))
    return {**scores.to_dict(), "out": str(args.out), "chart": str(chart)}, f"{scores}\nwritten: {args.out}, {chart}"


def compare_ranks(args: argparse.Namespace) -> Result:
    """two scores files: rank correlation and overlap of the top, layer by layer"""
    from slimrank.compress.rankers.compare import compare_files

    if args.out:
        output(args.out, ".svg")
    first, second = args.scores
    found = compare_files(first, second, args.out, args.top)
    return found.to_dict(), f"{found}" + (f"\nwritten: {args.out}" if args.out else "")


def sensitivity(args: argparse.Namespace) -> Result:
    """accuracy of every layer against its own ratio, before fine-tuning; a scores file for --scope global, and a figure"""
    from slimrank.compress.rankers.sensitivity import sensitivity_table
    from slimrank.compress.stages.rank import measured_sensitivity
    from slimrank.evaluate.pages.plots import curves
    from slimrank.files import ready, write_text

    chart = args.out.with_suffix(".svg")
    output(args.out, ".json")
    ready(chart)
    checkpoint, data = given(args)
    layers = None if args.layer is None else list(args.layer)
    scores = measured_sensitivity(
        checkpoint, data, ranker=args.ranker, error=args.error, layers=layers, seed=args.seed, device=args.device
    )
    scores.save(args.out)
    write_text(chart, curves(scores.error or {}, "error") if args.error else curves(scores.sensitivity or {}, "top-1"))
    return {
        **scores.to_dict(),
        "out": str(args.out),
        "chart": str(chart),
    }, f"{sensitivity_table(scores)}\nwritten: {args.out}, {chart}"


def prune(args: argparse.Namespace) -> Result:
    """cut the filters that matter least, to a budget"""
    from slimrank.compress.network.checkpoint import save
    from slimrank.compress.pruning.select import OutOfReach
    from slimrank.compress.rankers.scores import FilterScores
    from slimrank.compress.stages.place import beside, identity
    from slimrank.compress.stages.prune import prune
    from slimrank.option import flat

    output(args.out, ".safetensors", args.checkpoint)
    wanted = asked(PruneOptions(), args)
    wanted.check(args.data is not None, args.scores is not None, labels=args.data is None or spec_of(args).labelled)
    if args.ranker and args.scores:
        raise SlimrankError("give `ranker` or `scores`, not both")
    checkpoint, data = perhaps(args)
    scores = FilterScores.load(args.scores) if args.scores else None
    place = None
    if wanted.long:
        spec = asked(DataSpec(data=""), args)
        place = beside(args.out, identity(args.checkpoint, {**flat(spec), **flat(wanted)}))
    try:
        cut = prune(checkpoint, data, wanted, scores=scores, place=place, say=say)
    except OutOfReach:
        if place is not None:
            place.remove()  # the search came to its end: there is nothing to go on from
        raise
    save(cut.checkpoint, args.out)
    if place is not None:
        place.remove()
    return {**cut.to_dict(), "out": str(args.out)}, f"{cut}\nwritten: {args.out}"


def finetune(args: argparse.Namespace) -> Result:
    """train a checkpoint on, with or without a teacher"""
    from slimrank.compress.network.checkpoint import load, save
    from slimrank.compress.stages.finetune import finetune

    output(args.out, ".safetensors", args.checkpoint, args.teacher)
    teacher = None
    if args.teacher is not None:
        own = args.teacher.suffix == ".safetensors"  # says itself how it sees images
        seen = {} if own else {"trust_pickle": args.trust_pickle, **flat(asked(ImageSpec(), args))}
        teacher = load(args.teacher, model=args.teacher_model, **seen)
    checkpoint, data = given(args)
    done = finetune(checkpoint, data, asked(Recipe(), args), teacher=teacher, progress=part(args.out))
    save(done.checkpoint, args.out)
    part(args.out).unlink(missing_ok=True)
    return {**done.to_dict(), "out": str(args.out)}, f"{done}\nwritten: {args.out}"


def specialize(args: argparse.Namespace) -> Result:
    """replace the classifier by sparse class-specific subspaces"""
    from slimrank.compress.head.specialize import specialize
    from slimrank.compress.head.sweep import sweep
    from slimrank.compress.network.checkpoint import save

    output(args.out, ".safetensors", args.checkpoint)
    wanted = asked(HeadOptions(), args)
    wanted.check()
    checkpoint, data = given(args)
    swept = sweep(checkpoint, data, args.sweep, fit=args.fit, layer=args.layer) if args.sweep else None
    special = specialize(checkpoint, data, wanted)
    save(special.checkpoint, args.out)
    result, text = special.result.to_dict(), f"{special.result}\nwritten: {args.out}"
    if swept is not None:
        result, text = {**result, "sweep": swept.to_dict()}, f"{text}, {swept.save(args.out.with_suffix('.svg'))}\n{swept}"
    return {**result, "out": str(args.out)}, text


def explain(args: argparse.Namespace) -> Result:
    """which features each class lives on, what filters answer to, and the concepts that they detect"""
    from slimrank.compress.explain.explain import explain
    from slimrank.compress.explain.explanation import check_out

    check_out(args.out)
    checkpoint, data = given(args)
    found = explain(checkpoint, data, asked(ExplainOptions(), args), say)
    written = found.save(args.out)
    return {**found.to_dict(), "out": str(args.out)}, f"{found}\nwritten: {', '.join(map(str, written))}"


def export(args: argparse.Namespace) -> Result:
    """write ONNX and compare it with PyTorch"""
    from slimrank.compress.stages.export import export

    output(args.out, ".onnx", args.checkpoint)
    wanted = asked(ExportOptions(), args).check()
    checkpoint, data = perhaps(args)
    done = export(checkpoint, args.out, data, wanted, seed=args.seed)
    return done.to_dict(), str(done)


def bench(args: argparse.Namespace) -> Result:
    """latency of .onnx files in ONNX Runtime, in one interleaved run"""
    from slimrank.evaluate.latency import compare

    unique = len({path.name for path in args.models}) == len(args.models)
    names = {path.name if unique else str(path): path for path in args.models}
    found = compare(names, providers=args.providers, batches=args.batch, threads=args.threads, seconds=args.seconds)
    return found.to_dict(), str(found)


def bench_head(args: argparse.Namespace) -> Result:
    """latency of the final layer alone: dense against class-specific subspaces"""
    from slimrank.compress.head.bench import bench_final_layer

    checkpoint = asked(Reading(), args).load(args.checkpoint) if args.checkpoint else None
    found = bench_final_layer(checkpoint, asked(FinalLayerOptions(), args), seed=args.seed)
    return found.to_dict(), str(found)


def compress(args: argparse.Namespace) -> Result:
    """everything: rank, prune, fine-tune, specialise, export, bench, report"""
    from dataclasses import replace

    from slimrank.compress.pipeline import start

    wanted = replace(asked(CompressOptions(), args), data=spec_of(args) if args.data is not None else None)
    return finish(start(args.checkpoint, args.out, wanted, **asked(Reading(), args).words))


def demo(args: argparse.Namespace) -> Result:
    """train a small CNN on digits, then all of `compress`; needs nothing"""
    from slimrank.compress.demo import prepare

    return finish(prepare(args.out, say))


def finish(run: "Run") -> Result:
    report = run.finish(say)
    table = next(stage["table"] for stage in report["stages"] if stage["name"] == "bench")
    before, after = report["baseline"], report["compressed"]
    shown = ""
    if before["top1"] is not None:
        shown = f"top-1 {before['top1']:.4f} -> {after['top1']:.4f} on {report['test_images']:,} test images; "
    elif after["agreement"] is not None:
        shown = f"agrees with the dense network on {after['agreement']:.1%} of {report['test_images']:,} test images; "
    return report, (
        f"{table}\n{shown}MACs {before['macs']:,} -> {after['macs']:,}; ONNX bytes {before['bytes']:,} -> {after['bytes']:,}\n"
        f"written: {run.out / 'slim.safetensors'}, model.onnx, report.json, report.html"
    )


def asked(tree: Any, args: argparse.Namespace) -> Any:
    """A dataclass of options with what the command line says."""
    return built(tree, vars(args))


def spec_of(args: argparse.Namespace) -> DataSpec:
    spec: DataSpec = asked(DataSpec(data=""), args)
    return spec


def given(args: argparse.Namespace) -> "tuple[Checkpoint, Data]":
    """The checkpoint, and the data as the checkpoint sees images; both mean the same classes."""
    checkpoint = asked(Reading(), args).load(args.checkpoint)
    data = spec_of(args).open(checkpoint.preprocessing)
    return checkpoint.with_classes(data), data


def perhaps(args: argparse.Namespace) -> "tuple[Checkpoint, Data | None]":
    """As `given`, where there is data."""
    return given(args) if args.data is not None else (asked(Reading(), args).load(args.checkpoint), None)


def part(out: Path) -> Path:
    """Where training keeps what it has reached, to go on from."""
    return out.with_name(f"{out.name}.part")


def kept(out: Path) -> bool:
    """Whether a run that was stopped has left something to go on from."""
    return part(out).exists() or (out / "state.json").exists()


def say(line: str) -> None:
    print(flagged(line, FLAGS), file=sys.stderr, flush=True)


DATA = ("data",)  # of verbs that do without images as well
TRAINING = Recipe(epochs=20, lr=0.1)
RANKER_OPTIONS = {
    name: one for record in reversed(RANKERS.values()) if record.options for name, one in options(record.options).items()
}  # fmt: skip
SLIM = "slim checkpoint to write"
RESUMED = ("compress", "demo", "train", "finetune", "prune")
VERBS = {
    "demo": Verb(demo, writes="folder for the results (default: demo)", default_out="demo"),
    "train": Verb(train, (Reading, DataSpec, TRAINING, StartOption, Interpretable), writes=SLIM, without=("teacher_share",)),
    "inspect": Verb(inspect, (Reading, InspectOptions), reads="checkpoint"),
    "evaluate": Verb(evaluate, (Reading, DataSpec, EvaluateOptions), reads="checkpoint or .onnx file"),
    "rank": Verb(
        rank, (Reading, DataSpec, RankOptions, *(r.options for r in RANKERS.values() if r.options)), reads="checkpoint",
        writes="scores file to write (.json); the chart goes beside it", unasked=(*DATA, *RANKER_OPTIONS),
    ),
    "compare-ranks": Verb(compare_ranks, (CompareOptions,), may_write="bar charts side by side (.svg)"),
    "sensitivity": Verb(
        sensitivity, (Reading, DataSpec, SensitivityOptions), reads="checkpoint",
        writes="scores file to write (.json); the figure goes beside it",
    ),
    "prune": Verb(prune, (Reading, DataSpec, PruneOptions, ScoresOption), unasked=DATA, reads="checkpoint", writes=SLIM),
    "finetune": Verb(finetune, (Reading, DataSpec, Recipe, TeacherOptions), reads="checkpoint", writes=SLIM),
    "specialize": Verb(specialize, (Reading, DataSpec, HeadOptions, SweepOption), reads="checkpoint", writes=SLIM),
    "explain": Verb(
        explain, (Reading, DataSpec, ExplainOptions), reads="checkpoint",
        writes="folder for explain.json and explain.html (default: explain)", default_out="explain",
    ),
    "export": Verb(export, (Reading, DataSpec, ExportOptions), unasked=DATA, reads="checkpoint", writes="ONNX file to write"),
    "bench": Verb(bench, (BenchOptions,)),
    "bench-head": Verb(bench_head, (Reading, FinalLayerOptions), may_read="take the final layer of this checkpoint"),
    "compress": Verb(
        compress, (Reading, DataSpec, CompressOptions), unasked=DATA, reads="checkpoint", writes="folder for the results"
    ),
}  # fmt: skip
COMMON = (Common,)
FLAGS = flags(VERBS.values(), COMMON)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status: 0 done, 1 an error in one line on stderr, 2 usage."""
    args = parser(VERBS, COMMON).parse_args(argv)
    with warnings_to(say):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Run the verb that was parsed; the exit status."""
    try:
        asked(Common(), args).check()
        result, text = VERBS[args.verb].run(args)
    except BaseException as error:
        if args.debug and isinstance(error, Exception):
            raise
        line, status = ending(error, f"slimrank {args.verb}" if args.verb in RESUMED and kept(args.out) else "")
        if line:
            say(line)
        return status
    if result.get("validation_seen_in_training", False) is not False and args.verb != "compress":
        from slimrank.compress.network.checkpoint import SEEN

        if args.validation.startswith("train"):
            say(SEEN)
    return written_out(lambda: show(result, text, args.json), say)


def show(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(flagged(text, FLAGS), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(flagged_json(result, FLAGS)))


if __name__ == "__main__":
    sys.exit(main())
