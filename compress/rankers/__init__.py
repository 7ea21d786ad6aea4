"""The rankers: `(model, channels, batches, *, classes, seed, layers, **options) -> FilterScores`, higher = keep.

`batches` yields (images [n, channels, height, width], labels [n]) as often as it is iterated; None for the data-free ones.
`layers`: any members of the groups to rank, None for all. Adding a ranker is a file, a line here and a reference test.

Scores are comparable within a layer. For global selection (selection.py) those in one unit, CAR and Shapley, are taken as they
are; every other one is divided by its layer's mean: scales differ by orders of magnitude between layers, and the mean, unlike
the maximum, does not hang on one filter.
"""

from ...errors import SlimrankError, near
from . import car, influential, l1, random, shapley, switch, torch_pruning_criteria

RANKERS = {
    "influential": influential.rank,
    "l1": l1.rank,
    "car": car.rank,
    "shapley": shapley.rank,
    "switch": switch.rank,
    "random": random.rank,
    **torch_pruning_criteria.RANKERS,
}
DEFAULT = "fpgm"  # of those that need no images, the best before tuning on both networks of benchmarks/prune_accuracy.py
DATA_FREE = ("l1", "random", "bn-scale", "fpgm", "lamp")
# The split that a ranker reads: what is learned or counted for a class is learned in training; accuracy there would be memory.
SPLIT = {"influential": "train", "switch": "train", "taylor": "train", "car": "validation", "shapley": "validation"}
ENOUGH = {"switch": 5000, "taylor": 2000, "car": 2000, "shapley": 500}  # images, unless --limit says otherwise
OPTIONS = {
    "influential": ("k1",),
    "car": ("greedy", "remove", "memory"),
    "shapley": ("estimator", "samples", "coalition_size", "tolerance", "memory"),
    "switch": ("epochs", "lr", "alpha0", "sampled", "identity", "memory"),
}


def ranker(name: str):
    """The function behind a name."""
    if name not in RANKERS:
        raise SlimrankError(f"no ranker {name!r}; {near(name, list(RANKERS))}")
    return RANKERS[name]
