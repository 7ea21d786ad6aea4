"""One dense checkpoint, the same images, the same training: what do slimrank and its peers make of it at half of the MACs?

    pip install 'slimrank[benchmarks]'
    python benchmarks/peers.py --checkpoint resnet20-12fca82f.th --data folder:cifar10-jpeg \
        --tiny-checkpoint resnet18-tiny-imagenet.pt --tiny folder:tiny-imagenet-200 \
        [--cache FOLDER] [--minutes 30] [--network resnet20] [--no-times] [--rerun]

Everybody has the same 4,000 training images. As cut: with the peer's own means, no label read. Tuned: as `finetune` trains,
with labels, 2 epochs of these images (ResNet-20) or 1 (ResNet-18), the best of three learning rates and of no training on 1,000
validation images (of a fifth of the test split). Top-1 is of 4,000 (2,000) images of the rest, by the ONNX file. Seconds are of
one core, without training. Peers cut to half of the MACs, or as near below as they come:

- slimrank: `prune --macs 0.5`, whole blocks of channels, repaired; the same with `--ranker reconstruct --scope global`, of
  ResNet-20 with `--align 8` and `--align 1` too; `export --int8` of all but the last;
- torch-pruning: its README's BasePruner (GroupMagnitudeImportance, ResNet-18's channels in eights, classifier whole), iterative
  as its own benchmark cuts to a speedup, uniform, and global and isomorphic; the former also in ONNX Runtime's int8;
- fasterai: its tutorial's Pruner (large_final, local);
- onnxsim: simplified, structured pruning by Wanda's criterion, its closed-form fit after it; a file, which nobody trains;
- comprexx: its README's stage (30 % of the filters, l1, global). It sets filters to zero and cuts none;
- ONNX Runtime: static int8 of the dense network (QDQ, least and greatest values, per channel, unsigned), 128 images;
- plain widths: slimrank's default widths, weights drawn anew and trained as long.

Rows are saved as they come to results/peers.json; files lie in --cache; run again to go on. Times are from one interleaved run
of all files of a network on one thread, batch 1 and 32, against dense; they want a quiet machine, as int8's search does:
`--no-times` leaves both out, `--rerun` times anew. Prints the tables of docs/results.md, the best of each column in bold.
"""

import contextlib
import io
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import peer_recipes as by
import torch
from peer_recipes import Network
from rows import OutOfTime, Rows, two_networks
from torch import nn

from slimrank.compress.network.checkpoint import load
from slimrank.compress.stages.measure import accuracy_on
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.evaluate.accuracy import accuracy
from slimrank.evaluate.data import open_data
from slimrank.evaluate.latency import compare, machine
from slimrank.evaluate.onnx_macs import count_onnx
from slimrank.evaluate.runner import Runner
from slimrank.export.to_onnx import export, size

TRAIN, VALIDATION = 4000, 1000  # images
TEST = {"resnet20": 4000, "resnet18": 2000}
EPOCHS = {"resnet20": 2, "resnet18": 1}
RATES = (0.002, 0.01, 0.05)
BATCHES = (1, 32)
TUNED = " tuned"


@dataclass
class Bench(Network):
    """A network and the rows of what is made of it."""

    rows: Rows

    def row(self, key: str, file: Path, make: Callable[[], dict]) -> dict:
        """A row with the file that it tells of: made anew where one of them is missing."""
        if not file.exists():
            self.rows.value["rows"].pop(f"{self.name} {key}", None)
        return self.rows.row(f"{self.name} {key}", make)

    def top1(self, path: Path) -> float:
        batches, classes = self.data.split("test").batches(100), len(self.data.classes)
        return round(accuracy(Runner(path, threads=torch.get_num_threads()), batches, classes).top1, 4)

    def validation(self, kept: Path) -> float:
        model = torch.load(kept, weights_only=False)  # our own file
        return round(accuracy_on(model, self.data.validation, len(self.data.classes)).top1, 4)

    def written(self, model: nn.Module, name: str) -> Path:
        """Keep a network as it is, to be trained, and as an ONNX file."""
        torch.save(model, self.path(name, ".pt"))
        return export(model, self.given.example(), self.path(name), {})

    def cut(self, name: str) -> None:
        """The row of a peer before training."""
        if ONLY.get(name, self.name) != self.name:
            return
        kept = self.path(name, ".pt")

        def made() -> dict:
            began, resumed = time.process_time(), kept.exists()
            with contextlib.redirect_stdout(io.StringIO()):  # some tell all that they do
                model = torch.load(kept, weights_only=False) if resumed else PEERS[name](self)  # our own file
            seconds = None if resumed else round(time.process_time() - began, 1)
            if isinstance(model, onnx.ModelProto):
                path = self.path(name)
                onnx.save(model, path)
                share = count_onnx(path).macs / self.macs
            else:
                path, share = self.written(model, name), self.share(model)
            return {"macs": round(share, 4), "top1": self.top1(path), "seconds": seconds, "bytes": size(path)}

        try:
            self.row(name, self.path(name), made)
        except ModuleNotFoundError as error:
            print(f"{name} left out: {error}")

    def tuned(self, name: str) -> None:
        """Rows of a peer after training at every learning rate, and of what validates best, as it was cut (rate 0) included."""
        start = self.path(name, ".pt")
        if not start.exists():
            return
        kept = {0.0: start, **{lr: self.path(f"{name} {lr}", ".pt") for lr in RATES}}
        validated = {
            0.0: self.rows.row(f"{self.name} {name}, validation", lambda: {"validation": self.validation(start)})["validation"]
        }
        for lr in RATES:

            def trained(lr: float = lr) -> dict:
                began = time.process_time()
                model = torch.load(start, weights_only=False)  # our own file
                made, training = train(model, self.data.split("train"), self.data.validation, Recipe(EPOCHS[self.name], lr))
                torch.save(made, kept[lr])
                seconds = round(time.process_time() - began, 1)
                return {"validation": round(max(training.validation_top1), 4), "seconds": seconds}

            validated[lr] = self.row(f"{name}{TUNED}, lr {lr}", kept[lr], trained)["validation"]
        best = max(validated, key=lambda lr: validated[lr])

        def made() -> dict:
            path = self.written(torch.load(kept[best], weights_only=False), name + TUNED)
            return {"top1": self.top1(path), "lr": best, "bytes": size(path)}

        self.row(f"{name}{TUNED}", self.path(name + TUNED), made)

    def int8(self, name: str) -> None:
        """Rows of a peer that makes int8 of another's file, as cut and tuned."""
        source, make = INT8[name]
        for kind in ("", TUNED):
            if not self.path(source + kind).exists():
                continue

            def made(kind: str = kind) -> dict:
                out, began = self.path(name + kind), time.process_time()
                more = make(self, self.path(source + kind), out)
                seconds = round(time.process_time() - began, 1)
                macs = self.rows[f"{self.name} {source}"]["macs"]
                return {"macs": macs, "top1": self.top1(out), "seconds": seconds, "bytes": size(out), **more}

            self.row(f"{name}{kind}", self.path(name + kind), made)

    def file(self, name: str) -> Path:
        """The file of a peer that is timed: the trained one where there is one."""
        tuned = self.path(name + TUNED)
        return tuned if tuned.exists() else self.path(name)

    def times(self, rerun: bool) -> None:
        """All files in one interleaved run."""
        files = {name: self.file(name) for name in (*PEERS, *INT8) if self.file(name).exists()}
        if rerun:
            self.rows.value["rows"].pop(f"{self.name} times", None)

        def timed() -> dict:
            found = compare(files, batches=BATCHES, threads=(1,), seconds=3)
            return {
                "processor": machine().to_dict(), "busy": found.busy,
                "ms": {f"{r.model}, batch {r.batch}": round(r.median_ms, 3) for r in found.results},
                "speedup": {f"{s.model}, batch {s.batch}": [round(x, 3) for x in (s.speedup, s.low, s.high)]
                            for s in found.speedups},
            }  # fmt: skip

        self.rows.row(f"{self.name} times", timed)


PEERS: dict[str, Callable[[Bench], object]] = {
    "dense": lambda one: one.dense,
    "slimrank": by.slimrank,
    "slimrank, reconstruct global": lambda one: by.slimrank(one, ranker="reconstruct", scope="global"),
    "slimrank, reconstruct global, align 8": lambda one: by.slimrank(one, ranker="reconstruct", scope="global", align=8),
    "slimrank, reconstruct global, align 1": lambda one: by.slimrank(one, ranker="reconstruct", scope="global", align=1),
    "torch-pruning, uniform": by.pruned_by_torch_pruning,
    "torch-pruning, global": lambda one: by.pruned_by_torch_pruning(one, global_pruning=True, isomorphic=True),
    "fasterai": by.fasterai,
    "onnxsim": by.onnxsim,
    "comprexx": by.comprexx,
    "plain widths": by.plain_widths,
}
# finer than a block of 16, for a network whose layers are one block wide, or two, or four
ONLY = dict.fromkeys(("slimrank, reconstruct global, align 8", "slimrank, reconstruct global, align 1"), "resnet20")
UNTRAINED = ("onnxsim", "comprexx")  # a file; zeros that training would fill again
INT8 = {
    "ONNX Runtime int8": ("dense", by.onnxruntime_int8),
    "torch-pruning, uniform, ONNX Runtime int8": ("torch-pruning, uniform", by.onnxruntime_int8),
    "slimrank, int8": ("slimrank", by.slimrank_int8),
    "slimrank, reconstruct global, int8": ("slimrank, reconstruct global", by.slimrank_int8),
    "slimrank, reconstruct global, align 8, int8": ("slimrank, reconstruct global, align 8", by.slimrank_int8),
}


def bench(args: Namespace, name: str, rows: Rows) -> Bench:
    given, spec = {
        "resnet20": lambda: (load(args.checkpoint, model="resnet20-cifar"), args.data),
        "resnet18": lambda: (load(args.tiny_checkpoint, model="resnet18", size=64), args.tiny),
    }[name]()
    data = open_data(spec, given.preprocessing, validation="test:0.2", limit=5000)
    counts = {"train": TRAIN, "validation": VALIDATION, "test": TEST[name]}
    data = replace(data, **{split: data.split(split).sample(n, 0) for split, n in counts.items()})
    folder = args.cache / name
    folder.mkdir(parents=True, exist_ok=True)
    return Bench(name, given.with_classes(data), data, folder, rows)


COLUMNS: dict[str, Callable[[float], float]] = {  # heading: worth, for the best one's bold
    "MACs": lambda x: -x, "as cut": lambda x: x, "tuned": lambda x: x, "seconds": lambda x: -x, "bytes": lambda x: -x,
    "batch 1": lambda x: x, "batch 32": lambda x: x,
}  # fmt: skip


def shown(column: str, value: float) -> str:
    if column in ("MACs", "as cut", "tuned"):
        return f"{value:.1%}".replace("%", " %" if column == "MACs" else "")
    return f"{value:,.0f}" if column in ("seconds", "bytes") else f"{value:.2f}"


def table(one: Bench) -> None:
    """Print a network's rows in Markdown; dense takes no part in the best of a column."""
    known, cells = one.rows.value["rows"], {}
    speedups = known.get(f"{one.name} times", {}).get("speedup", {})
    for name in (*PEERS, *INT8):
        row = known.get(f"{one.name} {name}")
        if row is None:
            continue
        tuned = known.get(f"{one.name} {name}{TUNED}")
        cells[name] = {"MACs": row["macs"], "as cut": row["top1"], "tuned": tuned and tuned["top1"], "seconds": row["seconds"],
                       "bytes": row["bytes"]}  # fmt: skip
        for batch in BATCHES:
            speedup = speedups.get(f"{name}, batch {batch}")
            cells[name][f"batch {batch}"] = 1.0 if name == "dense" and speedups else speedup and speedup[0]
    best = {
        column: max(
            (worth(row[column]) for name, row in cells.items() if name != "dense" and row[column] is not None), default=0
        )
        for column, worth in COLUMNS.items()
    }
    print(f"\n{one.name}\n\n| by | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for name, row in cells.items():
        texts = []
        for column, worth in COLUMNS.items():
            text = "" if row[column] is None else shown(column, row[column])
            bold = text and name != "dense" and worth(row[column]) == best[column] and column not in ("MACs", "seconds")
            texts.append(f"**{text}**" if bold else text)
        print(f"| {name} | {' | '.join(texts)} |")


def main() -> None:
    parser = two_networks(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--cache", type=Path, default=Path("peers-files"), help="folder of the files that are made")
    parser.add_argument("--network", choices=list(TEST), help="one of them")
    parser.add_argument("--no-times", action="store_true", help="leave out what wants a quiet machine")
    parser.add_argument("--rerun", action="store_true", help="time anew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows("peers", args.minutes, torch=torch.__version__, processor=machine().to_dict())
    benches = [bench(args, name, rows) for name in TEST if args.network in (None, name)]
    searching = [name for name, (_, make) in INT8.items() if make is by.slimrank_int8]
    try:
        for one in benches:
            for name in PEERS:
                one.cut(name)
            for name in PEERS:
                if name not in UNTRAINED:
                    one.tuned(name)
            for name in INT8:
                if not (args.no_times and name in searching):
                    one.int8(name)
            if not args.no_times:
                one.times(args.rerun)
    except OutOfTime:
        print("out of time; run again to go on")
    for one in benches:
        table(one)


if __name__ == "__main__":
    main()
