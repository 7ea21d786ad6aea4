"""The rankers: `(model, channels, batches, *, classes, seed, **options) -> FilterScores`, higher = keep.

`batches` yields (images [n, channels, height, width], labels [n]); None for the data-free ones. Adding a ranker is a
file, a line here and a reference test.
"""

from ...errors import SlimrankError, near
from . import influential, l1, random

RANKERS = {
    "influential": influential.rank,
    "l1": l1.rank,
    "random": random.rank,
}
DATA_FREE = ("l1", "random")


def ranker(name: str):
    """The function behind a name."""
    if name not in RANKERS:
        raise SlimrankError(f"no ranker {name!r}; {near(name, list(RANKERS))}")
    return RANKERS[name]
