"""Does `bench` tell of the same file given twice that it is as fast as itself?

    python benchmarks/bench_twice.py --minutes 10

`slimrank bench F F`, 20 times each for ResNet-20 (32 pixels) and ResNet-18 (64 pixels) with random weights, batch 1 and 8, one
thread, each time in a process of its own. Asked: two rows, a ratio of 1.00 +- 0.02, and 1 inside its 99 % interval. Rows are
saved as they come. `others_cores`: what other programs took of the machine meanwhile; the figure counts on a quiet machine, and
a busy one shows whether the intervals widen enough.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.compress.network import zoo
from slimrank.evaluate.machine import machine
from slimrank.export.to_onnx import export

TIMES = 20
NETWORKS = {"resnet20-cifar": 32, "resnet18": 64}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    rows = Rows("bench_twice", args.minutes, machine=machine().to_dict())
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, size in NETWORKS.items():
                path = export(zoo.build(name).eval(), torch.zeros(1, 3, size, size), Path(folder) / f"{name}.onnx", {})
                for time in range(1, TIMES + 1):
                    rows.row(f"{name}, {time}", lambda path=path: twice(path))
        except OutOfTime:
            print("out of time; run again to go on")
    every = [row for name, row in rows.value["rows"].items()]
    right = [row["rows"] == 2 and all(passes(one) for one in row["speedups"]) for row in every]
    print(f"{sum(right)} of {len(every)} times: two rows, 1.00 +- 0.02 and 1 inside the interval, at batch 1 and 8")


def passes(one: dict) -> bool:
    return abs(one["speedup"] - 1) <= 0.02 and one["low"] <= 1 <= one["high"]


def twice(path: Path) -> dict:
    words = [sys.executable, "-m", "slimrank", "bench", path, path, "--batch", "1,8", "--json"]
    found = json.loads(subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True).stdout)
    return {
        "rows": len({row["model"] for row in found["results"]}),
        "speedups": [
            {key: round(row[key], 4) for key in ("batch", "speedup", "low", "high", "sessions")} for row in found["speedups"]
        ],
        "others_cores": None if found["others_cores"] is None else round(found["others_cores"], 2),
        "busy": found["busy"],
    }


if __name__ == "__main__":
    main()
