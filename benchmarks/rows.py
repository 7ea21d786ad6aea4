"""Rows that are saved as they come, so that a benchmark stopped anywhere goes on where it was."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class OutOfTime(Exception):
    """--minutes are over; what is there is saved."""


class Rows:
    """A JSON file of rows by key. `minutes`: no new row is begun after that long."""

    def __init__(self, name: str, minutes: float | None, **about: Any):
        self.path = RESULTS / f"{name}.json"
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.value: dict[str, Any] = {"about": about, "rows": {}}
        if self.path.exists():
            self.value["rows"] = json.loads(self.path.read_text())["rows"]

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self.value["rows"][key]

    def __contains__(self, key: str) -> bool:
        return key in self.value["rows"]

    def row(self, key: str, make) -> dict[str, Any]:
        """The row of that key, made now unless it is there."""
        if key not in self:
            if self.end is not None and time.monotonic() > self.end:
                raise OutOfTime
            self.value["rows"][key] = make()
            self.save()
            print(key, str(self[key])[:300], flush=True)
        return self[key]

    def save(self) -> None:
        """Write to a temporary name, then rename."""
        RESULTS.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in self.value["rows"].items())
        temporary.write_text(f'{{"about": {json.dumps(self.value["about"])}, "rows": {{\n{rows}\n}}}}\n')
        temporary.rename(self.path)


def two_networks(doc: str | None) -> argparse.ArgumentParser:
    """The words of a benchmark that runs on both shared checkpoints."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tiny-checkpoint", type=Path, required=True)
    parser.add_argument("--tiny", required=True)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--threads", type=int, default=2)
    return parser
