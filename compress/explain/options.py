"""What `explain` is asked for. Free of torch: the parser reads it."""

from dataclasses import dataclass

from ...option import option


@dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    k1: int | None = option(None, "votes an image has (default: as k2)")
    k2: int | None = option(None, "influential features of a class (default: an eighth, at least 5)")
    layer: tuple[str, ...] | None = option(None, "look at this layer's group (repeatable; default: four of them)", repeat=True)
    concepts: str | None = option(None, "dissect: a folder in Broden's layout, or generated", metavar="DIR")
    seed: int = option(0)
    device: str = option("cpu")
