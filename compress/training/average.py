"""Exponential moving average of the weights of a network in training."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A running average of a network's weights and buffers, updated with `update_parameters` after every step.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first weights, which are random, are soon forgotten
    (TensorFlow's ExponentialMovingAverage). Counters, which are no floats, are copied.
    """

    def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        if not torch.is_floating_point(old):
            return new
        return old.lerp(new, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))

    return AveragedModel(model, avg_fn=average, use_buffers=True)
