"""Do Shapley value and importance switch agree? Table 1 of "Neuron ranking" (Adamczewski & Park) on MNIST, five seeds.

    python benchmarks/rankers_agreement.py --mnist mnist:DIR [--fashion fashion-mnist:DIR] [--minutes M]

LeNet 10-20-100-25, trained here (8 epochs). Shapley on 500 validation images: exact over the power set for conv1 (2^10),
conv2 (2^20) and fc2 (2^25 coalitions), 100 pairs of permutations for fc1; the switch on 5,000 training images with slimrank's
defaults (plain s, as in the paper), point estimate and sampled, and with n*s. For each layer: how many of their top five they
share with Shapley, and Spearman's rho; beside it CAR (one-shot), L1 and chance. The paper: at least 3 of 5 on average in
conv1, conv2 and fc2.
"""

import argparse

import torch
from rows import OutOfTime, Rows

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.rankers import RANKERS
from slimrank.compress.rankers.compare import compare_scores
from slimrank.compress.stages.finetune import fresh
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data

LAYERS = ("conv1", "conv2", "fc1", "fc2")
SEEDS = range(5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", required=True)
    parser.add_argument("--fashion")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    torch.set_num_threads(2)
    rows = Rows("rankers_agreement", args.minutes, images=args.images, torch=torch.__version__)
    try:
        for name, spec in (("mnist", args.mnist), ("fashion-mnist", args.fashion)):
            if spec is None:
                print(f"{name}: not run (its files were not given)")
                continue
            for seed in SEEDS:
                rows.row(f"{name} seed {seed}", lambda spec=spec, seed=seed: one(spec, seed, args.images))
            rows.row(f"{name} mean", lambda name=name: mean([rows[f"{name} seed {seed}"] for seed in SEEDS]))
    except OutOfTime:
        print("out of time; run again to go on")


def one(spec: str, seed: int, images: int) -> dict:
    checkpoint = fresh("lenet5", None, list("0123456789"), 1, None, seed)
    data = open_data(spec, checkpoint.preprocessing, seed=seed)
    model, _ = train(checkpoint.model, data.split("train"), data.validation, Recipe(8, 0.05, precision="fp32", seed=seed))
    channels = channel_map(model, checkpoint.example())
    top1 = accuracy(predictor(model), data.split("test").batches(), 10).top1
    validation = data.split("validation").subset(torch.arange(images)).batches()
    order = torch.randperm(len(data.split("train")), generator=torch.Generator().manual_seed(seed))[:5000]
    training = data.split("train").subset(order).batches()

    def ranked(name: str, batches, **options):
        return RANKERS[name](model, channels, batches, classes=10, seed=seed, layers=list(LAYERS), **options)

    exact = RANKERS["shapley"](
        model, channels, validation, classes=10, seed=seed, layers=["conv1", "conv2", "fc2"], estimator="exact"
    )
    sampled = RANKERS["shapley"](
        model, channels, validation, classes=10, seed=seed, layers=["fc1"], estimator="permutation", samples=100
    )
    exact.scores.update(sampled.scores)
    others = {
        "switch": ranked("switch", training),
        "switch, sampled": ranked("switch", training, sampled=True),
        "switch, n*s": ranked("switch", training, identity=True),
        "car": ranked("car", validation),
        "l1": ranked("l1", None),
    }
    found: dict = {
        "top1": top1,
        "shapley_seconds": round(exact.seconds + sampled.seconds),
        "value_full": exact.extra["value_full"],
    }
    for name, scores in others.items():
        agree = compare_scores(exact, scores)
        found[name] = {layer: {"top5": a.shared, "spearman": a.spearman} for layer, a in agree.layers.items()}
    found["top"] = {
        layer: {"shapley": exact.order(layer)[:-6:-1], "switch": others["switch"].order(layer)[:-6:-1]} for layer in LAYERS
    }
    return found


def mean(rows: list[dict]) -> dict:
    found: dict = {"by_chance": {"conv1": 2.5, "conv2": 1.25, "fc1": 0.25, "fc2": 1.0}}
    for name in ("switch", "switch, sampled", "switch, n*s", "car", "l1"):
        found[name] = {layer: sum(r[name][layer]["top5"] for r in rows) / len(rows) for layer in LAYERS}
        three = [found[name][layer] for layer in ("conv1", "conv2", "fc2")]
        found[name]["conv1, conv2 and fc2"] = round(sum(three) / 3, 2)
    return found


if __name__ == "__main__":
    main()
