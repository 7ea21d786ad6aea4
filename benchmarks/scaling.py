"""One process and two: do they come to the same, how long does each take, and what do two tell each other?

    python benchmarks/scaling.py --checkpoint resnet20.th --data folder:cifar10-jpeg

ResNet-20 on CIFAR-10 (JPEG), every ranker, sensitivity, a cut with its repair, accuracy and an epoch of fine-tuning, run three
ways on the same cores: one process of one thread, one process of two threads (the simplest way to use two cores), and two
processes of one thread each under torchrun. Seconds are those of the verb, without Python's start and imports. `same`: the
result of two processes is that of one of one thread to the bit, the clock's figures aside; training is compared by accuracy.
`communication`: a step of training with and without the exchange of gradients, and the exchange alone.
Rows are saved as they come to results/scaling.json. Times want a machine with two free cores.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rows import Rows
from torch import nn

from slimrank import load, save
from slimrank.cli import main
from slimrank.compress.network import zoo
from slimrank.evaluate.machine import machine
from slimrank.joining import join, leave

WORK = {  # kept short: what is measured is the ratio
    "car": "rank {net} --ranker car --limit 100 -o {out}.json",
    "car, greedy": "rank {net} --ranker car --greedy --remove 2 --limit 50 -o {out}.json",
    "shapley": "rank {net} --ranker shapley --samples 1 --limit 50 -o {out}.json",
    "switch": "rank {net} --ranker switch --epochs 1 --limit 200 -o {out}.json",
    "taylor": "rank {net} --ranker taylor --limit 2000 -o {out}.json",
    "influential": "rank {net} --ranker influential --limit 4000 -o {out}.json",
    "reconstruct": "rank {net} --ranker reconstruct -o {out}.json",
    **{name: f"rank {{net}} --ranker {name} -o {{out}}.json" for name in ("l1", "random", "bn-scale", "fpgm", "lamp")},
    "sensitivity": "sensitivity {net} --limit 100 -o {out}.json",
    "sensitivity --error": "sensitivity {net} --error -o {out}.json",
    "evaluate": "evaluate {net} --limit 4000",
    "prune, reconstructed": "prune {net} --macs 0.5 --calibration-images 1000 --limit 2000 -o {out}.safetensors",
    "finetune": "finetune {net} --epochs 1 --limit 5000 -o {out}.safetensors",
}
CLOCK = ("seconds", "out", "chart", "table", "says")
BATCH, STEPS = 128, 20
WAYS = {"one": (1, 1), "threads": (2, 1), "two": (1, 2)}  # threads, processes


def run_all(net: str, data: str, folder: Path) -> None:
    """Be a process of one of the three ways: run each verb, and leave its seconds and what it came to."""
    for name in WORK:
        out = (folder / row_of(name)).with_suffix("")
        words = [*WORK[name].format(net=net, out=out).split(), "--data", data, "--validation", "test:0.2", "--json"]
        printed = io.StringIO()
        began = time.perf_counter()
        with contextlib.redirect_stdout(printed):
            status = main(words)
        seconds = time.perf_counter() - began
        if os.environ.get("RANK", "0") == "0":
            assert status == 0, words
            result = json.loads(printed.getvalue())
            top1 = result.get("top1_after", result.get("top1"))
            about = {"seconds": round(seconds, 2), "top1": top1, "sha256": digest(result, out)}
            out.with_suffix(".row").write_text(json.dumps(about))


def digest(result: dict[str, Any], out: Path) -> str:
    """Of a result without its clock, and of the tensors that it wrote."""
    told = hashlib.sha256(json.dumps(without_clock(result), sort_keys=True).encode())
    if (file := out.with_suffix(".safetensors")).exists():
        told.update(file.read_bytes())
    return told.hexdigest()[:16]


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(part) for key, part in value.items() if key not in CLOCK}
    return [without_clock(part) for part in value] if isinstance(value, list) else value


def communicate(folder: Path) -> None:
    """Be one of two processes: time steps of ResNet-20 with and without the exchange of gradients, and the exchange alone."""
    from torch.nn.parallel import DistributedDataParallel

    join("cpu")
    import torch.distributed as dist

    net = zoo.build("resnet20-cifar", {}).train()
    ddp = DistributedDataParallel(net)
    x, labels = torch.randn(BATCH // 2, 3, 32, 32), torch.randint(10, (BATCH // 2,))
    flat = torch.zeros(sum(p.numel() for p in net.parameters()))

    def step() -> None:
        nn.functional.cross_entropy(ddp(x), labels).backward()
        net.zero_grad()

    def step_alone() -> None:
        with ddp.no_sync():
            step()

    row = {"parameters": flat.numel(), "bytes": 4 * flat.numel()}
    for name, work in (("step", step), ("step_without", step_alone), ("exchange", lambda: dist.all_reduce(flat))):
        work()
        times = []
        for _ in range(STEPS):
            dist.barrier()
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        row[f"{name}_ms"] = round(1000 * sorted(times)[STEPS // 2], 2)
    if dist.get_rank() == 0:
        (folder / "communication.row").write_text(json.dumps(row))
    leave()


def started(words: list[str], threads: int, processes: int) -> None:
    """Run this script as one of the three ways, in as many processes and threads."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, *launcher, __file__, *words], env=environment, check=True, stdout=subprocess.DEVNULL)


def measured(args: argparse.Namespace) -> None:
    rows = Rows("scaling", None, torch=torch.__version__, machine=machine().to_dict())
    with tempfile.TemporaryDirectory() as folder:
        net = f"{folder}/resnet20.safetensors"
        save(load(args.checkpoint, model="resnet20-cifar"), net)
        common = ["--checkpoint", net, "--data", args.data, "--into"]
        for way, (threads, processes) in WAYS.items():
            (Path(folder) / way).mkdir()
            started(["--verbs", *common, f"{folder}/{way}"], threads, processes)
        started(["--communicate", *common, folder], 1, 2)
        for name in WORK:
            one, threads, two = (json.loads((Path(folder) / way / row_of(name)).read_text()) for way in WAYS)
            row = {
                "one": one["seconds"], "two_threads": threads["seconds"], "two_processes": two["seconds"],
                "same": one["sha256"] == two["sha256"], "speedup": round(one["seconds"] / two["seconds"], 2),
                **({"top1": [one["top1"], two["top1"]]} if one["top1"] is not None else {}),
            }  # fmt: skip
            rows.row(name, lambda row=row: row)
        rows.row("communication", lambda: json.loads((Path(folder) / "communication.row").read_text()))


def row_of(name: str) -> str:
    return f"{name.replace(' ', '-').replace(',', '')}.row"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    for inner in ("--verbs", "--communicate"):
        parser.add_argument(inner, action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.verbs:
        run_all(args.checkpoint, args.data, args.into)
    elif args.communicate:
        communicate(args.into)
    else:
        measured(args)
