"""ONNX files: parity, metadata, one file, dynamic batch; latency bookkeeping."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from slimrank.compress import models
from slimrank.compress.checkpoint import load
from slimrank.compress.evaluation import compared, onnx_metadata
from slimrank.compress.head import bench, fastest, with_head
from slimrank.compress.subspace import truncate
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data
from slimrank.evaluate.latency import PROVIDERS, Comparison, Runner, compare, interleaved
from slimrank.export.parity import parity
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


@pytest.mark.parametrize("layout", ["dense", "gather"])
def test_each_layout_in_onnx_runtime(tmp_path, layout):
    torch.manual_seed(0)
    dense = torch.nn.Linear(96, 30)
    head = truncate(dense, torch.stack([torch.randperm(96)[:12] for _ in range(30)]), layout)
    path = export(head, torch.zeros(1, 96), tmp_path / "h.onnx", {})
    x = torch.randn(9, 96)
    torch.testing.assert_close(Runner(path)(x), head(x), rtol=1e-5, atol=1e-5)


def test_real_images(resnet20, cifar, tmp_path):
    checkpoint = load(resnet20, name="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing, limit=1000)
    path = export(checkpoint.model, checkpoint.example(), tmp_path / "m.onnx", onnx_metadata(checkpoint))
    found = compared(checkpoint, path, data)
    assert found.relative < 1e-4
    assert found.agreement == 1.0
    assert found.images == 1000


def test_a_dead_model_proves_nothing(tmp_path):
    model = models.build("lenet5").eval()
    model.fc3.weight.data.zero_()
    model.fc3.bias.data.zero_()
    path = export(model, torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    with pytest.raises(SlimrankError, match="proves nothing"):
        parity(model, Runner(path), [(torch.randn(4, 1, 28, 28), None)], "random inputs")


def test_parity_sees_a_wrong_file(tmp_path):
    torch.manual_seed(0)
    model = models.build("lenet5").eval()
    other = with_head(model, "fc3", torch.nn.Linear(25, 10)).eval()
    path = export(other, torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    found = parity(model, Runner(path), [(torch.randn(64, 1, 28, 28), None)], "random inputs")
    assert found.relative > 0.1
    assert found.agreement < 1


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
    path = export(models.build("lenet5"), torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
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
    path = export(models.build("lenet5"), torch.zeros(1, 1, 28, 28), tmp_path / "m.onnx", {})
    found = compare({"a": path, "b": path}, batches=(1, 4), threads=(1, 2), seconds=0.01)
    assert len(found.results) == 8
    assert len(found.speedups) == 4
    assert all(r.p10_ms <= r.median_ms <= r.p90_ms and r.runs >= 15 for r in found.results)
    assert {"onnxruntime", "processor", "cores"} <= set(found.machine)


def test_the_dense_layer_stays_where_gather_is_slower():
    def timed(*speedups: float) -> Comparison:
        return Comparison([], [{"model": "gather", "speedup": s} for s in speedups], {})

    assert fastest(timed(0.4, 0.2))[0] == "dense"
    assert fastest(timed(3.0, 0.5))[0] == "dense"
    assert fastest(timed(3.0, 1.1))[0] == "gather"
    assert "no layout beats" in fastest(timed(0.4, 0.2))[1]


def test_bench_head_rows():
    found = bench(None, 64, 10, 5, ["gather"], batches=[1], threads=[1], providers=["cpu"])
    assert [r["layout"] for r in found["results"]] == ["linear", "gather"]
    assert all(np.isfinite(r["median_us"]) for r in found["results"])
    with pytest.raises(SlimrankError, match="--k"):
        bench(None, 64, 10, 65, ["gather"], batches=[1], threads=[1], providers=["cpu"])
    with pytest.raises(SlimrankError, match="no layout"):
        bench(None, 64, 10, 5, ["gathr"], batches=[1], threads=[1], providers=["cpu"])
