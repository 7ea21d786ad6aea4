"""Who may import whom: cli -> verbs, benchmarks -> compress -> export -> evaluate; inside compress by floors. Never back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ("evaluate", "export", "compress")
FLOORS = (
    "network", "channels", "layerwise", "coalitions", "rankers", "pruning", "training", "head", "explain", "stages", "pipeline",
    "demo",
)  # fmt: skip
FILES = [f for folder in HOUSE for f in sorted((ROOT / folder).rglob("*.py"))]
SMALL = [
    *FILES,
    *sorted(ROOT.glob("*.py")),
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
]


def imports(path: Path) -> set[tuple[str, ...]]:
    """Modules of slimrank that a file imports, as paths of names below the package's root."""
    here = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*here[: len(here) - node.level + 1], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            found |= {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slimrank"):
            pytest.fail(f"{path} imports slimrank by its absolute name")
    return found


def floor(parts: tuple[str, ...]) -> int | None:
    """The floor inside compress/ that a module is on; None for what stands beside the floors (options, empty packages)."""
    return FLOORS.index(parts[1]) if parts[0] == "compress" and len(parts) > 1 and parts[1] in FLOORS else None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    own = path.relative_to(ROOT).with_suffix("").parts
    for other in imports(path):
        if other[0] in HOUSE:
            assert HOUSE.index(other[0]) <= HOUSE.index(own[0]), f"{path} imports {'.'.join(other)}"
        upper, lower = floor(own), floor(other)
        if upper is not None and lower is not None:
            assert lower <= upper, f"{path} imports {'.'.join(other)}"


@pytest.mark.parametrize("path", SMALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_classes_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 150, f"class {node.name}"
