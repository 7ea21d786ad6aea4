"""Do Hugging Face's CNNs go through the whole chain from the folder that they lie in?

    python benchmarks/hf_folders.py --data folder:tiny-imagenet-200

One small network of each family, 200 classes, random weights scaled on real images as in zoo.py (no published ones are at
hand), saved with save_pretrained: the folder -> `prune --ranker l1 --macs 0.5` -> slim checkpoint -> export -> ONNX Runtime.
`theirs`: the largest difference between slimrank's logits of the folder and transformers' own, over their spread. Other
columns are zoo.py's.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import transformers
from rows import Rows
from zoo import awake, chain, lively, passes, pictures, tried

from slimrank.compress.network.checkpoint import load

STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
CONFIGS = {
    "ResNet": {**STAGES, "embedding_size": 16},
    "ConvNext": STAGES,
    "ConvNextV2": STAGES,
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320},
    "RegNet": {**STAGES, "groups_width": 8, "embedding_size": 16},
}
SIZE = 64


class Logits(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    rows = Rows("hf_folders", None, torch=torch.__version__, transformers=transformers.__version__)
    for family in CONFIGS:
        rows.row(family, lambda family=family: tried(lambda: measure(family, args.data)))
    print(f"{sum(map(passes, rows.value['rows'].values()))} of {len(CONFIGS)} passed")


def measure(family: str, spec: str) -> dict:
    torch.manual_seed(0)
    x = pictures(spec, SIZE)
    config = getattr(transformers, f"{family}Config")(**CONFIGS[family], num_labels=200)
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    lively(Logits(awake(model)), x)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "net"
        model.save_pretrained(folder)
        with torch.inference_mode():
            theirs, ours = model.eval()(x).logits, load(folder, size=SIZE).model(x)
        row = chain(folder, {"size": SIZE}, x, spec, afresh=False)
        return {"theirs": float((theirs - ours).abs().max() / theirs.std()), **row}


if __name__ == "__main__":
    main()
