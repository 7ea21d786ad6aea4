"""Verbs that write something new: a network, a smaller one, an ONNX file, a folder of all of it."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..compress.head.options import HeadOptions
from ..compress.network.reading import Reading
from ..compress.options import CompressOptions
from ..compress.stages.options import ExportOptions, PruneOptions
from ..compress.training.recipe import Interpretable, Recipe
from ..errors import SlimrankError
from ..evaluate.dataspec import DataSpec
from ..evaluate.imagespec import ImageSpec
from ..files import output, unread
from ..option import flat
from .given import Result, asked, given, kept, part, perhaps, spec_of

if TYPE_CHECKING:
    from ..compress.pipeline import Run

TRAINING = Recipe(epochs=20, lr=0.1)


def demo(args: argparse.Namespace) -> Result:
    """train a small CNN on drawn characters of 400 classes, then all of `compress`; needs nothing"""
    from ..compress.demo import prepare

    return finish(prepare(args.out, args.say), args.say)


def train(args: argparse.Namespace) -> Result:
    """train a network (or go on from a checkpoint) and write a slim checkpoint"""
    from ..compress.network.checkpoint import save
    from ..compress.stages.finetune import finetune, untrained

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


def prune(args: argparse.Namespace) -> Result:
    """cut the filters that matter least, to a budget"""
    from ..compress.network.checkpoint import save
    from ..compress.pruning.select import OutOfReach
    from ..compress.rankers.scores import FilterScores
    from ..compress.stages.place import beside, identity
    from ..compress.stages.prune import prune
    from ..option import flat

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
        cut = prune(checkpoint, data, wanted, scores=scores, place=place, say=args.say)
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
    from ..compress.network.checkpoint import load, save
    from ..compress.stages.finetune import finetune

    output(args.out, ".safetensors", args.checkpoint, args.teacher)
    teacher = None
    if args.teacher is not None:
        own = args.teacher.suffix == ".safetensors"  # says itself what it is and how it sees images
        if not (own or args.teacher_model or args.trust_pickle or args.teacher.is_dir()):
            raise SlimrankError(f"`teacher` {args.teacher} does not say what network it is; add `teacher_model` NAME")
        seen = {} if own else {"trust_pickle": args.trust_pickle, **flat(asked(ImageSpec(), args))}
        teacher = load(args.teacher, model=args.teacher_model, **seen)
    checkpoint, data = given(args)
    done = finetune(checkpoint, data, asked(Recipe(), args), teacher=teacher, progress=part(args.out))
    save(done.checkpoint, args.out)
    part(args.out).unlink(missing_ok=True)
    return {**done.to_dict(), "out": str(args.out)}, f"{done}\nwritten: {args.out}"


def specialize(args: argparse.Namespace) -> Result:
    """replace the classifier by sparse class-specific subspaces"""
    from ..compress.head.specialize import specialize
    from ..compress.head.sweep import sweep
    from ..compress.network.checkpoint import save

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


def export(args: argparse.Namespace) -> Result:
    """write ONNX and compare it with PyTorch"""
    from ..compress.stages.export import export

    output(args.out, ".onnx", args.checkpoint)
    wanted = asked(ExportOptions(), args).check(args.data is not None)
    checkpoint, data = perhaps(args)
    done = export(checkpoint, args.out, data, wanted, seed=args.seed)
    return done.to_dict(), str(done)


def compress(args: argparse.Namespace) -> Result:
    """everything: rank, prune, fine-tune, specialise, export, bench, report"""
    from dataclasses import replace

    from ..compress.pipeline import start
    from ..compress.recipes.recipe import RECIPE

    if args.recipe and not kept(args.out):
        unread(args.out / RECIPE, args.recipe)
    wanted = replace(asked(CompressOptions(), args), data=spec_of(args) if args.data is not None else None)
    return finish(start(args.checkpoint, args.out, wanted, **asked(Reading(), args).words), args.say)


def finish(run: "Run", say: Callable[[str], None]) -> Result:
    """Run what is left of a `compress`, and tell what it came to."""
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
