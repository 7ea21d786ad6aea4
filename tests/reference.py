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
