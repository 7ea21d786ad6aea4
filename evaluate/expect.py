"""What somebody expects of the figures, as `speedup>=1.5`: for CI, which fails where it does not hold."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import SlimrankError, near

RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
FORM = re.compile(r"\s*([A-Za-z]\w*)\s*(>=|<=|==|>|<)\s*(\S+)\s*")
Measured = Sequence[tuple[str, float]]  # what it is a figure of, and the figure


@dataclass(frozen=True)
class Expectation:
    """A figure's name, how it should stand to `limit`, and the words that said so."""

    text: str
    metric: str
    relation: str
    limit: float

    def judged(self, measured: Measured) -> "Judged":
        """Whether all of them are as expected; the one that is farthest from it is told."""
        sign = {">": 1, "<": -1}.get(self.relation[0], 0)
        where, value = min(measured, key=lambda one: sign * one[1] if sign else -abs(one[1] - self.limit))
        return Judged(self.text, all(RELATIONS[self.relation](v, self.limit) for _, v in measured), value, where, len(measured))


@dataclass(frozen=True)
class Judged:
    """Whether an expectation holds for all `figures` figures; `measured`: the farthest from it, of `where`."""

    expect: str
    holds: bool
    measured: float
    where: str
    figures: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"  expected {self.expect}: {'holds' if self.holds else 'DOES NOT HOLD'}, {self.measured:.6g} ({self.where})"


def expectations(texts: Sequence[str], known: Sequence[str], elsewhere: Mapping[str, str] | None = None) -> list[Expectation]:
    """Read expectations of the figures in `known`; `elsewhere`: why another figure is not measured here.

    Raises SlimrankError for one that cannot be read, and one that names what is not measured.
    """
    found = []
    for text in texts:
        match = FORM.fullmatch(text)
        limit = _number(match[3]) if match else None
        if match is None or limit is None:
            raise SlimrankError(
                f"`expect` {text!r} is no expectation; write a figure, a relation and a number, as {known[0]}>=0.5"
            )
        if match[1] not in known:
            why = (elsewhere or {}).get(match[1], "is not measured here")
            raise SlimrankError(f"`expect` {text!r}: {match[1]} {why}; {near(match[1], list(known))}")
        found.append(Expectation(text, match[1], match[2], limit))
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
