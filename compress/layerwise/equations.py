"""Sums over rows, of either kind, and the normal equations that follow from them."""

from torch import Tensor

from .few_rows import FewRows, FewRowsNormal
from .moments import Moments, Normal

Sums = Moments | FewRows
Equations = Normal | FewRowsNormal


def equations(sums: Sums, mean: bool) -> Equations:
    """Around the mean where the layer has a place for one, else around zero."""
    return sums.centred() if mean else sums.raw()


def solved(fit: Sums, held: Sums, mean: bool, sliced: Tensor, ridge: float) -> tuple[Equations, Tensor]:
    """Normal equations of all rows, and the matrix [groups, columns, filters] that they give nearest to `sliced`.

    An infinite ridge is `sliced` itself; where the equations are singular at the ridge, ten times as much is taken.
    """
    every = equations(fit + held, mean)  # type: ignore[operator]  # both are of one kind
    for factor in (1, 10, 100):
        matrix = None if ridge == float("inf") else every.solve(sliced, factor * ridge)
        if matrix is not None:
            return every, matrix
    return every, sliced
