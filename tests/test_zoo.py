"""One small network of each way of wiring channels in torchvision, through the whole chain; benchmarks/zoo.py runs all 35."""

import pytest
import torch

from slimrank.compress.channels.masking import masked
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import Checkpoint, load, save
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.evaluate.data import Preprocessing
from slimrank.evaluate.latency import Runner
from slimrank.evaluate.macs import count
from slimrank.export.parity import parity
from slimrank.export.to_onnx import export

from .toy_models import lively

FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1",
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_chain(name, tmp_path):
    torch.manual_seed(0)
    size = 80 if name == "alexnet" else 64
    x = torch.randn(8, 3, size, size)
    model = lively(zoo.build(name, {"num_classes": 10}), x)
    channels = channel_map(model, x[:1])
    assert all(group.why for group in channels.groups if not group.prunable)
    plan = select(model, channels, RANKERS["l1"](model, channels), macs=0.5)
    assert 0.49 <= plan.macs_after / plan.macs_before <= 0.5
    smaller = apply_plan(model, channels, plan, x[:2])
    assert count(smaller, (3, size, size)).macs == plan.macs_after
    checkpoint = Checkpoint(model, name, {"num_classes": 10}, Preprocessing.default(3, size), None, [])
    save(checkpoint.then(smaller, step="prune"), tmp_path / "slim.safetensors")
    loaded = load(tmp_path / "slim.safetensors").model
    runner = Runner(export(loaded, x[:2], tmp_path / "slim.onnx", {}))
    assert parity(smaller, runner, [(x, None)], "random inputs").relative < 1e-4
    with torch.inference_mode():
        plain = model.double()(x.double())
        with masked(model, channels, channels.removed(plan.keep)):
            expected = model(x.double())
        spread = float(plain.std())
        assert float((expected - plain).abs().max()) > 0.1 * spread  # the cut cuts
        assert float((loaded.double()(x.double()) - expected).abs().max()) < 1e-9 * spread
