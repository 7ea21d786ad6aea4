"""Does any file bring about anything but a result or one line? Seeded cases of every kind of file that slimrank reads.

    python benchmarks/fuzz.py --cases 20000

The cases are those of tests/fuzz, which runs the first few: slim headers (`header`), tensors of slim files (`tensors`), foreign
checkpoints (`pt`), ONNX files (`onnx`), scores, state.json, config.json and recipes (`json`), pictures (`image`), concepts in
Broden's layout (`broden`); each is read in a process that reads hundreds of them. `wrong` tells what ended in another exception
than SlimrankError, in a line of more than 2,000 characters, after more than 20 s, with more than 2 GB on top, with a process or
a connection, or with a changed file; `died` that the process did not come back. A row is 250 cases; it goes on where it was.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from rows import OutOfTime, Rows

from slimrank.evaluate.machine import machine
from slimrank.tests.fuzz.formats import FORMATS
from slimrank.tests.fuzz.judge import count

CHUNK = 250  # cases of a process
CHILD = (
    "import json, sys; sys.path.insert(0, {here!r}); from fuzz import chunk; print(json.dumps(chunk(*json.loads(sys.argv[1]))))"
)


def chunk(name: str, first: int, last: int, keep: str | None) -> dict:
    import torch

    torch.set_num_threads(1)
    return count(name, range(first, last), None if keep is None else Path(keep))


def read(name: str, first: int, last: int, keep: str | None) -> dict:
    """The counts of some cases, from a process of their own, or how it died."""
    code = CHILD.format(here=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code, json.dumps([name, first, last, keep])], capture_output=True, text=True)
    return (
        json.loads(done.stdout.splitlines()[-1])
        if done.returncode == 0
        else {"died": done.returncode, "why": done.stderr[-800:]}
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cases", type=int, default=20_000, help="of each format")
    options.add_argument("--formats", nargs="+", default=[*FORMATS], choices=[*FORMATS])
    options.add_argument("--minutes", type=float)
    options.add_argument("--keep", help="folder for the files of cases that are wrong")
    asked = options.parse_args()
    rows = Rows("fuzz", asked.minutes, processor=machine().processor)
    with contextlib.suppress(OutOfTime):
        for first in range(0, asked.cases, CHUNK):
            for name in asked.formats:
                last = min(first + CHUNK, asked.cases)
                rows.row(f"{name} {first} {last}", partial(read, name, first, last, asked.keep))
    for name in asked.formats:
        found = [row for key, row in rows.value["rows"].items() if key.startswith(f"{name} ")]
        told = {key: sum(row.get(key, 0) for row in found) for key in ("cases", "read", "refused")}
        wrong = [one for row in found for one in row.get("wrong", [])]
        print(f"{name:8} {told}, wrong {len(wrong)}, died {sum('died' in row for row in found)}", *wrong, sep="\n  ")


if __name__ == "__main__":
    main()
