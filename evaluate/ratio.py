"""The ratio of two times from pairs of them, and how far it can be believed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.99  # of the interval


@dataclass(frozen=True)
class Ratio:
    """`value` lies between `low` and `high`, the 99 % interval; both None where one session says nothing of others."""

    value: float
    low: float | None
    high: float | None


def ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, turned: bool = False) -> Ratio:
    """Ratio of the times of `first` over those of `second`: lists of sessions of the times of rounds, pair by pair.

    What errs is not the round: thousands of them agree to a thousandth, and the next session of the same file lies two
    hundredths off (where its weights lie in memory), or the machine has become busy meanwhile. So a session is one
    observation, the median of its log ratios; `value` is their mean and the interval Student's over sessions (batch means;
    Law & Kelton, ch. 9), which holds however rounds hang together. A bootstrap of so few sessions is too narrow: 95 %
    intervals of a file against itself held 1 in 90, 85 and 64 % of runs at 8, 4 and 2 sessions, Student's in 95, 90 and 97 %.

    `turned`: every other session had the two in reverse order. The first to be loaded is by one or two hundredths the
    slower, in session after session; that is a second unknown, and taken out (a crossover; Jones & Kenward, ch. 2).
    """
    medians = np.array([np.median(np.log(a) - np.log(b)) for a, b in zip(first, second, strict=True)])
    order = (-1.0) ** np.arange(len(medians))
    known = np.stack([np.ones_like(order), order], axis=1)[:, : 1 + turned]
    means = np.linalg.lstsq(known, medians, rcond=None)[0]
    value = means[0]
    free = len(medians) - known.shape[1]
    if free < 1:
        return Ratio(float(np.exp(value)), None, None)
    variance = np.square(medians - known @ means).sum() / free * np.linalg.inv(known.T @ known)[0, 0]
    half = stdtrit(free, (1 + LEVEL) / 2) * variance**0.5
    return Ratio(*map(float, np.exp([value, value - half, value + half])))
