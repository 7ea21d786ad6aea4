"""How fast is the final layer alone, against the dense one, at every size, batch and thread count?

    python benchmarks/head_latency.py --minutes 30

Random weights (the time does not depend on them). `tiled` at an eighth and a sixteenth of the MACs, four groups of classes,
tiles of 16 features: `adjacent` groups are runs of neighbouring classes, else the logits are put back in order at
inference. `+8`: the best 8 classes rescored densely. `two-level`: as many groups as a group has classes, of which the best 8
(a quarter, if there are fewer than 32) are computed. Rivals: int8 (ONNX Runtime's dynamic quantisation), low rank of the
same MACs, with and without rescoring, gather (the obvious way). `auto` is what `specialize --layout auto` picks for an
eighth of the MACs, timed again. Inputs and outputs are bound; the heads of a size run in turn, three sets of them, the dense
layer in each. Left out: 100,000 classes of 2,048 features (800 MB a file, several at once); gather beyond 300,000 indices
(seconds a run).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rows import OutOfTime, Rows
from torch import nn

from slimrank.compress.head.classifier import two_level_groups
from slimrank.compress.head.low_rank import LowRank
from slimrank.compress.head.timing import candidates, fastest_first, head_files, random_head
from slimrank.evaluate.latency import compare, machine
from slimrank.evaluate.macs import count
from slimrank.export.to_onnx import size

BATCHES = (1, 8, 32, 128)
SIZES = [(2048, 1000), (512, 100_000), (512, 200), (64, 10), (512, 1000), (2048, 200), (512, 21_841), (2048, 21_841), (64, 200),
         (64, 1000), (512, 10), (2048, 10), (64, 21_841), (64, 100_000)]  # fmt: skip


def low(features: int, classes: int, macs: int, rescore: int = 0) -> LowRank:
    """The shape of a low-rank layer; the SVD itself changes no time."""
    rank = max(1, macs // (features + classes))
    full = (torch.randn(classes, features), torch.randn(classes)) if rescore else None
    return LowRank(torch.randn(classes, rank), torch.randn(rank, features), torch.randn(classes), full, rescore)


def heads(m: int, c: int, auto: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    few = min(4, c // 2)
    again = min(8, c)
    made: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(m, c),
        **({"gather 1/8": lambda: random_head(m, c, m // 8, "gather")} if c * m // 8 <= 300_000 else {}),
        "svd 1/8": lambda: low(m, c, m * c // 8),
        "svd 1/16 +8": lambda: low(m, c, m * c // 16, again),
    }
    for share in (8, 16):
        k = max(1, m // share)
        t = min(16, k)
        for order, ordered in (("", True), (" adjacent", False)):
            words = {"class_groups": few, "tile": t, "ordered": ordered}
            made[f"tiled 1/{share}{order}"] = lambda k=k, w=words: random_head(m, c, k, "tiled", **w)
            if share == 16:
                made[f"tiled 1/16 +8{order}"] = lambda k=k, w=words: random_head(m, c, k, "tiled", rescore=again, **w)
    if c >= 1000:
        many, k = two_level_groups(c), max(1, m // 16)
        words = {"class_groups": many, "tile": min(16, k), "probe": min(8, many // 4)}
        made["two-level 1/16"] = lambda w=words: random_head(m, c, k, "tiled", **w)
        made["two-level 1/16 +8"] = lambda w=words: random_head(m, c, k, "tiled", rescore=again, **w)
    return {**made, "auto": lambda: auto}


def measure(m: int, c: int, threads: int) -> dict:
    k = max(1, m // 8)
    race = fastest_first(candidates(m, c, k, min(16, k)), m, c, BATCHES, threads, "cpu")
    shapes = {one.name: head for one, head in candidates(m, c, k, min(16, k)).items()}
    auto = shapes[race.faster[0].name] if race.faster else nn.Linear(m, c)
    kinds, rows = heads(m, c, auto), {}
    rivals = [name for name in kinds if name.startswith(("linear", "gather", "svd"))]
    mine = [name for name in kinds if name not in rivals]
    for names, int8 in (
        (rivals, True),
        (["linear", *mine[: len(mine) // 2]], False),
        (["linear", *mine[len(mine) // 2 :]], False),
    ):
        made = {name: kinds[name]() for name in names}
        with tempfile.TemporaryDirectory() as folder:
            paths = head_files(made, m, Path(folder), ["int8"] if int8 else [])
            timed = compare(paths, batches=BATCHES, threads=[threads], seconds=0.2)
            sized = {name: size(path) for name, path in paths.items()}
        speedups = {(s.model, s.batch): s.speedup for s in timed.speedups}
        for name in [*names, *(["int8"] if int8 else [])]:
            if name == "linear" and "linear" in rows:
                continue
            rows[name] = {
                "us": [round(1e3 * r.median_ms, 1) for r in timed.results if r.model == name],
                "speedup": [round(speedups.get((name, b), 1.0), 2) for b in BATCHES],
                "bytes": sized[name], "macs": m * c if name == "int8" else count(made[name], (m,)).macs,
            }  # fmt: skip
    return {"auto": race.faster[0].name if race.faster else race.note, "batches": BATCHES, "heads": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="two threads: the first three sizes")
    args = parser.parse_args()
    rows = Rows("head_latency", args.minutes, **machine().to_dict())
    try:
        for threads in args.threads:
            for m, c in SIZES if threads == 1 else SIZES[:3]:
                name = f"{m} features, {c} classes, {threads} threads"
                found = rows.row(name, lambda m=m, c=c, t=threads: measure(m, c, t))
                for head, row in found["heads"].items():
                    print(
                        f"  {head:24} {row['macs']:>12,} MACs {row['bytes']:>12,} bytes ",
                        *(f"{s:7.2f}x" for s in row["speedup"]),
                    )
    except OutOfTime:
        print("out of time; run again to go on")


if __name__ == "__main__":
    main()
