"""Correct images of all 2^n coalitions of a layer (exact Shapley values: rankers/shapley.py)."""

import math

import torch
from torch import Tensor

from ...errors import SlimrankError
from .game import Coalitions

POWER_SET = 25  # units
BLOCK = 2**18  # coalition-image pairs decided at once, so that they stay in the caches


def power_set(game: Coalitions) -> Tensor:
    """Count the correct images of every coalition: int64 [2^n], bit i of the index is unit i.

    Each counts as one evaluation. Raises SlimrankError for more than 25 units.
    """
    n = game.n
    if n > POWER_SET:
        raise SlimrankError(
            f"the power set of {n} filters has {2.0**n:.1e} coalitions, {POWER_SET} filters are the most; take "
            f"`estimator` permutation ({2 * (n - 1)} coalitions a sample) or subsets ({2 * n} a sample)"
        )
    if game.split.linear and game.split.logits:
        return _of_features(game)
    every = torch.arange(2**n)
    gray = every ^ (every >> 1)  # one unit changes from each coalition to the next
    counts = torch.zeros(2**n, dtype=torch.int64)
    for codes in torch.split(gray, 2**14):
        counts[codes] = game.play(bits(codes, n)).correct
    return counts


@torch.no_grad()
def _of_features(game: Coalitions) -> Tensor:
    """`power_set` where the classifier reads the units: no network runs, logits are sums of two halves, kept in tables.

    An image is decided correctly when its label's logit exceeds those of all other classes, the earlier ones strictly
    (argmax takes the first of equals).
    """
    n = game.n
    game.evaluations += 2**n
    counts = torch.zeros(2**n, dtype=torch.int32)
    layer = game.split.sites[0].layer
    bias = torch.zeros(game.classes, dtype=game.dtype) if layer.bias is None else layer.bias
    for chunk in game.chunks():
        game.suffix.passes += len(chunk) * 2**n
        labels = chunk.labels
        contributions = torch.stack([game.suffix.contribution(chunk, unit) for unit in range(n)])
        own = labels.view(1, -1, 1).expand(n, -1, 1)
        margins = (contributions.gather(2, own) - contributions).permute(2, 0, 1).contiguous()  # [classes, units, images]
        start = (bias[labels][:, None] - bias).T.contiguous()
        later = torch.arange(game.classes, device=labels.device)[:, None] > labels
        start = torch.where(later, torch.nextafter(start, torch.full_like(start, torch.inf)), start)
        start[labels, torch.arange(len(labels))] = torch.inf
        low = max(0, min(n - 1, round(math.log2(BLOCK / len(chunk)))))  # units of the half whose sums are tabulated
        table = torch.einsum("kn,cnb->ckb", bits(torch.arange(2**low), low).to(margins), margins[:, :low])
        least, sums = torch.empty_like(table[0]), torch.empty_like(table[0])
        for code in range(2 ** (n - low)):
            high = start + bits(torch.tensor([code]), n - low)[0].to(margins) @ margins[:, low:]
            torch.add(table[0], high[0], out=least)
            for c in range(1, game.classes):
                torch.add(table[c], high[c], out=sums)
                torch.minimum(least, sums, out=least)
            counts[code * 2**low : (code + 1) * 2**low] += (least > 0).sum(1, dtype=torch.int32).cpu()
    return counts.long()


def bits(codes: Tensor, n: int) -> Tensor:
    """Turn the numbers of coalitions into masks: bool [codes, n], bit i is unit i."""
    return (codes[:, None] >> torch.arange(n)) & 1 == 1
