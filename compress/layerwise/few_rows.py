"""The same least squares where there are fewer rows than columns: the rows are kept, and the system has one equation a row.

(X'X/n + r I)^-1 X'/n = X'(XX' + n r I)^-1: memory is O(rows^2 + rows * columns), whatever the columns' square is. Same names
and same results as in moments.py.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .moments import factorised


@dataclass
class FewRows:
    """Rows of inputs [groups, rows, columns] and outputs [groups, rows, filters] as they come."""

    x: list[Tensor] = field(default_factory=list)
    y: list[Tensor] = field(default_factory=list)

    def empty(self) -> "FewRows":
        return FewRows()

    def add(self, x: Tensor, y: Tensor) -> None:
        self.x.append(x)
        self.y.append(y)

    def asked_anew(self) -> "FewRows":
        return FewRows(self.x)

    def ask(self, _x: Tensor, y: Tensor) -> None:
        self.y.append(y)

    def answers(self) -> list[Tensor]:
        return self.y

    def take(self, answers: list[Tensor]) -> None:
        self.y.extend(answers)

    def __add__(self, other: "FewRows") -> "FewRows":
        return FewRows([*self.x, *other.x], [*self.y, *other.y])

    def centred(self) -> "FewRowsNormal":
        x, y = torch.cat(self.x, 1), torch.cat(self.y, 1)
        x_mean, y_mean = (rows.mean(1, dtype=torch.float64) for rows in (x, y))
        return FewRowsNormal(x_mean, y_mean, x - x_mean[:, None].to(x), y - y_mean[:, None].to(y))

    def raw(self) -> "FewRowsNormal":
        x, y = torch.cat(self.x, 1), torch.cat(self.y, 1)
        return FewRowsNormal(
            x.new_zeros(x.shape[::2], dtype=torch.float64), y.new_zeros(y.shape[::2], dtype=torch.float64), x, y
        )


@dataclass(frozen=True)
class FewRowsNormal:
    """One layer's rows around their means: `x` [groups, rows, columns], `y` [groups, rows, filters]."""

    x_mean: Tensor
    y_mean: Tensor
    x: Tensor
    y: Tensor

    def solve(self, matrix: Tensor, ridge: float) -> Tensor | None:
        """As Normal.solve."""
        kernel = (self.x @ self.x.mT).double()
        scale = kernel.diagonal(dim1=-2, dim2=-1).sum(-1) / self.x.shape[2]  # n times the mean diagonal of X'X/n
        factor = factorised(kernel, ridge * scale)
        if factor is None:
            return None
        rest = self.y.double() - self._times(matrix)
        return matrix + (self.x.mT @ torch.cholesky_solve(rest, factor).to(self.x)).double()

    def offset(self, matrix: Tensor) -> Tensor:
        return self.y_mean - (self.x_mean[:, None] @ matrix)[:, 0]

    def errors(self, matrix: Tensor, offset: Tensor) -> Tensor:
        rest = self.y - self._times(matrix) + (self.offset(matrix) - offset)[:, None]
        return (rest * rest).mean(1)

    def power(self) -> Tensor:
        return (self.y.double() ** 2).mean(1)

    def _times(self, matrix: Tensor) -> Tensor:
        return (self.x @ matrix.to(self.x)).double()
