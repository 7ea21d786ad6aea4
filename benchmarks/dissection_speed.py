"""How long does dissection take, and how much memory? 512 units, 61 concepts, 2,000 images of 112x112.

    python benchmarks/dissection_speed.py

Units are random 16x16 convs with ReLU, maps of 7x7; images are generated (evaluate/concepts/), writing them is not counted.
Target: under five minutes and 4 GB on two cores. The result goes to results/dissection_speed.json.
"""

import argparse
import os
import resource
import tempfile

import torch
from rows import Rows

from slimrank.evaluate.concepts import Concepts, dissect, generate
from slimrank.evaluate.data import Preprocessing


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 512, 16, 16).requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        concepts = Concepts(generate(folder, 2000, 112))
        found = dissect(lambda x: {"conv": conv(x).relu()}, concepts, Preprocessing.default(3, 112))
    rows = Rows("dissection_speed", None, torch=torch.__version__, threads=torch.get_num_threads(), cores=os.cpu_count())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    row = {
        "units": 512,
        "concepts": found.concepts,
        "images": found.images,
        "seconds": round(found.seconds, 1),
        "peak_gb": round(peak, 2),
    }
    rows.value["rows"]["512 units"] = row
    rows.save()
    print(row)


if __name__ == "__main__":
    main()
