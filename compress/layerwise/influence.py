"""How far errors in one layer's outputs move the logits: noise put in, layer by layer, and the difference measured."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ...errors import SlimrankError

NOISE = 0.1  # times each channel's variance


def influence(model: nn.Module, names: Iterable[str], images: Tensor, seed: int) -> dict[str, float]:
    """Share of the logits' variance that noise on a layer's outputs becomes, divided by the noise's share of their variance.

    The noise is the same at all places of a channel's map, as the error of lost inputs nearly is: independent noise averages
    out in the convs behind, and would make early layers look harmless. `model`: in eval mode. A full forward pass a layer.
    Raises SlimrankError where all images are the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def noisy(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        drawn = torch.randn(*out.shape[:2], *[1] * (out.dim() - 2), generator=generator).to(out)
        deviation = out.std([0, *range(2, out.dim())], keepdim=True, correction=0)
        return torch.addcmul(out, deviation, drawn, value=NOISE**0.5)

    if bool((images == images[:1]).all()):
        raise SlimrankError(f"ranker reconstruct: all {len(images)} images are alike; give several that differ")
    with torch.inference_mode():
        logits = model(images)
        variance = (logits - logits.mean(0)).square().mean().clamp_min(1e-30)
        found = {}
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(noisy)
            try:
                found[name] = float((model(images) - logits).square().mean() / variance) / NOISE
            finally:
                handle.remove()
    return found
