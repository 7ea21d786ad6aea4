"""A final layer that comes as a matrix, with queries that it is asked: heads fitted to it, and how often they agree with it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.runner import Runner
from ..channels.features import Cached, Moments
from ..network.subspace import SubspaceLinear, sizes
from .best import CLASSES, Best, frequent
from .cluster import Subspaces, cocluster, dealt
from .fit import assemble, refitted
from .low_rank import low_rank
from .select import centred, choose_features, saliency
from .two_level import confusable, mean_scores, trained_scores

CHUNK = 256  # queries at once: logits of all classes for each


@dataclass(frozen=True)
class Matrix:
    """A dense layer, weight [classes, features] float32 without bias, and queries [n, features], drawn into two halves.

    Heads are fitted to the first half, `fit`; what is told of them is measured on the other, `judge`.
    """

    weight: Tensor
    fit: Tensor
    judge: Tensor

    @classmethod
    def read(cls, weights: Path, queries: Path, seed: int = 0) -> "Matrix":
        """Read two .npy files; raises SlimrankError for what is no matrix of numbers, and for another width of the queries."""
        weight, asked = _array(weights, "weights"), _array(queries, "queries")
        if asked.shape[1] != weight.shape[1]:
            raise SlimrankError(
                f"`queries` {queries} has {asked.shape[1]} features, the layer in `weights` {weights} reads {weight.shape[1]}; "
                "give queries of the layer's width"
            )
        if len(asked) < 4 or len(weight) < 2:
            raise SlimrankError(f"{len(asked)} `queries` of {len(weight)} classes: at least 4 of 2 are needed")
        order = torch.randperm(len(asked), generator=torch.Generator().manual_seed(seed))
        return cls(weight, *(asked[part] for part in order.chunk(2)))

    @property
    def linear(self) -> nn.Linear:
        layer = nn.Linear(self.weight.shape[1], len(self.weight)).eval().requires_grad_(False)
        layer.weight.data, layer.bias.data = self.weight, torch.zeros(len(self.weight))
        return layer

    @cached_property
    def moments(self) -> Moments:
        moments = Moments()
        moments.add(self.fit)
        return moments

    @cached_property
    def target(self) -> tuple[Tensor, Tensor]:
        """The weight less what all classes share, which moves no decision."""
        return centred(self.weight, torch.zeros(len(self.weight)))

    def scores(self, order: Tensor, groups: int, probe: int) -> tuple[Tensor, Tensor]:
        """Scores of the groups of classes, trained or mean logits: of which the best `probe` groups hold more of the dense
        decisions on a fifth of the first half that is not trained on."""
        (weight, bias), fifth = self.target, len(self.fit) // 5
        held, rest = self.fit[:fifth], self.fit[fifth:]
        two = torch.cat([(x @ weight.T).topk(2, 1).values for x in held.split(CHUNK)])
        sharp = 1 / float((two[:, 0] - two[:, 1]).mean().clamp_min(1e-12))  # the best class leads by one nat on average
        trained = trained_scores(sharp * weight, bias, order, groups, Cached(rest, rest[:, 0]))
        group = dealt(order, torch.tensor(sizes(len(order), groups)))
        wanted = group[torch.cat([(x @ weight.T).argmax(1) for x in held.split(CHUNK)])]

        def recall(scores: tuple[Tensor, Tensor]) -> float:
            probed = F.linear(held, *scores).topk(probe, 1).indices
            return float((probed == wanted[:, None]).any(1).double().mean())

        return max((trained, mean_scores(weight, bias, order, groups)), key=recall)

    def best(self, head: SubspaceLinear, count: int, shortlist: int) -> Best:
        """The `count` best classes of a two-level head beside the `shortlist` that the first half asks for most."""
        if not shortlist:
            return Best(head, count)
        return Best(head, count, frequent(*self.target, self.fit, shortlist), self.target)

    @cached_property
    def decisions(self) -> Tensor:
        """What the dense layer decides on the judging half."""
        return torch.cat([(x @ self.weight.T).argmax(1) for x in self.judge.split(CHUNK)])

    def agreement(self, path: Path) -> float:
        """Share of the judging half on which an ONNX file decides as the dense layer does."""
        runner = Runner(path)
        known = CLASSES in {output.name for output in runner.session.get_outputs()}

        def decided(x: Tensor) -> Tensor:
            if not known:
                return runner(x).argmax(1)
            return torch.from_numpy(runner.session.run([CLASSES], {runner.input.name: x.numpy()})[0][:, 0])

        ours = torch.cat([decided(x) for x in self.judge.split(CHUNK)])
        return float((ours == self.decisions).double().mean())

    def heads(
        self, k: int, groups: int, tile: int, rescore: int, probe: int, probe_groups: int, shortlist: int = 0
    ) -> dict[str, Callable[[], nn.Module]]:
        """How each layout is fitted, by its name: as for a checkpoint, by least squares.

        `shortlist`: of two-level+best, how many classes are computed for every query.
        """
        weight, bias = self.target
        classes, features = weight.shape
        given = (self.moments.mean, self.moments.covariance)

        def tiled(count: int, two_level: bool, again: bool, adjacent: bool = False) -> SubspaceLinear:
            order = confusable(weight, self.moments.covariance, count) if two_level else None
            spaces = cocluster(saliency(weight, self.moments), count, tile, k, adjacent=adjacent, order=order)
            coarse = None if order is None else self.scores(order, count, probe)
            return assemble(
                *refitted(weight, bias, self.moments, spaces), spaces, features, "tiled", coarse=coarse,
                probe=probe if two_level else 0, full=self.target if again else None, rescore=rescore if again else 0,
            ).eval().requires_grad_(False)  # fmt: skip

        def alone(layout: str) -> nn.Module:
            spaces = Subspaces(choose_features("contribution", weight, self.moments, None, k))
            return assemble(*refitted(weight, bias, self.moments, spaces), spaces, features, layout).eval()

        made: dict[str, Callable[[], nn.Module]] = {
            "dense": lambda: alone("dense"), "gather": lambda: alone("gather"),
            "svd": lambda: low_rank(weight, bias, k * classes, given).eval(),
            "svd+rescore": lambda: low_rank(weight, bias, k * classes, given, rescore=rescore).eval(),
        }  # fmt: skip
        for name, again in (("", False), ("+rescore", True)):
            made[f"tiled{name}"] = partial(tiled, groups, False, again)
            made[f"tiled{name}, adjacent"] = partial(tiled, groups, False, again, True)
            made[f"two-level{name}"] = partial(tiled, probe_groups, True, again)
        made["two-level+best"] = lambda: self.best(tiled(probe_groups, True, False), rescore, shortlist)
        return made


def _array(path: Path, what: str) -> Tensor:
    if not path.is_file():
        raise SlimrankError(f"`{what}` {path} is no .npy file: there is none, or a pipe or a folder; check the path")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # what is declared is not allocated
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise SlimrankError(f"`{what}` {path} is no .npy file ({reason}); save a matrix with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "fiu" or 0 in array.shape:
        shape = getattr(array, "shape", "several arrays")
        raise SlimrankError(f"`{what}` {path} holds {shape}, must hold one matrix of numbers, [rows, features]")
    found = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bool(torch.isfinite(found).all()):
        raise SlimrankError(f"`{what}` {path} holds numbers that are not finite; mend it")
    return found
