"""What does each part of a schedule bring, epochs being equal? ResNet-20 on CIFAR-10 (JPEG), half of the MACs, l1, by the
verbs.

    python benchmarks/schedules.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg

CIFAR-10 (JPEG), `compress --limit 10000`, no alignment, four epochs in all: one-shot, three steps (rank, cut, recover,
again: two of the four epochs between them), label smoothing, distillation, all three; early stopping (`--patience 1`, eight
epochs allowed); fp32 against bf16. As cut, with and without BatchNorm recalibrated (`prune --no-recalibrate`, `--recalibrate`).
`prune --max-drop 0.05 --epochs 1 --no-recalibrate`: the largest cut whose validation top-1, each trial fine-tuned, loses no
more. Nothing is reconstructed. The checkpoint saw other pixels: `dense` is the network given the same four epochs. Validation
is a fifth of the test split, figures are of the rest. Rows are saved as they come to results/schedules.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from rows import OutOfTime, Rows

COMPRESS = [
    "--ranker",
    "l1",
    "--head",
    "linear",
    "--macs",
    "0.5",
    "--align",
    "1",
    "--lr",
    "0.02",
    "--batch",
    "1",
    "--no-reconstruct",
]
ROWS = {
    "one-shot": ["--epochs", "4"],
    "three steps": ["--steps", "3", "--recover", "1", "--epochs", "2"],
    "label smoothing 0.1": ["--epochs", "4", "--label-smoothing", "0.1"],
    "distilled": ["--epochs", "4", "--distill"],
    "three steps, smoothing, distilled": [
        "--steps", "3", "--recover", "1", "--epochs", "2", "--label-smoothing", "0.1", "--distill",
    ],
    "patience 1 of 8": ["--epochs", "8", "--patience", "1"],
    "one-shot, fp32": ["--epochs", "4", "--precision", "fp32"],
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float)
    args = parser.parse_args()
    rows = Rows("schedules", args.minutes, torch=torch.__version__)
    data = ["--data", args.data, "--validation", "test:0.2", "--limit", "10000"]
    given = [str(args.checkpoint), "--model", "resnet20-cifar"]

    def verb(name: str, *words: str) -> dict:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / ("out" if name == "compress" else "out.safetensors")
            command = [sys.executable, "-m", "slimrank.cli", name, *given, *data, *words, "--json", "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        return {**json.loads(done.stdout), "wall": round(time.perf_counter() - began)}

    def compressed(options: list[str]) -> dict:
        found = verb("compress", *COMPRESS, *options)
        stage = next(s for s in found["stages"] if s["name"] == "finetune")
        top1 = {"top1": found["compressed"]["top1"], "macs": found["compressed"]["macs"] / found["baseline"]["macs"]}
        return {**top1, "says": stage["says"], "train_seconds": round(stage["seconds"]), "seconds": found["wall"]}

    def cut(*words: str) -> dict:
        found = verb("prune", "--ranker", "l1", *words)
        kept = {"top1": found["top1_after"], "macs": found["macs_after"] / found["macs_before"], "seconds": found["wall"]}
        return {**kept, **{k: found[k] for k in ("trials", "validation_top1_before") if k in found}}

    try:
        half = ["--macs", "0.5", "--align", "1"]
        rows.row("as cut", lambda: cut(*half, "--no-reconstruct", "--no-recalibrate"))
        rows.row("as cut, recalibrated", lambda: cut(*half, "--no-reconstruct", "--recalibrate"))
        rows.row("dense", lambda: {k: v for k, v in verb("finetune", "--epochs", "4").items() if k in ("top1_after", "wall")})
        for name, options in ROWS.items():
            rows.row(name, lambda options=options: compressed(options))
        rows.row(
            "max-drop 0.05, one epoch",
            lambda: cut("--max-drop", "0.05", "--epochs", "1", "--no-reconstruct", "--no-recalibrate"),
        )
    except OutOfTime:
        print("out of time; run again to go on")
    for name, row in rows.value["rows"].items():
        top1, macs = row.get("top1", row.get("top1_after")), row.get("macs", 1.0)
        print(f"  {name:36} top-1 {100 * top1:6.2f}  MACs {macs:6.1%}  {row.get('seconds', row.get('wall'))} s")


if __name__ == "__main__":
    main()
