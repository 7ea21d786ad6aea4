"""Badola et al., "Decomposing the Deep": ResNet-20 with a decomposed classifier, the paper's row beside ours (Figure 1).

    python benchmarks/seed_resnet20.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg

The authors' own checkpoint, but CIFAR-10 recompressed as JPEG, which costs it ten points. Truncated, as in the paper: k1 votes
an image, k2 features a class, all of {3, 5, 10, 20}. Retraining (section 5.2.3): one epoch of network and head together, from
k1 = k2 = 5, lr 0.01; beside it the dense network given the same epoch. Validation is a fifth of the test split, figures are of
the rest. Rows are saved as they come to results/seed_resnet20.json (and the heat map, seed_resnet20.svg); run again to go on.
"""

import argparse
from pathlib import Path

import torch
from rows import RESULTS, OutOfTime, Rows

from slimrank.compress.head.options import HeadOptions
from slimrank.compress.head.specialize import specialize
from slimrank.compress.head.sweep import sweep
from slimrank.compress.network.checkpoint import load
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data

KS = (3, 5, 10, 20)
PAPER = {"dense": 91.71, "k1=3, k2=3": 84.16, "k1=5, k2=5": 88.59, "retrained": 91.51}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("seed_resnet20", args.minutes, torch=torch.__version__)
    given = load(args.checkpoint, model="resnet20-cifar")
    data = open_data(args.data, given.preprocessing, validation="test:0.2")

    def top1(model) -> float:
        return round(accuracy(predictor(model), data.split("test").batches(), 10).top1, 4)

    def decomposed() -> dict:
        found = sweep(given, data, KS)
        found.save(RESULTS / "seed_resnet20.svg")
        return {**found.to_dict(), "dense": top1(given.model)}

    def retrained(specialised: bool) -> dict:
        model = given.model
        if specialised:
            options = HeadOptions(select="histogram", fit="truncate", layout="dense", k1=5, k2=5)
            model = specialize(given, data, options).checkpoint.model
        before = top1(model)
        made, training = train(model, data.train, data.validation, Recipe(1, 0.01))
        return {"before": before, "after": top1(made), "seconds": round(training.seconds)}

    try:
        table = rows.row("decomposed", decomposed)
        ours = {s: rows.row(f"retrained, {s}", lambda s=s: retrained(s != "dense")) for s in ("k1=k2=5", "dense")}
    except OutOfTime:
        return print("out of time; run again to go on")
    print(f"top-1, percent (paper: CIFAR-10; ours: CIFAR-10 (JPEG), {table['n']:,} test images)")
    print(f"  {'':24}    paper     ours")
    print(f"  {'dense':24} {PAPER['dense']:8.2f} {100 * table['dense']:8.2f}")
    for i, k1 in enumerate(KS):
        for j, k2 in enumerate(KS):
            name = f"k1={k1}, k2={k2}"
            print(
                f"  {name:24} {PAPER.get(name, float('nan')):8.2f} {100 * table['top1'][i][j]:8.2f}".replace(
                    "     nan", "        "
                )
            )
    print(f"  {'one epoch of retraining':24} {PAPER['retrained']:8.2f} {100 * ours['k1=k2=5']['after']:8.2f}")
    print(f"  {'dense, retrained equally':24} {'':8} {100 * ours['dense']['after']:8.2f}")


if __name__ == "__main__":
    main()
