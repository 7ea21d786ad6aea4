"""A head into its network: the features' order folded into the layers before, features that no class reads cut."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...clone import clone
from ..channels import channel_map
from ..network.positional import exchange
from ..network.subspace import SubspaceLinear
from ..pruning.surgery import cut
from .classifier import Classifier
from .fold import fold

WIDTH = 16  # channels that ONNX Runtime pays for together: unread features are cut in such steps


@dataclass(frozen=True)
class Installed:
    """A network with its head. `folded`: no feature is moved at inference; `features_cut`: channels cut before the head."""

    model: nn.Module
    head: SubspaceLinear
    folded: bool
    features_cut: int
    note: str = ""


def install(classifier: Classifier, head: SubspaceLinear, variance: Tensor) -> Installed:
    """Put a copy of `head` into a copy of the network. `variance` [features]: what is cut goes by least variance."""
    model, folded, note = classifier.checkpoint.model, False, ""
    head = copy.deepcopy(head)
    if head.reorder is not None:
        reordered_model = folding(classifier, head.reorder)
        if reordered_model is not None:
            model, folded = reordered_model, True
            head.reorder = None
        else:
            note = "the features' order cannot be written into the layers before; they are copied into it"
    model = with_head(model, classifier.layer, head.to(next(model.parameters()).device).requires_grad_(True))
    features_cut = 0
    if not head.rescore and head.layout != "tiled":
        model, features_cut = without_unread(model, classifier, head, variance)
    installed_head = model.get_submodule(classifier.layer)
    assert isinstance(installed_head, SubspaceLinear)
    return Installed(model, installed_head, folded, features_cut, note)


def folding(classifier: Classifier, order: Tensor) -> nn.Module | None:
    """The network with its features in this order, for free at inference; None where the layers before do not allow it."""
    checkpoint = classifier.checkpoint
    return fold(checkpoint.model, classifier.channels, classifier.layer, checkpoint.example(2), order)


def with_head(model: nn.Module, layer: str, head: nn.Module) -> nn.Module:
    """A copy of the model with another classifier."""
    model = clone(model)
    exchange(model, layer, head)
    return model


def without_unread(model: nn.Module, classifier: Classifier, head: SubspaceLinear, variance: Tensor) -> tuple[nn.Module, int]:
    """Cut features that no class reads, down to a multiple of WIDTH; the network and how many were cut.

    None are cut where the channels that make them are read by others too, as those of a residual trunk.
    """
    channels, layer, features = classifier.channels, classifier.layer, classifier.features
    units = channels.reads[layer]
    group = next((g for g in channels.groups if g.offset <= int(units[0]) < g.offset + g.units), None)
    if group is None or not group.prunable or len(set(units.tolist())) != len(units) or len(units) != group.units:
        return model, 0
    if channels.readers(group) != [layer]:
        return model, 0
    stays = torch.zeros(features, dtype=torch.bool)
    stays[head.index.flatten()] = True
    fixed = [i for i, unit in enumerate(units.tolist()) if unit - group.offset in group.fixed]
    stays[torch.tensor(fixed, dtype=torch.long)] = True
    width = -(-int(stays.sum()) // WIDTH) * WIDTH
    if width >= features:
        return model, 0
    keep = torch.zeros(features, dtype=torch.bool)
    keep[variance.masked_fill(stays, torch.inf).topk(width).indices] = True
    channels = channel_map(model, classifier.checkpoint.example())
    gone = channels.removed({})
    gone[channels.reads[layer][~keep]] = True
    return cut(model, channels, gone), features - width
