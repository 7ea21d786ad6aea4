"""slimrank: rank the filters of a CNN classifier, cut those that matter least, export and time what is left.

    import slimrank
    checkpoint = slimrank.load("resnet20.th", model="resnet20-cifar")
    smaller = slimrank.prune(checkpoint, None, slimrank.PruneOptions(cut=slimrank.Cut(macs=0.5)))
    slimrank.save(smaller.checkpoint, "slim.safetensors")

Nothing is imported before it is used. `compress`, `evaluate` and `export` are verbs and packages at once: call them, or
import from them.
"""

TYPE_CHECKING = False  # typing is not imported, nor anything else: a run can be interrupted as soon as it starts

__version__ = "0.8.0"

if TYPE_CHECKING:
    from .compress.explain.explain import explain as explain
    from .compress.explain.options import ExplainOptions as ExplainOptions
    from .compress.head.options import HeadOptions as HeadOptions
    from .compress.head.specialize import specialize as specialize
    from .compress.network.checkpoint import Checkpoint as Checkpoint
    from .compress.network.checkpoint import load as load
    from .compress.network.checkpoint import save as save
    from .compress.options import CompressOptions as CompressOptions
    from .compress.pipeline import compress as compress
    from .compress.pruning.options import Cut as Cut
    from .compress.rankers import RANKERS as RANKERS
    from .compress.rankers.compare import compare_scores as compare_ranks  # noqa: F401
    from .compress.rankers.scores import FilterScores as FilterScores
    from .compress.stages.bench import bench as bench
    from .compress.stages.evaluate import evaluate as evaluate
    from .compress.stages.export import export as export
    from .compress.stages.finetune import finetune as finetune
    from .compress.stages.inspect import inspect as inspect
    from .compress.stages.options import InspectOptions as InspectOptions
    from .compress.stages.options import PruneOptions as PruneOptions
    from .compress.stages.prune import prune as prune
    from .compress.stages.rank import measured_sensitivity as sensitivity  # noqa: F401
    from .compress.stages.rank import rank as rank
    from .compress.training.recipe import Recipe as Recipe
    from .errors import SlimrankError as SlimrankError
    from .evaluate.data import open_data as open_data
    from .evaluate.dataspec import DataSpec as DataSpec
    from .evaluate.timing import Timing as Timing

_WHERE = {
    "CompressOptions": "compress.options", "Checkpoint": "compress.network.checkpoint", "Cut": "compress.pruning.options",
    "DataSpec": "evaluate.dataspec", "ExplainOptions": "compress.explain.options", "FilterScores": "compress.rankers.scores",
    "HeadOptions": "compress.head.options", "InspectOptions": "compress.stages.options",
    "PruneOptions": "compress.stages.options", "RANKERS": "compress.rankers", "Recipe": "compress.training.recipe",
    "SlimrankError": "errors", "Timing": "evaluate.timing", "bench": "compress.stages.bench",
    "compare_ranks": "compress.rankers.compare:compare_scores", "explain": "compress.explain.explain",
    "finetune": "compress.stages.finetune", "inspect": "compress.stages.inspect", "load": "compress.network.checkpoint",
    "open_data": "evaluate.data", "prune": "compress.stages.prune", "rank": "compress.stages.rank",
    "save": "compress.network.checkpoint", "sensitivity": "compress.stages.rank:measured_sensitivity",
    "specialize": "compress.head.specialize",
}  # fmt: skip
_VERBS_AND_PACKAGES = ("compress", "evaluate", "export")
__all__ = sorted([*_WHERE, *_VERBS_AND_PACKAGES])  # test_public_api holds it against the types above


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _VERBS_AND_PACKAGES:
        return import_module(f".{name}", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _WHERE[name].partition(":")
    return getattr(import_module(f".{module}", __name__), attribute or name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
