"""Mutators: each takes something sound and a random generator, and gives something that is not, or not quite."""

import copy
import random
from collections.abc import Callable
from typing import Any

Mutator = Callable[[Any, random.Random], Any]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 4096, 4097, 10**6, 10**7, 2**31, 2**63, 10**400, -(10**9), 0.0, -0.5, 1e308,
    float("nan"), float("inf"), -float("inf"), "", "x", "5", "x" * 5000, "\ud800", "a\0b", "../../etc/passwd", "os:system",
    "DEFAULT", "resnet18", "lenet5", "vgg16", [], [1], [[]], [None], [0] * 50, [10**6] * 2, {},
    {"a": 1},
    {"weights": "DEFAULT"}, {"type": "Conv2d", "bias": True}, {"type": "SubspaceLinear"}, {"groups": 3}, deep(30), deep(400),
)  # fmt: skip


def json_value(value: Any, rng: random.Random) -> Any:
    """Change one to three places of a JSON value: another value, type or key, one too many or too few, two exchanged."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        owner, key = rng.choice(places)
        kind = rng.randrange(7)
        if kind == 0:
            del owner[key]
        elif kind == 1 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        elif kind == 1:
            owner[str(rng.choice(ODD))[:2000]] = owner.pop(key)
        elif kind == 2:
            other, at = rng.choice(places)
            if at in other if isinstance(other, dict) else at < len(other):
                owner[key] = copy.deepcopy(other[at])
        elif kind == 3 and isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool):
            third = owner[key] / 3 if abs(owner[key]) < 10**300 else 0.3
            owner[key] = rng.choice((-owner[key], owner[key] + 1, owner[key] * 1000, third, str(owner[key])))
        else:
            owner[key] = copy.deepcopy(rng.choice(ODD))
    return value


def _places(value: Any, depth: int = 0) -> Any:
    """Every list or object in a JSON value with each of its keys; long lists by their ends."""
    keys = list(value) if isinstance(value, dict) else [] if not isinstance(value, list) else [*range(len(value))]
    for key in keys if len(keys) < 20 else [*keys[:6], *keys[-6:]]:
        yield value, key
        if depth < 8:
            yield from _places(value[key], depth + 1)


def raw(content: bytes, rng: random.Random) -> bytes:
    """Change bytes: flip, cut, double, blank, insert; mostly near the beginning or the end, where files tell of themselves."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        size = len(content)
        if not size:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(50)))
        reach = min(size, rng.choice((16, 100, 1000, size)))
        at = rng.randrange(reach) if rng.random() < 0.6 else size - 1 - rng.randrange(reach)
        length = rng.choice((1, 2, 4, 8, 64))
        kind = rng.randrange(6)
        if kind == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at : at + length] = bytes(rng.randrange(256) for _ in range(length))
        elif kind == 2:
            content[at : at + length] = rng.choice((b"\xff", b"\0", b"\x7f")) * length
        elif kind == 3:
            del content[at : at + length]
        elif kind == 4:
            content[at:at] = content[at : at + length]
        else:
            del content[rng.randrange(size) :]
    return bytes(content)


def text(content: str, rng: random.Random) -> str:
    """Change lines and words of a text."""
    lines = content.split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        kind = rng.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[at])
        elif kind < 5:
            cells[rng.randrange(len(cells))] = str(rng.choice(ODD))[:3000]
            lines[at] = ",".join(cells)
        else:
            lines[at] = raw(lines[at].encode("utf-8", "replace"), rng).decode("utf-8", "replace")
        lines = lines or [""]
    return "\n".join(lines)
