"""What runs on a GPU gives what the CPU gives: `pytest -m cuda` where there is one.

Sums are made in another order there, and TF32 multiplies with 10 bits: what is counted may differ for images on the edge, so
scores are compared by rank and networks by their decisions.
"""

from dataclasses import replace

import onnxruntime
import pytest
import torch
from scipy.stats import spearmanr

from slimrank.compress.network.checkpoint import Checkpoint, load
from slimrank.compress.pruning.options import Cut
from slimrank.compress.rankers import RANKERS
from slimrank.compress.stages.export import export
from slimrank.compress.stages.finetune import finetune
from slimrank.compress.stages.options import ExportOptions, PruneOptions
from slimrank.compress.stages.prune import prune
from slimrank.compress.stages.rank import rank
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.data import Data
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.latency import compare
from slimrank.evaluate.runner import Runner

GPU = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.fixture(scope="module")
def lenet(trained) -> Checkpoint:
    return load(trained)


@pytest.fixture(scope="module")
def digits(lenet) -> Data:
    return DataSpec(data="digits").open(lenet.preprocessing)


@pytest.mark.parametrize("name", [name for name in RANKERS if name != "bn-scale"])  # LeNet has no BatchNorm
def test_a_ranker_scores_as_on_the_cpu(lenet, digits, name):
    here, there = (rank(lenet, name, digits, device=device) for device in ("cpu", GPU))
    assert here.scores.keys() == there.scores.keys()
    for layer, scores in here.scores.items():
        assert spearmanr(scores, there.scores[layer]).statistic > 0.98, layer


@pytest.mark.parametrize("ranker", ["fpgm", "reconstruct"])
def test_a_repaired_cut_decides_as_on_the_cpu(lenet, digits, ranker):
    options = PruneOptions(ranker=ranker, cut=Cut(macs=0.6, align=1))
    here, there = (
        prune(lenet, digits, replace(options, device=device), measured=False).checkpoint.model.cpu().eval()
        for device in ("cpu", GPU)
    )
    images = torch.cat([x for x, _ in digits.split("test").batches(128)])
    with torch.no_grad():
        assert (here(images).argmax(1) == there(images).argmax(1)).double().mean() > 0.98


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_lifts_accuracy(lenet, digits, precision):
    cut = prune(lenet, digits, PruneOptions(cut=Cut(macs=0.3, align=1), reconstruct=False, recalibrate=False), measured=False)
    tuned = finetune(cut.checkpoint, digits, Recipe(epochs=2, lr=0.05, precision=precision, device=GPU))
    assert tuned.top1_after > tuned.top1_before + 0.05
    assert next(tuned.checkpoint.model.parameters()).dtype == torch.float32
    assert next(tuned.checkpoint.model.parameters()).device.type == "cpu"


needs_provider = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
)


@needs_provider
@pytest.mark.parametrize("fp16", [False, True])
def test_the_execution_provider_decides_as_pytorch(lenet, digits, tmp_path, fp16):
    path = tmp_path / "m.onnx"
    export(lenet, path, digits, ExportOptions(fp16=fp16))
    images = torch.cat([x for x, _ in digits.split("test").batches(128)])
    with torch.no_grad():
        wanted = lenet.model.eval()(images)
    found = Runner(path, GPU)(images)
    assert (found.argmax(1) == wanted.argmax(1)).double().mean() > (0.99 if fp16 else 0.999)
    assert (found - wanted).abs().max() < (3e-2 if fp16 else 1e-2) * wanted.std()


@needs_provider
def test_files_are_timed_on_the_gpu_with_bound_tensors(lenet, digits, tmp_path):
    path = tmp_path / "m.onnx"
    export(lenet, path, digits)
    found = compare({"a": path, "b": path}, providers=["cpu", GPU], batches=(8,), seconds=0.2)
    assert {row.provider for row in found.results} == {"cpu", GPU}
    assert found.to_dict()["provider_options"][GPU]


@needs_provider
def test_compress_runs_whole_on_the_gpu(trained, tmp_path):
    from slimrank.cli import main

    words = ["--data", "digits", "--device", GPU, "--providers", f"cpu,{GPU}", "--epochs", "1", "--lr", "0.05", "--batch", "1"]
    assert main(["compress", str(trained), *words, "-o", str(tmp_path / "out")]) == 0
