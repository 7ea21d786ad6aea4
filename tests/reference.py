"""Slow versions that are obviously right."""

import copy
import itertools
import math

import torch
from torch import nn

from slimrank.compress.channels.masking import masked


def masked_by_weights(model: nn.Module, conv: str, norm: str, unit: int) -> nn.Module:
    """A copy whose filter is silent: its BatchNorm gives exactly zero, whatever the conv says (ReLU keeps it zero)."""
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.get_submodule(conv).weight[unit] = 0
        batch_norm = silent.get_submodule(norm)
        batch_norm.weight[unit] = 0
        batch_norm.bias[unit] = 0
    return silent


def algorithm_1(features: torch.Tensor, labels: torch.Tensor, classes: int, k1: int, k2: int) -> list[list[int]]:
    """Badola et al., Algorithm 1, line by line: for each class the k2 features that are most often among the k1 largest."""
    chosen = []
    for y in range(classes):
        histogram: dict[int, int] = {}
        mass: dict[int, float] = {}
        for x in features[labels == y].double():
            order = sorted(range(len(x)), key=lambda j: (-abs(float(x[j])), j))
            for j in order[:k1]:
                histogram[j] = histogram.get(j, 0) + 1
            for j in range(len(x)):
                mass[j] = mass.get(j, 0.0) + abs(float(x[j]))
        order = sorted(range(features.shape[1]), key=lambda j: (-histogram.get(j, 0), -mass.get(j, 0.0), j))
        chosen.append(sorted(order[:k2]))
    return chosen


def macs_by_hand(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-adds of Conv2d and Linear from their declared sizes and the shapes that hooks see."""
    total = 0

    def conv(module, _inputs, out):
        nonlocal total
        kernel = module.kernel_size[0] * module.kernel_size[1]
        total += out.shape[2] * out.shape[3] * module.out_channels * module.in_channels // module.groups * kernel

    def linear(module, _inputs, out):
        nonlocal total
        total += module.in_features * module.out_features * (out.numel() // out.shape[-1])

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(conv)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
    model.eval()(torch.zeros(1, *shape))
    return total


def hits(model: nn.Module, channels, layer: str, mask, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which images are decided rightly with only some of a layer's units: mask by hook, full forward. Bool [images]."""
    return naive_logits(model, channels, layer, mask, images).argmax(1) == labels


def naive_logits(model: nn.Module, channels, layer: str, mask, images: torch.Tensor) -> torch.Tensor:
    mask = torch.as_tensor(mask, dtype=torch.bool)
    model.eval()
    with torch.inference_mode():
        if layer == channels.classifier:
            keep = mask.to(images)
            handle = model.get_submodule(layer).register_forward_pre_hook(lambda _m, inputs: (inputs[0] * keep,))
            try:
                return model(images)
            finally:
                handle.remove()
        group = channels.group(layer)
        gone = channels.removed({group.name: mask.nonzero().flatten().tolist()})
        with masked(model, channels, gone):
            return model(images)


def greedy(model: nn.Module, channels, layer: str, rounds: int, images: torch.Tensor, labels: torch.Tensor):
    """CAR greedy by brute force: [(unit, correct images left)]. Ties: higher log-likelihood, then lower index."""
    units = channels.group(layer).units
    present, order = [True] * units, []
    for _ in range(rounds):
        best = None
        for unit in range(units):
            if not present[unit]:
                continue
            mask = [p and i != unit for i, p in enumerate(present)]
            logits = naive_logits(model, channels, layer, mask, images).double()
            correct = int((logits.argmax(1) == labels).sum())
            likelihood = float(logits.log_softmax(1).gather(1, labels[:, None]).sum())
            if best is None or (correct, likelihood) > best[:2]:
                best = (correct, likelihood, unit)
        present[best[2]] = False
        order.append((best[2], best[0]))
    return order


def shapley_by_orders(n: int, v) -> list[float]:
    """Eq. 1: the mean marginal worth over all n! orders. `v(frozenset)`."""
    value = [0.0] * n
    for order in itertools.permutations(range(n)):
        seen: frozenset[int] = frozenset()
        for unit in order:
            value[unit] += v(seen | {unit}) - v(seen)
            seen = seen | {unit}
    return [x / math.factorial(n) for x in value]


def shapley_by_subsets(n: int, v) -> list[float]:
    """Eq. 2: sum over coalitions of s! (n-1-s)! / n! times the marginal worth."""
    value = [0.0] * n
    for unit in range(n):
        others = [i for i in range(n) if i != unit]
        for s in range(n):
            for chosen in itertools.combinations(others, s):
                weight = math.factorial(s) * math.factorial(n - 1 - s) / math.factorial(n)
                value[unit] += weight * (v(frozenset(chosen) | {unit}) - v(frozenset(chosen)))
    return value


def shapley_truncated(n: int, k: int, v) -> list[float]:
    """Mean over coalition sizes below k of the mean marginal worth."""
    value = [0.0] * n
    for unit in range(n):
        others = [i for i in range(n) if i != unit]
        for s in range(k):
            marginals = [v(frozenset(c) | {unit}) - v(frozenset(c)) for c in itertools.combinations(others, s)]
            value[unit] += sum(marginals) / len(marginals) / k
    return value


def dirichlet_kl(phi: torch.Tensor, alpha: torch.Tensor) -> float:
    """KL(Dir(phi) || Dir(alpha)), written out."""
    a, b = phi.double(), alpha.double()
    total = torch.lgamma(a.sum()) - torch.lgamma(a).sum() - torch.lgamma(b.sum()) + torch.lgamma(b).sum()
    return float(total + ((a - b) * (torch.digamma(a) - torch.digamma(a.sum()))).sum())


def orthogonal_pursuit(x, w, k: int) -> list[int]:
    """Greedy: in each step the feature whose addition leaves the smallest squared error of the logit, refitted afresh."""
    x = x - x.mean(0)
    logit = x @ w
    chosen: list[int] = []
    for _ in range(k):
        errors = {}
        for j in set(range(x.shape[1])) - set(chosen):
            part = x[:, [*chosen, j]]
            errors[j] = float((logit - part @ torch.linalg.lstsq(part, logit[:, None]).solution[:, 0]).square().sum())
        chosen.append(min(errors, key=errors.__getitem__))
    return sorted(chosen)


def refitted(model: nn.Module, layer: str, images: torch.Tensor, units: torch.Tensor, ridge: float, mean: bool, scale=1.0):
    """One layer's least squares, by unfolding all it reads: moments with ridge, weight, the unit of each column, variance.

    `scale` [filters]: of the outputs.
    """
    module = model.get_submodule(layer)
    with torch.no_grad():
        read = []
        handle = module.register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))
        model.eval()(images)
        handle.remove()
        x = torch.cat(read)
        if isinstance(module, nn.Conv2d):
            columns = nn.functional.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
            x = columns.movedim(1, 2).flatten(0, 1)
            units = units.repeat_interleave(module.weight[0, 0].numel())
        x, weight = x.double(), module.weight.detach().flatten(1).T.double() * scale
        centred = x - x.mean(0)
        variance = float((centred @ weight).square().mean(0).sum())
        moments = (centred.T @ centred if mean else x.T @ x) / len(x)
        return (
            moments + ridge * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64),
            weight,
            units,
            variance,
        )


def cost_by_refitting(problem, gone) -> float:
    """Share of a layer's variance that is lost without the columns of some units, all others fitted anew."""
    moments, weight, units, variance = problem
    keep = torch.tensor([int(unit) not in gone for unit in units])
    fit = torch.zeros_like(weight)
    fit[keep] = torch.linalg.solve(moments[keep][:, keep], moments[keep] @ weight)
    return float(((fit - weight) * (moments @ (fit - weight))).sum()) / variance


def greedy_by_refitting(problems, units: int, fixed=()) -> tuple[list[int], list[float]]:
    """Units in the order in which the sum of all problems' costs grows least, and the cost after each."""
    order: list[int] = []
    errors = []
    while len(order) < units - max(1, len(fixed)):
        left = [unit for unit in range(units) if unit not in order and unit not in fixed]
        cost, unit = min((sum(cost_by_refitting(p, {*order, u}) for p in problems), u) for u in left)
        order.append(unit)
        errors.append(cost)
    return order, errors
