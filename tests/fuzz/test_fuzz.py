"""A few seeds of every kind of file; benchmarks/fuzz.py runs thousands."""

import pytest

from .formats import FORMATS
from .judge import ending

SEEDS = 30


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_or_lying_file_is_read_or_refused_in_one_line(name, seed):
    """Never another exception, 20 s, 2 GB, a process, a connection or a changed file."""
    assert ending(name, seed) in ("read", "refused")


@pytest.mark.parametrize("name", FORMATS)
def test_a_case_is_drawn_by_its_seed(tmp_path, name):
    import random

    drawn = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        FORMATS[name].write(folder, random.Random(f"{name} 3"))
        drawn.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert drawn[0] == drawn[1]
