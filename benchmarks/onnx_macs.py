"""Do the two counts of multiply-adds agree: of a module, by running it, and of its ONNX file, by shape inference?

    python benchmarks/onnx_macs.py --minutes 30

Every network of zoo.txt at its own image size, exported with random weights, and every layout of the final layer (random
subspaces of 512 features, 100 classes). `uncounted`: operators of the file without a formula. Rows are saved as they come. No
clock is read: a busy machine does not matter.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rows import OutOfTime, Rows

from slimrank.compress.head.timing import candidates, head_files
from slimrank.compress.network import zoo
from slimrank.compress.network.layout_names import INT8
from slimrank.evaluate.macs import count
from slimrank.evaluate.onnx_macs import OnnxMacs, count_onnx
from slimrank.export.to_onnx import export

HERE = Path(__file__).parent
FEATURES, CLASSES, K = 512, 100, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float)
    rows = Rows("onnx_macs", parser.parse_args().minutes, torch=torch.__version__)
    try:
        for name in (HERE / "zoo.txt").read_text().split():
            rows.row(name, lambda name=name: network(name))
        for rescore in (0, 8):
            for reorder in (False, True):
                rows.row(f"heads, rescore {rescore}, reorder {reorder}", lambda r=rescore, o=reorder: heads(r, o))
    except OutOfTime:
        print("out of time; run again to go on")
    found = rows.value["rows"]
    networks = [row for name, row in found.items() if not name.startswith("heads")]
    print(f"{sum(row['module'] == row['onnx'] for row in networks)} of {len(networks)} networks agree")
    layouts = [row for name, every in found.items() if name.startswith("heads") for row in every.values()]
    print(f"{sum(row['module'] == row['onnx'] for row in layouts)} of {len(layouts)} final layers agree")


def network(name: str) -> dict:
    model, shape = zoo.build(name).eval(), zoo.preprocessing(name, 3).shape
    with tempfile.TemporaryDirectory() as folder:
        return row(count(model, shape).macs, count_onnx(export(model, torch.zeros(1, *shape), Path(folder) / "m.onnx", {})))


def heads(rescore: int, reorder: bool) -> dict:
    made = {"linear": torch.nn.Linear(FEATURES, CLASSES)}
    for probe in (0, 3):
        shapes = candidates(FEATURES, CLASSES, K, 8, rescore=rescore, reorder=reorder, probe=probe)
        made |= {shape.name: head for shape, head in shapes.items() if shape.name != INT8}
    with tempfile.TemporaryDirectory() as folder:
        paths = head_files(made, FEATURES, Path(folder), (INT8, "int4"))
        dense = FEATURES * CLASSES
        return {
            name: row(count(made[name], (FEATURES,)).macs if name in made else dense, count_onnx(path))
            for name, path in paths.items()
        }


def row(module: int, onnx: OnnxMacs) -> dict:
    return {"module": module, "onnx": onnx.macs, "uncounted": onnx.uncounted}


if __name__ == "__main__":
    main()
