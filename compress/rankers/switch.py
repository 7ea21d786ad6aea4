"""Importance switch (Adamczewski & Park, "Neuron ranking"; later "Dirichlet pruning").

The outputs of one layer are multiplied by a switch s ~ Dir(phi), phi = softplus(theta). Learned, with the network frozen:

    maximise over theta   E log p(D | s) - KL( Dir(phi) || Dir(alpha0) )

The expectation is taken at the mean s = phi / sum(phi) (the paper's point estimate), or by samples with implicit gradients.
Filters are ranked by the mean s.

The layer is multiplied by s itself, as in the paper: it shrinks n-fold, and what the likelihood can still be raised by is
what the filters are worth. `identity` multiplies by n*s instead, so that uniform phi leaves the network as it is; but a
trained network is already at a stationary point there, and the ranking is mostly noise (benchmarks/rankers_agreement.py).

Where we deviate: the switch sits where the next layers read the filters, which for ReLU and pooling is the same as the
paper's place behind BatchNorm, and which in a residual stream is the only place that means removing the filter.
"""

import time
from collections.abc import Iterable
from dataclasses import asdict
from math import expm1, log

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence

from ...errors import SlimrankError
from ...processes import dealt
from ..channels.groups import ChannelMap
from ..coalitions.activations import Relay
from ..coalitions.game import Coalitions, Played
from . import SwitchOptions
from .scores import FilterScores

STEP_IMAGES = 100
LEAST = 1e-6  # phi, which must stay above 0


def rank(
    model: nn.Module,
    channels: ChannelMap,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    classes: int,
    seed: int = 0,
    layers: list[str] | None = None,
    options: SwitchOptions,
) -> FilterScores:
    """Score of a unit: the mean of its switch, phi_i / sum(phi); layer after layer, from the input on.

    `batches`: images in random order. `alpha0` below 1 prefers few filters. `sampled`: one draw of s a step instead of its
    mean. `identity`: multiply by n*s, not s. `curve[layer]`: the mean negative log-likelihood an image in each epoch.
    Raises SlimrankError when it is no longer finite.
    """
    start = time.perf_counter()
    if options.epochs < 1:
        raise SlimrankError(f"`epochs` is {options.epochs}, must be at least 1")
    for parameter, value, most in (("lr", options.lr, 10), ("alpha0", options.alpha0, 1000)):
        if not 0 < value <= most:
            raise SlimrankError(f"`{parameter}` is {value}, must lie between 0 and {most}")
    relay = Relay()

    def of_layer(name: str) -> tuple[list[float], list[float], Played]:
        """Scores of the units, the learning curve, and what it took."""
        torch.manual_seed(seed)
        game = Coalitions(model, channels, name, batches, classes=classes, memory=options.memory, relay=relay)
        phi, curve = learn(game, options)
        return (phi / phi.sum()).tolist(), curve, game.played

    names = channels.chosen(layers, features=True, masked=True)
    every = dict(zip(names, dealt(of_layer, names, "switch"), strict=True))
    played = Played.sum(row[2] for row in every.values())
    return FilterScores(
        ranker="switch", scores={name: row[0] for name, row in every.items()}, estimated=True, images=played.images,
        evaluations=options.epochs * len(names), seconds=time.perf_counter() - start, seed=seed,
        options={key: value for key, value in asdict(options).items() if key != "memory"},
        extra={"curve": {name: row[1] for name, row in every.items()}}, notes=list(played.notes),
    )  # fmt: skip


def learn(game: Coalitions, options: SwitchOptions) -> tuple[Tensor, list[float]]:
    """Learn phi ([units]) by Adam; beside it the learning curve. The network is frozen and in eval mode (`split`)."""
    theta = torch.full((game.n,), log(expm1(1.0)), device=game.split.sites[0].unit.device, requires_grad=True)  # phi = 1
    optimizer = torch.optim.Adam([theta], lr=options.lr)
    curve = []
    for epoch in range(options.epochs):
        total = 0.0
        for chunk in game.chunks():
            for images in torch.split(torch.randperm(len(chunk)), STEP_IMAGES):
                nll, kl = loss(game, theta, [part[images] for part in chunk.crossing], chunk.labels[images], options)
                if not torch.isfinite(nll + kl):
                    raise SlimrankError(f"the switch diverged in epoch {epoch + 1}; lower `lr` from {options.lr}")
                optimizer.zero_grad()
                torch.autograd.backward(nll + kl)
                optimizer.step()
                total += nll.item() * len(images)
        curve.append(total / game.images)
    return F.softplus(theta.detach()).clamp_min(LEAST).cpu(), curve


def loss(
    game: Coalitions, theta: Tensor, crossing: list[Tensor], labels: Tensor, options: SwitchOptions
) -> tuple[Tensor, Tensor]:
    """The two terms of the objective, an image each: negative log-likelihood, and KL( Dir(phi) || Dir(alpha0) ) / N.

    KL is that of phi, not of s; the paper's objective is a sum over the N images, so that the mean divides KL by N.
    """
    phi = F.softplus(theta).clamp_min(LEAST)
    posterior = Dirichlet(phi, validate_args=False)
    prior = Dirichlet(torch.full_like(phi, options.alpha0), validate_args=False)
    s = posterior.rsample() if options.sampled else posterior.mean
    game.split.scale(game.n * s if options.identity else s)
    nll = F.cross_entropy(game.split.after(*crossing), labels)
    return nll, kl_divergence(posterior, prior) / game.images
