"""What of a result is recorded, and where a new result differs from the record.

The record keeps every figure that no clock decides, so that on the machine that made it `record.py` followed by `git diff`
shows a change of a single bit. The comparison allows what differs between kinds of CPU (cases.Rule).
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from .cases import Case

IMAGE = 1.05 / 359  # one test image of digits
VALIDATION_IMAGE = 1.05 / 144
TRAINED = 0.03
CLOCK = re.compile(r"^(seconds|speedups?|latency|machine|slimrank|runs|layer_ms|remarks)$|_(ms|us|seconds?)$")
SHARE = re.compile(r"^(top1|top5|agreement|ratio|dense)($|_)|_(recall|top1|agreement)$")
PER_CLASS = re.compile(r"^(per_class|whole|.*_replaced)$")
NOISE = re.compile(r"^(max_abs_diff|relative|loss|best_epoch|redundancy|conv_diff)$")  # rounding errors and what they decide
PICKED = re.compile(r"^(indices|features|top_images|order|shared_with|serves|hinders|trials)$")  # lists that a near tie changes
BUSY = re.compile(r"\n +(busy machine: |\d+ of \d+ speedups are uncertain).*")  # lines that a table of times may end with
NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")


def skeleton(value: Any) -> Any:
    """Keys and types: `<int>`, `<float>`, `<str>`, `<bool>`, `<null>`; a list by its first element."""
    if isinstance(value, dict):
        return {key: skeleton(part) for key, part in value.items()}
    if isinstance(value, list):
        return [skeleton(part) for part in value[:1]]
    return "<null>" if value is None else f"<{type(value).__name__}>"


def recorded(value: Any) -> Any:
    """A result as it is written to the record: without the clock's figures, sentences with # for every number."""
    if isinstance(value, dict):
        return {key: skeleton(part) if CLOCK.search(key) else recorded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [recorded(part) for part in value]
    if isinstance(value, str) and " " in value:
        return re.sub(" +", " ", NUMBER.sub("#", BUSY.sub("", value)))
    return value


def text_lines(text: str) -> list[str]:
    """A printed table for the record: single spaces, no seconds, no version."""
    plain = re.sub(r"slimrank [\d.]+", "slimrank #", re.sub(r"\d+(\.\d+)? s\b", "# s", text))
    return [" ".join(line.split()) for line in plain.splitlines()]


def differences(was: Any, now: Any, case: Case, path: str = "", key: str = "") -> Iterator[str]:
    """One line for every place where `now` differs from the record `was` by more than the case allows."""
    if type(was) is not type(now):
        yield f"{path}: {short(was)} recorded, now {short(now)}"
    elif isinstance(was, dict):
        for name in [*was, *(name for name in now if name not in was)]:
            place = f"{path}.{name}" if path else str(name)
            if name not in now:
                yield f"{place}: recorded, now missing"
            elif name not in was:
                yield f"{place}: not recorded, now {short(now[name])}"
            else:
                yield from differences(was[name], now[name], case, place, key if PICKED.search(key) else name)
    elif isinstance(was, list):
        if len(was) != len(now) and not (key == "trials" or (PICKED.search(key) and path.count("[") > 1)):
            yield f"{path}: {len(was)} elements recorded, now {len(now)}"
        for i, (one, other) in enumerate(zip(was, now, strict=False)):
            yield from differences(one, other, case, f"{path}[{i}]", key)
    elif was != now and not close(was, now, case, key):
        yield f"{path}: {short(was)} recorded, now {short(now)}"


def close(was: Any, now: Any, case: Case, key: str) -> bool:
    """Whether two values of one type are the same for this case."""
    if NOISE.search(key) or PICKED.search(key):
        return True
    if key == "bytes":
        return bool(0.98 * was <= now <= 1.02 * was)
    if not isinstance(was, float):
        return False
    if SHARE.search(key):
        allowed = TRAINED if case.rule == "trained" else VALIDATION_IMAGE if "validation" in key else IMAGE
    elif PER_CLASS.search(key):
        allowed = 0.1 if case.rule == "trained" else 0.06
    elif case.rule == "trained" and not case.slack:
        return True
    else:
        allowed = case.slack
    return bool(abs(was - now) <= max(allowed, 1e-4 * abs(was), 1e-7))


def text_differences(was: list[str], now: list[str]) -> Iterator[str]:
    """Lines that differ in a word, in an integer, or in a decimal by more than an image in 359."""
    if len(was) != len(now):
        yield f"{len(was)} lines recorded, now {len(now)}"
    for i, (one, other) in enumerate(zip(was, now, strict=False), 1):
        if NUMBER.sub("#", one) != NUMBER.sub("#", other) or not all(
            same_number(a.group(), b.group()) for a, b in zip(NUMBER.finditer(one), NUMBER.finditer(other), strict=True)
        ):
            yield f"line {i}: {one!r} recorded, now {other!r}"


def same_number(was: str, now: str) -> bool:
    if was == now:
        return True
    one, other = float(was.replace(",", "")), float(now.replace(",", ""))
    return "." in was and abs(one - other) <= IMAGE


def short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
