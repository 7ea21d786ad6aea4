"""How much to cut, and by which rules. Free of torch: the parser reads it."""

from dataclasses import dataclass, replace

from ...errors import SlimrankError
from ...evaluate.timing import Timing
from ...option import option

BUDGETS = ("ratio", "macs", "params", "latency", "max_drop")
MOST_KEPT = 0.999  # of a step's budget: some is always cut


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One budget and the rules of the cut.

    `ratio` is the share of filters removed; `macs`, `params` and `latency` the share kept; `max_drop` the top-1 on
    validation that may be lost, 0.01 being one point. `timed`: cut where time goes, whatever the budget;
    `int8`: the cut network is timed in int8, as a share of the dense float network's time.
    """

    ratio: float | None = option(None, "share of filters to remove, between 0 and 1")
    macs: float | None = option(None, "share of MACs to keep, between 0 and 1")
    params: float | None = option(None, "share of parameters to keep")
    latency: float | None = option(None, "share of the time in ONNX Runtime to keep, measured at --batch (mean) and --threads")
    max_drop: float | None = option(None, "largest cut whose validation top-1, after --epochs, falls no more (0.01: one point)")
    scope: str = option(
        "layer",
        "layer (default): uniform shares, as near as whole blocks come (--align 1: to a filter); global: scores "
        "are compared across layers, a tenth of each stays",
    )
    align: int | None = option(None, "keep conv widths at multiples of this (default: ONNX Runtime's block; 1: off)")
    timed: bool = option(False, "time every layer first and cut where time goes; --latency always")
    int8: bool = option(False, "--latency (and --timed) time networks in int8, as `export --int8` will write them")
    protect: tuple[str, ...] = option((), "keep all filters of this layer's group (repeatable)", metavar="LAYER", repeat=True)
    min_filters: int = option(1, "filters that every layer keeps (default 1)")

    @property
    def clocked(self) -> bool:
        """Whether layers are timed to decide where to cut."""
        return self.latency is not None or self.timed

    def check(self, timing: Timing) -> "Cut":
        """Raise SlimrankError for what no network could be cut to. `timing`: where `clocked` cuts are timed."""
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise SlimrankError(
                f"give one budget, not {len(given)}: `ratio` R (share of filters removed), `macs` F, `params` F or `latency` F "
                "(share kept), or `max_drop` D (top-1 that may be lost)"
            )
        for name in given:
            value = getattr(self, name)
            if name != "max_drop" and not 0 < value < 1:
                raise SlimrankError(f"`{name}` is {value}, must lie strictly between 0 and 1; 0.5 halves")
        if self.min_filters < 1:
            raise SlimrankError(f"`min_filters` is {self.min_filters}, must be at least 1")
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise SlimrankError(f"`max_drop` is {self.max_drop}, must lie in 0..1; 0.01 is one point of top-1")
        if self.int8 and not self.clocked:
            raise SlimrankError(
                "`int8` says what `latency` and `timed` measure; add one, or leave it out: `export` writes int8"
            )
        if self.clocked and timing.providers != ("cpu",):
            raise SlimrankError("layers are timed on the CPU provider only; leave out `providers`, `latency` or `timed`")
        timing.check()
        return self

    def step(self, number: int, steps: int, reached: float = 1.0) -> "Cut":
        """The budget of one of several equal steps, relative to the network that the steps before have left.

        `reached`: what that network is of the first one, in the budget's currency (of the filters for `ratio`).
        """
        if steps == 1:
            return self
        if self.max_drop is not None:
            raise SlimrankError("`max_drop` is found by one-shot cuts; leave `steps` out, or give another budget")
        name, goal = self.budget
        kept = min(MOST_KEPT, (1 - goal if name == "ratio" else goal) ** ((number + 1) / steps) / reached)
        return replace(self, **{name: 1 - kept if name == "ratio" else kept})

    @property
    def budget(self) -> tuple[str, float]:
        """Name and value of the budget that was given."""
        return next((name, value) for name in BUDGETS if (value := getattr(self, name)) is not None)
