"""Abbasi-Asl & Yu: are the filters that CAR prunes first colour-selective?

    python benchmarks/seed_car.py --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200

The paper (AlexNet): of the first 20 pruned, 17 are colour-selective in layer 1 and 14 in layer 2, judged by eye. Ours:
ResNet-18 on Tiny ImageNet, greedy CAR on 500 validation images (a fifth of the test split), the first 20 of 64 filters in
the first two groups. conv1's filters are tied to the first stage's by residual sums and go together; their kernels are conv1's
own. Colour selectivity by our rule (compress/explain/filters.py): selective are a layer's more selective half; beside it what
chance gives. Also how far the first 20 repeat kept filters. Rows are saved as they come to results/seed_car.json.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.explain.filters import colour_order, kernel_colour, redundancy, survey_filters
from slimrank.compress.explain.responses import Responses
from slimrank.compress.network.checkpoint import load
from slimrank.compress.rankers import RANKERS
from slimrank.evaluate.data import open_data

LAYERS, FIRST, IMAGES = {"conv1": 17, "layer1.0.conv1": 14}, 20, 500  # with the paper's counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-checkpoint", type=Path, required=True)
    parser.add_argument("--tiny", required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("seed_car", args.minutes, torch=torch.__version__)
    given = load(args.tiny_checkpoint, model="resnet18", size=64)
    data = open_data(args.tiny, given.preprocessing, validation="test:0.2")
    channels = channel_map(given.model, given.example())
    order = torch.randperm(len(data.validation), generator=torch.Generator().manual_seed(0))
    images = data.validation.subset(order[:IMAGES])

    def pruned(layer: str) -> dict:
        found = RANKERS["car"](given.model, channels, images.batches(), classes=200, layers=[layer], greedy=True, remove=FIRST)
        seen = survey_filters(Responses(given.model, channels, [layer]), images.batches(), given.preprocessing)
        colour = kernel_colour(given.model.conv1.weight.detach()) if layer == "conv1" else seen.colour[layer]
        order = found.order(layer)
        alike = redundancy(seen.correlation[layer], order[:FIRST])
        return {
            **asdict(colour_order(colour, order, FIRST)), "order": order, "colour": [round(float(c), 4) for c in colour],
            "redundancy_pruned": alike.mean_pruned, "redundancy_kept": alike.mean_kept, "evaluations": found.evaluations,
            "images": found.images, "seconds": round(found.seconds), "top1_lost": found.scores[layer][order[FIRST - 1]],
        }  # fmt: skip

    try:
        for layer in LAYERS:
            rows.row(layer, lambda layer=layer: pruned(layer))
    except OutOfTime:
        print("out of time; run again to go on")
    print(
        f"first {FIRST} pruned: colour-selective   paper   ours  by chance       p  like a kept filter  (kept among themselves)"
    )
    for layer, paper in LAYERS.items():
        if layer in rows:
            r = rows[layer]
            print(
                f"  {layer:34} {paper:5} {r['selective']:6} {r['expected']:10} {r['p']:7.3f} {r['redundancy_pruned']:19.3f} "
                f"{r['redundancy_kept']:24.3f}"
            )


if __name__ == "__main__":
    main()
