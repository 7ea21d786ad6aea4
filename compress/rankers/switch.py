"""Importance switch (Adamczewski & Park, "Neuron ranking"; later "Dirichlet pruning").

The outputs of one layer are multiplied by a switch s ~ Dir(phi), phi = softplus(theta). Learned, with the network frozen:

    maximise over theta   E log p(D | s) - KL( Dir(phi) || Dir(alpha0) )

The expectation is taken at the mean s = phi / sum(phi) (the paper's point estimate), or by samples with implicit gradients.
Filters are ranked by the mean s.

Where we deviate: the layer is multiplied by n*s, so that uniform phi is the identity (plain s shrinks the layer n-fold); and
the switch sits where the next layers read the filters, which for ReLU and pooling is the paper's place behind
BatchNorm, and which in a residual stream is the only place that means the same as removing the filter.

What to know: the switch sums to one, so a network that gains from a smaller layer (an overconfident one) puts the rest on
whatever filter harms least, a dead one included.
"""

import time
from collections.abc import Iterable
from math import expm1, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence
from tqdm import tqdm

from ...errors import SlimrankError
from ..coalitions import MEMORY, Coalitions
from ..layers import ChannelMap
from ..scores import FilterScores

BATCH = 100  # images a step


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    seed: int = 0,
    layers: list[str] | None = None,
    epochs: int = 5,
    lr: float = 0.1,
    alpha0: float = 0.5,
    sampled: bool = False,
    memory: int = MEMORY,
) -> FilterScores:
    """Score of a unit: the mean of its switch, phi_i / sum(phi); layer after layer, from the input on.

    `batches`: images in random order. `alpha0` below 1 prefers few filters. `sampled`: one draw of s a step instead of its
    mean. `curve[layer]`: the negative log-likelihood an image before training and after each epoch (its mean over the
    epoch's steps). Raises SlimrankError when it is no longer finite.
    """
    start = time.perf_counter()
    if epochs < 1 or not alpha0 > 0 or not lr > 0:
        raise SlimrankError(f"--epochs {epochs}, --lr {lr} and --alpha0 {alpha0} must be positive")
    torch.manual_seed(seed)
    scores: dict[str, list[float]] = {}
    curve: dict[str, list[float]] = {}
    evaluations = images = 0
    for name in tqdm(channels.chosen(layers, features=True), desc="switch", leave=False, disable=None):
        game = Coalitions(model, channels, name, batches, classes=classes, memory=memory)
        phi, curve[name] = learn(game, epochs, lr, alpha0, sampled)
        scores[name] = (phi / phi.sum()).tolist()
        evaluations, images = evaluations + epochs + 1, game.images
    options = {"epochs": epochs, "lr": lr, "alpha0": alpha0, "sampled": sampled}
    seconds = time.perf_counter() - start
    return FilterScores("switch", scores, True, evaluations, seconds, images, seed, options, {}, {"curve": curve})


def learn(game: Coalitions, epochs: int, lr: float, alpha0: float, sampled: bool) -> tuple[Tensor, list[float]]:
    """phi ([units]) and the learning curve. The network's weights are frozen and it is in eval mode: see `split`."""
    device = game.cache[0].labels.device if game.cache else torch.device("cpu")
    theta = torch.full((game.n,), log(expm1(1.0)), device=device, requires_grad=True)  # phi = 1: the identity
    optimizer = torch.optim.Adam([theta], lr=lr)
    curve = [-float(game.play(torch.ones(1, game.n), likelihood=True).likelihood) / game.images]  # type: ignore[arg-type]
    for epoch in range(epochs):
        total = 0.0
        for chunk in game.chunks():
            for some in torch.randperm(len(chunk)).split(BATCH):
                nll, kl = loss(game, theta, [c[some] for c in chunk.crossing], chunk.labels[some], alpha0, sampled)
                optimizer.zero_grad()
                (nll + kl).backward()
                optimizer.step()
                total += nll.item() * len(some)
        curve.append(total / game.images)
        if not torch.isfinite(theta).all():
            raise SlimrankError(f"the switch diverged in epoch {epoch + 1}; lower --lr from {lr}")
    return F.softplus(theta.detach()).cpu(), curve


def loss(
    game: Coalitions, theta: Tensor, crossing: list[Tensor], labels: Tensor, alpha0: float, sampled: bool
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood an image, and the KL divergence between the two Dirichlets (of phi, not of s) over N."""
    phi = F.softplus(theta)
    posterior = Dirichlet(phi)
    s = posterior.rsample() if sampled else posterior.mean
    game.split.scale(game.n * s)
    nll = F.cross_entropy(game.split.after(*crossing), labels)
    return nll, kl_divergence(posterior, Dirichlet(torch.full_like(phi, alpha0))) / game.images
