"""The command line's words: verbs and options, described once."""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .compress.training.recipe import read_block_norm

RANKERS = "influential, l1, car, shapley, switch, random; torch-pruning's taylor, bn-scale, fpgm, lamp"


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


def number_or(*words: str) -> Callable[[str], int | str]:
    def value(text: str) -> int | str:
        return text if text in words else int(text)

    value.__name__ = f"number, {' or '.join(words)}"
    return value


def coverage(text: str) -> int | float:
    """A number of votes, or coverage:SHARE of the l1 norm."""
    kind, colon, share = text.partition(":")
    return float(share) if colon and kind == "coverage" else int(text)


def floats(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(2, f"error: {message}; `{self.prog} --help` lists what it takes\n")


def flags() -> dict[str, str]:
    """The flag of every parameter that some verb takes, by the parameter's name."""
    verbs = next(a for a in parser(defaultdict(lambda: pair))._actions if isinstance(a, argparse._SubParsersAction))
    every = {}
    for verb in verbs.choices.values():
        for action in verb._actions:
            if action.option_strings:
                every[action.dest] = next(s for s in action.option_strings if s.startswith("--"))
    return every


def parser(functions: dict[str, Callable[..., Any]]) -> Parser:
    """Options are described once and shared by the verbs that take them. `functions`: what each verb runs."""
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

    def timing(*batches: int) -> Parser:
        made = Parser(add_help=False)
        shown = ",".join(map(str, batches))
        made.add_argument("--batch", type=many(int), default=list(batches), help=f"batch sizes (default {shown})")
        made.add_argument("--threads", type=many(int), default=[1], help="thread counts, comma-separated")
        made.add_argument("--providers", "--provider", type=many(str), default=["cpu"], help="cpu, cuda")
        return made

    target = timing(1, 8, 32)

    budget = Parser(add_help=False)
    budget.add_argument("--ranker", default=None, help=f"default fpgm; {RANKERS}")
    budget.add_argument("--ratio", type=float, help="share of filters to remove, between 0 and 1")
    budget.add_argument("--macs", type=float, help="share of MACs to keep, between 0 and 1")
    budget.add_argument("--params", type=float, help="share of parameters to keep")
    budget.add_argument(
        "--latency",
        type=float,
        help="share of the time in ONNX Runtime to keep, measured at --batch (mean) and --threads",
    )
    budget.add_argument(
        "--max-drop",
        type=float,
        help="largest cut whose validation top-1, after --epochs, falls no more (0.01: one point)",
    )
    budget.add_argument(
        "--scope",
        default="layer",
        help="layer (default): uniform shares, as near as whole blocks come (--align 1: to a filter); global: scores "
        "are compared across layers, a tenth of each stays",
    )
    budget.add_argument(
        "--align", type=int, help="keep conv widths at multiples of this (default: ONNX Runtime's block; 1: off)"
    )
    budget.add_argument("--timed", action="store_true", help="time every layer first and cut where time goes; --latency always")
    budget.add_argument(
        "--protect", action="append", default=[], metavar="LAYER", help="keep all filters of this layer's group (repeatable)"
    )
    budget.add_argument("--min-filters", type=int, default=1, help="filters that every layer keeps (default 1)")

    def training(epochs: int, lr: float) -> Parser:
        made = Parser(add_help=False)
        made.add_argument("--epochs", type=int, default=epochs, help=f"passes over the training images (default {epochs})")
        made.add_argument("--lr", type=float, default=lr, help=f"highest learning rate, SGD (default {lr})")
        made.add_argument("--augment", help="none, shift, shift+flip (default: flip for colour images only)")
        made.add_argument("--label-smoothing", type=float, default=0.0, help="0.1 is usual (default 0)")
        made.add_argument("--patience", type=int, help="stop after so many epochs without a better validation top-1")
        made.add_argument("--precision", default="auto", help="auto (bf16 where the hardware has it), fp32, bf16")
        return made

    subspaces = Parser(add_help=False)
    subspaces.add_argument(
        "--select",
        help="omp (default), contribution, histogram (the paper), weights, weights+histogram, gates (of --csg); not for tiled",
    )
    subspaces.add_argument("--fit", default="train", help="train (default), refit (least squares), truncate (the paper)")
    subspaces.add_argument("--k1", type=coverage, help="histogram: votes an image has (default: as k2), or coverage:0.9")
    subspaces.add_argument(
        "--k2", type=number_or("auto"), help="features a class keeps (default: an eighth, at least 5), or auto"
    )
    subspaces.add_argument(
        "--rescore",
        type=number_or("auto"),
        default=0,
        metavar="N",
        help="give the best N classes the dense layer's own logits (to decide as it does), or auto",
    )

    def verb(name: str, *parents: Parser) -> Parser:
        function = functions[name]
        made = verbs.add_parser(name, parents=[common, *parents], help=function.__doc__, description=function.__doc__)
        made.set_defaults(run=function)
        return made

    def reads(made: Parser, what: str = "checkpoint") -> Parser:
        made.add_argument("checkpoint", type=Path, help=what)
        return made

    def writes(made: Parser, what: str, default: str | None = None) -> Parser:
        made.add_argument("--out", "-o", type=Path, required=default is None, default=default, help=what)
        return made

    writes(verb("demo"), "folder for the results (default: demo)", "demo")
    made = writes(verb("train", model, data(True), training(20, 0.1)), "slim checkpoint to write")
    made.add_argument("--from", dest="start", type=Path, metavar="CKPT", help="start from this checkpoint")
    made.add_argument(
        "--block-norm", type=read_block_norm, metavar="P,Q,GROUPS,LAMBDA",
        help="groups of filters that vanish together and are cut, as 2,1,5,1e-3 (in place of weight decay)",
    )  # fmt: skip
    made.add_argument("--activation-norm", type=float, help="weight of: filters of a group fire in the same region")
    made.add_argument("--spatial-norm", type=float, help="weight of: a filter fires in one place")
    made.add_argument(
        "--csg", action="store_true", help="class-specific gates on the classifier's features, every third epoch; kept with it"
    )
    made = reads(verb("inspect", model, timing(1)))
    made.add_argument("--time", action="store_true", help="time of every layer in ONNX Runtime, and what less of it would save")
    made = reads(verb("evaluate", model, data(True), target), "checkpoint or .onnx file")
    made.add_argument("--split", default="test", choices=["train", "validation", "test"])
    made = writes(reads(verb("rank", model, data(False))), "scores file to write (.json); the chart goes beside it")
    made.add_argument("--ranker", required=True, help=RANKERS)
    made.add_argument("--layer", action="append", help="only this layer's group (repeatable); the classifier: its features")
    made.add_argument("--k1", type=int, help="influential: votes an image has in each layer (default: a quarter)")
    made.add_argument("--greedy", action="store_true", help="car: remove the least, recompute, repeat")
    made.add_argument("--remove", type=int, help="car --greedy: filters to remove in each layer (default: all but one)")
    made.add_argument("--estimator", help="shapley: exact, truncated, permutation, subsets")
    made.add_argument("--samples", type=int, help="shapley: at most this many pairs (default 10)")
    made.add_argument("--coalition-size", type=int, help="shapley, truncated: coalitions of fewer filters (default 2)")
    made.add_argument("--tolerance", type=float, help="shapley: stop at this half-width of the 95%% confidence intervals")
    made.add_argument("--epochs", type=int, help="switch: passes over the images (default 5)")
    made.add_argument("--lr", type=float, help="switch: learning rate, Adam (default 0.1)")
    made.add_argument("--alpha0", type=float, help="switch: prior; below 1 for few filters (default 0.5)")
    made.add_argument("--sampled", action="store_true", help="switch: learn by samples, not at the mean")
    made.add_argument(
        "--identity", action="store_true", help="switch: multiply by n*s, not by s (see compress/rankers/switch.py)"
    )
    made.add_argument("--memory", type=int, help="car, shapley, switch: bytes for cached activations (default 2 GiB)")
    made = verb("compare-ranks")
    made.add_argument("scores", type=Path, nargs=2, help="scores files of `rank`")
    made.add_argument("--top", type=int, default=5, help="how many best filters to compare (default 5)")
    made.add_argument("--out", "-o", type=Path, help="bar charts side by side (.svg)")
    made = writes(reads(verb("sensitivity", model, data(True))), "scores file to write (.json); the figure goes beside it")
    made.add_argument("--ranker", help=f"whose order filters go in (default fpgm); {RANKERS}")
    made.add_argument("--layer", action="append", help="only this layer's group (repeatable)")
    made = writes(reads(verb("prune", model, data(False), budget, timing(1), training(0, 0.02))), "slim checkpoint to write")
    made.set_defaults(batch=None, threads=None, providers=None)  # given without a clock to read, they are an error
    made.add_argument("--recalibrate", action="store_true", help="BatchNorm's statistics anew, on training images")
    made.add_argument("--scores", type=Path, help="scores file of `rank`, instead of --ranker")
    made = writes(reads(verb("finetune", model, data(True), training(5, 0.02))), "slim checkpoint to write")
    made.add_argument("--teacher", type=Path, help="checkpoint to distil from")
    made.add_argument("--teacher-model", metavar="NAME", help="its network, for a foreign checkpoint")
    made.add_argument("--teacher-share", type=float, default=0.5, help="of the loss (default 0.5)")
    made = writes(reads(verb("specialize", model, data(True), target, subspaces)), "slim checkpoint to write")
    made.add_argument(
        "--layout", default="auto", help="auto (default: the fastest that is accurate enough), dense, gather, tiled, int8"
    )
    made.add_argument(
        "--groups",
        type=int,
        help="tiled: groups of classes that share their features (default: 25 classes each; with --probe their square root)",
    )
    made.add_argument("--tile", type=int, help="tiled: adjacent features that go together, a power of two (default: up to 16)")
    made.add_argument("--adjacent", action="store_true", help="tiled: groups of neighbouring classes, so that no logit moves")
    made.add_argument(
        "--probe", type=number_or("auto"), default=0, metavar="P",
        help="tiled, for many classes: compute only the P groups of them that a coarse score finds best, or auto",
    )  # fmt: skip
    made.add_argument("--agreement", type=float, help="--rescore auto, --probe auto: share of equal decisions (default 0.99)")
    made.add_argument("--max-drop", type=float, help="auto: validation top-1 that may be lost (default 0.01)")
    made.add_argument("--layer", help="the classifier, to be sure which it is")
    made.add_argument(
        "--sweep",
        type=many(int),
        metavar="K,K",
        help="also histogram heads of every k1 and k2 of these (test top-1, truncated or refitted)",
    )
    made = reads(verb("explain", model, data(True)))
    made.add_argument("--k1", type=int, help="votes an image has (default: as k2)")
    made.add_argument("--k2", type=int, help="influential features of a class (default: an eighth, at least 5)")
    made.add_argument("--layer", action="append", help="look at this layer's group (repeatable; default: four of them)")
    made.add_argument("--concepts", metavar="DIR", help="dissect: a folder in Broden's layout, or generated")
    writes(made, "folder for explain.json and explain.html (default: explain)", "explain")
    writes(reads(verb("export", model, data(False))), "ONNX file to write")
    made = verb("bench", target)
    made.add_argument("models", type=Path, nargs="+", help=".onnx files; the first is what the others are compared with")
    made.add_argument("--seconds", type=float, default=1.0, help="time for each model and setting")
    made = verb("bench-head", model, target)
    made.add_argument("checkpoint", type=Path, nargs="?", help="take the final layer of this checkpoint")
    made.add_argument("--features", type=int, default=2048, help="without a checkpoint (default 2048)")
    made.add_argument("--classes", type=int, default=1000, help="without a checkpoint (default 1000)")
    made.add_argument("--k", type=int, help="features a class keeps (default: a sixteenth)")
    made.add_argument("--groups", type=int, help="tiled: groups of classes (default 4)")
    made.add_argument("--tile", type=int, help="tiled: adjacent features that go together, a power of two (default: up to 16)")
    made.add_argument("--rescore", type=int, default=8, help="classes recomputed densely, for ...+rescore (default 8)")
    made.add_argument("--probe", type=int, help="two-level: groups of classes that are computed (default: up to 8)")
    made.add_argument(
        "--layout", type=many(str), default=["gather", "tiled", "tiled+rescore"],
        help="comma-separated: gather, tiled, tiled+rescore (default); two-level[+rescore], dense, int8, svd[+rescore]",
    )  # fmt: skip
    made = writes(
        reads(verb("compress", model, data(False), budget, training(5, 0.02), subspaces, target)), "folder for the results"
    )
    made.add_argument(
        "--head", default="auto", help="auto (default: subspaces where they are faster), linear, gather, tiled, int8"
    )
    made.add_argument("--steps", type=int, default=1, help="rank, cut and recover so many times (default 1: one-shot)")
    made.add_argument("--recover", type=int, default=1, help="epochs between steps (default 1)")
    made.add_argument("--distill", action="store_true", help="fine-tune with the input checkpoint as teacher")
    made.add_argument("--rivals", action="store_true", help="also train the dense model and a random cut equally long")
    return top
