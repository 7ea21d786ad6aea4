"""One training on several processes: each takes its part of every batch, and DistributedDataParallel averages the gradients."""

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...clone import clone
from ...errors import SlimrankError
from ...processes import alone, together
from .recipe import Recipe

LEAST = 2  # images of a batch that each process has: BatchNorm cannot train on one


def too_small(batch: int) -> bool:
    """Whether a batch, which may be the last of an epoch, has too few images to train on."""
    job = together()
    return batch < LEAST * (1 if job is None else job.count)


def check_batch(batch: int) -> None:
    """Raise SlimrankError where a batch has too few images for all processes that are at this place."""
    job = together()
    if job is not None and too_small(batch):
        raise SlimrankError(
            f"a batch of {batch} images is too small for {job.count} processes, each takes {LEAST} at least; start "
            f"{max(1, batch // LEAST)} or fewer"
        )


def parallel(model: nn.Module, recipe: Recipe, example: Tensor) -> nn.Module:
    """What runs the forward pass in training: `model` itself in one process, else with its gradients averaged over all.

    Its weights are those of `model`, which stays as it is. `recipe.sync_batchnorm`: BatchNorm's statistics are those of the
    whole batch.
    """
    job = together()
    if job is None:
        return model
    from torch.nn.parallel import DistributedDataParallel

    trained = model
    if recipe.sync_batchnorm:
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        trained = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model, tensors))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the newer name of broadcast_buffers, which torch 2.9 lacks
        return DistributedDataParallel(
            trained, device_ids=[torch.cuda.current_device()] if example.is_cuda else None, broadcast_buffers=False,
            find_unused_parameters=_some_unused(model, example),
        )  # fmt: skip


def _some_unused(model: nn.Module, example: Tensor) -> bool:
    """Whether some parameter has no part in the logits, so that no gradient of it comes."""
    with torch.random.fork_rng():
        probe = clone(model).train()
        torch.autograd.backward(probe(torch.cat([example, example])).sum())
    return any(parameter.grad is None for parameter in probe.parameters() if parameter.requires_grad)


def rows() -> slice:
    """The images of each batch that this process trains on."""
    job = together()
    return slice(None) if job is None else slice(job.rank, None, job.count)


def weight(own: int, batch: int) -> float:
    """What the mean loss of this process's `own` images of a batch is multiplied with, so that the average of all processes'
    gradients is the gradient of the batch's mean loss."""
    job = together()
    return 1.0 if job is None else own * job.count / batch


def summed(value: float) -> float:
    """The sum of what each process has, in their order."""
    job = together()
    return value if job is None else sum(job.gathered(value))


def averaged_over_processes(tensors: Iterable[Tensor | None]) -> None:
    """Give all processes the mean of each float tensor, in place."""
    job = together()
    if job is None:
        return
    from torch.distributed import all_reduce

    for tensor in tensors:
        if tensor is not None and tensor.is_floating_point():
            all_reduce(tensor)
            tensor /= job.count


def agreed(generator: torch.Generator) -> None:
    """Let all processes draw what the first one draws."""
    generator.set_state(alone(generator.get_state))
