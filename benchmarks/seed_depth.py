"""Badola et al., Figure 2: does the decomposed classifier lose less, the deeper the network? r_A = decomposed / dense top-1.

    python benchmarks/seed_depth.py --cifar resnet20-cifar=resnet20-12fca82f.th --data folder:cifar10-jpeg
    python benchmarks/seed_depth.py --weights DIR --imagenet folder:IMAGENET --limit 50000
    python benchmarks/seed_depth.py --network head_imagenet:lite0=efficientnet-lite0-57934424.pth --resize 256 \
        --mean 0.498 --std 0.502 --imagenet images:imagenet-sample-1000

ImageNet (k1 = k2 = 50; Badola et al., Tables 2 to 6): networks whose torchvision weights lie in DIR as NAME-*.pth, and every
NAME=CHECKPOINT given, with an ImageNet folder; what is not there is "not run". On images:DIR, a sample with too few labels to
measure top-1, r_A is the share of the dense network's decisions that is kept, features are voted for by the classes that the
dense network decides on, and the table says so. CIFAR (k1 = k2 = 5, the paper has no such row): every NAME=CHECKPOINT given.
Truncated, as in the paper; features from the training split, accuracy on the test split (on four fifths of it for CIFAR). Rows
are saved as they come to results/seed_depth.json.
"""

import argparse
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.compress.head.options import HeadOptions
from slimrank.compress.head.specialize import specialize
from slimrank.compress.network.checkpoint import load
from slimrank.evaluate.data import open_data

PAPER = {  # dense, decomposed
    "resnet50": (74.55, 64.79), "resnet101": (75.99, 68.16), "resnet152": (77.01, 69.35), "wide_resnet50_2": (77.26, 75.01),
    "wide_resnet101_2": (77.91, 75.99), "densenet121": (71.96, 63.72), "densenet169": (73.75, 66.33),
    "densenet161": (75.27, 67.66), "densenet201": (74.55, 68.21), "efficientnet_b0": (76.09, 64.84),
    "efficientnet_b1": (76.39, 70.46),
    "efficientnet_b2": (76.76, 67.78), "efficientnet_b3": (76.93, 64.84),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", action="append", default=[], metavar="NAME=CKPT")
    parser.add_argument("--data", help="CIFAR")
    parser.add_argument("--weights", type=Path, help="folder of torchvision's files")
    parser.add_argument("--network", action="append", default=[], metavar="NAME=CKPT", help="of ImageNet; as for --model")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--resize", type=int, help="of --network: the shorter side before the crop of --size")
    parser.add_argument("--mean", type=float, help="of --network, one for all channels (default: ImageNet's)")
    parser.add_argument("--std", type=float)
    parser.add_argument("--imagenet", help="folder:DIR with train/ and val/, or images:DIR, a sample without labels")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("seed_depth", args.minutes, torch=torch.__version__)

    def decomposed(path: Path, name: str, spec: str, k: int, **seen) -> dict:
        given = load(path, model=name, **seen)
        data = open_data(spec, given.preprocessing, validation="test:0.2" if k == 5 else "train:0.01", limit=args.limit)
        options = HeadOptions(select="histogram", fit="truncate", layout="dense", k1=k, k2=k)
        found = specialize(given, data, options).result
        told = {"dense": found.top1_dense, "decomposed": found.top1_head, "r_A": found.ratio, "n": found.n, "k": k}
        return told | ({} if data.classes else {"labels": False, "images": found.images})

    try:
        for pair in args.cifar:
            name, _, path = pair.partition("=")
            rows.row(name, lambda p=Path(path), n=name: decomposed(p, n, args.data, 5))
        for name in PAPER:
            files = sorted(args.weights.glob(f"{name}-*.pth")) if args.weights else []
            if files and args.imagenet:
                rows.row(name, lambda p=files[0], n=name: decomposed(p, n, args.imagenet, 50))
        for pair in args.network:
            name, _, path = pair.partition("=")
            one = {"mean": args.mean and (args.mean,) * 3, "std": args.std and (args.std,) * 3}
            seen = {"size": args.size, "resize": args.resize, **one}
            make = lambda p=Path(path), n=name, s=seen: decomposed(p, n, args.imagenet, 50, **s)  # noqa: E731
            rows.row(f"{name} on {args.imagenet.partition(':')[0]}", make)
    except OutOfTime:
        print("out of time; run again to go on")
    print(f"  {'network':20}  paper: dense decomposed    r_A   ours: dense decomposed    r_A")
    for name in dict.fromkeys([*PAPER, *rows.value["rows"]]):
        dense, cut = PAPER.get(name, (None, None))
        theirs = f"{dense:13.2f} {cut:10.2f} {cut / dense:6.3f}" if dense else f"{'':31}"
        r = rows.value["rows"].get(name)
        mine = "not run"
        if r is not None and not r.get("labels", True):
            mine = (
                f"{'no labels':>12} {'':10} {r['r_A']:6.3f}  of the dense decisions on {r['n']} images, fitted to {r['images']}"
            )
        elif r is not None:
            mine = f"{100 * r['dense']:12.2f} {100 * r['decomposed']:10.2f} {r['r_A']:6.3f}"
        print(f"  {name:20} {theirs} {mine}")


if __name__ == "__main__":
    main()
