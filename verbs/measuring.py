"""Verbs that look at what is there: accuracy, scores, features, latency."""

import argparse
from typing import Any

from .. import __version__
from ..compress.explain.options import ExplainOptions
from ..compress.head.options import FinalLayerOptions
from ..compress.network.reading import Reading
from ..compress.rankers import RANKERS
from ..compress.stages.options import BenchOptions, InspectOptions
from ..errors import SlimrankError, SlimrankWarning
from ..files import output
from ..option import options
from .given import Result, asked, given, perhaps, spec_of

RANKER_OPTIONS = {
    name: one for record in reversed(RANKERS.values()) if record.options for name, one in options(record.options).items()
}  # fmt: skip


def inspect(args: argparse.Namespace) -> Result:
    """layers, filter groups, what can be pruned, what not and why; of an .onnx file its MACs"""
    if args.checkpoint.suffix.lower() == ".onnx":
        from ..compress.stages.bench import macs_of

        counted = macs_of(args.checkpoint, asked(Reading(), args).images)
        return counted.to_dict(), str(counted)
    from ..compress.stages.inspect import inspect

    found = inspect(asked(Reading(), args).load(args.checkpoint), asked(InspectOptions(), args))
    return found.to_dict(), str(found)


def evaluate(args: argparse.Namespace) -> Result:
    """accuracy of a checkpoint or an .onnx file on the test split"""
    from ..compress.stages.evaluate import evaluate, evaluate_onnx, same_decisions
    from ..evaluate.expect import expectations

    spec, reading = spec_of(args), asked(Reading(), args)
    accuracy = ("top1", "top5") if spec.labelled or args.against is None else ()
    compared = ("agreement",) if args.against is not None else ()
    wanted = expectations(args.expect, (*accuracy, *compared), {"agreement": "needs `against`, what it agrees with"})
    if args.against is not None and not args.against.exists():
        raise SlimrankError(f"no checkpoint or .onnx file at `against` {args.against}; check the path")
    result: dict[str, Any] = {"top1": None, "top5": None}
    told = []
    if accuracy:
        if args.checkpoint.suffix.lower() == ".onnx":
            found = evaluate_onnx(args.checkpoint, spec, split=args.split, provider=args.providers[0], images=reading.images)
        else:
            checkpoint, data = given(args)
            found = evaluate(checkpoint, data, split=args.split, device=args.device)
        result, told = found.to_dict(), [str(found)]
    if compared:
        paths = (args.checkpoint, args.against)
        how = {"split": args.split, "device": args.device, "provider": args.providers[0]}
        result["agreement"], result["n"] = same_decisions(paths, reading, spec, **how)
        told.append(f"same decision as {args.against} on {result['agreement']:.4%} of {result['n']:,} images")
    judged = [one.judged([(str(args.checkpoint), result[one.metric])]) for one in wanted]
    result["expected"] = [one.to_dict() for one in judged]
    return result, "\n".join([*told, *map(str, judged)])


def rank(args: argparse.Namespace) -> Result:
    """score every filter; writes a scores file and a bar chart"""
    from ..compress.stages.rank import rank
    from ..evaluate.pages.plots import bars
    from ..files import ready, write_text

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
    from ..compress.rankers.compare import compare_files

    if args.out:
        output(args.out, ".svg")
    first, second = args.scores
    found = compare_files(first, second, args.out, args.top)
    return found.to_dict(), f"{found}" + (f"\nwritten: {args.out}" if args.out else "")


def sensitivity(args: argparse.Namespace) -> Result:
    """accuracy of every layer against its own ratio, before fine-tuning; a scores file for --scope global, and a figure"""
    from ..compress.rankers.sensitivity import sensitivity_table
    from ..compress.stages.rank import measured_sensitivity
    from ..evaluate.pages.plots import curves
    from ..files import ready, write_text

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


def explain(args: argparse.Namespace) -> Result:
    """which features each class lives on, what filters answer to, and the concepts that they detect"""
    from ..compress.explain.explain import explain
    from ..compress.explain.explanation import check_out

    check_out(args.out)
    checkpoint, data = given(args)
    found = explain(checkpoint, data, asked(ExplainOptions(), args), args.say)
    written = found.save(args.out)
    return {**found.to_dict(), "out": str(args.out)}, f"{found}\nwritten: {', '.join(map(str, written))}"


def bench(args: argparse.Namespace) -> Result:
    """latency, start, memory and MACs of .onnx files in ONNX Runtime, in one interleaved run"""
    from ..compress.stages.bench import bench, named

    asked_for = asked(BenchOptions(), args)
    timing = asked_for.timing
    found = bench(
        named(args.models), providers=timing.providers, batches=timing.batch, threads=timing.threads, seconds=args.seconds,
        images=asked_for.images, inputs=args.inputs, data=None if args.data is None else spec_of(args), expect=args.expect,
        profile=args.profile, tune=args.tune,
    )  # fmt: skip
    return found.to_dict(), str(found)


def bench_head(args: argparse.Namespace) -> Result:
    """latency of the final layer alone: dense against class-specific subspaces"""
    from ..compress.head.bench import bench_final_layer

    checkpoint = asked(Reading(), args).load(args.checkpoint) if args.checkpoint else None
    found = bench_final_layer(checkpoint, asked(FinalLayerOptions(), args), seed=args.seed)
    return found.to_dict(), str(found)


def report(args: argparse.Namespace) -> Result:
    """runs of `compress` side by side on one page: accuracy against latency, MACs and bytes"""
    import warnings

    from ..evaluate.pages.merged import Merged, read_runs
    from ..evaluate.pages.report import report_page
    from ..files import write_text

    output(args.out, ".html")
    merged = Merged(read_runs(args.runs))
    for run in merged.runs:
        if run.report.slimrank != __version__:
            other = f"{run.name} is of slimrank {run.report.slimrank}, this is {__version__}; its figures are shown as they are"
            warnings.warn(other, SlimrankWarning, stacklevel=2)
    write_text(args.out, report_page(merged))
    return {**merged.to_dict(), "out": str(args.out)}, f"{merged}\nwritten: {args.out}"
