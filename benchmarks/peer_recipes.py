"""What each peer makes of a network by its own recipe, as its README, tutorial or own benchmark calls it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
import torch_pruning
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

from slimrank.compress.channels import channels_of
from slimrank.compress.network.checkpoint import Checkpoint
from slimrank.compress.pruning.options import Cut
from slimrank.compress.stages.export import quantised
from slimrank.compress.stages.options import ExportOptions, PruneOptions
from slimrank.compress.stages.prune import prune
from slimrank.evaluate.data import Data
from slimrank.evaluate.macs import count
from slimrank.evaluate.onnx_macs import count_onnx

SHARE = 0.5  # of the MACs
CALIBRATE = 128  # images
STEPS = 100  # of torch-pruning's way from nothing to everything
ROUND = {"resnet20": None, "resnet18": 8}  # eight of ResNet-20's 16 channels would be too coarse for half of the MACs


@dataclass
class Network:
    """A dense network, its images, and the folder of what is made of it."""

    name: str
    given: Checkpoint
    data: Data
    folder: Path

    @property
    def dense(self) -> nn.Module:
        return copy.deepcopy(self.given.model).eval().requires_grad_(True)

    @property
    def macs(self) -> int:
        return count(self.given.model, self.given.preprocessing.shape).macs

    def path(self, name: str, suffix: str = ".onnx") -> Path:
        return self.folder / (name.replace(", ", "-").replace(" ", "-") + suffix)

    def share(self, model: nn.Module) -> float:
        return count(model.eval(), self.given.preprocessing.shape).macs / self.macs

    def feeds(self, size: int) -> list[dict]:
        """Training images as ONNX Runtime is fed with them, in batches of `size`."""
        return [{"images": x.numpy()} for x, _ in self.data.split("train").sample(CALIBRATE, 0).batches(size)]


def slimrank(one: Network, **cut) -> nn.Module:
    ranker = cut.pop("ranker", None)
    options = PruneOptions(ranker=ranker, cut=Cut(macs=SHARE, **cut), calibration_images=len(one.data.split("train")))
    return prune(one.given, one.data, options, measured=False).checkpoint.model


def plain_widths(one: Network) -> nn.Module:
    """Widths as slimrank's default leaves them, weights drawn anew."""
    torch.manual_seed(0)
    model = torch.load(one.path("slimrank", ".pt"), weights_only=False)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def following(one: Network, pruned: Callable[[list[str]], nn.Module]) -> nn.Module:
    """What torch-pruning's graph makes of a network; where it does not follow it, with the residual stream left whole.

    `pruned`: takes the layers that are left whole.
    """
    channels = channels_of(one.given)
    tied = [name for group in channels.groups if len(group.layers) > 1 for name in group.layers]
    for left in ([channels.classifier], [channels.classifier, *tied]):
        try:
            model = pruned(left).eval()
            with torch.no_grad():
                model(one.given.example(2))
            return model
        except Exception as error:  # whatever it raises
            failed = error
    raise failed


def pruned_by_torch_pruning(one: Network, **options) -> nn.Module:
    def pruned(left: list[str]) -> nn.Module:
        model = one.dense
        pruner = torch_pruning.pruner.BasePruner(
            model, one.given.example(), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=1.0, iterative_steps=STEPS, round_to=ROUND[one.name],
            ignored_layers=[model.get_submodule(name) for name in left], **options,
        )  # fmt: skip
        for _ in range(STEPS):
            pruner.step()
            if one.share(model) <= SHARE:
                return model
        raise RuntimeError("it stops before half of the MACs")

    return following(one, pruned)


def bisected(made: Callable[[float], tuple[float, object]]) -> object:
    """The least cut that leaves at most half of the MACs. `made`: a share of filters to the MACs left and a result."""
    low, high, best = 0.0, 1.0, None
    for _ in range(8):
        middle = (low + high) / 2
        share, found = made(middle)
        low, high, best = (low, middle, found) if share <= SHARE else (middle, high, best)
    if best is None:
        raise RuntimeError("it stops before half of the MACs")
    return best


def fasterai(one: Network) -> nn.Module:
    from fasterai.core.criteria import large_final
    from fasterai.prune.pruner import Pruner

    def pruned(left: list[str]) -> nn.Module:
        def at(ratio: float) -> tuple[float, nn.Module]:
            model = one.dense
            layers = [model.get_submodule(name) for name in left]
            Pruner(model, ratio, "local", large_final, ignored_layers=layers, example_inputs=one.given.example()).prune_model()
            return one.share(model), model

        return bisected(at)

    return following(one, pruned)


def onnxsim(one: Network) -> onnx.ModelProto:
    import onnxsim

    dense, _ = onnxsim.simplify(str(one.path("dense")))
    feeds = one.feeds(32)

    def at(sparsity: float) -> tuple[float, onnx.ModelProto]:
        found = onnxsim.apply_structured_wanda_pruning(dense, calibration_data=feeds, sparsity=sparsity)
        onnx.save(found, one.path("onnxsim"))
        return count_onnx(one.path("onnxsim")).macs / one.macs, found

    return onnxsim.apply_pruning_finetune(dense, bisected(at), calibration_data=feeds)


def comprexx(one: Network) -> nn.Module:
    import comprexx

    stage = comprexx.stages.StructuredPruning(sparsity=0.3, criteria="l1_norm")
    return comprexx.Pipeline([stage]).run(one.dense, input_shape=(1, *one.given.preprocessing.shape)).model


class Fed(CalibrationDataReader):
    def __init__(self, feeds: list[dict]):
        self.feeds = iter(feeds)

    def get_next(self) -> dict | None:
        return next(self.feeds, None)


def onnxruntime_int8(one: Network, path: Path, out: Path) -> dict:
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(path), str(prepared))
    quantize_static(
        str(prepared), str(out), Fed(one.feeds(4)), quant_format=QuantFormat.QDQ, per_channel=True,
        calibrate_method=CalibrationMethod.MinMax, activation_type=QuantType.QUInt8,  # three times as fast as its default here
    )  # fmt: skip
    prepared.unlink()
    return {}


def slimrank_int8(one: Network, path: Path, out: Path) -> dict:
    out.write_bytes(path.read_bytes())
    found = quantised(out, one.data, ExportOptions(int8=True), 0)
    return {"taken": found.taken, "says": found.says, "floats": [layer.layer for layer in found.floats]}
