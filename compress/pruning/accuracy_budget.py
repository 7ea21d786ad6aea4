"""A budget in accuracy: the largest cut within a drop of top-1, found by bisection over trial cuts.

Each trial cut is fine-tuned as the real one will be, and judged on validation images.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from .options import Cut
from .select import OutOfReach

TRIALS = 6
FINEST = 1 / 64  # of the MACs


@dataclass(frozen=True)
class Trial:
    """One trial cut: share of the MACs that it keeps, and its top-1 on validation after fine-tuning."""

    macs: float
    top1: float


def within_drop(
    cut: Cut, trial: Callable[[Cut], float], top1: float, say: Callable[[str], None] = lambda line: None
) -> tuple[Cut, list[Trial]]:
    """Find the smallest share of the MACs whose trial keeps `top1` less `max_drop`, to a 64th, in TRIALS trials at most.

    `trial`: cuts as asked, fine-tunes, and returns top-1 on validation. Returns that cut and every trial in order; the last
    trial that held is the cut's own. Raises OutOfReach where even the mildest trial loses more.
    """
    assert cut.max_drop is not None
    fails, holds = 0.0, 1.0
    trials: list[Trial] = []
    refusal = ""
    for _ in range(TRIALS):
        if holds - fails <= FINEST:
            break
        share = (fails + holds) / 2
        try:
            reached = trial(replace(cut, max_drop=None, macs=share))
        except OutOfReach as error:
            fails, refusal = share, str(error)
            continue
        trials.append(Trial(share, reached))
        say(f"trial: {share:.1%} of the MACs, top-1 {reached:.4f} on validation")
        fails, holds = (fails, share) if holds_to(cut.max_drop, top1, reached) else (share, holds)
    if holds == 1.0:
        if not trials:
            raise OutOfReach(f"`max_drop` {cut.max_drop}: nothing can be cut ({refusal})", 1.0)
        mildest = max(trials, key=lambda trial: trial.macs)
        raise OutOfReach(
            f"`max_drop` {cut.max_drop} is out of reach: {mildest.macs:.1%} of the MACs already loses "
            f"{top1 - mildest.top1:.4f} of {top1:.4f}; fine-tune longer (`epochs`), or allow more",
            top1 - mildest.top1,
        )
    return replace(cut, max_drop=None, macs=holds), trials


def holds_to(max_drop: float, before: float, after: float) -> bool:
    """Whether top-1 `after` is within `max_drop` of `before`."""
    return after >= before - max_drop - 1e-9
