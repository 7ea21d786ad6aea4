"""Half the MACs of a resnet18 on Tiny ImageNet, one epoch: accuracy and time, beside the dense network tuned equally long.

    python benchmarks/tiny_imagenet.py --checkpoint resnet18-tiny-imagenet.pt --data folder:tiny-imagenet-200

prune --macs 0.5 (l1, aligned), finetune --epochs 1, export, bench, through the functions behind the verbs; then the dense
checkpoint with the same epoch, and random filters. Rows are saved as they come to results/tiny_imagenet.json; a second
call goes on.
"""

import argparse
import json
import tempfile
from pathlib import Path

from slimrank.compress.checkpoint import load
from slimrank.compress.evaluation import compared, onnx_metadata
from slimrank.compress.finetune import train
from slimrank.compress.rankers import RANKERS
from slimrank.compress.selection import runtime_block, select
from slimrank.compress.surgery import prune
from slimrank.compress.tracing import channel_map
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data
from slimrank.evaluate.latency import compare
from slimrank.export.to_onnx import export
from slimrank.files import write_json

RESULTS = Path(__file__).parent / "results" / "tiny_imagenet.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for ranker in ("l1", "dense", "random"):
        if any(row["ranker"] == ranker for row in found["rows"]):
            continue
        found["rows"].append({"ranker": ranker, **measure(args.checkpoint, args.data, ranker)})
        print(found["rows"][-1], flush=True)
        write_json(RESULTS, found)


def measure(path: str, spec: str, ranker: str) -> dict:
    checkpoint = load(path, size=64)
    data = open_data(spec, checkpoint.preprocessing, validation="test:0.2")
    model, row = checkpoint.model, {}
    if ranker != "dense":
        channels = channel_map(model, checkpoint.example())
        plan = select(model, channels, RANKERS[ranker](model, channels, seed=0), macs=0.5, align=runtime_block())
        model = prune(model, channels, plan, checkpoint.example(2))
        row["macs"] = round(plan.macs_after / plan.macs_before, 4)
    row["test_before"] = accuracy(predictor(model), data.test.batches(), 200).top1
    model, training = train(model, data.train, None, epochs=1, lr=0.02)
    row["seconds"] = round(training.seconds, 1)
    row["test"] = accuracy(predictor(model), data.test.batches(), 200).top1
    if ranker == "dense":
        return row
    with tempfile.TemporaryDirectory() as folder:
        files = {"dense": checkpoint.model, "cut": model}
        made = checkpoint.then(model, step="prune")
        paths = {n: export(m, checkpoint.example(), Path(folder) / f"{n}.onnx", onnx_metadata(made)) for n, m in files.items()}
        row["parity"] = compared(made, paths["cut"], data).to_dict()
        row["bytes"] = {n: p.stat().st_size for n, p in paths.items()}
        timed = compare(paths, batches=(1, 8, 32), threads=(1, 2))
    row["speedup"] = {f"batch {s['batch']}, threads {s['threads']}": round(s["speedup"], 2) for s in timed.speedups}
    row["machine"] = timed.machine
    return row


if __name__ == "__main__":
    main()
