"""Take the golden record anew, on purpose: `python -m tests.golden.record [--only PART]` in the repository root.

Parts: interface, results, errors. `files` are what 0.7.0 wrote; they are made with that version only, never again.
"""

import argparse
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bad_input import FAILS, USAGE
from .cases import CASES, FIXTURES, MODELS, TEXTS, Case
from .compare import recorded, skeleton, text_lines
from .describe import describe, verbs
from .play import FILES, HERE, call, furnish_bad_input, furnished, with_toy_models
from .written import files_below, written


def interface() -> dict[str, Any]:
    return {verb: describe(verb) for verb in verbs()}


def result_of(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case in `folder`, the current one; its status, result and files as they stand in the record."""
    before = files_below(folder)
    outcome = call(case.command, "--json")
    if outcome.status:
        raise AssertionError(f"slimrank {case.command}: status {outcome.status}\n{outcome.stderr}")
    result = recorded(json.loads(outcome.stdout))
    keys_only = case.rule == "keys"
    return {
        "result": skeleton(json.loads(outcome.stdout)) if keys_only else result,
        "files": written(folder, before, names_only=keys_only),
    }


def right_images(model: str) -> int:
    """Test images of digits that a file gets right; it lies in the current folder."""
    outcome = call(f"evaluate {model} --data digits", "--json")
    if outcome.status:
        raise AssertionError(outcome.stderr)
    result = json.loads(outcome.stdout)
    right: int = round(result["top1"] * result["n"])
    return right


def text_of(command: str) -> dict[str, Any]:
    outcome = call(command)
    return {"status": outcome.status, "stdout": text_lines(outcome.stdout)}


def results(scratch: Path) -> dict[str, Any]:
    with furnished(scratch / "shared", FILES):
        right = {model: right_images(model) for model in MODELS}
        texts = {command: text_of(command) for command in TEXTS}
    cases = {}
    for i, case in enumerate(CASES):
        with furnished(scratch / f"case{i}", FILES) as folder:
            cases[case.command] = result_of(case, folder)
    return {"right": right, "texts": texts, "cases": cases}


def errors(scratch: Path) -> dict[str, Any]:
    with_toy_models()
    (scratch / "more").mkdir()
    furnish_bad_input(scratch / "more")
    made = {}
    for i, command in enumerate([*(words for words, _ in FAILS), *USAGE]):
        with furnished(scratch / f"bad{i}", FILES, scratch / "more"):
            outcome = call(command)
            (line,) = outcome.error_lines()
        shutil.rmtree(scratch / f"bad{i}")
        made[command] = {"status": outcome.status, "line": line}
    return made


def make_files() -> None:
    """Write golden/files; each command builds on the files before it."""
    FILES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, furnished(Path(folder)):
        for name, command in FIXTURES.items():
            outcome = call(f"{command} -o {name}")
            if outcome.status:
                raise AssertionError(f"{command}: {outcome.stderr}")
            shutil.copy(name, FILES / name)


def write(part: str, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False)
    flat = re.sub(
        r"\[[^][{}\"]*\]", lambda found: re.sub(r"\s+", " ", found.group()).replace("[ ", "[").replace(" ]", "]"), text
    )
    (HERE / f"{part}.json").write_text(flat + "\n", encoding="utf-8")
    print(f"written: {HERE / part}.json, {len(flat):,} bytes")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--only", choices=["interface", "results", "errors", "files"], help="one part (default: all but files)"
    )
    only = options.parse_args().only
    if only == "files":
        make_files()
        return
    parts: dict[str, Callable[[Path], dict[str, Any]]] = {
        "interface": lambda _: interface(), "results": results, "errors": errors,
    }  # fmt: skip
    for part, take in parts.items():
        if only in (None, part):
            with tempfile.TemporaryDirectory() as scratch:
                write(part, take(Path(scratch).resolve()))


if __name__ == "__main__":
    main()
