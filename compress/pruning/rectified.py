"""A layer in front of a ReLU: what the ReLU does not let through need not be right.

Where the dense network is cut off, any value on that side of the bound is as good; so the layer is fitted again, each such
output asked for what it gives already, or for the bound where it gives too much. Each pass lowers the error behind the ReLU
and reuses the Gram matrix. Source: Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks for Classification and
Detection", section 3.2 (nonlinear case), with the auxiliary variable in closed form.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

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

    def refit(self, rows: list[Rows], fit: Sums, held: Sums, sliced: Tensor, ridge: float) -> tuple[Equations, Tensor]:
        """Normal equations of all rows, and the matrix [groups, columns, filters] that they give nearest to `sliced`.

        `fit`, `held`: of the rows, asked for what the dense network wrote. Passes end where the error behind the ReLU on
        held-out rows does not fall.
        """
        best = solved(fit, held, True, sliced, ridge)
        least = inf
        for _ in range(PASSES + 1):
            fitted = fit.centred()
            matrix = fitted.solve(sliced, ridge)
            if matrix is None:
                break
            new_fit, new_held, error = self._asked_again(rows, fit, held, matrix, fitted.offset(matrix))
            if error >= least:
                break
            best, least = solved(fit, held, True, sliced, ridge), error
            fit, held = new_fit, new_held
        return best

    def _asked_again(
        self, rows: Iterable[Rows], fit: Sums, held: Sums, matrix: Tensor, offset: Tensor
    ) -> tuple[Sums, Sums, float]:
        """Sums of the same rows with new wanted outputs, and the squared error of `matrix` behind the ReLU on held-out rows."""
        sums, error = (fit.asked_anew(), held.asked_anew()), 0.0
        for part in rows:
            weight, bias = matrix.to(part.x), offset.to(part.x)[:, None]
            between = self.shift if part.other is None else self.shift + part.other
            wanted, given = self.scale * part.y + between, self.scale * (part.x @ weight + bias) + between
            if part.held:
                error += float((wanted.clamp(0, self.high) - given.clamp(0, self.high)).square().sum(dtype=torch.float64))
            low, high = given.clamp(max=0), given.clamp(min=self.high)
            asked = torch.where(wanted <= 0, low, torch.where(wanted >= self.high, high, wanted))
            sums[part.held].ask(part.x, (asked - between) / self.scale)
        return *sums, error


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
