"""int8: ranges, what is quantised, which layers stay float, and what is written in the end."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from slimrank.compress.head.timing import random_head
from slimrank.compress.network.checkpoint import Checkpoint, save
from slimrank.compress.options import CompressOptions
from slimrank.compress.pipeline import compress
from slimrank.compress.pruning import latency_budget
from slimrank.compress.stages.export import export as export_stage
from slimrank.compress.stages.options import ExportOptions
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.kernels import Kernel, profile
from slimrank.evaluate.latency import Comparison, Speedup, machine
from slimrank.evaluate.onnx_macs import count_onnx
from slimrank.evaluate.runner import Runner
from slimrank.export import int8, mixed
from slimrank.export.calibration import calibrate
from slimrank.export.int8 import OPS, FloatFile, Kernels, int8_to_time
from slimrank.export.mixed import Judged, _Search
from slimrank.export.to_onnx import export, metadata

from .digits import Digits, models_preprocessing


def network(head: nn.Module) -> nn.Module:
    """Three convolutions, one of them grouped, with a sum between, and a head that reads 96 features."""
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32)
            self.c, self.head = nn.Conv2d(32, 96, 3, 2, 1), head

        def forward(self, x):
            x = self.a(x).relu()
            x = self.c(x + self.b(x).relu()).relu()
            return self.head(x.mean((2, 3)))

    return Network().eval()


X = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "float.onnx"
    return FloatFile(export(network(nn.Linear(96, 30)), X[:1], path, {"a": 1}))


@pytest.fixture(scope="module")
def ranges(file):
    return calibrate(file.path, X.split(8), OPS)


def test_ranges_are_those_of_the_tensors(file, ranges):
    model = onnx.load(file.path)
    relu = next(node.output[0] for node in model.graph.node if node.op_type == "Relu")
    model.graph.output.append(onnx.helper.make_tensor_value_info(relu, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (seen,) = session.run([relu], {"images": X.numpy()})
    for name, values in (("images", X.numpy()), (relu, seen)):
        low, high = (getattr(ranges["minmax"][name], side) for side in ("lowest", "highest"))
        np.testing.assert_allclose([low, high], [values.min(), values.max()], rtol=1e-5)
        for method in ("entropy", "percentile"):
            assert low <= ranges[method][name].lowest <= 0 < ranges[method][name].highest <= high
    low, high = (float(getattr(ranges["percentile"]["images"], side)) for side in ("lowest", "highest"))
    inside = torch.logical_and(low <= X, high >= X).float()
    assert 0.999 < float(inside.mean()) < 1


@pytest.mark.parametrize("seven_bits", [False, True], ids=["VNNI", "without"])
def test_weights_are_rounded_to_the_nearest_step_of_their_channel(file, ranges, tmp_path, monkeypatch, seven_bits):
    monkeypatch.setattr(int8, "machine_kernels", lambda: Kernels(signed=False, seven_bits=seven_bits))
    fresh = FloatFile(file.path)
    path = fresh.write(tmp_path / "q.onnx", ranges["minmax"])
    given, made = ({t.name: numpy_helper.to_array(t) for t in onnx.load(p).graph.initializer} for p in (file.path, path))
    for layer in fresh.layers:
        steps, whole = made[f"{layer}.weight_scale"], made[f"{layer}.weight_quantized"]
        step = steps.reshape(-1, *[1] * (whole.ndim - 1))
        assert steps.shape == (len(whole),)
        assert np.abs(whole * step - given[f"{layer}.weight"]).max() <= 0.5001 * steps.max()
        assert (np.abs(whole - given[f"{layer}.weight"] / step) <= 0.501).all()
        assert 60 < np.abs(whole.astype(int)).max() <= (64 if seven_bits else 127)
    assert metadata(path) == {"a": 1}
    weights = {kernel.weight for kernel in profile(path, seconds=0)} - {None}
    assert weights == {f"{name}.weight" for name in fresh.layers}


def test_int8_decides_as_float_and_layers_can_stay_out(file, ranges, tmp_path):
    logits = Runner(file.path)(X)
    errors = []
    for floats in ((), ("a",), ("a", "b", "c")):
        path = file.write(tmp_path / "q.onnx", ranges["minmax"], floats)
        made = {t.name for t in onnx.load(path).graph.initializer}
        assert {name for name in file.layers if f"{name}.weight" in made} == set(floats)
        errors.append(float((Runner(path)(X) - logits).std() / logits.std()))
        assert Runner(path)(X[:1]).shape == (1, 30)
    assert errors[0] < 0.03
    assert errors[2] < errors[1] < errors[0]


LAYOUTS = [
    ("gather", {"rescore": 4, "reorder": True}), ("tiled", {}), ("int8", {}),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "more"), LAYOUTS, ids=[f"{layout} {' '.join(more)}" for layout, more in LAYOUTS])
def test_class_specific_heads_stay_as_they_are(tmp_path, layout, more):
    one = {"class_groups": 1} if layout == "int8" else {"class_groups": 5, "tile": 4}
    model = network(random_head(96, 30, 96 if layout == "int8" else 16, layout, **one, **more))
    file = FloatFile(export(model, X[:1], tmp_path / "float.onnx", {}))
    assert [name for name in file.layers if "coarse" not in name] == ["a", "b", "c"]
    path = file.write(tmp_path / "q.onnx", calibrate(file.path, X.split(32), OPS)["minmax"])
    weights = {"a", "b", "c", "head.coarse_weight"}
    made = {
        t.name.removesuffix("_quantized").removesuffix(".weight") for t in onnx.load(path).graph.initializer if t.data_type == 3
    }
    kept = {t.name for t in onnx.load(file.path).graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert {name for name in made - kept if "zero_point" not in name} <= weights  # their own int8 weights are no others
    logits, found = model(X).detach(), Runner(path)(X)
    assert float((found.argmax(1) == logits.argmax(1)).float().mean()) >= 0.93
    assert Runner(path)(X[:1]).shape == (1, 30)


def test_what_quantises_itself_is_refused(file, ranges, tmp_path):
    path = file.write(tmp_path / "q.onnx", ranges["minmax"])
    with pytest.raises(SlimrankError, match="quantises itself already"):
        FloatFile(path)


def test_the_file_is_as_onnx_demands_and_counts_as_the_float_one(file, ranges, tmp_path):
    out = file.write(tmp_path / "int8.onnx", ranges["minmax"])
    onnx.checker.check_model(out, full_check=True)
    assert count_onnx(out).macs == count_onnx(file.path).macs > 0


def test_infinite_activations_are_told_in_one_line(file):
    with pytest.raises(SlimrankError, match=r"cannot calibrate this network: .*; leave out `int8`"):
        calibrate(file.path, [torch.full((2, 3, 16, 16), torch.inf)], OPS)


def judged(wrong, images=1000):
    return Judged(torch.arange(images) >= wrong, None, wrong / images)


class Planted(_Search):
    """A search whose files are not written: each layer in int8 changes the decisions on its own images."""

    loses: dict[str, range]

    def judged(self, floats):
        self.known.setdefault(frozenset(floats), None)
        equal = torch.ones(1000, dtype=torch.bool)
        for layer, images in self.loses.items():
            if layer not in floats:
                equal[list(images)] = False
        return Judged(equal, None, 0.0)


def planted(loses):
    search = Planted(file=None, judge=None, timing=None, folder=None, ranges={})
    search.loses = loses
    return search


NAMES = [f"layer{i}" for i in range(16)]


@pytest.mark.parametrize(
    ("loses", "found"),
    [
        ({"layer5": range(0, 100)}, ["layer5"]),
        ({"layer2": range(0, 50), "layer13": range(500, 540)}, ["layer2", "layer13"]),
        ({f"layer{i}": range(5 * i, 5 * i + 5) for i in range(16)}, []),
        ({"layer7": range(0, 8)}, []),
        ({}, []),
    ],
    ids=["one", "two", "spread evenly", "no more than noise", "none"],
)
def test_layers_that_cost_decisions_are_found_by_halves(loses, found):
    search = planted(loses)
    regained = search.costly(NAMES, frozenset())
    assert list(regained) == found
    assert all(regained[name] == pytest.approx(len(loses[name]) / 1000) for name in found)
    assert len(search.known) <= (2 + 8 * len(found) if found else 2 * len(NAMES))


@pytest.mark.parametrize(
    "wanted", [(), ("layer0",), ("layer3", "layer12"), ("layer1", "layer2", "layer15"), tuple(NAMES)], ids=len
)
def test_the_smallest_set_that_holds_is_found(wanted):
    search = planted({})
    search.known.clear()
    assert search.needed(frozenset(), NAMES, lambda floats: floats.issuperset(wanted)) == list(wanted)


def test_of_several_sets_that_hold_the_cheapest_is_taken():
    pairs = [{"layer1", "layer9"}, {"layer0", "layer14"}, {"layer13", "layer15"}]
    found = planted({}).needed(frozenset(), NAMES, lambda floats: any(floats.issuperset(pair) for pair in pairs))
    assert found == ["layer1", "layer9"]  # its last layer comes earliest


def faked(monkeypatch, speed, float_ms=None):
    """Fake clocks: `speed(path)` of an int8 file over the one it is timed against; a profile by layer."""

    def compare(models, **settings):
        _, path = models.values()
        return Comparison([], [Speedup("int8", "float", "cpu", b, 1, speed(path)) for b in settings["batches"]], machine())

    def profiled(path, **settings):
        made = {t.name for t in onnx.load(path).graph.initializer}
        slow = float_ms or {}
        return [
            Kernel(name, "Conv", 1.0 if f"{name}.weight" in made else slow.get(name, 0.5), f"{name}.weight")
            for name in ("a", "b", "c", "head")
        ]

    monkeypatch.setattr(mixed, "compare", compare)
    monkeypatch.setattr(mixed, "profile", profiled)


@pytest.mark.parametrize("slow", [(), ("b",), ("a", "c"), ("a", "b", "c")], ids=len)
def test_layers_that_cost_time_stay_float(file, ranges, tmp_path, monkeypatch, slow):
    def speed(path):
        made = {t.name for t in onnx.load(path).graph.initializer}
        return (
            1
            + 0.1 * sum(f"{name}.weight" in made for name in slow)
            - 0.05 * sum(f"{n}.weight" in made for n in "abc" if n not in slow)
        )

    faked(monkeypatch, speed, dict.fromkeys(slow, 1.5))
    search = _Search(file, None, mixed.Timing(batch=(1,)), tmp_path, ranges, "minmax")
    assert search.slower(search.times()) == list(slow)


def test_a_slower_layer_that_no_run_confirms_stays_int8(file, ranges, tmp_path, monkeypatch):
    faked(monkeypatch, lambda path: 1.0, {"b": 1.5})
    search = _Search(file, None, mixed.Timing(batch=(1,)), tmp_path, ranges, "minmax")
    assert search.slower(search.times()) == []


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A LeNet that knows some digits, the digits, and its float file."""
    checkpoint = Checkpoint(
        Digits().model.float().eval(), "lenet5", {"widths": [6, 8, 16, 7], "size": 16}, models_preprocessing(), trained_on=[]
    )
    data = open_data("digits", checkpoint.preprocessing)
    return checkpoint, data, export_stage(checkpoint, tmp_path_factory.mktemp("plain") / "float.onnx", data)


@pytest.mark.parametrize("faster", [True, False], ids=["faster", "slower"])
def test_int8_is_written_where_it_is_faster(given, tmp_path, monkeypatch, faster):
    faked(monkeypatch, lambda path: 2.0 if faster else 0.8)
    checkpoint, data, plain = given
    found = export_stage(checkpoint, tmp_path / "m.onnx", data, ExportOptions(int8=True, max_drop=0.05))
    assert found.int8.taken is faster
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert ("QuantizeLinear" in kinds) is faster
    assert metadata(tmp_path / "m.onnx") == metadata(plain.path)
    assert found.to_dict()["int8"]["before"]["agreement"] == 1.0
    if faster:
        assert found.parity.agreement > 0.9
        assert found.parity.top1 == pytest.approx(plain.parity.top1, abs=0.05)
        assert found.bytes < plain.bytes
        assert "2.00x at batch 1" in str(found)
    else:
        assert found.parity == plain.parity
        assert "at its best it is slower here, 0.80x at batch 1" in str(found)


def test_max_drop_holds_int8_to_accuracy(given, tmp_path, monkeypatch):
    """With ranges of a thousandth the network decides by chance; what `max_drop` allows is held to all the same."""
    faked(monkeypatch, lambda path: 2.0)
    checkpoint, data, _ = given
    usual = mixed.calibrate

    def narrow(*args):
        found = usual(*args)["minmax"]
        for name in ("relu", "relu_1", "conv2d", "conv2d_1", "max_pool2d"):
            if name in found:
                found[name].highest = np.float32(found[name].highest / 1000)
        return {"minmax": found}

    monkeypatch.setattr(mixed, "calibrate", narrow)
    found = export_stage(checkpoint, tmp_path / "m.onnx", data, ExportOptions(int8=True, max_drop=0.02)).int8
    assert found.methods["minmax"] < 0.9
    assert {layer.by for layer in found.floats} <= {"agreement", "max_drop"}
    assert found.floats
    assert not found.taken or found.before.top1 - found.after.top1 <= 0.02


def test_float16_decides_as_float_in_half_of_the_bytes(given, tmp_path):
    checkpoint, data, plain = given
    found = export_stage(checkpoint, tmp_path / "m.onnx", data, ExportOptions(fp16=True))
    kinds = {tensor.data_type for tensor in onnx.load(found.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    assert onnx.TensorProto.FLOAT not in kinds
    assert 0 < found.parity.relative < 0.05
    assert found.parity.agreement > 0.99
    assert found.bytes < plain.bytes
    assert metadata(found.path) == metadata(plain.path)
    assert Runner(found.path).kind == np.float32


@pytest.mark.parametrize("limit", [5, 31])
def test_too_few_images_to_calibrate_on(given, tmp_path, limit):
    data = open_data("digits", given[0].preprocessing, limit=limit)
    with pytest.raises(SlimrankError, match=f"at least 32 training images, there are {limit}"):
        export_stage(given[0], tmp_path / "m.onnx", data, ExportOptions(int8=True))
    assert not list(tmp_path.iterdir())


def test_latency_is_that_of_the_int8_file(tmp_path, monkeypatch):
    model, seen = network(nn.Linear(96, 30)), []

    def to_time(path, out, images):
        seen.append(path.name)
        return int8_to_time(path, out, images)

    monkeypatch.setattr(latency_budget, "int8_to_time", to_time)

    def compare(models, **settings):
        kinds = [{node.op_type for node in onnx.load(path).graph.node} for path in models.values()]
        assert ["QuantizeLinear" in kind for kind in kinds] == [False, True]
        return Comparison([], [Speedup("smaller", "dense", "cpu", 1, 1, 4.0)], machine())

    monkeypatch.setattr(latency_budget, "compare", compare)
    files = [latency_budget.to_time(model, X[:2], tmp_path / f"{i}.onnx", bool(i)) for i in range(2)]
    assert latency_budget.time_share(*files, mixed.Timing(batch=(1,))) == 0.25
    assert seen == ["1.onnx"]


def test_compress_leaves_an_int8_file_beside_the_float_one(given, tmp_path, monkeypatch):
    faked(monkeypatch, lambda path: 2.0)
    save(given[0], tmp_path / "g.safetensors")
    timing = mixed.Timing(batch=(1,))
    options = CompressOptions(data=DataSpec(data="digits", limit=200), epochs=0, head="linear", int8=True, timing=timing)
    report = compress(tmp_path / "g.safetensors", tmp_path / "out", options)
    stage = next(stage for stage in report["stages"] if stage["name"] == "export")
    assert stage["int8"]["taken"]
    files = {name: (tmp_path / "out" / name).stat().st_size for name in ("model.onnx", "model-float.onnx")}
    assert [report["compressed"]["bytes"], stage["int8"]["float"]["bytes"]] == list(files.values())
    assert [row["model"] for row in report["compressed"]["latency"]] == ["compressed"]
    timed = {row["model"] for stage in report["stages"] if stage["name"] == "bench" for row in stage["results"]}
    assert timed == {"baseline", "compressed", "compressed, float"}
    assert report["compressed"]["top1"] == stage["parity"]["top1"]
