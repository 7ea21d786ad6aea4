"""The first seeds of every kind of file; benchmarks/fuzz.py runs thousands."""

import pytest

from .formats import FORMATS
from .judge import ending

SEEDS, TOGETHER = 300, 10


@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_and_lying_files_are_read_or_refused_in_one_line(name, first):
    """Never another exception, 20 s, 2 GB, a process, a connection or a changed file."""
    ends = {seed: ending(name, seed) for seed in range(first, first + TOGETHER)}
    assert {seed: end for seed, end in ends.items() if end not in ("read", "refused")} == {}


@pytest.mark.parametrize("name", FORMATS)
def test_a_case_is_drawn_by_its_seed(tmp_path, name):
    import random

    drawn = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        FORMATS[name].write(folder, random.Random(f"{name} 3"))
        drawn.append({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()})
    assert drawn[0] == drawn[1]
