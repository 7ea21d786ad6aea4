"""The one exception users see."""


class SlimrankError(Exception):
    """Bad input, told in one line: what, why, what to do."""


def near(name: str, known: list[str] | tuple[str, ...]) -> str:
    """'did you mean ...' for an unknown name: the closest known ones, else all of them (at most 20)."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=5, cutoff=0.5)
    if close:
        return f"near ones: {', '.join(close)}"
    shown = list(known)[:20]
    return f"known: {', '.join(shown)}{', ...' if len(known) > 20 else ''}"
