"""The simplest rivals of reconstruction: bias correction, and torch-pruning on its own."""

import copy

import torch
import torch_pruning
from torch import Tensor, nn

from slimrank.compress.channels.groups import ChannelMap, stays
from slimrank.compress.network.checkpoint import Checkpoint
from slimrank.compress.network.resize import CONVS
from slimrank.compress.pruning.plan import PruningPlan
from slimrank.evaluate.macs import count


def bias_corrected(
    dense: nn.Module, smaller: nn.Module, channels: ChannelMap, plan: PruningPlan, images: list[Tensor]
) -> nn.Module:
    """Bias correction: a copy of `smaller` with a constant added to each channel that a layer writes, so that the channel's
    mean over `images` (batches) is the dense network's again.

    The copy runs once, on all images together: each layer reads what the layers before it write, set right. Source: Nagel et
    al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2 and appendix D.
    """
    gone, wanted, together = channels.removed(plan.keep), {}, torch.cat(images)
    model = copy.deepcopy(smaller).eval()

    def mean(y: Tensor) -> Tensor:
        return y.mean([0, *range(2, y.dim())])

    def look(layer: nn.Module, _: object, y: Tensor) -> None:
        name = names[layer]
        wanted[name] = wanted.get(name, 0) + mean(y)[stays(channels.writes[name], gone)] * len(y) / len(together)

    def set_right(layer: nn.Module, _: object, y: Tensor) -> Tensor:
        shift = (wanted[names[layer]] - mean(y)).to(y)
        layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias + shift, requires_grad=False)
        return y + shift.view(-1, *[1] * (y.dim() - 2))

    names, hooks = {}, []
    for network, hook in ((dense, look), (model, set_right)):
        layers = {name: module for name, module in network.named_modules() if isinstance(module, (*CONVS, nn.Linear))}
        names |= {module: name for name, module in layers.items()}
        hooks += [module.register_forward_hook(hook) for module in layers.values()]
    with torch.no_grad():
        for part in images:
            dense(part)
        model(together)
    for hook in hooks:
        hook.remove()
    return model


def torch_pruned(dense: nn.Module, checkpoint: Checkpoint, channels: ChannelMap, share: float) -> tuple[nn.Module, str]:
    """torch-pruning's MagnitudePruner, uniform, bisected to a share of the MACs; what it was kept from cutting.

    Where its graph does not follow the network (benchmarks/coupling.py), what is tied between layers is left whole.
    """
    shape, tied = checkpoint.preprocessing.shape, [name for g in channels.groups if len(g.layers) > 1 for name in g.layers]
    target = share * count(dense, shape).macs

    def pruned(ratio: float, left: list[str]) -> nn.Module:
        model = copy.deepcopy(dense).eval().requires_grad_(True)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model, checkpoint.example(), importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio, ignored_layers=[model.get_submodule(name) for name in left],
        )  # fmt: skip
        pruner.step()
        return model.requires_grad_(False)

    for left, said in (([channels.classifier], "classifier"), ([channels.classifier, *tied], "classifier and residual stream")):
        low, high, best = 0.0, 1.0, None
        try:
            for _ in range(9):
                middle = (low + high) / 2
                model = pruned(middle, left)
                met = count(model, shape).macs <= target
                low, high, best = (low, middle, model) if met else (middle, high, best)
        except Exception as error:  # whatever their graph raises on a network that it does not follow
            print(f"torch-pruning without {said}: {str(error).splitlines()[0][:100]}")
            continue
        if best is not None:
            return best, said
    raise SystemExit("torch-pruning cuts this network in no way")
