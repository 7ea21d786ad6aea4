"""Jinja2 templates of this folder, everything in them escaped unless it is Markup."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .names import name, visible

HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Render a template of this folder to a self-contained HTML page; raises UndefinedError for a value that is missing.

    The page allows no script but page.js, which it holds, and no request to anywhere.
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(script=Markup(script), script_hash=f"sha256-{digest}", **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "fixed": fixed, "percent": percent, "thousands": thousands, "short": short, "name": name, "visible": visible,
        "points": points, "tone": tone,
    }  # fmt: skip
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


def short(number: int | None, unit: str = "") -> str:
    """Format a whole number with three digits, in thousands (K), millions (M), ..., None as a dash."""
    if number is None:
        return "–"
    scaled, power = float(number), 0
    while scaled >= 999.5 and power < 6:
        scaled, power = scaled / 1000, power + 1
    digits = 0 if not power or scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:.{digits}f} {' KMGTPE'[power].strip()}{unit}".strip()


def points(share: float) -> str:
    """Format a difference of two shares in percentage points."""
    return f"{100 * share:+.2f}"


def tone(difference: float) -> str:
    """The class of a difference in accuracy: more than a point lost is bad, none lost is good."""
    return "bad" if difference < -0.01 else "good" if difference >= 0 else ""
