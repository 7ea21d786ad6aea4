"""What heads are fitted to: statistics of the features that the classifier reads, from one pass over the training images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...evaluate.data import Data, Images
from ..channels.features import Batches, Cached, Coverage, Keeper, Moments, Votes, cached, survey
from .classifier import Classifier
from .crops import with_crops
from .options import HeadOptions, default_k

HEAD_CACHE_BYTES = 2**31  # of features that training a head may hold


@dataclass(frozen=True)
class Statistics:
    """Of `images` of the `available` training images and `crops` crops of each; `cache` holds their features where a head is
    trained on them. Without labels an image's class is what the dense layer decides.

    `k1`: votes an image has (None: no voting). `validation`: features of the validation split, which decides every choice.
    """

    moments: Moments
    k1: int | None
    votes: Votes | None
    cache: Cached | None
    validation: Cached
    images: int
    crops: int
    available: int
    empty_classes: int

    @property
    def trainable(self) -> Cached:
        assert self.cache is not None, "only `fit` train caches features"
        return self.cache


def gather_statistics(classifier: Classifier, data: Data, options: HeadOptions) -> Statistics:
    """Read the training split once (twice where `k1` is a coverage) and the validation split once, with `crops` of each."""
    train = data.split("train")
    available, limit = len(train), HEAD_CACHE_BYTES // (4 * classifier.features * (1 + options.crops))
    if options.fit == "train" and available > limit:
        order = torch.randperm(available, generator=torch.Generator().manual_seed(options.seed))
        train = train.subset(order[:limit].sort().values)

    def read(images: Images) -> Batches:
        batches = with_crops(images.batches(), options.crops, options.seed)
        return classifier.seen(batches, data.classes is not None)

    k1 = _votes_an_image(read(train), classifier, options) if options.votes else None
    moments, votes = Moments(), Votes(classifier.classes, k1) if k1 is not None else None
    members = torch.zeros(classifier.classes, dtype=torch.long)

    def count(_x: Tensor, labels: Tensor) -> None:
        members.add_(torch.bincount(labels.cpu(), minlength=classifier.classes))

    keepers: list[Keeper] = [moments.add, count, *([votes.add] if votes else [])]
    cache = None
    if options.fit == "train":
        cache = cached(read(train))
        survey([(cache.x, cache.labels)], *keepers)
    else:
        survey(read(train), *keepers)
    validation = cached(read(data.split("validation")))
    empty = int((members == 0).sum())
    return Statistics(moments, k1, votes, cache, validation, len(train), options.crops, available, empty)


def _votes_an_image(batches: Batches, classifier: Classifier, options: HeadOptions) -> int:
    """`k1`, or the least number of features that carries that share of the l1 norm; as many as a class keeps by default."""
    if isinstance(options.k1, float):
        coverage = Coverage()
        survey(batches, coverage.add)
        return coverage.least(options.k1)
    if options.k1 is not None:
        return options.k1
    return options.k2 if isinstance(options.k2, int) else default_k(classifier.features)


def remarks(statistics: Statistics, features: int, options: HeadOptions) -> list[str]:
    """What makes a fit to these statistics doubtful: images left out, too few of them, classes without any."""
    found = []
    images, seen = statistics.images, statistics.images * (1 + statistics.crops)
    if images < statistics.available:
        held = f"their features fill {HEAD_CACHE_BYTES >> 30} GiB"
        found.append(f"fitted on {images:,} of {statistics.available:,} training images: {held}")
    if options.fit != "truncate" and seen < 2 * features:
        kept = options.k2 if isinstance(options.k2, int) else default_k(features)
        ridge = ", and a ridge holds the fit" if seen <= kept else ""
        crops = f" and {statistics.crops} crops of each" if statistics.crops else ""
        found.append(f"only {images} training images{crops} for {features} features: expect little of it{ridge}")
    if statistics.empty_classes:
        found.append(f"{statistics.empty_classes} classes have no training images")
    return found
