"""Do a million classes fit? 1,000,000 classes of 256 generated features: chosen, fitted, exported, and how well.

    python benchmarks/head_scale.py

Class weights scatter around 256 centres, features are noise through a ReLU, mixed: nothing here is real but the sizes. Tiles at
a sixteenth of the MACs, 64 groups; peak memory is the process's own. Recall: share of 512 images whose dense decision is
among the N best classes of the head; beside it the same for classes kept in their order, low rank of equal MACs, and two
levels: 1,000 groups, 16 of them computed (`probe_recall`: how often what all groups together decide is among them).
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from rows import Rows

from slimrank.compress.channels.features import Cached, Moments
from slimrank.compress.head.cluster import cocluster, dealt
from slimrank.compress.head.fit import assemble, refitted
from slimrank.compress.head.low_rank import low_rank
from slimrank.compress.head.select import centred, saliency
from slimrank.compress.head.two_level import confusable, probe_recall, trained_scores
from slimrank.evaluate.latency import Runner, machine
from slimrank.export.to_onnx import export

CLASSES, FEATURES, GROUPS, TILE, K = 1_000_000, 256, 64, 4, 16
MANY, PROBE, SCORED = 1000, 16, 5000  # the two-level head: groups, how many are computed, images that scores are trained on


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


def measure(kind: str) -> dict:
    weight, bias, x = generated()
    took: dict[str, float] = {}
    began = time.perf_counter()

    def lap(name: str) -> None:
        took[name] = round(time.perf_counter() - began - sum(took.values()), 1)

    moments = Moments()
    for part in x[:20_000].split(1000):
        moments.add(part)
    lap("moments")
    target, words = centred(weight, bias), {}
    order = confusable(weight, moments.covariance, MANY) if kind == "two levels" else None
    groups = GROUPS if order is None else MANY
    spaces = cocluster(saliency(weight, moments), groups, TILE, K, adjacent=kind == "adjacent", order=order)
    lap("groups and tiles")
    made = refitted(*target, moments, spaces)
    lap("fit")
    if order is not None:
        some = Cached(x[:SCORED], torch.zeros(SCORED, dtype=torch.long))
        words = {"coarse": trained_scores(*target, order, groups, some), "probe": PROBE}
        lap("coarse scores")
    head = assemble(*made, spaces, FEATURES, "tiled", **words).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        path = export(head, x[:1], Path(folder) / "head.onnx", {})
        lap("export")
        sized = path.stat().st_size
        runner = Runner(path, threads=2)
        off = float((runner(x[:4]) - head(x[:4])).abs().max())
        ours = [runner(part).topk(64, 1).indices for part in x[20_000:].split(32)]
    dense = torch.cat([(part @ weight.T + bias).argmax(1) for part in x[20_000:].split(16)])
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    told = {
        "seconds": took, "peak_gb": peak, "onnx_bytes": sized, "dense_bytes": 4 * weight.numel(),
        "macs": head.macs(()), "dense_macs": weight.numel(), "captured": spaces.captured, "parity": off, **recall(ours, dense),
    }  # fmt: skip
    if order is not None:
        held = Cached(x[20_000:], dense)
        told["probe_recall"] = round(probe_recall(head, held), 4)
        group = dealt(order, torch.tensor(head.sizes))
        probed = head.probed(held.x[:, head.reorder])
        told["dense_probed"] = round(float((group[dense][:, None] == probed).any(1).double().mean()), 4)
    if kind == "":
        low = low_rank(*target, K * CLASSES, (moments.mean, moments.covariance)).requires_grad_(False)
        told["low rank"] = recall([low(part).topk(64, 1).indices for part in x[20_000:].split(32)], dense)
    return told


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = Rows("head_scale", None, **machine().to_dict())
    for kind in ("", "adjacent", "two levels"):
        rows.row(f"{CLASSES} classes, {FEATURES} features{kind and f', {kind}'}", lambda k=kind: measure(k))


if __name__ == "__main__":
    main()
