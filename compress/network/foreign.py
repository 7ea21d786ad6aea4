"""Other people's checkpoints: files that hold a network's tensors somewhere, under names of somebody's making."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import SlimrankError, SlimrankWarning
from ...evaluate.imagespec import ImageSpec
from . import zoo
from .adapt import adapt
from .binary import two_logits
from .inputs import image, seen
from .limits import in_proportion
from .parts import Part, Tree, every, parts, tree, under
from .pickled import read_pickle
from .plain import fuse
from .record import Checkpoint
from .state import Shape, check_fits, check_sound, fill, oddity, shapes

ODD = 7919  # a number of classes that no other size of a network is


def read(path: Path, trust_pickle: bool) -> tuple[Tree, str | None]:
    """Read a pickled file: its tensors, and the network's name where the file gives one that we know.

    Only tensors are unpickled unless `trust_pickle`.
    """
    value = read_pickle(path, trust_pickle)
    named = value.get("arch") if isinstance(value, Mapping) else None
    known = isinstance(named, str) and named in zoo.names()
    return tree(value), named if known else None


def build(
    path: Path,
    file: Tree,
    name: str,
    arguments: dict[str, Any] | None,
    images: ImageSpec,
    state_dict: str | None,
) -> Checkpoint:
    """Build the named network and fill in a file's tensors; without `num_classes` its classifier there tells how many.

    `images` says how the network sees images; what it leaves open is as usual for the network. `state_dict`: the place in the
    file, where several hold weights that fit. A network of one output becomes one of two (binary.py).
    """
    folder = zoo.resolved(name, arguments)
    name, arguments = (name, dict(arguments or {})) if folder is None else (folder.name, folder.arguments)
    tensors = {str(place): tensor for place, tensor in enumerate(every(file))}
    with in_proportion(tensors, path) if folder else nullcontext():  # what a folder asks for comes from its files as well
        wanted = _wanted(name, arguments)
    part = _chosen(path, file, wanted, state_dict)
    if "num_classes" not in arguments:
        classes = _classes(part, wanted)
        arguments |= {} if classes is None else {"num_classes": classes}
    check_fits(wanted, part.state, path, f"{name} {arguments}")
    check_sound(part.state, path)
    model = zoo.build(name, arguments)
    fill(model, part.state, path, f"{name} {arguments}")
    preprocessing, channels = seen(model, name, images, path.name, folder.preprocessing if folder else None)
    if len(preprocessing.mean) != channels:
        raise SlimrankError(f"`mean` has {len(preprocessing.mean)} values, the model reads {channels} channels")
    example = image(model, preprocessing.shape)
    fuse(model.eval(), example)
    widened = two_logits(model, image(model, preprocessing.shape, 2))
    adapt(model, example, 2 if widened else arguments.get("num_classes"))
    history = [{"step": "read", "file": path.name, **({"state_dict": part.place} if part.place else {})}]
    names = folder.classes if folder and len(folder.classes or ()) == arguments.get("num_classes") else None
    return Checkpoint(model, name, arguments, preprocessing, names, history)


def _wanted(name: str, arguments: dict[str, Any]) -> dict[str, Shape]:
    """The shape of each of a network's tensors, open along the axis that the number of classes decides, unless it is given.

    That axis shows in a network of so many classes as nothing else there is. It is built without memory for its tensors
    where its constructor lets it.
    """
    if "num_classes" in arguments or not zoo.accepts(name, "num_classes"):
        return shapes(_sketch(name, arguments))
    try:
        found = shapes(_sketch(name, {**arguments, "num_classes": ODD}))
    except SlimrankError:  # a constructor that takes some numbers of classes only
        return shapes(_sketch(name, arguments))
    return {key: shape and tuple(None if n == ODD else n for n in shape) for key, shape in found.items()}


def _classes(part: Part, wanted: dict[str, Shape]) -> int | None:
    """Count the classes of weights by the axis that is open in the network."""
    for key, shape in wanted.items():
        if shape is not None and None in shape and key in part.state and part.state[key].dim() == len(shape):
            return part.state[key].shape[shape.index(None)]
    return None


def _sketch(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return zoo.build(name, arguments)
    except Exception:  # the user's own constructor may look at values; what is wrong with it shows without meta tensors, too
        return zoo.build(name, arguments)


def _chosen(path: Path, file: Tree, wanted: dict[str, Shape], state_dict: str | None) -> Part:
    """Choose the part of a file that is the network's, and warn of what could have been meant instead."""
    within = file if state_dict is None else under(file, state_dict)
    found = [] if within is None else parts(within, wanted)
    if state_dict is not None and not found:
        known = ", ".join(part.place for part in parts(file, wanted) if part.place) or "the file itself alone"
        raise SlimrankError(f"{path} holds no tensors at `state_dict` {state_dict}; weights that fit: {known}")
    if not found:
        raise SlimrankError(f"{path} holds no state_dict, nor any tensor; save model.state_dict()")
    part, *others = found
    others = [other for other in others if not _same(part, other)]
    if others:
        places = ", ".join(other.place or "the file itself" for other in others)
        taken = part.place or "the file itself"
        _warn(f"{path}: took {taken}, of several weights that fit; `state_dict` takes another: {places}")
    if part.beside:
        _warn(f"{path}: took {part.place} and left out what stands beside it: {_listed(part.beside)}")
    if part.counters and part.complete:
        _warn(f"{path}: left out single numbers that the network lacks: {_listed(part.counters)}")
    return part


def _same(one: Part, other: Part) -> bool:
    if any(map(oddity, (*one.state.values(), *other.state.values()))):
        return False
    return one.state.keys() == other.state.keys() and all(torch.equal(one.state[k], other.state[k]) for k in one.state)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _warn(text: str) -> None:
    warnings.warn(text, SlimrankWarning, stacklevel=4)
