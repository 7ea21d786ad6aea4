"""Badola et al., Table 1: class-specific gates (CSG, Liang et al.) against influential features.

    python benchmarks/seed_csg.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg \
        --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200

Ours goes on from the shared checkpoints: 9 epochs of 20,000 images (ResNet-20, lr 0.02) and 3 (ResNet-18 on Tiny ImageNet,
lr 0.01), every third gated, from the first; the paper trains from scratch. `plain`: the same network trained as long without
gates. Accuracy on the plain path, on the gated path (which is given the true class, and gates that differ from class to class
give it away) and with each class's logit through its own gates. Index sets of 5 (50) features a class: by gates, and by the
influential features of the gated, the plain and the given network; their mean pairwise mutual information as the authors
count it, without the diagonal, and of random sets; accuracy of the head truncated to them. Validation is a fifth of the test
split, figures are of the rest. Rows are saved as they come to results/seed_csg.json, gated networks beside them, uncommitted.
"""

from dataclasses import asdict

import torch
from rows import RESULTS, OutOfTime, Rows, two_networks

from slimrank.compress.channels.features import classifier, features, vote
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.explain.classes import overlap
from slimrank.compress.head.cluster import Subspaces
from slimrank.compress.head.fit import assemble, truncated
from slimrank.compress.head.install import with_head
from slimrank.compress.network.checkpoint import load, save
from slimrank.compress.training import gates
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Csg, Recipe
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data

RECIPES = {"resnet20": Recipe(9, 0.02, csg=Csg(0)), "resnet18": Recipe(3, 0.01, csg=Csg(0))}
K = {"resnet20": 5, "resnet18": 50}
IMAGES = 20_000
PAPER = "paper (CIFAR-10, ResNet-20, from scratch): 88.09 on both paths"


class Bench:
    def __init__(self, name: str, checkpoint, spec: str, rows: Rows):
        self.name, self.rows, self.given, self.k = name, rows, checkpoint, K[name]
        self.data = open_data(spec, checkpoint.preprocessing, validation="test:0.2")
        self.classes = len(self.data.classes)
        self.layer, _ = classifier(checkpoint.model, channel_map(checkpoint.model, checkpoint.example()), checkpoint.example())
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(0))
        self.images = self.data.train.subset(order[:IMAGES])

    def run(self) -> None:
        self.rows.row(f"{self.name} given", lambda: self.measured(self.given.model))
        for gated in (True, False):
            self.rows.row(f"{self.name} {'gated' if gated else 'plain'}", lambda g=gated: self.trained(g))

    def trained(self, gated: bool) -> dict:
        recipe = RECIPES[self.name]
        recipe = recipe if gated else Recipe(recipe.epochs, recipe.lr)
        progress = RESULTS / f"seed_csg_{self.name}_{gated}.part"
        # the last epoch is kept on both sides: gates have no best one
        model, training = train(self.given.model, self.images, self.data.validation, recipe, keep_best=False, progress=progress)
        if training.gates is not None:
            made = self.given.with_classes(self.data).then(model, step="train", csg=True)
            save(type(made)(**{**vars(made), "gates": training.gates}), RESULTS / f"seed_csg_{self.name}.safetensors")
        progress.unlink(missing_ok=True)
        return {"epochs": training.epochs, "seconds": round(training.seconds), **self.measured(model, training.gates)}

    def measured(self, model, made=None) -> dict:
        test = self.data.split("test")
        linear = model.get_submodule(self.layer)
        found = {"top1": round(accuracy(predictor(model), test.batches(), self.classes).top1, 4), "sets": {}}
        histogram = vote(features(model, self.layer, self.images.batches()), self.classes, self.k).choose(self.k)
        chosen = {"influential": histogram}
        if made is not None:
            told = gates.measure_gates(model, self.layer, made, test.batches(), self.classes)
            found |= {"density": told.density, "top1_gated": told.top1_gated, "top1_own": told.top1_own}
            found["largest_information"] = told.to_dict()["mean_largest_information"]
            chosen["gates"] = gates.choose(made, linear.weight.detach(), self.k)
        for name, index in chosen.items():
            spaces = Subspaces(index)
            bias = linear.bias.detach()
            head = assemble(*truncated(linear.weight.detach(), bias, spaces), spaces, linear.in_features, "dense")
            cut = accuracy(predictor(with_head(model, self.layer, head)), test.batches(), self.classes).top1
            found["sets"][name] = {**asdict(overlap(index, linear.in_features)), "top1_truncated": round(cut, 4)}
        return found


def main() -> None:
    args = two_networks(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("seed_csg", args.minutes, torch=torch.__version__)
    small = Bench("resnet20", load(args.checkpoint, model="resnet20-cifar"), args.data, rows)
    large = Bench("resnet18", load(args.tiny_checkpoint, model="resnet18", size=64), args.tiny, rows)
    try:
        small.run()
        large.run()
    except OutOfTime:
        print("out of time; run again to go on")
    print(PAPER)
    print(f"  {'':16} plain path  gated path  own gates  density")
    for key, row in rows.value["rows"].items():
        paths = [row["top1"], row.get("top1_gated"), row.get("top1_own"), row.get("density")]
        print(f"  {key:16} " + "  ".join("         -" if v is None else f"{v:10.4f}" for v in paths))
    print(f"  {'index sets':32} MI, all pairs  different  by chance  in common  truncated")
    for key, row in rows.value["rows"].items():
        for name, o in row["sets"].items():
            print(
                f"  {key + ', ' + name:32} {o['all_pairs']:13.4f} {o['different_classes']:10.4f} {o['chance']:10.4f} "
                f"{o['common']:10.2f} {o['top1_truncated']:10.4f}"
            )


if __name__ == "__main__":
    main()
