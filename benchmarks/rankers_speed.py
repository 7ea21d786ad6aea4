"""How much faster is the coalition engine than the naive way? ResNet-20, CIFAR-10 (JPEG), 2,000 images.

    python benchmarks/rankers_speed.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg [--threads N] [--minutes M]

The naive way, written well: eager PyTorch, eval mode, inference mode, the mask by a hook, a full forward pass, batches of 250.
It runs in a process of its own, as it would for anybody who wrote it, in turn with the engine; `times_shared` is against the
same code in the engine's process, where the heap has already grown and glibc no longer hands its pages back after each batch.
`times_best` is against the best that the naive way can be made, in the engine's process too: BatchNorm folded, channels last,
batches of 50.
One-shot CAR: the engine plays the whole network and every mask of every filter group, log-likelihoods included, as the ranker
does; the naive way every second mask (times two), in the engine's process four; layer by layer in turn. Greedy CAR and
Shapley: the naive way's time is its evaluations times what one took in this run (all of its evaluations cost the same).
`differ`: images whose decision differs, which must be within the images whose top-two margin is under 1e-4 of the logits'
spread (`close`). `ties_off`: the largest error of a log-likelihood difference, in nats over all images; `ties_spread`: the
standard deviation of these differences. `run_twice`: share of coalition-image pairs that the screen in bfloat16 left open.
"""

import argparse
import multiprocessing
import resource
import time

import torch
import torch.nn.functional as F
from rows import OutOfTime, Rows
from torch.nn.utils.fusion import fuse_conv_bn_eval

from slimrank.compress.channels.masking import masked
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.coalitions.activations import Relay
from slimrank.compress.coalitions.game import Coalitions
from slimrank.compress.network.checkpoint import load
from slimrank.compress.rankers import RANKERS, car
from slimrank.evaluate.data import open_data
from slimrank.evaluate.machine import machine

GREEDY = {"layer3.2.conv1": 32, "layer3.0.conv1": 32}


class Naive:
    """Logits of every image for each mask, and the seconds that it took."""

    def __init__(self, checkpoint: str, spec: str, images: int, threads: int, best: bool = False):
        torch.set_num_threads(threads)
        given = load(checkpoint, model="resnet20-cifar")
        self.model = given.model.eval()
        self.channels = channel_map(self.model, given.example())
        data = open_data(spec, given.preprocessing, validation="test:0.2", limit=images)
        self.batches = list(data.split("validation").batches(50 if best else 250))
        if best:
            for conv, norm in batchnorms(self.model):
                fused = fuse_conv_bn_eval(self.model.get_submodule(conv), self.model.get_submodule(norm))
                self.model.set_submodule(conv, fused)
                self.model.set_submodule(norm, torch.nn.Identity())
            self.model = self.model.to(memory_format=torch.channels_last)
            self.batches = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in self.batches]
        self(self.channels.groups[0].name, torch.ones(1, self.channels.groups[0].units, dtype=torch.bool))

    def __call__(self, layer: str, masks: torch.Tensor) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        logits = [self.one(layer, mask) for mask in masks]
        return torch.stack(logits), time.perf_counter() - start

    def one(self, layer: str, mask: torch.Tensor) -> torch.Tensor:
        model, channels = self.model, self.channels
        with torch.inference_mode():
            if layer == channels.classifier:
                keep = mask.float()
                hook = model.get_submodule(layer).register_forward_pre_hook(lambda _m, inputs: (inputs[0] * keep,))
                try:
                    return torch.cat([model(x) for x, _ in self.batches])
                finally:
                    hook.remove()
            group = channels.group(layer)
            with masked(model, channels, channels.removed({group.name: mask.nonzero().flatten().tolist()})):
                return torch.cat([model(x) for x, _ in self.batches])


def batchnorms(model: torch.nn.Module) -> list[tuple[str, str]]:
    """Names of ResNet-20's convs, each with its BatchNorm's."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)]
    return [(name, name.replace("conv", "bn")) for name in names]


def serve(pipe, *where) -> None:
    naive = Naive(*where)
    while (asked := pipe.recv()) is not None:
        layer, masks = asked
        logits, seconds = naive(layer, torch.from_numpy(masks))
        pipe.send((logits.numpy(), seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = load(args.checkpoint, model="resnet20-cifar")
    data = open_data(args.data, checkpoint.preprocessing, validation="test:0.2", limit=args.images)
    model = checkpoint.model.eval()
    channels = channel_map(model, checkpoint.example())
    batches = list(data.split("validation").batches())
    labels = torch.cat([y for _, y in batches])
    name = "rankers_speed" if args.threads == 2 else f"rankers_speed_{args.threads}"
    about = {"images": args.images, "cpu": str(machine()), "threads": args.threads, "torch": torch.__version__}
    rows = Rows(name, args.minutes, **about)

    here = Naive(args.checkpoint, args.data, args.images, args.threads)
    best = Naive(args.checkpoint, args.data, args.images, args.threads, best=True)
    relay = Relay()
    parent, child = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(
        target=serve, args=(child, args.checkpoint, args.data, args.images, args.threads), daemon=True
    )
    worker.start()

    def apart(layer: str, masks: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Logits [masks, images, classes] and seconds, from the other process."""
        parent.send((layer, masks.numpy()))
        logits, seconds = parent.recv()
        return torch.from_numpy(logits), seconds

    def one_shot(layer: str) -> dict:
        n = channels.group(layer).units
        less = ~torch.eye(n, dtype=torch.bool)
        logits, slow = apart(layer, less[::2])
        slow *= 2
        start = time.perf_counter()
        game = Coalitions(model, channels, layer, batches, classes=10, screened=True, relay=relay)
        found = car.with_and_without(game)
        fast = time.perf_counter() - start
        shared, strong = (n / 4 * naive(layer, less[:4])[1] for naive in (here, best))
        dense = likelihood(here(layer, torch.ones(1, n, dtype=torch.bool))[0][0])
        differ = close = 0
        ties = []
        for row, its in enumerate(logits):
            correct = torch.bincount(labels[its.argmax(1) == labels], minlength=10)
            differ += int((correct - found.by_class[2 * row + 1]).abs().sum())
            top = its.topk(2, 1).values
            close += int((top[:, 0] - top[:, 1] < 1e-4 * its.std()).sum())
            ties.append((dense - likelihood(its), float(found.likelihood[0] - found.likelihood[2 * row + 1])))
        exact, estimated = torch.tensor(ties).T
        return {
            "filters": n, "naive_seconds": round(slow, 2), "engine_seconds": round(fast, 2), "times": round(slow / fast, 2),
            "naive_shared_seconds": round(shared, 2), "times_shared": round(shared / fast, 2),
            "naive_best_seconds": round(strong, 2), "times_best": round(strong / fast, 2), "differ": differ, "close": close,
            "ties_off": round(float((exact - estimated).abs().max()), 3), "ties_spread": round(float(exact.std()), 1),
            "share_of_passes": round(game.passes / (n * len(labels)), 3),
            "run_twice": round(game.screen.again / (n * len(labels)), 3) if game.screen else None,
            "naive_ms_per_image": round(1000 * slow / n / len(labels), 3),
        }  # fmt: skip

    def likelihood(logits: torch.Tensor) -> float:
        return -float(F.cross_entropy(logits, labels, reduction="none").double().sum())

    def per_evaluation(layer: str, evaluations: int = 12) -> float:
        n = len(channels.reads[layer]) if layer == channels.classifier else channels.group(layer).units
        masks = torch.rand(evaluations, n, generator=torch.Generator().manual_seed(0)) < 0.7
        return apart(layer, masks)[1] / len(masks)

    def greedy(layer: str, rounds: int) -> dict:
        each = per_evaluation(layer)
        start = time.perf_counter()
        game = Coalitions(model, channels, layer, batches, classes=10, hard_first=True)
        order = car.backward(game, rounds)
        fast = time.perf_counter() - start
        slow = each * game.evaluations
        mask = torch.ones(game.n, dtype=torch.bool)
        mask[[unit for unit, _ in order]] = False
        left = int((here(layer, mask[None])[0][0].argmax(1) == labels).sum())
        return {
            "removed": rounds, "of": game.n, "evaluations": game.evaluations, "naive_seconds_scaled": round(slow, 1),
            "engine_seconds": round(fast, 2), "times": round(slow / fast, 1),
            "share_of_passes": round(game.passes / (game.evaluations * len(labels)), 3),
            "correct_at_the_end": [order[-1][1], left],
        }  # fmt: skip

    def permutations(pairs: int) -> dict:
        layer = channels.classifier
        each = per_evaluation(layer)
        start = time.perf_counter()
        found = RANKERS["shapley"](
            model, channels, batches, classes=10, layers=[layer], estimator="permutation", samples=pairs, tolerance=None
        )
        fast = time.perf_counter() - start
        slow = each * found.evaluations
        return {
            "features": len(found.scores[layer]), "permutations": 2 * pairs, "evaluations": found.evaluations,
            "naive_seconds_scaled": round(slow, 1), "engine_seconds": round(fast, 2), "times": round(slow / fast, 1),
            "widest_confidence_interval": round(max(found.extra["confidence"][layer]), 5),
        }  # fmt: skip

    def cost(images: int) -> dict:
        """One-shot CAR of one layer against the number of images."""
        some = [(x[: max(0, images - 250 * i)], y[: max(0, images - 250 * i)]) for i, (x, y) in enumerate(batches)]
        some = [(x, y) for x, y in some if len(y)]
        start = time.perf_counter()
        game = Coalitions(model, channels, "layer2.0.conv1", some, classes=10, screened=True)
        car.with_and_without(game)
        return {"images": game.images, "engine_seconds": round(time.perf_counter() - start, 2)}

    try:
        for layer in channels.chosen(None):
            rows.row(f"one-shot {layer}", lambda layer=layer: one_shot(layer))
        parts = [rows[f"one-shot {layer}"] for layer in channels.chosen(None)]
        kinds = ("naive_seconds", "engine_seconds", "naive_shared_seconds", "naive_best_seconds")
        slow, fast, shared, strong = (sum(p[k] for p in parts) for k in kinds)
        rows.row(
            "one-shot all groups",
            lambda: {
                "filters": sum(p["filters"] for p in parts), "naive_seconds": round(slow, 1), "engine_seconds": round(fast, 1),
                "times": round(slow / fast, 2), "times_shared": round(shared / fast, 2),
                "times_best": round(strong / fast, 2), "ties_off": max(p["ties_off"] for p in parts),
                "differ": sum(p["differ"] for p in parts), "close": sum(p["close"] for p in parts),
            },
        )  # fmt: skip
        for layer, rounds in GREEDY.items():
            rows.row(f"greedy {layer}", lambda layer=layer, rounds=rounds: greedy(layer, rounds))
        rows.row("shapley permutations of the classifier's features", lambda: permutations(100))
        for images in (250, 500, 1000, 2000):
            rows.row(f"one-shot layer2.0.conv1, {images} images", lambda images=images: cost(images))
        peak = {"peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
        rows.row("peak memory of the whole run", lambda: peak)
    except OutOfTime:
        print("out of time; run again to go on")
    parent.send(None)
    worker.join()


if __name__ == "__main__":
    main()
