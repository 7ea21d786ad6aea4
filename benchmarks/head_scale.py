"""Do a million classes fit? 1,000,000 classes of 256 generated features: chosen, fitted, exported, and how well.

    python benchmarks/head_scale.py

Class weights scatter around 256 centres, features are noise through a ReLU, mixed: nothing here is real but the sizes. Tiles at
a sixteenth of the MACs, 64 groups; peak memory is the process's own. Recall: share of 512 images whose dense decision is
among the N best classes of the head; beside it the same for classes kept in their order, and low rank of equal MACs.
"""

import resource
import tempfile
import time
from pathlib import Path

import torch
from rows import Rows

from slimrank.compress.choosing import centred, saliency
from slimrank.compress.features import Moments
from slimrank.compress.fitting import assemble, refitted
from slimrank.compress.head_latency import low_rank
from slimrank.compress.tiling import cocluster
from slimrank.evaluate.latency import Runner, machine
from slimrank.export.to_onnx import export

CLASSES, FEATURES, GROUPS, TILE, K = 1_000_000, 256, 64, 4, 16


def generated() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias, features of 20,512 images."""
    torch.manual_seed(0)
    centres = torch.randn(256, FEATURES) * (torch.rand(256, FEATURES) < 0.2)
    weight = centres.repeat_interleave(-(-CLASSES // 256), 0)[:CLASSES]
    weight = weight[torch.randperm(CLASSES)].add_(torch.randn(CLASSES, FEATURES), alpha=0.2)
    x = (torch.randn(20_512, FEATURES) @ (torch.eye(FEATURES) + 0.05 * torch.randn(FEATURES, FEATURES))).relu()
    return weight, torch.randn(CLASSES) * 0.1, x


def recall(found: list[torch.Tensor], dense: torch.Tensor) -> dict[str, float]:
    best = torch.cat(found)
    return {f"recall@{n}": round(float((best[:, :n] == dense[:, None]).any(1).double().mean()), 4) for n in (1, 8, 64)}


def measure(adjacent: bool) -> dict:
    weight, bias, x = generated()
    took: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        took[name] = round(time.perf_counter() - began - sum(took.values()), 1)

    moments = Moments()
    for part in x[:20_000].split(1000):
        moments.add(part)
    lap("moments")
    spaces = cocluster(saliency(weight, moments), GROUPS, TILE, K, adjacent=adjacent)
    lap("groups and tiles")
    target = centred(weight, bias)
    head = assemble(*refitted(*target, moments, spaces), spaces, FEATURES, "tiled").eval().requires_grad_(False)
    lap("fit")
    with tempfile.TemporaryDirectory() as folder:
        path = export(head, x[:1], Path(folder) / "head.onnx", {})
        lap("export")
        sized = path.stat().st_size
        runner = Runner(path, threads=2)
        off = float((runner(x[:4]) - head(x[:4])).abs().max())
        ours = [runner(part).topk(64, 1).indices for part in x[20_000:].split(32)]
    dense = torch.cat([(part @ weight.T + bias).argmax(1) for part in x[20_000:].split(16)])
    told = {
        "seconds": took, "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "onnx_bytes": sized, "dense_bytes": 4 * weight.numel(), "macs": head.macs(()), "dense_macs": weight.numel(),
        "captured": spaces.captured, "parity": off, **recall(ours, dense),
    }  # fmt: skip
    if not adjacent:
        low = low_rank(*target, K * CLASSES, (moments.mean, moments.covariance)).requires_grad_(False)
        told["low rank"] = recall([low(part).topk(64, 1).indices for part in x[20_000:].split(32)], dense)
    return told


def main() -> None:
    rows = Rows("head_scale", None, **machine())
    for adjacent in (False, True):
        rows.row(f"{CLASSES} classes, {FEATURES} features{', adjacent' if adjacent else ''}", lambda a=adjacent: measure(a))


if __name__ == "__main__":
    main()
