"""TOML and the lines that its keys stand on, which tomllib does not tell."""

import stat
import tomllib
from pathlib import Path
from typing import Any

from ...errors import SlimrankError

LARGEST = 16 * 1024  # bytes; a recipe with every option has 1.5 KB


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """The tables of a TOML file and its text. Raises SlimrankError for what is no such file, with the line."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SlimrankError(f"recipe {path} is no file; name a .toml file with `recipe`")
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SlimrankError(f"cannot read recipe {path}: {why}; check the path") from error
    if len(raw) > LARGEST:
        raise SlimrankError(f"recipe {path} is larger than {LARGEST // 1024} KB, which none is; check the path")
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        return tomllib.loads(text), text
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise SlimrankError(f"recipe {path} is not TOML ({why}); mend that place, or write it anew") from error


def line_of(text: str, *path: str) -> int:
    """The line, from 1, on which the statement begins that gives a TOML text its key at `path`.

    Each statement is read by itself, below its table's header: so every spelling that TOML allows is found.
    """
    lines = text.split("\n")
    header, begins = "", 0
    for end in range(1, len(lines) + 1):
        statement = "\n".join(lines[begins:end])
        try:
            value: Any = tomllib.loads(f"{header}\n{statement}")
        except ValueError:
            continue  # it goes on
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return begins + 1
        if statement.lstrip().startswith("["):
            header = statement
        begins = end
    return len(lines)
