"""Backward elimination of a linear layer's inputs: each time the unit whose loss costs least after the best repair.

Optimal brain surgeon (Hassibi & Stork 1993) on blocks of columns: with A = (X'X + ridge)^-1, losing a unit of columns J costs
tr(W_J' (A_JJ)^-1 W_J); once it is gone, W -= A_:J (A_JJ)^-1 W_J and A -= A_:J (A_JJ)^-1 A_J:. The downdates are those of a
block Cholesky factorisation with pivots, and are gathered as there before they are applied.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

GATHERED = 144  # columns of downdates that are applied at once


def ridge_inverse(xx: Tensor, ridge: float) -> Tensor:
    """Invert second moments [n, n] with `ridge` times their mean diagonal added."""
    system = xx.clone()
    system.diagonal().add_(ridge * float(xx.diagonal().mean().clamp_min(1e-30)))
    return torch.cholesky_inverse(torch.linalg.cholesky(system))


class Reader(Protocol):
    """What `eliminate` needs to know of those that read the units."""

    def costs(self) -> Tensor:
        """[units]: error that the loss of each adds; of those that are gone it means nothing."""
        ...

    def remove(self, unit: int) -> None:
        """Take a unit away."""
        ...


class Unrepaired:
    """Units that nothing makes up for. `costs` [units]: what each one's loss adds, whatever else is gone."""

    def __init__(self, costs: Tensor):
        self._costs = costs

    def costs(self) -> Tensor:
        return self._costs

    def remove(self, unit: int) -> None:
        pass


class Elimination:
    """One layer's least squares while units of its inputs go.

    `inverse` [columns, columns]: A above. `weight` [columns, filters], `columns` [units, most columns of a unit]: those of each
    unit, -1 where it has fewer. Columns of no unit stay for good. Costs are multiplied by `scale`.
    """

    def __init__(self, inverse: Tensor, weight: Tensor, columns: Tensor, scale: float = 1.0):
        self.units, self.size = columns.shape
        self.scale = scale
        real = (columns.flatten() >= 0).nonzero().flatten()
        source = columns.flatten()[real]
        self.a = torch.eye(columns.numel(), dtype=inverse.dtype)  # a column that a unit lacks: independent, of weight 0
        self.a[real[:, None], real] = inverse[source[:, None], source]
        self.weight = torch.zeros(columns.numel(), weight.shape[1], dtype=inverse.dtype)
        self.weight[real] = weight[source].to(inverse.dtype)
        places = torch.arange(self.units)
        self.blocks = self.a.view(self.units, self.size, self.units, self.size)[places, :, places].clone()
        self.at = places  # the unit whose columns lie at each place
        self.present = torch.ones(self.units, dtype=torch.bool)  # by place
        self.gathered = self.a.new_zeros(len(self.a), 0)

    def costs(self) -> Tensor:
        rows = self.weight.unflatten(0, (-1, self.size))
        costs = self.a.new_zeros(self.units)
        costs[self.at] = self.scale * (torch.linalg.inv(self.blocks) * (rows @ rows.mT)).sum((1, 2))
        return costs

    def remove(self, unit: int) -> None:
        """Take a unit away and let the others make up for it."""
        place = int((self.at == unit).nonzero())
        own = slice(place * self.size, (place + 1) * self.size)
        column = self.a[:, own] - self.gathered @ self.gathered[own].T
        factor = torch.linalg.cholesky(column[own])
        step = torch.linalg.solve_triangular(factor, column.T, upper=False).T
        self.weight -= step @ torch.linalg.solve_triangular(factor, self.weight[own], upper=False)
        rows = step.unflatten(0, (-1, self.size))
        self.blocks -= rows @ rows.mT
        self.present[place] = False
        self.weight[own], self.blocks[place] = 0, torch.eye(self.size, dtype=self.a.dtype)
        self.gathered = torch.cat([self.gathered, step], 1)
        if self.gathered.shape[1] >= GATHERED:
            self._apply()

    def _apply(self) -> None:
        """Apply the gathered downdates, and drop the columns of the units that are gone."""
        rows = self.present.repeat_interleave(self.size).nonzero().flatten()
        step = self.gathered[rows]
        self.a = self.a[rows[:, None], rows].addmm_(step, step.T, alpha=-1)
        self.weight, self.blocks, self.at = self.weight[rows], self.blocks[self.present], self.at[self.present]
        self.present = self.present[self.present]
        self.gathered = step[:, :0]


def eliminate(readers: Sequence[Reader], units: int, fixed: Sequence[int] = ()) -> tuple[list[int], list[float]]:
    """Remove the unit that costs all readers together least, again and again, until one is left (or the `fixed` ones).

    Returns the units in order of removal and what each one's removal added.
    """
    alive = torch.ones(units, dtype=torch.bool)
    alive[list(fixed)] = False
    order: list[int] = []
    added: list[float] = []
    for _ in range(units - max(1, len(fixed))):
        costs = torch.stack([reader.costs() for reader in readers]).sum(0).masked_fill(~alive, torch.inf)
        unit = int(costs.argmin())
        order.append(unit)
        added.append(max(0.0, float(costs[unit])))
        alive[unit] = False
        for reader in readers:
            reader.remove(unit)
    return order, added
