"""ONNX files: parity, metadata, one file, dynamic batch; latency bookkeeping."""

import contextlib
import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper

from slimrank.compress.head.install import with_head
from slimrank.compress.head.low_rank import low_rank
from slimrank.compress.head.timing import random_head
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import Checkpoint, load
from slimrank.compress.stages.export import compared, onnx_metadata
from slimrank.compress.stages.export import export as export_stage
from slimrank.compress.stages.options import ExportOptions
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Preprocessing, open_data
from slimrank.evaluate.latency import compare, interleaved
from slimrank.evaluate.runner import PROVIDERS, Runner
from slimrank.export import to_onnx
from slimrank.export.parity import Parity, parity
from slimrank.export.quantize import quantized
from slimrank.export.to_onnx import export, metadata

from .test_checkpoint import pruned


@pytest.mark.parametrize(
    ("name", "size", "head"), [("resnet20-cifar", 32, True), ("resnet18", 64, False), ("mobilenet_v2", 64, False)]
)
def test_pruned_networks_agree_with_their_onnx_file(tmp_path, name, size, head):
    made = pruned(name, size=size, head=head)
    for module in made.model.modules():  # a random network's BatchNorm gives no spread; real statistics do
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.train()
    with torch.no_grad():
        made.model(torch.randn(64, *made.preprocessing.shape))
    made.model.eval()
    path = export(made.model, made.example(), tmp_path / "m.onnx", onnx_metadata(made))
    found = compared(made, path, None)
    assert found.relative < 1e-4
    assert found.agreement == 1.0
    assert found.on == "random inputs"
    assert metadata(path)["preprocessing"]["size"] == size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]
    runner = Runner(path)
    assert [runner(torch.zeros(b, 3, size, size)).shape[0] for b in (1, 2, 5)] == [1, 2, 5]
    params = sum(p.numel() for p in made.model.parameters())
    assert path.stat().st_size < 4 * params + 400_000
    onnx.checker.check_model(str(path))


@pytest.mark.parametrize("layout", ["dense", "gather", "tiled"])
def test_each_layout_in_onnx_runtime(tmp_path, layout):
    kinds = ((0, False, 0), (4, True, 0), *([(0, True, 3), (4, False, 2)] if layout == "tiled" else []))
    for number, (rescore, reorder, probe) in enumerate(kinds):
        head = random_head(96, 30, 16, layout, class_groups=5, tile=4, reorder=reorder, rescore=rescore, probe=probe)
        path = export(head, torch.zeros(1, 96), tmp_path / f"{number}.onnx", {})
        x = torch.randn(9, 96)
        torch.testing.assert_close(Runner(path)(x), head(x).detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(Runner(path)(x[:1]), head(x[:1]).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["relu", "signed", "zero"])
def test_int8_rounds_as_onnx_runtime_does(tmp_path, kind):
    """Given the same features; behind a network, features that differ in the last bit may be rounded to the next level."""
    x = {"relu": torch.randn(9, 96).relu(), "signed": torch.randn(9, 96), "zero": torch.zeros(9, 96)}[kind]
    head = random_head(96, 30, 96, "int8", class_groups=1)
    ours = head(x).detach()
    path = export(head, torch.zeros(1, 96), tmp_path / f"{kind}.onnx", {})
    torch.testing.assert_close(Runner(path)(x), ours, rtol=1e-5, atol=1e-5)
    exact = head.train()(x).detach()
    assert float((ours - exact).abs().max()) <= 0.05 * float(exact.std().clamp_min(1e-30))
    assert path.stat().st_size < 2 * head.weight.numel() + 4000
    head.slice_channels(torch.arange(96) < 48, torch.ones(30, dtype=torch.bool))
    assert head.eval()(x[:, :48]).shape == (9, 30)


def test_weights_beyond_protobufs_limit_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "ONE_FILE", 0)
    linear, x = torch.nn.Linear(96, 300), torch.randn(3, 96)
    path = export(linear, x[:1], tmp_path / "big.onnx", {"a": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert to_onnx.size(path) > 4 * 96 * 300 > path.stat().st_size
    assert to_onnx.metadata(path) == {"a": 1}
    torch.testing.assert_close(Runner(path)(x), linear(x).detach(), rtol=1e-5, atol=1e-5)
    monkeypatch.undo()
    export(linear, x[:1], path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["big.onnx"]


def test_low_rank_and_int8_rivals(tmp_path):
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 30)
    weight, bias = linear.weight.detach(), linear.bias.detach()
    x = torch.randn(2000, 96) @ torch.randn(96, 96)
    full = low_rank(weight, bias, 30 * (96 + 30))
    torch.testing.assert_close(full(x).detach(), linear(x).detach(), rtol=1e-4, atol=1e-4)
    moments = x.double().mean(0), torch.cov(x.double().T, correction=0)
    errors = [float((low_rank(weight, bias, 1000, m)(x) - linear(x)).detach().square().mean()) for m in (None, moments)]
    assert errors[1] < errors[0]  # the logits' low rank, not the weights'
    again = low_rank(weight, bias, 1000, rescore=30)
    torch.testing.assert_close(again(x).detach(), linear(x).detach(), rtol=1e-4, atol=1e-3)
    path = export(linear, torch.zeros(1, 96), tmp_path / "l.onnx", {})
    small = quantized(path, tmp_path / "q.onnx")
    assert small.stat().st_size < path.stat().st_size
    off = Runner(small)(x) - linear(x).detach()
    assert float(off.std() / linear(x).detach().std()) < 0.03


def test_real_images(resnet20, cifar, tmp_path):
    checkpoint = load(resnet20, model="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing, limit=1000)
    path = export(checkpoint.model, checkpoint.example(), tmp_path / "m.onnx", onnx_metadata(checkpoint))
    found = compared(checkpoint, path, data)
    assert found.relative < 1e-4
    assert found.agreement == 1.0
    assert found.images == 1000


def test_a_dead_model_proves_nothing(tmp_path):
    model = zoo.build("lenet5").eval()
    model.fc3.weight.data.zero_()
    model.fc3.bias.data.zero_()
    path = export(model, torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    with pytest.raises(SlimrankError, match="proves nothing"):
        parity(model, Runner(path), [(torch.randn(4, 1, 28, 28), None)], "random inputs")


def test_parity_sees_a_wrong_file(tmp_path):
    torch.manual_seed(0)
    model = zoo.build("lenet5").eval()
    other = with_head(model, "fc3", torch.nn.Linear(25, 10)).eval()
    path = export(other, torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    found = parity(model, Runner(path), [(torch.randn(64, 1, 28, 28), None)], "random inputs")
    assert found.relative > 0.1
    assert found.agreement < 1


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_parity_is_of_every_batch(wrong):
    """A file that differs on one image of one batch: seen wherever that is, measured by the spread of all logits."""
    generator = torch.Generator().manual_seed(0)
    images = [5 * torch.randn(n, 4, generator=generator).double() + 3 for n in (3, 4, 2)]
    labels = [x.argmax(1) for x in images]
    differs = images[wrong].clone()
    differs[1] = differs[1].roll(1)
    written = {id(x): differs if place == wrong else x for place, x in enumerate(images)}

    found = parity(torch.nn.Identity(), lambda x: written[id(x)], zip(images, labels, strict=True), "images")

    every, largest = torch.cat(images), float((differs - images[wrong]).abs().max())
    assert (found.images, found.on, found.max_abs_diff) == (9, "images", largest)
    assert found.relative == pytest.approx(largest / float(every.std(correction=0)))
    assert found.agreement == found.top1 == 8 / 9


@pytest.mark.parametrize(("top1", "told"), [(None, ""), (0.5, ", top-1 0.5000")])
def test_parity_tells_the_top1_where_there_is_one(top1, told):
    found = str(Parity(0.25, 0.125, 0.5, 1000, "images", top1))
    assert (
        found == f"largest logit difference 2.50e-01 (1.2e-01 of the spread), same decision on 50.0000% of 1,000 images{told}"
    )


@pytest.mark.parametrize("unknown", [0, 1])
def test_the_top1_of_a_file_needs_every_label(unknown):
    batches = [(torch.eye(4), torch.arange(4)), (torch.eye(4), torch.arange(4))]
    batches[unknown][1][2] = -1
    assert parity(torch.nn.Identity(), lambda x: x, batches, "images").top1 is None


def test_a_file_of_another_shape_is_named():
    with pytest.raises(SlimrankError, match=r"gives \[4, 3\] for the model's \[4, 4\]"):
        parity(torch.nn.Identity(), lambda x: x[:, :3], [(torch.eye(4), None)], "images")


def test_a_tolerance_is_a_share_of_the_spread():
    found = parity(torch.nn.Identity(), lambda x: 1.5 * x, [(10 * torch.eye(4), None)], "images")
    assert found.check(found.relative) is found
    with pytest.raises(SlimrankError, match="`tolerance`"):
        found.check(0.99 * found.relative)


class Restless(torch.nn.Module):
    """A LeNet whose logits differ from run to run, in eval mode too."""

    def __init__(self, how):
        super().__init__()
        self.net, self.how = zoo.build("lenet5"), how

    def forward(self, x):
        y = self.net(x)
        return F.dropout(y, 0.3) if self.how == "dropout" else y + torch.randn_like(y) * self.net.fc3.weight.std()


def dead():
    model = zoo.build("lenet5")
    model.fc3.weight.data.zero_()
    model.fc3.bias.data.zero_()
    return model


@pytest.mark.parametrize(
    ("make", "says", "beside"),
    [
        (lambda: Restless("dropout"), "more than `tolerance` 0.01", b"weights of the old file"),
        (lambda: Restless("noise"), "more than `tolerance` 0.01", None),
        (dead, "proves nothing", None),
    ],
    ids=["dropout, weights beside", "noise", "dead"],
)
def test_a_refused_export_leaves_the_old_file(tmp_path, monkeypatch, make, says, beside):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    if beside:
        path.with_name("m.onnx.data").write_bytes(beside)
        monkeypatch.setattr(to_onnx, "ONE_FILE", 0)
    torch.manual_seed(0)
    checkpoint = Checkpoint(make().eval(), "lenet5", {}, Preprocessing(28, (0.5,), (0.5,)))
    with pytest.raises(SlimrankError, match=says):
        export_stage(checkpoint, path)
    left = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert left == {"m.onnx": b"old"} | ({"m.onnx.data": beside} if beside else {})


def test_a_tolerance_that_is_asked_for_is_kept_to(tmp_path):
    torch.manual_seed(0)
    checkpoint = Checkpoint(Restless("noise").eval(), "lenet5", {}, Preprocessing(28, (0.5,), (0.5,)))
    found = export_stage(checkpoint, tmp_path / "m.onnx", None, ExportOptions(tolerance=1e9))
    assert found.parity.relative > 0.01
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def stored(path, wide):
    """An ONNX file of one weight, which lies beside it where `wide`."""
    weight = numpy_helper.from_array(np.random.default_rng(wide).standard_normal((64, 64)), "weight")
    graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("weight", weight.data_type, [64, 64])], [weight])
    onnx.save(helper.make_model(graph), path, save_as_external_data=wide, location=f"{path.name}.data", size_threshold=0)


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("new", [False, True], ids=["one file", "weights beside"])
@pytest.mark.parametrize("old", [False, True], ids=["over one file", "over weights beside"])
def test_a_file_and_its_weights_are_replaced_together_or_not_at_all(tmp_path, old, new):
    path = tmp_path / "m.onnx"
    stored(path, old)
    before = contents(tmp_path)
    with contextlib.suppress(KeyboardInterrupt), to_onnx.replacing(path) as fresh:
        stored(fresh, new)
        raise KeyboardInterrupt
    assert contents(tmp_path) == before
    with to_onnx.replacing(path) as fresh:
        stored(fresh, new)
        wanted = contents(fresh.parent)
    assert contents(tmp_path) == wanted
    assert len(wanted) == 1 + new
    assert to_onnx.size(path) == sum(map(len, wanted.values()))


def test_somebody_elses_file_beside_is_left_alone(tmp_path):
    path = tmp_path / "m.onnx"
    path.with_name("m.onnx.data").write_bytes(b"mine")
    for _ in range(2):
        with to_onnx.replacing(path) as fresh:
            stored(fresh, False)
        assert path.with_name("m.onnx.data").read_bytes() == b"mine"
        assert to_onnx.size(path) == path.stat().st_size


@pytest.mark.parametrize(("opset", "ir"), [(18, 8), (21, 10)])
def test_opset_for_older_runtimes(tmp_path, opset, ir):
    linear, x = torch.nn.Linear(96, 30), torch.randn(3, 96)
    path = export(linear, x[:1], tmp_path / "m.onnx", {}, opset=opset)
    made = onnx.load(path)
    assert (made.opset_import[0].version, made.ir_version) == (opset, ir)
    torch.testing.assert_close(Runner(path)(x), linear(x).detach(), rtol=1e-5, atol=1e-5)


def test_logits_that_are_no_numbers_differ(tmp_path):
    linear = torch.nn.Linear(96, 30)
    broken = copy.deepcopy(linear)
    broken.weight.data[3] = torch.nan
    path = export(broken, torch.zeros(1, 96), tmp_path / "m.onnx", {})
    with pytest.raises(SlimrankError, match="does not compute what the model does"):
        parity(linear, Runner(path), [(torch.randn(4, 96), None)], "random inputs").check(0.5)


def test_bad_files_and_providers(tmp_path):
    (tmp_path / "no.onnx").write_bytes(b"nothing")
    with pytest.raises(SlimrankError, match="cannot load"):
        Runner(tmp_path / "no.onnx")
    with pytest.raises(SlimrankError, match="no ONNX file"):
        Runner(tmp_path / "missing.onnx")
    with pytest.raises(SlimrankError, match="no provider 'gpu'"):
        compare({"a": tmp_path / "no.onnx"}, providers=["gpu"])
    if PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        with pytest.raises(SlimrankError, match="onnxruntime-gpu"):
            compare({"a": tmp_path / "no.onnx"}, providers=["cuda"])


def test_a_quiet_fallback_is_an_error(tmp_path, monkeypatch):
    """onnxruntime-gpu without its libraries offers CUDA, then runs on the CPU."""
    path = export(zoo.build("lenet5"), torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda p, o, providers: real(p, o, providers=["CPUExecutionProvider"]))
    with pytest.raises(SlimrankError, match="fell back"):
        Runner(path, "cuda")


def test_runs_are_interleaved():
    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.0)
    assert order == ["a", "b"] * (len(order) // 2)
    assert len(times["a"]) == len(times["b"]) == 15


def test_comparison_has_every_setting(tmp_path):
    path = export(zoo.build("lenet5"), torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    found = compare({"a": path, "b": path}, batches=(1, 4), threads=(1, 2), seconds=0.01)
    assert len(found.results) == 8
    assert len(found.speedups) == 4
    assert all(r.p10_ms <= r.median_ms <= r.p90_ms and r.runs >= 15 for r in found.results)
    assert {"onnxruntime", "processor", "cores"} <= set(found.machine.to_dict())
