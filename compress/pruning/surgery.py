"""PruningPlan in, smaller network out: real slices, no masks left behind."""

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ..channels.groups import ChannelMap
from ..channels.masking import masked
from ..channels.slicing import cut
from ..network.forward import forward
from .plan import PruningPlan

__all__ = ["apply_plan", "cut"]


def apply_plan(model: nn.Module, channels: ChannelMap, plan: PruningPlan, example: Tensor) -> nn.Module:
    """A copy of `model` without the units that `plan` drops; the model itself is left alone.

    `example`: [images, channels, height, width]. The copy is run on it and must give the logits of the masked original:
    a cut that changes anything else is an error, not a result. Raises SlimrankError for a plan that does not fit the
    network or empties a layer, and for a forward pass with sizes written into it.
    """
    plan.check(channels)
    gone = channels.removed(plan.keep)
    smaller = cut(model, channels, gone)
    training = smaller.training
    smaller.eval()
    model_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            smaller(torch.zeros_like(example))  # forward() may take another way on another image
            after = smaller(example)
            with masked(model, channels, gone):
                before = model(example)
    except (RuntimeError, ValueError) as error:
        raise SlimrankError(
            f"the pruned network does not run ({str(error).splitlines()[0]}): its forward() has sizes written into it "
            "or goes ways that depend on the image; use flatten(1) and sizes of the tensors"
        ) from error
    finally:
        model.train(model_training)
        smaller.train(training)
    spread = before.std().clamp_min(1e-12)
    if after.shape != before.shape or not bool((after - before).abs().max() <= 1e-2 * spread):
        _check_repeatable(model, example)
        raise SlimrankError(
            "the pruned network computes something else than the masked one: slimrank misread this model's channels; "
            "please report the model, and leave it whole"
        )
    return smaller


def _check_repeatable(model: nn.Module, example: Tensor) -> None:
    """Raise SlimrankError where a network gives other logits each time it runs: no cut of it can be held against it."""
    once, again = forward(model, example), forward(model, example)
    if not torch.equal(once, again):
        raise SlimrankError(
            f"the model gives other logits each time it sees the same images (by {float((once - again).abs().max()):.2g}), in "
            "eval mode too: its forward() draws random numbers; F.dropout(x, p) does, F.dropout(x, p, self.training) is what "
            "nn.Dropout does"
        )
