"""The rankers, one record each. Adding one is a file with its function, a record here and a reference test.

A ranker is a function `rank(model, channels, batches, *, classes, seed, layers, options) -> FilterScores`, higher = keep.
`batches` yields (images [n, channels, height, width], labels [n]) as often as it is iterated; None for those that need
no images. `layers`: any members of the groups to rank, None for all. `options`: the record's dataclass, only where it has one.

Nothing here imports torch: the command line reads the records before any ranker is loaded.

Scores are comparable within a layer. For global selection those in one unit, CAR and Shapley, are taken as they are; every
other one is divided by its layer's mean: scales differ by orders of magnitude between layers, and the mean, unlike the
maximum, does not hang on one filter.
"""

from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import SlimrankError, near
from ...evaluate.dataspec import needs_labels
from ...option import option, options
from ..coalitions import MEMORY

if TYPE_CHECKING:
    from torch import nn

    from ..channels.groups import ChannelMap
    from .scores import FilterScores

CACHED = "car, shapley, switch, reconstruct: bytes for what is kept of the images (default 2 GiB)"


@dataclass(frozen=True, kw_only=True)
class InfluentialOptions:
    k1: int | None = option(None, "influential: votes an image has in each layer (default: a quarter)")


@dataclass(frozen=True, kw_only=True)
class CarOptions:
    greedy: bool = option(False, "car: remove the least, recompute, repeat")
    remove: int | None = option(None, "car --greedy: filters to remove in each layer (default: all but one)")
    memory: int = option(MEMORY, CACHED)


@dataclass(frozen=True, kw_only=True)
class ShapleyOptions:
    """`estimator` None: exact for layers of up to 12 units, else, and where `samples` or `tolerance` are given, permutation."""

    estimator: str | None = option(None, "shapley: exact, truncated, permutation, subsets")
    samples: int | None = option(None, "shapley: at most this many pairs (default 10)")
    coalition_size: int | None = option(None, "shapley, truncated: coalitions of fewer filters (default 2)")
    tolerance: float | None = option(None, "shapley: stop at this half-width of the 95% confidence intervals")
    memory: int = option(MEMORY, CACHED)


@dataclass(frozen=True, kw_only=True)
class SwitchOptions:
    epochs: int = option(5, "switch: passes over the images (default 5)")
    lr: float = option(0.1, "switch: learning rate, Adam (default 0.1)")
    alpha0: float = option(0.5, "switch: prior; below 1 for few filters (default 0.5)")
    sampled: bool = option(False, "switch: learn by samples, not at the mean")
    identity: bool = option(False, "switch: multiply by n*s, not by s (see compress/rankers/switch.py)")
    memory: int = option(MEMORY, CACHED)


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions:
    memory: int = option(MEMORY, CACHED)


@dataclass(frozen=True, kw_only=True)
class Ranker:
    """`function`: "module:name" below this package. `split`: the images it reads; None needs none. What is learned or
    counted for a class is learned in training; accuracy there would be memory. `labels`: whether these images must carry
    classes. `enough`: images, unless `limit` says otherwise; None takes all. `options`: a dataclass of `option` fields, where
    it takes any."""

    name: str
    function: str
    split: str | None = None
    labels: bool = True
    enough: int | None = None
    options: type[Any] | None = None

    def __call__(
        self, model: "nn.Module", channels: "ChannelMap", batches: Any = None,
        *, classes: int = 0, seed: int = 0, layers: list[str] | None = None, **given: Any,
    ) -> "FilterScores":  # fmt: skip
        """Run the ranker; `given` fills its options. Raises SlimrankError for an option that it does not take."""
        own = self.chosen(given)
        module, _, name = self.function.partition(":")
        rank = getattr(import_module(f".{module}", __name__), name)
        words = {} if own is None else {"options": own}
        scores: FilterScores = rank(model, channels, batches, classes=classes, seed=seed, layers=layers, **words)
        return scores if own is None or scores.options else replace(scores, options=asdict(own))

    def check_data(self, images: bool, labels: bool) -> None:
        """Raise SlimrankError where it needs images and there are none, or classes and they have none."""
        if self.split is None:
            return
        if not images:
            raise SlimrankError(f"ranker {self.name} needs images; add `data`, or take one of {', '.join(DATA_FREE)}")
        if self.labels and not labels:
            raise needs_labels(f"ranker {self.name}", f"take one of {', '.join(LABEL_FREE)}, or give data with classes")

    def chosen(self, given: dict[str, Any]) -> Any:
        """Its options with the values in `given`; None where it has none. Raises SlimrankError for one that it has not."""
        known = options(self.options) if self.options else {}
        odd = [key for key in given if key not in known]
        if odd:
            takes = ", ".join(f"`{key}`" for key in known) or "no options"
            raise SlimrankError(f"ranker {self.name} takes no `{odd[0]}`; it takes {takes}")
        return self.options(**given) if self.options else None


RANKERS = {
    record.name: record
    for record in (
        Ranker(name="influential", function="influential:rank", split="train", options=InfluentialOptions),
        Ranker(name="l1", function="l1:rank"),
        Ranker(name="car", function="car:rank", split="validation", enough=2000, options=CarOptions),
        Ranker(name="shapley", function="shapley:rank", split="validation", enough=500, options=ShapleyOptions),
        Ranker(name="switch", function="switch:rank", split="train", enough=5000, options=SwitchOptions),
        Ranker(
            name="reconstruct", function="reconstruct:rank", split="train", labels=False, enough=512, options=ReconstructOptions
        ),
        Ranker(name="random", function="random:rank"),
        Ranker(name="taylor", function="torch_pruning_criteria:taylor", split="train", enough=2000),
        Ranker(name="bn-scale", function="torch_pruning_criteria:bn_scale"),
        Ranker(name="fpgm", function="torch_pruning_criteria:fpgm"),
        Ranker(name="lamp", function="torch_pruning_criteria:lamp"),
    )
}
DEFAULT = "fpgm"  # of those that need no images, the best before tuning on both networks of benchmarks/prune_accuracy.py
DATA_FREE = tuple(name for name, record in RANKERS.items() if record.split is None)
LABEL_FREE = tuple(name for name, record in RANKERS.items() if record.split is None or not record.labels)
_OURS = ", ".join(name for name, record in RANKERS.items() if not record.function.startswith("torch_pruning"))
_THEIRS = ", ".join(name for name, record in RANKERS.items() if record.function.startswith("torch_pruning"))
NAMES = f"{_OURS}; torch-pruning's {_THEIRS}"


def ranker(name: str) -> Ranker:
    """The record behind a name. Raises SlimrankError with the near ones for a name that is none."""
    if name not in RANKERS:
        raise SlimrankError(f"no ranker {name!r}; {near(name, list(RANKERS))}")
    return RANKERS[name]
