"""The final layer by the clock: which shapes count as faster, what `bench-head` reports."""

import numpy as np
import pytest
import torch

from slimrank.compress.head import timing
from slimrank.compress.head.bench import FinalLayerBench, bench_final_layer
from slimrank.compress.head.options import FinalLayerOptions
from slimrank.compress.head.timing import Timed, fastest_first
from slimrank.errors import SlimrankError
from slimrank.evaluate.latency import Comparison, Speedup, machine
from slimrank.evaluate.timing import Timing

SPEEDUPS = {"a": (3.0, 1.1), "b": (9.0, 0.5), "c": (2.0, 2.0), "d": (1.0, 1.0)}


@pytest.fixture
def no_clock(monkeypatch):
    """Speedups that are known instead of measured."""

    def timed(heads, *_):
        speedups = [Speedup(name, "linear", "cpu", 1, 1, s) for name in heads if name in SPEEDUPS for s in SPEEDUPS[name]]
        return Comparison([], speedups, machine())

    monkeypatch.setattr(timing, "time_heads", timed)


@pytest.mark.usefixtures("no_clock")
@pytest.mark.parametrize(("names", "faster"), [("abcd", ["c", "a"]), ("d", [])], ids=["some", "none"])
def test_the_fastest_comes_first_and_what_is_slower_anywhere_never(names, faster):
    shapes = {Timed(name, "tiled", 2, False): torch.nn.Identity() for name in names}
    race = fastest_first(shapes, 8, 4, [1], 1, "cpu")
    assert [shape.name for shape in race.faster] == faster
    assert ("no layout beats" in race.note) == (not faster)


def timed_once(**options) -> FinalLayerBench:
    """64 features, 10 classes, one setting, for a moment."""
    return bench_final_layer(
        None, FinalLayerOptions(features=64, classes=10, timing=Timing(batch=(1,)), **{"k": 8, **options}), seconds=0.01
    )


def test_bench_head_rows():
    bench = timed_once(layout=("gather", "tiled", "tiled+rescore", "int8", "svd+rescore", "two-level"))
    assert [row.layout for row in bench.results] == [
        "linear", "gather", "tiled", "tiled, adjacent", "tiled+rescore", "tiled+rescore, adjacent", "svd+rescore",
        "two-level", "int8",
    ]  # fmt: skip
    assert all(np.isfinite(row.median_us) for row in bench.results)
    macs = {row.layout: row.macs for row in bench.results}
    assert (macs["linear"], macs["tiled"], macs["tiled+rescore"]) == (640, 80, 80 + 8 * 64)
    assert set(bench.to_dict()["results"][0]) == {
        "layout", "provider", "batch", "threads", "median_us", "speedup", "macs", "bytes", "agreement",
    }  # fmt: skip
    assert "two-level: 3 of 3 groups" in str(bench)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 65}, "`k`"),
        ({"layout": ("gathr",)}, "no layout"),
        ({"groups": 11, "layout": ("tiled",)}, "`groups`"),
        ({"groups": 2, "layout": ("two-level",), "probe": 3}, "probe"),
    ],
    ids=["k", "layout", "groups", "probe"],
)
def test_what_cannot_be_timed_is_refused(options, message):
    with pytest.raises(SlimrankError, match=message):
        timed_once(**options)
