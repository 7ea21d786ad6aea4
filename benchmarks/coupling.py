"""Does cutting a filter leave the network that masking it describes? slimrank's labels against torch-pruning's graph.

    python benchmarks/coupling.py --checkpoint resnet20-12fca82f.th

Every residual-stream filter of the CIFAR-10 ResNet-20 (option-A shortcuts) is cut alone, in float64, by slimrank and by
torch-pruning (its DependencyGraph, as its README uses it), the shortcut written in each of the three usual ways.
"right": the cut network's logits equal the original's with that filter masked. Saved to results/coupling.json.
"""

import argparse
import copy
import json
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from slimrank.compress.channels.masking import masked
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network.checkpoint import load
from slimrank.compress.network.papers import PadShortcut
from slimrank.compress.pruning.surgery import cut

RESULTS = Path(__file__).parent / "results" / "coupling.json"
STREAMS = {"conv1": 16, "layer2.0.conv2": 32, "layer3.0.conv2": 64}


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def pad_sizes(planes):
    return lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes // 4, planes // 4))


def pad_zeros(planes):
    def shortcut(x):
        zeros = torch.zeros(len(x), planes // 4, x.shape[2] // 2, x.shape[3] // 2, dtype=x.dtype)
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)

    return shortcut


WRITTEN = {"slimrank's PadShortcut": None, "F.pad in a lambda": pad_sizes, "cat with zeros": pad_zeros}


def variant(model: nn.Module, written) -> nn.Module:
    model = copy.deepcopy(model)
    if written is not None:
        for stage, planes in (("layer2", 32), ("layer3", 64)):
            block = model.get_submodule(stage)[0]
            assert isinstance(block.shortcut, PadShortcut)
            block.shortcut = Lambda(written(planes))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    base = load(args.checkpoint, model="resnet20-cifar").model.double().eval()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    rows = []
    for name, written in WRITTEN.items():
        model = variant(base, written)
        for tool in ("slimrank", "torch-pruning"):
            rows.append({"shortcut": name, "tool": tool, **judge(model, x, tool)})
            print(rows[-1], flush=True)
            RESULTS.write_text(json.dumps({"torch_pruning": torch_pruning.__version__, "rows": rows}, indent=1) + "\n")


def judge(model: nn.Module, x: torch.Tensor, tool: str) -> dict:
    """Counts over all stream filters: right, wrong (with the largest logit difference), refused, crashed."""
    result = {"right": 0, "wrong": 0, "refused": 0, "crashed": 0, "largest_difference": 0.0}
    channels = channel_map(model, x[:1])
    with torch.no_grad():
        result["spread"] = round(float(model(x).std()), 2)
        for layer, filters in STREAMS.items():
            group = channels.group(layer)
            for i in range(filters):
                unit = int(channels.writes[layer][i]) - group.offset
                gone = channels.removed({})
                gone[unit + group.offset] = True
                if tool == "slimrank" and unit in group.fixed:
                    result["refused"] += 1
                    continue
                with masked(model, channels, gone):
                    expected = model(x)
                try:
                    found = cut(model, channels, gone)(x) if tool == "slimrank" else by_torch_pruning(model, x, layer, i)
                except Exception:
                    result["crashed"] += 1
                    continue
                difference = float((found - expected).abs().max())
                result["right" if difference < 1e-9 else "wrong"] += 1
                result["largest_difference"] = max(result["largest_difference"], round(difference, 3))
    return result


def by_torch_pruning(model: nn.Module, x: torch.Tensor, layer: str, i: int) -> torch.Tensor:
    smaller = copy.deepcopy(model)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(smaller, example_inputs=x[:1])
        graph.get_pruning_group(smaller.get_submodule(layer), torch_pruning.prune_conv_out_channels, idxs=[i]).prune()
    return smaller(x)


if __name__ == "__main__":
    main()
