"""What `bench` tells beside times: intervals that hold, starts, memory, profiles, settings, and expectations of them."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from slimrank.cli import main
from slimrank.compress.stages.bench import bench, named
from slimrank.errors import SlimrankError
from slimrank.evaluate import latency, session
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.expect import expectations
from slimrank.evaluate.imagespec import ImageSpec
from slimrank.evaluate.kernels import profiled
from slimrank.evaluate.machine import ISA, Watch, machine
from slimrank.evaluate.ratio import ratio
from slimrank.evaluate.runner import Runner
from slimrank.evaluate.startup import start
from slimrank.evaluate.timing import Timing
from slimrank.evaluate.tune import best_settings
from slimrank.export.to_onnx import size

from .test_onnx_files import SECOND, written

QUICK = {"batches": (2,), "seconds": 0.001}


# -- the ratio -------------------------------------------------------------------------------------------------------


def noisy(seed, sessions, rounds=60, busy=0.5, between=0.01, order=0.0):
    """Two files of equal speed on a machine that is slowed down for stretches of rounds, both alike, and whose sessions
    differ by `between`; the first to be loaded, each in its turn, is by `order` the slower."""
    random = np.random.default_rng(seed)
    times = ([], [])
    for turn in range(sessions):
        stretch = np.repeat(random.random(rounds // 10) < busy, 10) * random.uniform(0.5, 2, rounds)
        for one in times:
            own = np.exp(between * random.standard_normal() + 0.01 * random.standard_normal(rounds))
            loaded_first = one is times[turn % 2]
            one.append(own * (1 + stretch) * (1 + order * loaded_first))
    return times


@pytest.mark.parametrize("sessions", [3, 12])
def test_the_interval_holds_the_ratio_as_often_as_it_says(sessions):
    found = [ratio(*noisy(seed, sessions)) for seed in range(300)]
    assert 0.975 <= np.mean([one.low <= 1 <= one.high for one in found]) < 1
    assert np.mean([one.high / one.low for one in found]) > 1.01


@pytest.mark.parametrize("sessions", [4, 12])
def test_the_order_of_loading_is_taken_out_of_value_and_interval(sessions):
    seen, even = ([ratio(*noisy(seed, sessions, order=order), turned=True) for seed in range(300)] for order in (0.1, 0.0))
    assert [one.value for one in seen] == pytest.approx([one.value for one in even], abs=1e-4)
    assert [one.high for one in seen] == pytest.approx([one.high for one in even], rel=1e-4)
    assert 0.975 <= np.mean([one.low <= 1 <= one.high for one in seen]) < 1


def test_what_slows_both_alike_cancels():
    slowed = np.random.default_rng(0).uniform(1, 3, (4, 50))
    found = ratio(list(slowed), list(1.25 * slowed))
    assert (found.low, found.value, found.high) == pytest.approx((0.8, 0.8, 0.8))


def test_the_ratio_turned_around_is_its_inverse():
    first, second = noisy(1, 5)
    one, other = ratio(first, second), ratio(second, first)
    assert one.value == pytest.approx(1 / other.value)
    assert one.low == pytest.approx(1 / other.high)
    assert ratio([2 * t for t in first], second).value == pytest.approx(2 * one.value)
    assert ratio(first[:1], second[:1]).low is None


def test_files_are_loaded_several_times_in_alternating_order(tmp_path, monkeypatch):
    order, real = [], latency.Runner
    monkeypatch.setattr(latency, "Runner", lambda path, *a, **k: (order.append(path.stem), real(path, *a, **k))[1])
    files = {name: written(tmp_path / f"{name}.onnx") for name in "abc"}
    found = latency.compare(files, batches=(1,), seconds=0.05, feed=real.example)
    rounds = ["".join(order[i : i + 3]) for i in range(3, len(order), 3)]
    assert {row.sessions for row in found.speedups} == {len(rounds)}
    assert len(rounds) >= 3
    assert rounds == (["abc", "cba"] * len(rounds))[: len(rounds)]


@pytest.mark.parametrize(("others", "busy"), [(1.7, True), (0.01, False), (None, False)])
def test_a_busy_machine_is_told(tmp_path, monkeypatch, others, busy):
    monkeypatch.setattr(Watch, "others", lambda self: others)
    found = latency.compare({"a": written(tmp_path / "m.onnx")}, **QUICK)
    cores = found.machine.cores
    assert found.to_dict()["busy"] == busy == (f"busy machine: other programs kept 1.7 of {cores} cores" in str(found))


@pytest.mark.parametrize("name", ["batch", "threads", "providers"])
def test_nothing_to_time_is_one_line(name):
    with pytest.raises(SlimrankError, match=f"`{name}` is empty"):
        Timing(**{name: ()}).check()


def test_a_wide_interval_is_told():
    wide = latency.Speedup("b", "a", "cpu", 1, 1, 1.0, 0.9, 1.1)
    assert "1 of 1 speedups are uncertain" in str(latency.Comparison([], [wide], machine()))


def test_others_at_work_are_seen():
    watch = Watch()
    watch.start = tuple(now - before for now, before in zip(Watch._now(), (10.0, 17.0, 5.0), strict=True))
    assert watch.others() == pytest.approx(1.2, abs=0.1)


def test_the_machine_is_described():
    found = machine()
    assert set(found.isa or ()) <= set(ISA)
    assert found.processor
    assert found.system


# -- what bench tells ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A file twice, with all that `bench` offers."""
    path = written(tmp_path_factory.mktemp("bench") / "m.onnx")
    return bench(named([path, path]), batches=(1, 4), seconds=0.02, expect=["p50_ms<1000", "macs==1"], profile=True, tune=True)


def test_a_file_given_twice_has_two_rows(told):
    assert {row.model for row in told.results} == {"m.onnx", "m.onnx (2)"}
    assert {(row.model, row.against) for row in told.speedups} == {("m.onnx (2)", "m.onnx")}


def test_percentiles_and_throughput(told):
    for row in told.results:
        assert row.p10_ms <= row.median_ms <= row.p90_ms <= row.p95_ms <= row.p99_ms
        assert row.images_per_second == pytest.approx(1e3 * row.batch / row.median_ms)


def test_every_setting_is_started_in_a_process_of_its_own(told):
    assert [(s.model, s.batch) for s in told.starts] == [(r.model, r.batch) for r in told.results]
    for row in told.starts:
        assert row.load_seconds > 0
        assert row.first_run_seconds > 0
        assert 0 < row.runtime_memory_bytes <= row.peak_memory_bytes < 200 * 2**20  # PyTorch alone takes more


def test_memory_counts_the_images(tmp_path):
    path = written(tmp_path / "m.onnx", ("n", 3, 512, 512))
    small, large = (start("m", path, np.zeros((batch, 3, 512, 512), np.float32)) for batch in (1, 40))
    assert abs(large.runtime_memory_bytes - small.runtime_memory_bytes) < 4 * 2**20
    assert large.peak_memory_bytes - small.peak_memory_bytes == pytest.approx(39 * 3 * 512 * 512 * 4, rel=0.05)


def test_operators_are_timed_slowest_first(told):
    for profile in told.profiles:
        assert {"MatMul"} <= {one.op for one in profile.operators}
        for rows in (profile.operators, profile.kernels):
            assert [row.median_ms for row in rows] == sorted((row.median_ms for row in rows), reverse=True)
        assert sum(one.share for one in profile.operators) == pytest.approx(1)
        assert sum(one.count for one in profile.operators) == len(profile.kernels)


@pytest.mark.parametrize("given", [{"kind": TensorProto.UINT8}, {"shape": (3, 1, 8, 8)}], ids=["whole numbers", "fixed batch"])
def test_any_file_is_profiled(tmp_path, given):
    batch = 3 if "shape" in given else 1
    assert profiled("m", written(tmp_path / "m.onnx", **given), provider="cpu", batch=batch, threads=1, seconds=0.01).kernels


def test_the_settings_that_are_told_can_be_pasted(told):
    for tuned in told.tuned:
        assert tuned.best in tuned.tried or tuned.best.low > 1
        names: dict = {}
        exec(tuned.code, names)
        assert isinstance(names["session"], onnxruntime.InferenceSession)
        assert {"threads", "optimisation", "spinning", "median_ms"} <= set(tuned.to_dict()["best"])


def test_the_defaults_are_kept_where_nothing_is_surely_faster(tmp_path, monkeypatch):
    monkeypatch.setattr("slimrank.evaluate.tune._race", lambda *a: {s: [[1.0, 1.1], [1.0, 0.9]] for s in a[3]})
    found = best_settings("m", written(tmp_path / "m.onnx"))
    assert found.best.setting == found.tried[0].setting
    assert "none is faster for certain" in str(found)


def test_all_of_it_is_json(told):
    assert {"results", "speedups", "files", "starts", "profiles", "tuned", "expected", "tuning", "machine"} <= set(
        json.loads(json.dumps(told.to_dict()))
    )


# -- which images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size", "sides"),
    [
        (("n", 1, "h", "w"), 24, (1, 24, 24)), (("n", 3, "h", "w"), (16, 24), (3, 16, 24)), ((2, "h", "w", 3), 9, (9, 9, 3)),
        (("n", "c", "h", "w"), 24, (3, 24, 24)), (("n", 3, 24, "w"), (24, 32), (3, 24, 32)), (("n", 3, 9, 9), 9, (3, 9, 9)),
    ],
)  # fmt: skip
def test_open_sizes_are_given(tmp_path, shape, size, sides):
    path = written(tmp_path / "m.onnx", shape)
    assert Runner(path, size=size).sides() == sides
    found = bench({"a": path}, batches=(2,), seconds=0.001, images=ImageSpec(size=size))
    assert found.files[0].macs == 0
    assert found.results[0].batch == 2


@pytest.mark.parametrize(("shape", "size"), [(("n", 3, 24, 24), 32), (("n", 3, 24, "w"), (16, 24)), (("n", "features"), 24)])
def test_a_size_that_a_file_does_not_take_is_one_line(tmp_path, shape, size):
    with pytest.raises(SlimrankError, match="leave `size` out"):
        bench({"a": written(tmp_path / "m.onnx", shape)}, **QUICK, images=ImageSpec(size=size))


def test_images_of_a_file_are_run(tmp_path, monkeypatch):
    images = np.random.default_rng(0).random((4, 1, 8, 8))
    np.savez(tmp_path / "i.npz", images=images)
    fed, real = [], latency.Runner.bound
    monkeypatch.setattr(latency.Runner, "bound", lambda self, batch, given: (fed.append(given), real(self, batch, given))[1])
    bench({"a": written(tmp_path / "m.onnx")}, **QUICK, inputs=tmp_path / "i.npz")
    assert all(np.array_equal(one, images[:2].astype(np.float32)) for one in fed)


def test_images_of_data_are_run_as_the_file_sees_them(tmp_path):
    path = written(tmp_path / "m.onnx", kind=TensorProto.UINT8)
    found = bench({"a": path}, **QUICK, data=DataSpec(data="digits", limit=4))
    assert found.results[0].batch == 2
    with pytest.raises(SlimrankError, match="`data` digits has 4 images, fewer than `batch` 8"):
        bench({"a": path}, batches=(8,), seconds=0.001, data=DataSpec(data="digits", limit=4))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((2, 1, 7, 8))}, "reads"),
        ({"images": np.zeros((1, 1, 8, 8))}, "has 1 images, fewer than `batch` 2"),
        ({"images": np.float32(1)}, "reads"),
        ({"a": np.zeros(2), "b": np.zeros(2)}, "holds a, b"),
        ({}, "holds nothing"),
        ({"images": np.full((2, 1, 8, 8), "a")}, "convert them"),
        ({"images": np.array([None])}, "no .npz file"),
    ],
    ids=["another shape", "too few", "no batch", "two arrays", "none", "text", "objects"],
)
def test_images_that_do_not_fit_are_one_line(tmp_path, arrays, says):
    np.savez(tmp_path / "i.npz", **arrays)
    with pytest.raises(SlimrankError, match=says):
        bench({"a": written(tmp_path / "m.onnx")}, **QUICK, inputs=tmp_path / "i.npz")


@pytest.mark.parametrize("content", [None, b"", b"text", b"\x93NUMPY"])
def test_what_is_no_npz_file_is_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "i.npz").write_bytes(content)
    with pytest.raises(SlimrankError, match=r"i\.npz (is no \.npz file of arrays|holds one bare array)(?!.*pickle)"):
        bench({"a": written(tmp_path / "m.onnx")}, **QUICK, inputs=tmp_path / "i.npz")


# -- weights beside, providers ---------------------------------------------------------------------------------------


def scattered(folder, location):
    """A file whose weight lies in `m.data` and that says it lies at `location`."""
    model = onnx.load(written(folder / "m.onnx"))
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=100)
    model = onnx.load(folder / "m.onnx", load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = location if entry.key == "location" else entry.value
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def test_weights_beside_count_as_bytes_of_the_file(tmp_path):
    path = scattered(tmp_path, "m.data")
    assert size(path) == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    assert bench({"a": path}, **QUICK).files[0].macs == 640


@pytest.mark.parametrize(
    ("location", "says"),
    [("gone.data", "not beside it"), ("../m.data", "outside its own folder"), ("/m.data", "outside"), ("short", "ends before")],
)
def test_weights_that_are_not_beside_are_one_line(tmp_path, location, says):
    (tmp_path / "short").write_bytes(b"1")
    with pytest.raises(SlimrankError, match=says) as error:
        bench({"a": scattered(tmp_path, location)}, **QUICK)
    assert f"keeps weights in {location}" in str(error.value)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_provider_that_is_missing_says_what_to_install(monkeypatch, provider):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(SlimrankError, match=f"no {session.PROVIDERS[provider]}; on an? .*pip install onnxruntime-"):
        session.check_provider(provider)


@pytest.mark.parametrize(
    ("provider", "options"),
    [("cuda", {"cudnn_conv_algo_search": "EXHAUSTIVE"}), ("openvino", {"num_of_threads": "3"}), ("cpu", None)],
)
def test_a_provider_is_asked_for_what_is_told_of_it(tmp_path, monkeypatch, provider, options):
    asked = []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(session.PROVIDERS.values()))

    class Fake:
        def __init__(self, path, options, providers):
            asked.extend(providers)

        def get_providers(self):
            return [session.PROVIDERS[provider]]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fake)
    session.opened(written(tmp_path / "m.onnx"), provider, 3)
    name = session.PROVIDERS[provider]
    assert asked == [name if options is None else (name, options)]


# -- expectations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values", "holds", "measured"),
    [
        ("a>=1.5", [1.5, 2], True, 1.5), ("a>1.5", [1.5, 2], False, 1.5), ("a <= 3", [1, 2], True, 2), ("a<2", [2], False, 2),
        ("a==1e1", [10, 10], True, 10), ("a==10", [10, 12], False, 12), ("a>=-1", [0], True, 0),
    ],
)  # fmt: skip
def test_expectations_are_judged_by_the_farthest_figure(text, values, holds, measured):
    (one,) = expectations([text], ["a"])
    judged = one.judged([(str(value), value) for value in values])
    assert (judged.holds, judged.measured, judged.where) == (holds, measured, str(measured))


@pytest.mark.parametrize("text", ["", "fast", "a", "a>=", ">=1", "a=1", "a>=1x", "a>=nan", "a>=1 b<2", "a!=1", "1<=a"])
def test_what_cannot_be_read_is_one_line(text):
    with pytest.raises(SlimrankError, match="no expectation; write"):
        expectations([text], ["a"])


@pytest.mark.parametrize(
    ("text", "says"),
    [("speedup>=1", "needs a second file"), ("top1>=0.5", "slimrank evaluate"), ("p95>=1", "near ones: p95_ms")],
)
def test_what_is_not_measured_is_told_before_anything_runs(tmp_path, text, says):
    with pytest.raises(SlimrankError, match=says):
        bench({"a": tmp_path / "not even there.onnx"}, expect=[text])


def test_of_several_files_the_first_is_not_judged(tmp_path):
    large, small = written(tmp_path / "a.onnx", ("n", 1, 8, 8)), written(tmp_path / "b.onnx", ("n", 1, 4, 4))
    assert bench({"a": large, "b": small}, **QUICK, expect=["macs<=600"]).expected[0].holds
    assert not bench({"b": small, "a": large}, **QUICK, expect=["macs<=600"]).expected[0].holds


def test_the_status_is_3_where_one_does_not_hold(tmp_path, capsys):
    words = ["bench", str(written(tmp_path / "m.onnx")), "--batch", "1", "--seconds", "0.01"]
    assert main([*words, "--expect", "macs==640", "--expect", "p99_ms<1e9"]) == 0
    assert main([*words, "--expect", "macs==640", "--expect", "p99_ms<0", "--json"]) == 3
    out, err = capsys.readouterr()
    assert [one["holds"] for one in json.loads(out.splitlines()[-1])["expected"]] == [True, False]
    assert "expected p99_ms<0: DOES NOT HOLD" in err


def test_accuracy_and_agreement_are_expected_of_evaluate(tmp_path, capsys):
    path = str(written(tmp_path / "m.onnx"))
    words = ["evaluate", path, "--data", "digits", "--limit", "50"]
    assert main([*words, "--against", path, "--expect", "agreement==1", "--expect", "top1<=1"]) == 0
    assert main([*words, "--expect", "top1>=1"]) == 3
    assert main([*words, "--expect", "agreement>=1"]) == 1
    assert "needs --against" in capsys.readouterr().err


def test_two_inputs_are_one_line(tmp_path):
    with pytest.raises(SlimrankError, match=r"2 inputs \(images, size\)"):
        bench({"a": written(tmp_path / "m.onnx", inputs=[SECOND])}, **QUICK)
