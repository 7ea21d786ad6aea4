"""Jinja2 templates of this folder, everything in them escaped unless it is Markup."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Render a template of this folder to a self-contained HTML page; raises UndefinedError for a value that is missing."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"fixed": fixed, "percent": percent, "thousands": thousands}
    return environment


def percent(share: float | None, digits: int = 1, missing: str = "–") -> str:
    """Format a share as percent, None as `missing`."""
    return missing if share is None else f"{share:.{digits}%}"


def fixed(value: float | None, digits: int) -> str:
    """Format a number with so many digits after the point, None as a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def thousands(number: int) -> str:
    """Format a whole number with a comma between thousands."""
    return f"{number:,}"
