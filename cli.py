"""slimrank VERB: a table of verbs; parse, call, print. What each does is a short function in verbs/."""

import argparse
import json
import sys
from typing import Any

from slimrank.arguments import Verb, flags, parser
from slimrank.compress.explain.options import ExplainOptions
from slimrank.compress.head.options import FinalLayerOptions, HeadOptions
from slimrank.compress.network.reading import Reading
from slimrank.compress.options import CompressOptions
from slimrank.compress.rankers import RANKERS
from slimrank.compress.recipes.recipe import RecipeOption, read_recipe, with_words
from slimrank.compress.stages.options import (
    BenchOptions,
    Common,
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    InspectOptions,
    PruneOptions,
    RankOptions,
    ReportOptions,
    ScoresOption,
    SensitivityOptions,
    StartOption,
    SweepOption,
    TeacherOptions,
)  # fmt: skip
from slimrank.compress.training.recipe import Interpretable, Recipe
from slimrank.endings import ending, written_out
from slimrank.errors import flagged, flagged_json, warnings_to
from slimrank.evaluate.dataspec import DataSpec
from slimrank.joining import last_word, leave, prepare, several
from slimrank.verbs import making, measuring
from slimrank.verbs.given import asked, join_others, kept, spec_of


def say(line: str) -> None:
    print(flagged(line, FLAGS), file=sys.stderr, flush=True)


DATA = ("data",)  # of verbs that do without images as well
SLIM = "slim checkpoint to write"
RESUMED = ("compress", "demo", "train", "finetune", "prune")
VERBS = {
    "demo": Verb(making.demo, writes="folder for the results (default: demo)", default_out="demo"),
    "train": Verb(
        making.train, (Reading, DataSpec, making.TRAINING, StartOption, Interpretable), writes=SLIM, without=("teacher_share",),
        divides=True,
    ),
    "inspect": Verb(measuring.inspect, (Reading, InspectOptions), reads="checkpoint or .onnx file"),
    "evaluate": Verb(
        measuring.evaluate, (Reading, DataSpec, EvaluateOptions), reads="checkpoint or .onnx file", divides=True
    ),
    "rank": Verb(
        measuring.rank, (Reading, DataSpec, RankOptions, *(r.options for r in RANKERS.values() if r.options)),
        reads="checkpoint", unasked=(*DATA, *measuring.RANKER_OPTIONS),
        writes="scores file to write (.json); the chart goes beside it", divides=True,
    ),
    "compare-ranks": Verb(measuring.compare_ranks, (CompareOptions,), may_write="bar charts side by side (.svg)"),
    "sensitivity": Verb(
        measuring.sensitivity, (Reading, DataSpec, SensitivityOptions), reads="checkpoint",
        writes="scores file to write (.json); the figure goes beside it", divides=True,
    ),
    "prune": Verb(
        making.prune, (Reading, DataSpec, PruneOptions, ScoresOption), unasked=DATA, reads="checkpoint", writes=SLIM,
        divides=True,
    ),
    "finetune": Verb(
        making.finetune, (Reading, DataSpec, Recipe, TeacherOptions), reads="checkpoint", writes=SLIM, divides=True
    ),
    "specialize": Verb(making.specialize, (Reading, DataSpec, HeadOptions, SweepOption), reads="checkpoint", writes=SLIM),
    "explain": Verb(
        measuring.explain, (Reading, DataSpec, ExplainOptions), reads="checkpoint",
        writes="folder for explain.json and explain.html (default: explain)", default_out="explain",
    ),
    "export": Verb(
        making.export, (Reading, DataSpec, ExportOptions), unasked=DATA, reads="checkpoint", writes="ONNX file to write"
    ),
    "bench": Verb(measuring.bench, (BenchOptions, DataSpec), unasked=DATA),
    "bench-head": Verb(measuring.bench_head, (Reading, FinalLayerOptions), may_read="take the final layer of this checkpoint"),
    "report": Verb(
        measuring.report, (ReportOptions,), writes="page to write (default: report.html)", default_out="report.html"
    ),
    "compress": Verb(
        making.compress, (Reading, DataSpec, CompressOptions, RecipeOption), unasked=DATA, reads="checkpoint",
        writes="folder for the results", divides=True,
    ),
}  # fmt: skip
COMMON = (Common,)
UNMET = 3
FLAGS = flags(VERBS.values(), COMMON)


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit status: 0 done, 1 an error in one line on stderr, 2 usage, 3 an --expect that does not hold."""
    prepare()
    args = parser(VERBS, COMMON).parse_args(argv)
    args.say = say
    args.words = vars(parser(VERBS, COMMON, given_only=True).parse_args(argv)) if recipe_of(args) is not None else {}
    with warnings_to(say):
        return run(args)


def recipe_of(args: argparse.Namespace) -> str | None:
    return getattr(args, "recipe", None)


def run(args: argparse.Namespace) -> int:
    """Run the verb that was parsed; the exit status."""
    try:
        if (word := recipe_of(args)) is not None:
            vars(args).update(with_words(vars(args), read_recipe(word), args.words))
        asked(Common(), args).check()
        if several():
            join_others(args, [name for name, verb in VERBS.items() if verb.divides])
        result, text = VERBS[args.verb].run(args)
    except BaseException as error:
        if args.debug and isinstance(error, Exception):
            raise
        again = f"slimrank {args.verb}" if args.verb in RESUMED and kept(args.out) else ""
        line, status = ending(error, again)
        if line := last_word(error, line, again):
            say(line)
        return status
    if result.get("validation_seen_in_training", False) is not False and args.verb != "compress":
        from slimrank.compress.network.checkpoint import SEEN

        if args.validation.startswith("train") and spec_of(args).labelled:
            say(SEEN)
    status = written_out(lambda: show(result, text, args.json), say)
    leave()
    return status or (0 if all(one["holds"] for one in result.get("expected", [])) else UNMET)


def show(result: dict[str, Any], text: str, as_json: bool) -> None:
    print(flagged(text, FLAGS), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(flagged_json(result, FLAGS)))


if __name__ == "__main__":
    sys.exit(main())
