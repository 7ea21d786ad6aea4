"""Who may import whom: cli, benchmarks -> compress -> export -> evaluate. Never back."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LEVELS = {"evaluate": 0, "export": 1, "compress": 2}
FILES = [f for folder in LEVELS for f in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """Top folders of slimrank that a file imports, relative imports resolved."""
    here = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1]
            parts = [*base, *(node.module or "").split(".")]
            found |= {parts[0]} if parts[0] else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slimrank"):
            pytest.fail(f"{path} imports slimrank by its absolute name")
    return found & set(LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path):
    own = LEVELS[path.relative_to(ROOT).parts[0]]
    for other in imports(path):
        assert LEVELS[other] <= own, f"{path} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_small(path):
    assert len(path.read_text().splitlines()) <= 400
