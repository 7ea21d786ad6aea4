"""A low-rank classifier, the rival of equal MACs."""

import torch
from torch import Tensor, nn

from ..network.layouts import rescored


class LowRank(nn.Module):
    """U (V x) + b; `rescore` as in SubspaceLinear."""

    full_weight: Tensor | None
    full_bias: Tensor | None

    def __init__(self, u: Tensor, v: Tensor, bias: Tensor, full: tuple[Tensor, Tensor] | None = None, rescore: int = 0):
        super().__init__()
        self.down, self.up = nn.Linear(v.shape[1], v.shape[0], bias=False), nn.Linear(u.shape[1], u.shape[0])
        self.down.weight.data, self.up.weight.data, self.up.bias.data = v.clone(), u.clone(), bias.clone()
        self.in_features, self.out_features, self.rescore = v.shape[1], len(u), rescore
        self.register_buffer("full_weight", full[0].clone() if full and rescore else None)
        self.register_buffer("full_bias", full[1].clone() if full and rescore else None)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return rescored(x, y, self.full_weight, self.full_bias, self.rescore) if self.rescore else y

    def macs(self, _input_shape: tuple[int, ...]) -> int:
        return self.down.weight.numel() + self.up.weight.numel() + self.rescore * self.in_features


def low_rank(
    weight: Tensor, bias: Tensor, macs: int, moments: tuple[Tensor, Tensor] | None = None, rescore: int = 0
) -> LowRank:
    """The best low-rank layer of at most `macs`: SVD of W, or of the logits when the features' (mean, covariance) are given."""
    rank = max(1, macs // sum(weight.shape))
    full = (weight, bias)
    if moments is None:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return LowRank(u[:, :rank] * s[:rank], v[:rank], bias, full, rescore)
    mean, covariance = moments
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt()
    u, _, _ = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    u = u[:, :rank]
    v = u.T @ weight.double()
    return LowRank(u.float(), v.float(), (bias.double() + (weight.double() - u @ v) @ mean).float(), full, rescore)
