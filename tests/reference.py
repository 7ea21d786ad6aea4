"""Slow versions that are obviously right."""

import copy

import torch
from torch import nn


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
