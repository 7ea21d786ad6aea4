"""Cuts on trial: a group whose cut the network does not survive stays, and the others can be cut.

No label shows that a size is written into forward() as a number. One unit less of every group at once shows that none is, for
the price of a forward pass; where that fails, one group after the other shows which.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ...errors import SlimrankError
from ..network.forward import forward, told
from .groups import ChannelMap, Group, stays
from .slicing import cut


def probed(model: nn.Module, channels: ChannelMap, example: Tensor) -> ChannelMap:
    """Pin the groups without one of whose units the network fails on the example, with what it raised as the reason."""
    groups = [group for group in channels.groups if group.prunable]
    if not groups or not _failure(model, channels, groups, example):
        return channels
    why = {group.name: reason for group in groups if (reason := _failure(model, channels, [group], example))}
    return replace(channels, groups=tuple(_pinned(group, why.get(group.name, "")) for group in channels.groups))


def _pinned(group: Group, reason: str) -> Group:
    if not reason:
        return group
    why = f"the network fails without one of its channels, its forward() has sizes written into it ({reason})"
    return replace(group, fixed=tuple(range(group.units)), why=why)


def _failure(model: nn.Module, channels: ChannelMap, groups: Sequence[Group], example: Tensor) -> str:
    """What the network raises without one unit of each of these groups; empty where it runs."""
    gone = channels.removed({})
    for group in groups:
        fixed = set(group.fixed)
        gone[group.offset + next(unit for unit in reversed(range(group.units)) if unit not in fixed)] = True
    for units in (*channels.reads.values(), *channels.writes.values()):
        if not bool(stays(units, gone).any()):
            gone[units] = False  # a layer that reads or writes nothing else would be empty
    try:
        forward(cut(model, channels, gone), example)
    except SlimrankError as error:
        return told(error.__cause__) if error.__cause__ else str(error)
    return ""
