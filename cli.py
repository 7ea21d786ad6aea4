"""slimrank VERB: one short function a verb; parse, call, print. No logic lives here."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slimrank import __version__
from slimrank.errors import SlimrankError, near


def train(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """train a network (or go on from a checkpoint) and write a slim checkpoint"""
    from slimrank.compress import training
    from slimrank.files import output

    output(args.out, ".safetensors", getattr(args, "checkpoint", None))
    made, result = training.from_scratch_or_checkpoint(
        args.model, args.model_arg, args.start, reading(args), opener(args),
        epochs=args.epochs, lr=args.lr, seed=args.seed, device=args.device, augment=args.augment, size=args.size,
    )  # fmt: skip
    training.save(made, args.out)
    return {**result, "out": str(args.out)}, f"{result['says']}\nwritten: {args.out}"


def inspect(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """layers, filter groups, what can be pruned, what not and why"""
    from slimrank.compress.inspection import inspect

    found = inspect(checkpoint(args))
    return found.to_dict(), str(found)


def evaluate(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """accuracy of a checkpoint or an .onnx file on the test split"""
    from slimrank.compress import evaluation

    if str(args.checkpoint).endswith(".onnx"):
        found = evaluation.of_onnx(args.checkpoint, opener(args), reading(args), args.providers[0], args.split)
    else:
        found = evaluation.of_checkpoint(checkpoint(args), opener(args), args.split, args.device)
    return found.to_dict(), str(found)


def rank(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """score every filter; writes a scores file and a bar chart"""
    from slimrank.compress import ranking
    from slimrank.files import output

    output(args.out, ".json")
    scores, chart = ranking.rank(
        checkpoint(args), args.ranker, opener(args) if args.data else None, args.out,
        layers=args.layer, seed=args.seed, k1=args.k1, device=args.device,
    )  # fmt: skip
    return {**vars(scores), "out": str(args.out), "chart": str(chart)}, f"{scores}\nwritten: {args.out}, {chart}"


def prune(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """cut the filters that matter least, to a budget"""
    from slimrank.compress import ranking
    from slimrank.files import output

    output(args.out, ".safetensors", args.checkpoint)
    result = ranking.prune(
        checkpoint(args), args.out, opener(args) if args.data else None,
        ranker=args.ranker, scores=args.scores, ratio=args.ratio, macs=args.macs, scope=args.scope, align=args.align,
        seed=args.seed,
    )  # fmt: skip
    return result, f"{result['table']}\nwritten: {args.out}"


def finetune(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """train a checkpoint on, with or without a teacher"""
    from slimrank.compress import training
    from slimrank.compress.checkpoint import load
    from slimrank.files import output

    output(args.out, ".safetensors", getattr(args, "checkpoint", None))
    teacher = load(args.teacher, name=args.teacher_model, size=args.size) if args.teacher else None
    made, result = training.finetune(
        checkpoint(args), opener(args), teacher,
        epochs=args.epochs, lr=args.lr, seed=args.seed, device=args.device, augment=args.augment,
    )  # fmt: skip
    training.save(made, args.out)
    return {**result, "out": str(args.out)}, f"{result['says']}\nwritten: {args.out}"


def specialize(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """replace the classifier by sparse class-specific subspaces"""
    from slimrank.compress.checkpoint import save
    from slimrank.compress.head import specialize
    from slimrank.files import output

    output(args.out, ".safetensors", getattr(args, "checkpoint", None))
    given = checkpoint(args)
    made, result = specialize(
        given, opener(args)(given.preprocessing), k1=args.k1, k2=args.k2, layout=args.layout,
        batches=args.batch, threads=args.threads[0], provider=args.providers[0],
    )  # fmt: skip
    save(made, args.out)
    return {**result.to_dict(), "out": str(args.out)}, f"{result}\nwritten: {args.out}"


def export(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """write ONNX and compare it with PyTorch"""
    from slimrank.compress import evaluation
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
    from slimrank.compress import head

    found = head.bench(
        checkpoint(args) if args.checkpoint else None, args.features, args.classes, args.k, args.layout,
        batches=args.batch, threads=args.threads, providers=args.providers, seed=args.seed,
    )  # fmt: skip
    return found, found.pop("table")


def compress(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """everything: rank, prune, fine-tune, specialise, export, bench, report"""
    from slimrank.compress.pipeline import Options, start

    options = Options(
        data=args.data, validation=args.validation, limit=args.limit, download=args.download, ranker=args.ranker or "l1",
        ratio=args.ratio, macs=args.macs, scope=args.scope, align=args.align, epochs=args.epochs, lr=args.lr,
        augment=args.augment, head=args.head, k1=args.k1, k2=args.k2, batch=tuple(args.batch),
        threads=tuple(args.threads), providers=tuple(args.providers), rivals=args.rivals, seed=args.seed,
        device=args.device,
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


# -- arguments -----------------------------------------------------------------------------------------------------------


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def reading(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": args.model, "arguments": args.model_arg, "mean": args.mean, "std": args.std, "size": args.size,
        "trust_pickle": args.trust_pickle,
    }  # fmt: skip


def checkpoint(args: argparse.Namespace) -> Any:
    from slimrank.compress.checkpoint import load

    return load(args.checkpoint, **reading(args))


def opener(args: argparse.Namespace) -> Callable[[Any], Any]:
    """The data set, once the model's preprocessing is known."""
    from slimrank.evaluate.data import open_data

    def opened(preprocessing: Any) -> Any:
        return open_data(
            args.data, preprocessing, validation=args.validation, limit=args.limit, seed=args.seed, download=args.download
        )

    return opened


def pair(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def many(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def numbers(text: str) -> list[Any]:
        return [kind(part) for part in text.split(",")]

    numbers.__name__ = "comma-separated list"
    return numbers


def floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"error: {message}; `{self.prog} --help` lists what it takes\n")


def parser() -> Parser:
    """Options are described once and shared by the verbs that take them."""
    top = Parser(prog="slimrank", description="Rank, cut, specialise, export and time CNN classifiers.")
    top.add_argument("--version", action="version", version=f"slimrank {__version__}")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", required=True)

    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="the result as one JSON object on stdout")
    common.add_argument("--seed", type=int, default=0, help="of splits, random scores and training (default 0)")
    common.add_argument("--device", default="cpu", help="cpu or cuda, for PyTorch's part")
    common.add_argument("--debug", action="store_true", help="show tracebacks")

    model = Parser(add_help=False)
    model.add_argument(
        "--model", metavar="NAME", help="for foreign checkpoints: resnet20-cifar, resnet18, package.module:function, ..."
    )
    model.add_argument("--model-arg", metavar="K=V", type=pair, action="append", default=[])
    model.add_argument("--mean", type=floats, help="for foreign checkpoints, comma-separated (default: ImageNet's)")
    model.add_argument("--std", type=floats)
    model.add_argument("--size", type=int, help="image size for foreign checkpoints (default: the network's own)")
    model.add_argument("--trust-pickle", action="store_true", help="unpickle a file that holds code (it will run)")

    def data(required: bool) -> Parser:
        made = Parser(add_help=False)
        made.add_argument("--data", metavar="SPEC", required=required, help="digits, mnist:DIR, cifar10:DIR, folder:DIR, ...")
        made.add_argument("--validation", default="train:0.1", help="train:F or test:F (default train:0.1)")
        made.add_argument("--limit", type=int, help="at most this many images of each split")
        made.add_argument("--download", action="store_true")
        return made

    target = Parser(add_help=False)
    target.add_argument("--batch", type=many(int), default=[1, 8, 32], help="batch sizes, comma-separated")
    target.add_argument("--threads", type=many(int), default=[1], help="thread counts, comma-separated")
    target.add_argument("--providers", "--provider", type=many(str), default=["cpu"], help="cpu, cuda")

    budget = Parser(add_help=False)
    budget.add_argument("--ranker", default=None, help="influential, l1 (default), random")
    budget.add_argument("--ratio", type=float, help="share of filters to remove, between 0 and 1")
    budget.add_argument("--macs", type=float, help="share of MACs to keep, between 0 and 1")
    budget.add_argument(
        "--scope", default="layer", help="layer (default): uniform shares; global: scores compared across layers"
    )
    budget.add_argument(
        "--align", type=int, help="keep conv widths at multiples of this (default: ONNX Runtime's block; 1: off)"
    )

    def training(epochs: int, lr: float) -> Parser:
        made = Parser(add_help=False)
        made.add_argument("--epochs", type=int, default=epochs, help=f"passes over the training images (default {epochs})")
        made.add_argument("--lr", type=float, default=lr, help=f"highest learning rate, SGD (default {lr})")
        made.add_argument("--augment", help="none, shift, shift+flip (default: flip for colour images only)")
        return made

    subspaces = Parser(add_help=False)
    subspaces.add_argument("--k1", type=int, help="features an image votes for (default: as k2)")
    subspaces.add_argument("--k2", type=int, help="features a class keeps (default: an eighth, at least 5)")

    def verb(function: Callable[..., Any], *parents: Parser, name: str = "") -> Parser:
        made = verbs.add_parser(
            name or function.__name__, parents=[common, *parents], help=function.__doc__, description=function.__doc__
        )
        made.set_defaults(run=function)
        return made

    def reads(made: Parser, what: str = "checkpoint") -> Parser:
        made.add_argument("checkpoint", type=Path, help=what)
        return made

    def writes(made: Parser, what: str, default: str | None = None) -> Parser:
        made.add_argument("--out", "-o", type=Path, required=default is None, default=default, help=what)
        return made

    writes(verb(demo), "folder for the results (default: demo)", "demo")
    made = writes(verb(train, model, data(True), training(20, 0.1)), "slim checkpoint to write")
    made.add_argument("--from", dest="start", type=Path, metavar="CKPT", help="start from this checkpoint")
    reads(verb(inspect, model))
    made = reads(verb(evaluate, model, data(True), target), "checkpoint or .onnx file")
    made.add_argument("--split", default="test", choices=["train", "validation", "test"])
    made = writes(reads(verb(rank, model, data(False))), "scores file to write (.json); the chart goes beside it")
    made.add_argument("--ranker", required=True, help="influential, l1, random")
    made.add_argument("--layer", action="append", help="only this layer's group (repeatable)")
    made.add_argument("--k1", type=int, help="influential: votes an image has in each layer")
    made = writes(reads(verb(prune, model, data(False), budget)), "slim checkpoint to write")
    made.add_argument("--scores", type=Path, help="scores file of `rank`, instead of --ranker")
    made = writes(reads(verb(finetune, model, data(True), training(5, 0.02))), "slim checkpoint to write")
    made.add_argument("--teacher", type=Path, help="checkpoint to distil from")
    made.add_argument("--teacher-model", metavar="NAME", help="its network, for a foreign checkpoint")
    made = writes(reads(verb(specialize, model, data(True), target, subspaces)), "slim checkpoint to write")
    made.add_argument("--layout", default="auto", help="auto (default), dense, gather")
    writes(reads(verb(export, model, data(False))), "ONNX file to write")
    made = verb(bench, target)
    made.add_argument("models", type=Path, nargs="+", help=".onnx files; the first is what the others are compared with")
    made.add_argument("--seconds", type=float, default=1.0, help="time for each model and setting")
    made = verb(bench_head, model, target, name="bench-head")
    made.add_argument("checkpoint", type=Path, nargs="?", help="take the final layer of this checkpoint")
    made.add_argument("--features", type=int, default=2048)
    made.add_argument("--classes", type=int, default=1000)
    made.add_argument("--k", type=int, default=50, help="features a class keeps")
    made.add_argument("--layout", type=many(str), default=["dense", "gather"])
    made = writes(
        reads(verb(compress, model, data(False), budget, training(5, 0.02), subspaces, target)), "folder for the results"
    )
    made.add_argument("--head", default="auto", help="auto (default: subspaces where they are faster), linear, gather")
    made.add_argument("--rivals", action="store_true", help="also train the dense model and a random cut equally long")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status: 0 done, 1 an error in one line on stderr, 2 usage."""
    args = parser().parse_args(argv)
    if hasattr(args, "model_arg"):
        args.model_arg = dict(args.model_arg) or None
    try:
        check_device(args.device)
        result, text = args.run(args)
    except SlimrankError as error:
        if args.debug:
            raise
        say("error: " + " ".join(str(error).split()))
        return 1
    except KeyboardInterrupt:
        again = f"; `slimrank {args.verb}` goes on when run again" if args.verb in ("compress", "demo") else ""
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
        from slimrank.compress.checkpoint import SEEN

        if args.validation.startswith("train"):
            say(SEEN)
    print(text, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(result))
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
