"""Second moments of a layer's inputs and outputs, and what follows from them: least squares, its error on other images.

Only the moments are kept: memory is O(columns^2) whatever the number of images. Products are taken in float32 around the
first block's mean, sums in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Answers = tuple[Tensor, Tensor, Tensor]


@dataclass
class Moments:
    """Sums over rows of inputs x [groups, rows, columns] and outputs y [groups, rows, filters], each less an origin."""

    n: int
    x_origin: Tensor
    y_origin: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def around(cls, x: Tensor, y: Tensor) -> "Moments":
        """Empty sums around the mean of some rows."""
        groups, _, columns = x.shape
        filters = y.shape[2]
        zeros = [
            (groups, columns),
            (groups, filters),
            (groups, columns, columns),
            (groups, columns, filters),
            (groups, filters),
        ]
        sums = [torch.zeros(shape, dtype=torch.float64, device=x.device) for shape in zeros]
        return cls(0, x.mean(1), y.mean(1), *sums)

    def empty(self) -> "Moments":
        """Empty sums around the same origins, so that the two can be added."""
        sums = [torch.zeros_like(t) for t in (self.x, self.y, self.xx, self.xy, self.yy)]
        return Moments(0, self.x_origin, self.y_origin, *sums)

    def add(self, x: Tensor, y: Tensor) -> None:
        centred = x - self.x_origin[:, None]
        self.n += x.shape[1]
        self.x += centred.sum(1, dtype=torch.float64)
        self.xx += centred.mT @ centred
        self.ask(x, y)

    def asked_anew(self) -> "Moments":
        """The same rows of inputs, whose outputs are still to come by `ask`."""
        y, xy, yy = (torch.zeros_like(t) for t in (self.y, self.xy, self.yy))
        return Moments(self.n, self.x_origin, self.y_origin, self.x, y, self.xx, xy, yy)

    def ask(self, x: Tensor, y: Tensor) -> None:
        """Add outputs to rows of inputs that were counted before."""
        x, y = x - self.x_origin[:, None], y - self.y_origin[:, None]
        self.y += y.sum(1, dtype=torch.float64)
        self.xy += x.mT @ y
        self.yy += (y * y).sum(1, dtype=torch.float64)

    def answers(self) -> Answers:
        """What `ask` has added."""
        return self.y, self.xy, self.yy

    def take(self, answers: Answers) -> None:
        """Add what `ask` has added elsewhere, around the same origins."""
        for total, part in zip(self.answers(), answers, strict=True):
            total += part

    def moved(self, x_origin: Tensor, y_origin: Tensor) -> "Moments":
        """The same sums around other origins."""
        dx, dy = (self.x_origin - x_origin).double(), (self.y_origin - y_origin).double()
        return Moments(
            self.n, x_origin, y_origin, self.x + self.n * dx, self.y + self.n * dy,
            self.xx + _outer(self.x, dx) + _outer(dx, self.x + self.n * dx),
            self.xy + _outer(self.x, dy) + _outer(dx, self.y + self.n * dy),
            self.yy + 2 * self.y * dy + self.n * dy * dy,
        )  # fmt: skip

    def __add__(self, other: "Moments") -> "Moments":
        """Of the rows of both, around this one's origins."""
        if other.x_origin is not self.x_origin:
            other = other.moved(self.x_origin, self.y_origin)
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("x", "y", "xx", "xy", "yy")]
        return Moments(self.n + other.n, self.x_origin, self.y_origin, *(a + b for a, b in pairs))

    def centred(self) -> "Normal":
        """Means and covariances."""
        n = max(1, self.n)
        x, y = self.x / n, self.y / n
        return Normal(
            self.x_origin + x, self.y_origin + y, self.xx / n - _outer(x, x),
            self.xy / n - _outer(x, y), self.yy / n - y * y,
        )  # fmt: skip

    def raw(self) -> "Normal":
        """Moments around zero, for a layer that has no place for a mean."""
        c = self.centred()
        mx, my = c.x_mean, c.y_mean
        return Normal(
            torch.zeros_like(mx), torch.zeros_like(my), c.xx + _outer(mx, mx),
            c.xy + _outer(mx, my), c.yy + my * my,
        )  # fmt: skip


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


@dataclass(frozen=True)
class Normal:
    """Normal equations of one layer: means [groups, columns] and [groups, filters], moments `xx`, `xy`, `yy` around them."""

    x_mean: Tensor
    y_mean: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def solve(self, matrix: Tensor, ridge: float) -> Tensor | None:
        """Fit [groups, columns, filters] nearest to `matrix`: `ridge` times the mean diagonal of `xx` is added to it.

        None where the system is singular all the same.
        """
        factor = factorised(self.xx, ridge * self.xx.diagonal(dim1=-2, dim2=-1).mean(-1))
        return None if factor is None else matrix + torch.cholesky_solve(self.xy - self.xx @ matrix, factor)

    def offset(self, matrix: Tensor) -> Tensor:
        """What has to be added to the outputs of `matrix`, [groups, filters], for their mean to be right."""
        return self.y_mean - (self.x_mean[:, None] @ matrix)[:, 0]

    def errors(self, matrix: Tensor, offset: Tensor) -> Tensor:
        """Mean squared error of each output, [groups, filters]."""
        miss = self.offset(matrix) - offset
        return self.yy - 2 * (matrix * self.xy).sum(1) + (matrix * (self.xx @ matrix)).sum(1) + miss * miss

    def power(self) -> Tensor:
        """Mean square of each output around its mean (around zero in moments around zero), [groups, filters]."""
        return self.yy


def factorised(system: Tensor, ridge: Tensor) -> Tensor | None:
    """Cholesky factors of [groups, n, n] with `ridge` ([groups]) added to the diagonals; None where one is singular."""
    factor, info = torch.linalg.cholesky_ex(system + torch.diag_embed(ridge[:, None].expand(system.shape[:2])))
    return None if bool(info.any()) else factor
