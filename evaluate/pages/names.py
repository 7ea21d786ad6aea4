"""Names that come from anywhere - of classes, networks, layers, folders - as pages show them."""

import unicodedata

from markupsafe import Markup

JOINERS = "\u200c\u200d"  # without which Persian, Hindi and many emoji do not read right
HIDDEN = (
    "Cc",
    "Cf",
    "Cs",
    "Co",
    "Cn",
    "Zl",
    "Zp",
)  # control and format characters, halves of pairs, no characters, line breaks


def visible(text: object) -> str:
    """A text with every control character told by its number: none can turn its neighbours round, or hide."""
    return "".join(f"[U+{ord(c):04X}]" if unicodedata.category(c) in HIDDEN and c not in JOINERS else c for c in str(text))


def name(text: object) -> Markup:
    """A name as markup: escaped, visible, and with a direction of its own (bdi)."""
    return Markup("<bdi>{}</bdi>").format(visible(text))
