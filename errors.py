"""The one exception users see, and the one warning."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MOST = 1500  # characters of an error


class SlimrankError(Exception):
    """Bad input, told in one line: what, why, what to do.

    A parameter stands between backticks, as in "`min_filters` is 0, must be at least 1". Python users read it so; the
    command line prints its flag (`flagged`). What a file says of itself has any length: a long line loses its middle.
    """

    def __str__(self) -> str:
        words = super().__str__()
        return words if len(words) <= MOST else f"{words[: MOST * 2 // 3]} ... {words[-MOST // 3 :]}"


class SlimrankWarning(UserWarning):
    """What does not stop a run but should be known, told in one line as errors are."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as an interrupt does: files are left whole, and one line tells."""


@contextmanager
def warnings_to(say: Callable[[str], None]) -> Iterator[None]:
    """Within the context each of our warnings goes to `say`, as one line; those of libraries are shown as Python does."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, SlimrankWarning):
                say(f"warning: {message}")
            else:
                usual(message, category, *where, **more)

        warnings.showwarning = show
        yield


def flagged(message: str, flags: Mapping[str, str]) -> str:
    """The message as the command line prints it: parameters between backticks become their flags; other quotes stay."""
    return re.sub(r"`([a-z0-9_]+)`", lambda match: flags.get(match[1], match[0]), message)


def flagged_json(value: Any, flags: Mapping[str, str]) -> Any:
    """JSON whose texts name flags in place of parameters; keys stay."""
    if isinstance(value, dict):
        return {key: flagged_json(part, flags) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [flagged_json(part, flags) for part in value]
    return flagged(value, flags) if isinstance(value, str) else value


def near(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'did you mean ...' for an unknown name: the closest known ones, else all of them (at most 20)."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=5, cutoff=0.5)
    if close:
        return f"near ones: {', '.join(close)}"
    shown = list(known)[:20]
    return f"known: {', '.join(shown)}{', ...' if len(known) > 20 else ''}"
