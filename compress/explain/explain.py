"""What a network's filters and features mean: every measure that the network and the data allow, in one pass.

Classes are told from what the classifier reads (class_part.py), filters from CAR (rankers/car.py), colour, redundancy and the
images that move them (filters.py), concepts by dissection (evaluate/concepts/), gates where the checkpoint has them.
Features are learnt on training images; noise and gates are measured on test images; filters on validation images.
"""

import time
from collections.abc import Callable

import torch
from torch import nn

from ...errors import SlimrankError
from ...evaluate.concepts import Concepts, dissect, generate
from ...evaluate.data import Data, Images, readable
from ...files import Scratch
from ..channels import channels_of
from ..channels.features import classifier
from ..channels.groups import ChannelMap
from ..network.checkpoint import Checkpoint
from ..network.device import on
from .class_part import ClassPart, explain_classes
from .explanation import Explanation
from .filters import survey_filters
from .layers import choose_layers, layers_car, report_layer
from .options import ExplainOptions
from .panels import kernels_panel, layer_panels
from .responses import Responses

VALIDATION_IMAGES = 500  # that filters are scored and watched on, where the data has no limit
IMAGES_A_CLASS = 10  # fewer say little of one class
GENERATED_IMAGES = 1000  # of `concepts` generated
TOP_IMAGES = 5  # that move a filter most
Say = Callable[[str], None]


def explain(checkpoint: Checkpoint, data: Data, options: ExplainOptions, say: Say = lambda line: None) -> Explanation:
    """Measure what the network and the data allow; what they do not is named in `notes`, and the rest goes on."""
    checkpoint = checkpoint.with_classes(data)
    data.classes_for("explain")
    with on(options.device, checkpoint.model):
        return _explained(checkpoint, data, options, say)


def _explained(checkpoint: Checkpoint, data: Data, options: ExplainOptions, say: Say) -> Explanation:
    start = time.perf_counter()
    model, channels = checkpoint.model, channels_of(checkpoint)
    _check_ks(options, channels)
    layers, notes = choose_layers(checkpoint, channels, None if options.layer is None else list(options.layer))
    responses = Responses(model, channels, layers)
    concepts = _concepts(options)  # bad input shows before long work
    names, ids = readable(data), data.classes_for("explain")
    classes, class_notes = _classes(checkpoint, data, channels, options, say)
    say("filters: class-wise CAR, colour, redundancy, images")
    images = _validation_images(data, options.seed)
    batches = images.batches(device=options.device)
    car, car_notes = layers_car(model, channels, batches, layers, len(ids))
    notes += class_notes + car_notes
    if len(images) < IMAGES_A_CLASS * len(ids):
        each = len(images) / len(ids)
        notes.append(f"{each:.1f} validation images a class: what a filter does to one class is coarse; raise `limit`")
    survey = survey_filters(responses, batches, checkpoint.preprocessing, TOP_IMAGES)
    reports = {name: report_layer(name, car[name], survey, checkpoint, channels, names) for name in layers}
    if survey.colour is None:
        notes.append("the network reads grey images: there is no colour part")
    dissection = None
    if concepts is not None:
        say(f"dissection: {len(concepts):,} images, {len(concepts.names)} concepts")
        dissection = dissect(responses, concepts, checkpoint.preprocessing)
        reports = {name: report.with_concepts(dissection.layers[name]) for name, report in reports.items()}
    panels = {name: layer_panels(reports[name], name, survey, responses, images) for name in layers}
    first = next((name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)), None)
    return Explanation(
        model=checkpoint.name, data=data.spec, class_names=names, class_ids=ids, classes=classes,
        validation_seen_in_training=checkpoint.validation_seen(data), validation=data.validation_from,
        filter_images=survey.images, layers=reports, dissection=dissection,
        kernel_order="Most important first." if first in layers else "In the network's order.", notes=notes,
        seconds=round(time.perf_counter() - start, 1), panels=panels,
        kernels=None if first is None else kernels_panel(model.get_submodule(first), reports.get(first)),
    )  # fmt: skip


def _check_ks(options: ExplainOptions, channels: ChannelMap) -> None:
    features = len(channels.reads[channels.classifier])
    for name, k in (("k2", options.k2), ("k1", options.k1)):
        if k is not None and not 1 <= k <= features:
            raise SlimrankError(f"`{name}` is {k}, the classifier reads {features} features; choose 1 to {features}")


def _concepts(options: ExplainOptions) -> Concepts | None:
    if options.concepts is None:
        return None
    if options.concepts != "generated":
        return Concepts(options.concepts)
    folder = Scratch()
    concepts = Concepts(generate(folder.name, GENERATED_IMAGES, seed=options.seed))
    concepts.temporary = folder  # lives as long as the concepts do
    return concepts


def _validation_images(data: Data, seed: int) -> Images:
    """All validation images; VALIDATION_IMAGES of a seeded shuffle, in their order, where the data has no limit."""
    images = data.split("validation")
    if data.limit is None and len(images) > VALIDATION_IMAGES:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        images = images.subset(order[:VALIDATION_IMAGES].sort().values)
    return images


def _classes(
    checkpoint: Checkpoint, data: Data, channels: ChannelMap, options: ExplainOptions, say: Say
) -> tuple[ClassPart | None, list[str]]:
    """The classes' part; None, with a note, where the classifier is not one linear layer."""
    try:
        layer, linear = classifier(checkpoint.model, channels, checkpoint.example())
    except SlimrankError as error:
        return None, [f"no class part: {error}"]
    return explain_classes(
        checkpoint, data, layer, linear, k1=options.k1, k2=options.k2, seed=options.seed, device=options.device, say=say
    )
