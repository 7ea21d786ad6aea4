"""Estimate BatchNorm statistics anew after a cut: the old means and variances belong to inputs that are gone."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...clone import clone
from ...processes import shared

Norm = nn.modules.batchnorm._BatchNorm
Statistics = tuple[Tensor, Tensor, int]  # mean, variance, calls


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
        norm.momentum = None  # a plain average over all calls
        norm.train()

    def of_batch(batch: tuple[Tensor, Tensor]) -> list[Statistics]:
        """What each norm sees of a batch; nothing of a single image."""
        for norm in norms:
            norm.reset_running_stats()
        if len(batch[0]) > 1:
            model(batch[0])
        return [statistics(norm) for norm in norms]

    with torch.inference_mode():
        every = list(zip(*shared(of_batch, batches, "BatchNorm"), strict=True))
        for norm, momentum, seen in zip(norms, momenta, every, strict=True):
            norm.momentum = momentum
            _average(norm, [one for one in seen if one[2]])
    return model.train(training)


def statistics(norm: Norm) -> Statistics:
    """Copies of a norm's running mean and variance, and the calls that they are of."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    return norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked)


def _average(norm: Norm, seen: list[Statistics]) -> None:
    """Give a norm the mean over all calls of what it saw; one that was never called stays as it is reset."""
    norm.reset_running_stats()
    calls = sum(n for _, _, n in seen)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    if calls:
        norm.running_mean.copy_(torch.stack([mean.double() * n for mean, _, n in seen]).sum(0) / calls)
        norm.running_var.copy_(torch.stack([variance.double() * n for _, variance, n in seen]).sum(0) / calls)
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.fill_(calls)


def has_statistics(model: nn.Module) -> bool:
    """Whether a network has anything to recalibrate."""
    return bool(_norms(model))


def _norms(model: nn.Module) -> list[Norm]:
    return [m for m in model.modules() if isinstance(m, Norm) and m.track_running_stats]
