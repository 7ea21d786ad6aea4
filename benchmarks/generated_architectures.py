"""Are 300 random architectures cut exactly?

    python benchmarks/generated_architectures.py

Networks of tests/generated.py by seed (depth, widths, kernels, strides, groups, sums, concats, gates, shuffles, pooling,
norms, activations), pruned by random filters to random budgets: masked equals sliced in float64 (1e-9 of the logits'
spread), MACs and parameters are those that the plan counted, ONNX Runtime agrees with PyTorch (1e-4). `refused`: the budget
cannot be met and the error says the least possible. Rows are saved as they come.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import torch
from rows import OutOfTime, Rows

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from generated import chain, generated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--networks", type=int, default=300)
    args = parser.parse_args()
    rows = Rows("generated_architectures", args.minutes, torch=torch.__version__)
    try:
        for seed in range(args.networks):
            rows.row(str(seed), lambda seed=seed: one(seed))
    except OutOfTime:
        print("out of time; run again to go on")
    found = rows.value["rows"].values()
    count = {kind: sum(kind in row for row in found) for kind in ("onnx", "refused", "failed")}
    print(f"{count['onnx']} cut and exact, {count['refused']} refused, {count['failed']} failed")


def one(seed: int) -> dict:
    choose = random.Random(seed).choice
    torch.manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return chain(generated(choose).eval(), choose, Path(folder))
        except Exception as error:  # a crash is a result
            return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


if __name__ == "__main__":
    main()
