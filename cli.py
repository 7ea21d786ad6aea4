"""slimrank VERB: one short function a verb; parse, call, print. No logic lives here."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimrank.arguments import flags, parser
from slimrank.errors import SlimrankError, flagged, near
from slimrank.option import options as declared


def train(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """train a network (or go on from a checkpoint) and write a slim checkpoint"""
    from slimrank.compress.stages import training
    from slimrank.files import output

    output(args.out, ".safetensors", getattr(args, "checkpoint", None))
    made, result = training.from_scratch_or_checkpoint(
        args.model, args.model_arg, args.start, reading(args), opener(args), interpretable(args),
        size=args.size, progress=part(args.out),
    )  # fmt: skip
    training.save(made, args.out)
    part(args.out).unlink(missing_ok=True)
    return {**result, "out": str(args.out)}, f"{result['says']}\nwritten: {args.out}"


def inspect(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """layers, filter groups, what can be pruned, what not and why"""
    from slimrank.compress.stages.inspect import inspect

    if args.time:
        from slimrank.evaluate.latency import check_settings

        check_settings(["cpu"], args.batch, args.threads)
        if args.providers != ["cpu"] or len(args.threads) > 1:
            raise SlimrankError("layers are timed on the CPU provider at one thread count; leave out --providers, give one")
    found = inspect(checkpoint(args), timed=args.time, batches=tuple(args.batch), threads=args.threads[0])
    return found.to_dict(), str(found)


def evaluate(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """accuracy of a checkpoint or an .onnx file on the test split"""
    from slimrank.compress.stages import evaluation

    if str(args.checkpoint).endswith(".onnx"):
        found = evaluation.of_onnx(args.checkpoint, opener(args), reading(args), args.providers[0], args.split)
    else:
        found = evaluation.of_checkpoint(checkpoint(args), opener(args), args.split, args.device)
    return found.to_dict(), str(found)


def rank(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """score every filter; writes a scores file and a bar chart"""
    from slimrank.compress import rankers
    from slimrank.compress.stages import ranking
    from slimrank.files import output

    output(args.out, ".json")
    every = [known for record in rankers.RANKERS.values() if record.options for known in declared(record.options)]
    options = {name: getattr(args, name) for name in every}
    scores, chart = ranking.rank(
        checkpoint(args), args.ranker, opener(args) if args.data else None, args.out,
        layers=args.layer, seed=args.seed, device=args.device, **options,
    )  # fmt: skip
    return {**scores.to_dict(), "out": str(args.out), "chart": str(chart)}, f"{scores}\nwritten: {args.out}, {chart}"


def compare_ranks(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """two scores files: rank correlation and overlap of the top, layer by layer"""
    from slimrank.compress.rankers.compare import compare_files
    from slimrank.files import output

    if args.out:
        output(args.out, ".svg")
    first, second = args.scores
    found = compare_files(first, second, args.out, args.top)
    return found.to_dict(), f"{found}" + (f"\nwritten: {args.out}" if args.out else "")


def prune(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """cut the filters that matter least, to a budget"""
    from slimrank.compress.pruning.budget import Cut
    from slimrank.compress.stages import ranking
    from slimrank.files import output

    output(args.out, ".safetensors", args.checkpoint)
    if (args.batch or args.threads or args.providers) and args.latency is None and not args.timed:
        raise SlimrankError(
            "--batch, --threads and --providers say what --latency and --timed measure; add one, or leave them out"
        )
    batches, threads, providers = args.batch or [1], args.threads or [1], args.providers or ["cpu"]
    if len(threads) > 1 or len(providers) > 1:
        raise SlimrankError("prune times at one --threads and one --provider; name one of each")
    cut = Cut(
        args.ratio, args.macs, args.params, args.latency, args.max_drop, args.scope, args.align, tuple(args.protect),
        args.min_filters, args.timed, tuple(batches), threads[0], providers[0],
    )  # fmt: skip
    result = ranking.prune(
        checkpoint(args), args.out, opener(args) if args.data else None, cut, recipe(args),
        ranker=args.ranker, scores=args.scores, recalibrated=args.recalibrate, device=args.device, say=say,
    )  # fmt: skip
    return result, f"{result['table']}\nwritten: {args.out}"


def sensitivity(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """accuracy of every layer against its own ratio, before fine-tuning; a scores file for --scope global, and a figure"""
    from slimrank.compress.rankers.sensitivity import sensitivity_table
    from slimrank.compress.stages import ranking
    from slimrank.files import output

    output(args.out, ".json")
    scores, chart = ranking.measured_sensitivity(
        checkpoint(args), opener(args), args.out, ranker=args.ranker, layers=args.layer, seed=args.seed, device=args.device
    )
    return {
        **scores.to_dict(),
        "out": str(args.out),
        "chart": str(chart),
    }, f"{sensitivity_table(scores)}\nwritten: {args.out}, {chart}"


def finetune(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """train a checkpoint on, with or without a teacher"""
    from slimrank.compress.network.checkpoint import load
    from slimrank.compress.stages import training
    from slimrank.files import output

    output(args.out, ".safetensors", getattr(args, "checkpoint", None))
    own = args.teacher is not None and args.teacher.suffix == ".safetensors"  # says itself how it sees images
    seen = {} if own else {"size": args.size, "mean": args.mean, "std": args.std, "trust_pickle": args.trust_pickle}
    teacher = load(args.teacher, name=args.teacher_model, **seen) if args.teacher else None
    made, result = training.finetune(checkpoint(args), opener(args), teacher, recipe(args), progress=part(args.out))
    training.save(made, args.out)
    part(args.out).unlink(missing_ok=True)
    return {**result, "out": str(args.out)}, f"{result['says']}\nwritten: {args.out}"


def specialize(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """replace the classifier by sparse class-specific subspaces"""
    from slimrank.compress.head.options import HeadOptions
    from slimrank.compress.head.specialize import specialize
    from slimrank.compress.head.sweep import sweep
    from slimrank.compress.network.checkpoint import save
    from slimrank.files import output

    output(args.out, ".safetensors", getattr(args, "checkpoint", None))
    options = HeadOptions(
        select=args.select, fit=args.fit, layout=args.layout, k1=args.k1, k2=args.k2, groups=args.groups, tile=args.tile,
        adjacent=args.adjacent, rescore=args.rescore, probe=args.probe, agreement=args.agreement, max_drop=args.max_drop,
        layer=args.layer,
        batch=tuple(args.batch), threads=tuple(args.threads), providers=tuple(args.providers), seed=args.seed,
    )  # fmt: skip
    options.check()
    given = checkpoint(args)
    data = opener(args)(given.preprocessing)
    swept = sweep(given, data, args.sweep, fit=options.fit, layer=options.layer) if args.sweep else None
    made = specialize(given, data, options)
    result = made.result
    save(made.checkpoint, args.out)
    found, told = result.to_dict(), f"{result}\nwritten: {args.out}"
    if swept is not None:
        found, told = {**found, "sweep": swept.to_dict()}, f"{told}, {swept.save(args.out.with_suffix('.svg'))}\n{swept}"
    return {**found, "out": str(args.out)}, told


def explain(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """which features each class lives on, what filters answer to, and the concepts that they detect"""
    from slimrank.compress.explain.explain import ExplainOptions
    from slimrank.compress.explain.explain import explain as explained
    from slimrank.compress.explain.explanation import check_out

    check_out(args.out)
    given = checkpoint(args)
    options = ExplainOptions(args.k1, args.k2, args.layer, args.concepts, args.seed, args.device)
    found = explained(given, opener(args)(given.preprocessing), options, say)
    written = found.save(args.out)
    return {**found.to_dict(), "out": str(args.out)}, f"{found}\nwritten: {', '.join(map(str, written))}"


def export(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """write ONNX and compare it with PyTorch"""
    from slimrank.compress.stages import evaluation
    from slimrank.files import output

    output(args.out, ".onnx", args.checkpoint)
    result = evaluation.export(checkpoint(args), args.out, opener(args) if args.data else None)
    return result, f"{result['path']}: {result['bytes']:,} bytes\n{result['says']}"


def bench(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """latency of .onnx files in ONNX Runtime, in one interleaved run"""
    from slimrank.evaluate.latency import compare

    names = {path.name if len({p.name for p in args.models}) == len(args.models) else str(path): path for path in args.models}
    found = compare(names, providers=args.providers, batches=args.batch, threads=args.threads, seconds=args.seconds)
    return found.to_dict(), str(found)


def bench_head(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """latency of the final layer alone: dense against class-specific subspaces"""
    from slimrank.compress.head.bench import bench_final_layer
    from slimrank.compress.head.options import FinalLayerOptions

    options = FinalLayerOptions(
        features=args.features, classes=args.classes, k=args.k, layout=tuple(args.layout), groups=args.groups, tile=args.tile,
        rescore=args.rescore, probe=args.probe,
        batch=tuple(args.batch), threads=tuple(args.threads), providers=tuple(args.providers),
    )  # fmt: skip
    found = bench_final_layer(checkpoint(args) if args.checkpoint else None, options, seed=args.seed)
    return found.to_dict(), str(found)


def compress(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """everything: rank, prune, fine-tune, specialise, export, bench, report"""
    from slimrank.compress.options import Options
    from slimrank.compress.pipeline import start
    from slimrank.compress.rankers import DEFAULT

    options = Options(
        data=args.data, validation=args.validation, limit=args.limit, download=args.download, ranker=args.ranker or DEFAULT,
        ratio=args.ratio, macs=args.macs, params=args.params, latency=args.latency, max_drop=args.max_drop, scope=args.scope,
        align=args.align, protect=tuple(args.protect), min_filters=args.min_filters, timed=args.timed, steps=args.steps,
        recover=args.recover, epochs=args.epochs, lr=args.lr, augment=args.augment, label_smoothing=args.label_smoothing,
        patience=args.patience, precision=args.precision, distill=args.distill, head=args.head,
        select=args.select, fit=args.fit, k1=args.k1, k2=args.k2, rescore=args.rescore,
        batch=tuple(args.batch), threads=tuple(args.threads), providers=tuple(args.providers), rivals=args.rivals,
        seed=args.seed, device=args.device,
    )  # fmt: skip
    return finish(start(args.checkpoint, args.out, options, **reading(args)))


def demo(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """train a small CNN on digits, then all of `compress`; needs nothing"""
    from slimrank.compress.demo import prepare

    return finish(prepare(args.out, say))


def finish(run: Any) -> tuple[dict[str, Any], str]:
    report = run.finish(say)
    bench = next(s for s in report["stages"] if s["name"] == "bench")
    top = [report[side]["top1"] for side in ("baseline", "compressed")]
    shown = "" if top[0] is None else f"top-1 {top[0]:.4f} -> {top[1]:.4f} on {report['test_images']:,} test images; "
    return report, (
        f"{bench['table']}\n{shown}MACs {report['baseline']['macs']:,} -> {report['compressed']['macs']:,}; "
        f"ONNX bytes {report['baseline']['bytes']:,} -> {report['compressed']['bytes']:,}\n"
        f"written: {run.out / 'slim.safetensors'}, model.onnx, report.json, report.html"
    )


def recipe(args: argparse.Namespace) -> Any:
    from slimrank.compress.training.recipe import Recipe

    return Recipe(
        args.epochs, args.lr, augment=args.augment, label_smoothing=args.label_smoothing, patience=args.patience,
        precision=args.precision, seed=args.seed, device=args.device, teacher_share=getattr(args, "teacher_share", 0.5),
    )  # fmt: skip


def interpretable(args: argparse.Namespace) -> Any:
    """The recipe of `train`, which alone knows block norm and gates."""
    from slimrank.compress.training.recipe import Interpretable

    asked = Interpretable(args.block_norm, args.activation_norm, args.spatial_norm, args.csg)
    return asked.added_to(recipe(args), from_scratch=args.start is None)


def part(out: Path) -> Path:
    """Where training keeps what it has reached, to go on from."""
    return out.with_name(f"{out.name}.part")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def reading(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": args.model, "arguments": args.model_arg, "mean": args.mean, "std": args.std, "size": args.size,
        "trust_pickle": args.trust_pickle,
    }  # fmt: skip


def checkpoint(args: argparse.Namespace) -> Any:
    from slimrank.compress.network.checkpoint import load

    return load(args.checkpoint, **reading(args))


def opener(args: argparse.Namespace) -> Callable[[Any], Any]:
    """The data set, once the model's preprocessing is known."""
    from slimrank.evaluate.data import open_data

    def opened(preprocessing: Any) -> Any:
        return open_data(
            args.data, preprocessing, validation=args.validation, limit=args.limit, seed=args.seed, download=args.download
        )

    return opened


VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo, "train": train, "inspect": inspect, "evaluate": evaluate, "rank": rank, "compare-ranks": compare_ranks,
    "sensitivity": sensitivity, "prune": prune, "finetune": finetune, "specialize": specialize, "export": export,
    "bench": bench, "bench-head": bench_head, "explain": explain, "compress": compress,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status: 0 done, 1 an error in one line on stderr, 2 usage."""
    args = parser(VERBS).parse_args(argv)
    if hasattr(args, "model_arg"):
        args.model_arg = dict(args.model_arg) or None
    try:
        check_device(args.device)
        result, text = args.run(args)
    except SlimrankError as error:
        if args.debug:
            raise
        say("error: " + flagged(" ".join(str(error).split()), flags()))
        return 1
    except KeyboardInterrupt:
        goes_on = ("compress", "demo", "train", "finetune")
        again = f"; `slimrank {args.verb}` goes on when run again" if args.verb in goes_on else ""
        say(f"error: interrupted{again}")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:
        if args.debug:
            raise
        say(f"error: {type(error).__name__}: {' '.join(str(error).split())[:300]}; this is a defect, --debug shows where")
        return 1
    if result.get("validation_seen_in_training", False) is not False and args.verb != "compress":
        from slimrank.compress.network.checkpoint import SEEN

        if args.validation.startswith("train"):
            say(SEEN)
    try:
        print(text, file=sys.stderr if args.json else sys.stdout)
        if args.json:
            print(json.dumps(result))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough, as `| head` has; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def check_device(device: str) -> None:
    import torch

    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise SlimrankError(f"no device {device!r}; {near(device, ['cpu', 'cuda'])}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SlimrankError("--device cuda: PyTorch sees no CUDA device; leave --device out, or check the driver")


if __name__ == "__main__":
    sys.exit(main())
