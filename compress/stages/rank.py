"""Score the filters of a checkpoint: one ranker, or the sensitivity of each layer."""

import math
from dataclasses import replace
from typing import Any

from ...errors import SlimrankError
from ...evaluate.data import Data, Images
from ...evaluate.dataspec import needs_labels
from ..channels import channels_of
from ..network.checkpoint import Checkpoint
from ..network.device import on
from ..rankers import DEFAULT, RANKERS, Ranker, ranker
from ..rankers.scores import FilterScores
from ..rankers.sensitivity import sensitivity


def rank(
    checkpoint: Checkpoint,
    name: str = DEFAULT,
    data: Data | None = None,
    *,
    layers: list[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
    **options: Any,
) -> FilterScores:
    """Run one ranker on the split that it reads; higher = keep.

    `layers`: any members of the groups to rank, None for all. `options`: what the ranker takes (rankers/__init__.py). Where
    counting or training is costly and the data has no limit, the first of a seeded shuffle do (`enough` of the record).
    Raises SlimrankError for an unknown ranker, an option that it does not take, missing images or labels, and
    scores that are not finite.
    """
    record = ranker(name)
    record.chosen(options)
    record.check_data(data is not None, data is not None and data.classes is not None)
    batches = None
    if data is not None and record.split is not None:
        batches = _enough(data, record, record.split, seed).batches(device=device)
    channels = channels_of(checkpoint)
    classes = 0 if data is None or data.classes is None else len(data.classes)
    with on(device, checkpoint.model):
        scores = record(checkpoint.model, channels, batches, classes=classes, seed=seed, layers=layers, **options)
    for layer, values in scores.scores.items():
        if not all(map(math.isfinite, [*values, *scores.ties.get(layer, [])])):
            raise SlimrankError(f"ranker {name} gives NaN or infinite scores for {layer}; check the checkpoint with `evaluate`")
    if data is not None and record.split == "validation" and record.labels:
        scores = replace(scores, extra={**scores.extra, "validation_seen_in_training": checkpoint.validation_seen(data)})
    return scores


def measured_sensitivity(
    checkpoint: Checkpoint,
    data: Data,
    *,
    ranker: str | None = None,
    error: bool = False,
    layers: list[str] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> FilterScores:
    """Measure the accuracy of each layer against its own ratio, on validation images; `ranker` says who goes first.

    `error`: instead, without labels, the error that is left after the best repair, on training images, in the order of ranker
    reconstruct; what comes back is its scores file. Raises SlimrankError for `error` with another ranker.
    """
    if error:
        if ranker not in (None, "reconstruct"):
            raise SlimrankError(f"`error` goes in the order of ranker reconstruct, not of {ranker}; leave `ranker` out")
        return rank(checkpoint, "reconstruct", data, layers=layers, seed=seed, device=device)
    if data.classes is None:
        raise needs_labels("sensitivity", "add `error`, which reads none, or give data with classes")
    classes = len(data.classes)
    ranked = rank(checkpoint, ranker or DEFAULT, data, seed=seed, device=device)
    images = _enough(data, RANKERS["car"], "validation", seed)
    channels = channels_of(checkpoint)
    with on(device, checkpoint.model):
        batches = images.batches(device=device)
        scores = sensitivity(checkpoint.model, channels, batches, ranked, classes=classes, layers=layers)
    return replace(scores, extra={**scores.extra, "validation_seen_in_training": checkpoint.validation_seen(data)})


def _enough(data: Data, record: Ranker, split: str, seed: int) -> Images:
    """The images of a split that a ranker is given: all where the data is limited, else as many as are enough."""
    images = data.split(split)
    return images.sample(len(images) if data.limit is not None else record.enough or len(images), seed)
