"""Estimate BatchNorm statistics anew after a cut: the old means and variances belong to inputs that are gone."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...clone import clone


def recalibrate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> nn.Module:
    """Copy a network, with BatchNorm's mean and variance averaged anew over `batches` ([images, channels, height, width]).

    No weight moves and nothing else is put in training mode. A network without BatchNorm comes back as it was. Source: Li et
    al. 2020, "EagleEye", section 3.2 (adaptive batch normalization).
    """
    model = clone(model)
    norms = _norms(model)
    if not norms:
        return model
    training, momenta = model.training, [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with torch.inference_mode():
        for images, _ in tqdm(batches, desc="BatchNorm", leave=False, disable=None):
            if len(images) > 1:
                model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.train(training)


def has_statistics(model: nn.Module) -> bool:
    """Whether a network has anything to recalibrate."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
