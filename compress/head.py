"""The class-specific classifier as a stage: choose, truncate, measure; and the final layer's latency on its own."""

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SlimrankError, near
from ..evaluate.accuracy import Accuracy, accuracy, predictor
from ..evaluate.data import Data, Images
from ..evaluate.latency import Comparison, compare
from ..export.to_onnx import export
from .checkpoint import Checkpoint
from .subspace import LAYOUTS, SubspaceLinear, classifier, features, truncate, vote
from .tracing import channel_map


@dataclass(frozen=True)
class HeadResult:
    """A specialised head beside the dense one, on the same test images. `agreement`: share of equal decisions."""

    layer: str
    k1: int
    k2: int
    features: int
    layout: str
    images: int
    top1_dense: float
    top1_head: float
    ratio: float
    agreement: float
    n: int
    head_macs_before: int
    head_macs_after: int
    seconds: float
    indices: list[list[int]] = field(repr=False)
    latency: dict[str, Any] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.layer}: {self.k2} of {self.features} features a class (k1={self.k1}, {self.images:,} training images), "
            f"layout {self.layout}\n"
            f"  top-1 dense {self.top1_dense:.4f} -> subspaces {self.top1_head:.4f} (r_A {self.ratio:.4f}) on {self.n:,} "
            f"images, same decision on {self.agreement:.2%}\n"
            f"  head MACs {self.head_macs_before:,} -> {self.head_macs_after:,}" + (f"\n  {self.note}" if self.note else "")
        )


def default_k(features: int) -> int:
    """An eighth of the features, at least five (the paper's choice for CIFAR-10) where there are as many."""
    return min(features, max(5, features // 8))


def specialize(
    checkpoint: Checkpoint,
    data: Data,
    *,
    k1: int | None = None,
    k2: int | None = None,
    layout: str = "auto",
    batches: Sequence[int] = (1, 8, 32),
    threads: int = 1,
    provider: str = "cpu",
    judge: Images | None = None,
) -> tuple[Checkpoint, HeadResult]:
    """Replace the classifier by the paper's class-specific subspaces (histogram, truncation).

    Features are chosen on the training split. `layout` auto measures the layouts against the dense layer in ONNX Runtime
    and takes the fastest (geometric mean over `batches`). Accuracy is measured on `judge` (default: the test split).
    Raises SlimrankError for k1 or k2 outside 1..features, and classifiers that are not nn.Linear.
    """
    start = time.perf_counter()
    if layout not in ("auto", *LAYOUTS):
        raise SlimrankError(f"no layout {layout!r}; {near(layout, ('auto', *LAYOUTS))}")
    checkpoint = checkpoint.with_classes(data)
    channels = channel_map(checkpoint.model, checkpoint.example())
    dense = classifier(checkpoint.model, channels)
    k2 = default_k(dense.in_features) if k2 is None else k2
    k1 = k2 if k1 is None else k1
    for name, k in (("k2", k2), ("k1", k1)):
        if not 1 <= k <= dense.in_features:
            raise SlimrankError(
                f"--{name} is {k}, the classifier reads {dense.in_features} features; choose 1 to {dense.in_features}"
            )
    training = data.split("train")
    votes = vote(features(checkpoint.model, channels.classifier, training.batches()), dense.out_features, k1)
    index = votes.choose(k2)
    head = truncate(dense, index)
    timed, note = None, ""
    if layout == "auto":
        timed = time_heads({"linear": dense, **layouts(head)}, dense.in_features, batches, [threads], [provider])
        layout, note = fastest(timed)
    head.layout = layout
    model = with_head(checkpoint.model, channels.classifier, head)
    judge = judge or data.split("test")
    before, after, agreement = side_by_side(checkpoint.model, model, judge, dense.out_features)
    result = HeadResult(
        layer=channels.classifier, k1=k1, k2=k2, features=dense.in_features, layout=layout, images=len(training),
        top1_dense=before.top1, top1_head=after.top1, ratio=after.top1 / max(before.top1, 1e-12), agreement=agreement,
        n=before.n, head_macs_before=dense.weight.numel(), head_macs_after=head.macs((dense.in_features,)),
        seconds=time.perf_counter() - start, indices=index.tolist(),
        latency=timed.to_dict() if timed else None, note=note,
    )  # fmt: skip
    step = {"step": "specialize", "select": "histogram", "fit": "truncate", "k1": k1, "k2": k2, "layout": layout}
    return checkpoint.then(model, **step), result


def with_head(model: nn.Module, layer: str, head: nn.Module) -> nn.Module:
    """A copy of the model with another classifier."""
    model = copy.deepcopy(model)
    owner, _, leaf = layer.rpartition(".")
    setattr(model.get_submodule(owner), leaf, head)
    return model


def layouts(head: SubspaceLinear) -> dict[str, nn.Module]:
    """The same head in every layout."""
    made: dict[str, nn.Module] = {}
    for layout in LAYOUTS:
        other = copy.deepcopy(head)
        other.layout = layout
        made[layout] = other
    return made


def side_by_side(model: nn.Module, other: nn.Module, images: Images, classes: int) -> tuple[Accuracy, Accuracy, float]:
    """Accuracy of both, and the share of images on which they decide alike."""
    decisions: list[list[Tensor]] = [[], []]

    def noting(predict, into: list[Tensor]):
        def both(x: Tensor) -> Tensor:
            logits = predict(x)
            into.append(logits.argmax(1))
            return logits

        return both

    found = [
        accuracy(noting(predictor(m), into), images.batches(), classes)
        for m, into in zip((model, other), decisions, strict=True)
    ]
    same = (torch.cat(decisions[0]) == torch.cat(decisions[1])).float().mean()
    return found[0], found[1], float(same)


def time_heads(
    heads: dict[str, nn.Module],
    features: int,
    batches: Sequence[int],
    threads: Sequence[int],
    providers: Sequence[str],
    seconds: float = 0.3,
) -> Comparison:
    """Latency of final layers on their own, input [batch, features], in one interleaved run; the first is the rival."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: export(head, torch.zeros(1, features), Path(folder) / f"{name}.onnx", {}) for name, head in heads.items()
        }
        return compare(paths, providers=providers, batches=batches, threads=threads, seconds=seconds)


def fastest(timed: Comparison) -> tuple[str, str]:
    """The layout to write, and one line on how it stands against the dense layer.

    `gather` is taken where its geometric mean over the settings beats the dense layer and no setting is slower beyond
    noise; else `dense`, which is the dense layer's own product with zeros in it.
    """
    speedups = torch.tensor([s["speedup"] for s in timed.speedups if s["model"] == "gather"])
    mean, worst = float(speedups.log().mean().exp()), float(speedups.min())
    told = f"gathered subspaces run at {mean:.2f}x the dense layer's speed, {worst:.2f}x at worst"
    if mean > 1.05 and worst >= 0.95:
        return "gather", told
    return "dense", f"no layout beats the dense layer by the clock: {told}"


def random_heads(features: int, classes: int, k: int, seed: int = 0) -> dict[str, nn.Module]:
    """A dense layer and the same layer truncated to its k largest weights a class, in every layout."""
    if features < 1 or classes < 1:
        raise SlimrankError(f"--features {features} and --classes {classes} must be at least 1")
    if not 1 <= k <= features:
        raise SlimrankError(f"--k is {k}, must lie in 1..{features}, the number of --features")
    torch.manual_seed(seed)
    dense = nn.Linear(features, classes)
    index = dense.weight.detach().abs().topk(k, 1).indices.sort(1).values
    return {"linear": dense, **layouts(truncate(dense, index))}


def bench(
    checkpoint: Checkpoint | None, features: int, classes: int, k: int, layout: Sequence[str],
    *, batches: Sequence[int], threads: Sequence[int], providers: Sequence[str], seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """`bench-head`: the final layer alone. A checkpoint's own (specialised, or dense and truncated to its k largest
    weights a class: the time does not depend on which), or a random one of `features` x `classes`."""
    for name in layout:
        if name not in LAYOUTS:
            raise SlimrankError(f"no layout {name!r}; {near(name, LAYOUTS)}")
    if checkpoint is None:
        heads = random_heads(features, classes, k, seed)
    else:
        channels = channel_map(checkpoint.model, checkpoint.example())
        found = checkpoint.model.get_submodule(channels.classifier)
        if isinstance(found, SubspaceLinear):
            dense = nn.Linear(found.in_features, found.out_features)
            heads, k = {"linear": dense, **layouts(found)}, found.weight.shape[1]
        else:
            dense = classifier(checkpoint.model, channels)
            heads = random_heads(dense.in_features, dense.out_features, min(k, dense.in_features), seed)
        features, classes = dense.in_features, dense.out_features
    chosen = {"linear": heads["linear"], **{name: heads[name] for name in layout}}
    timed = time_heads(chosen, features, batches, threads, providers, seconds=0.5)
    base = {(r.provider, r.batch, r.threads): r.median_ms for r in timed.results if r.model == "linear"}
    rows = [
        {
            "layout": r.model, "provider": r.provider, "batch": r.batch, "threads": r.threads,
            "median_us": 1e3 * r.median_ms, "speedup": base[r.provider, r.batch, r.threads] / r.median_ms,
        }
        for r in timed.results
    ]  # fmt: skip
    table = f"{features} features, {classes} classes, {k} features a class; `linear` is the dense layer\n{timed}"
    return {"features": features, "classes": classes, "k": k, "results": rows, "machine": timed.machine, "table": table}
