"""A layer in front of a ReLU: what the ReLU does not let through need not be right.

Where the dense network is cut off, any value on that side of the bound is as good; so the layer is fitted again, each such
output asked for what it gives already, or for the bound where it gives too much. Each pass lowers the error behind the ReLU
and reuses the Gram matrix. Source: Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks for Classification and
Detection", section 3.2 (nonlinear case), with the auxiliary variable in closed form.
"""

from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from ...processes import alone, shared
from ..layerwise.equations import Equations, Sums, solved
from ..layerwise.prefix import Program
from .residual import LEAST_SCALE, Residual

PASSES = 3  # more lower the error behind the ReLU by another percent and change no accuracy


@dataclass(frozen=True)
class Rows:
    """Some rows of a layer: inputs [groups, rows, columns], wanted outputs [groups, rows, filters], and what is added to these
    before the ReLU (None: nothing). `held`: of held-out images."""

    held: bool
    x: Tensor
    y: Tensor
    other: Tensor | None


@dataclass(frozen=True)
class Rectified:
    """What stands between a layer's output and a ReLU: `scale` and `shift` ([groups, 1, filters]) of its BatchNorm, then
    another summand. The ReLU lets through what is above 0 and below `high`."""

    scale: Tensor
    shift: Tensor
    high: float

    @classmethod
    def behind(
        cls, program: Program, node: fx.Node, norm: BatchNorm | None, residual: Residual | None, groups: int
    ) -> "Rectified | None":
        """Find the ReLU that alone reads a layer, its BatchNorm or the sum that follows; None where there is none."""
        end = node if norm is None else next(iter(node.users))
        high = _bound(program, end)
        if high is None and residual is not None and len(end.users) == 1:
            high = _bound(program, next(iter(end.users)))
        if high is None:
            return None
        if norm is None or norm.running_var is None or norm.running_mean is None:
            return cls(torch.ones(()), torch.zeros(()), high)
        spread = (norm.running_var + norm.eps).sqrt()
        scale = 1 / spread if norm.weight is None else norm.weight / spread
        scale = torch.where(scale.abs() < LEAST_SCALE, LEAST_SCALE, scale)
        shift = -norm.running_mean * scale if norm.bias is None else norm.bias - norm.running_mean * scale
        return cls(scale.view(groups, 1, -1), shift.view(groups, 1, -1), high)

    def refit(self, parts: list[list[Rows]], fit: Sums, held: Sums, sliced: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """The matrix [groups, columns, filters] nearest to `sliced` that all rows give, and its offset.

        `fit`, `held`: of the rows, asked for what the dense network wrote. Passes end where the error behind the ReLU on
        held-out rows does not fall. `parts`: of the rows, as they are shared out.
        """
        best = alone(lambda: _solved(fit, held, sliced, ridge))
        least, now = inf, (fit, held)
        for _ in range(PASSES + 1):
            tried = alone(partial(_fitted, now[0], sliced, ridge))
            if tried is None:
                break
            *asked, error = self._asked_again(parts, *now, *tried)
            if error >= least:
                break
            least, best = error, alone(partial(_solved, *now, sliced, ridge))
            now = asked[0], asked[1]
        return best

    def _asked_again(
        self, parts: list[list[Rows]], fit: Sums, held: Sums, matrix: Tensor, offset: Tensor
    ) -> tuple[Sums, Sums, float]:
        """Sums of the same rows with new wanted outputs, and the squared error of `matrix` behind the ReLU on held-out rows."""

        def of_part(rows: list[Rows]) -> tuple[Any, Any, float]:
            sums, error = (fit.asked_anew(), held.asked_anew()), 0.0
            for block in rows:
                weight, bias = matrix.to(block.x), offset.to(block.x)[:, None]
                between = self.shift if block.other is None else self.shift + block.other
                wanted, given = self.scale * block.y + between, self.scale * (block.x @ weight + bias) + between
                if block.held:
                    error += float((wanted.clamp(0, self.high) - given.clamp(0, self.high)).square().sum(dtype=torch.float64))
                low, high = given.clamp(max=0), given.clamp(min=self.high)
                asked = torch.where(wanted <= 0, low, torch.where(wanted >= self.high, high, wanted))
                sums[block.held].ask(block.x, (asked - between) / self.scale)
            return sums[0].answers(), sums[1].answers(), error

        every, total = (fit.asked_anew(), held.asked_anew()), 0.0
        for new_fit, new_held, error in shared(of_part, parts, at_once=1):
            every[0].take(new_fit)
            every[1].take(new_held)
            total += error
        return *every, total


def with_offset(fitted: Equations, matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix, fitted.offset(matrix)


def _solved(fit: Sums, held: Sums, sliced: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    return with_offset(*solved(fit, held, True, sliced, ridge))


def _fitted(fit: Sums, sliced: Tensor, ridge: float) -> tuple[Tensor, Tensor] | None:
    """Matrix and offset from the rows that fit alone; None where the system is singular."""
    fitted = fit.centred()
    matrix = fitted.solve(sliced, ridge)
    return None if matrix is None else with_offset(fitted, matrix)


def _bound(program: Program, node: fx.Node) -> float | None:
    """Above what the ReLU that alone reads a node cuts off, inf for a plain one; None where no ReLU reads it."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    module = program.module(user)
    if user.target is torch.relu or (user.op == "call_method" and user.target == "relu"):
        return inf
    if user.target is F.relu6 or (isinstance(module, nn.Hardtanh) and module.min_val == 0):
        return float(module.max_val) if isinstance(module, nn.Hardtanh) else 6.0
    return None
