"""What 0.7.0 promised holds: the command line's interface, its results on digits, its error lines, the files it wrote.

The records lie in golden/; `python -m tests.golden.record --only PART` takes one anew after a change that is meant.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from .bad_input import FAILS, USAGE
from .golden.cases import CASES, MODELS, TEXTS, Case
from .golden.compare import differences, short, text_differences
from .golden.describe import describe, verbs
from .golden.play import FILES, HERE, call, furnish_bad_input, furnished, with_toy_models
from .golden.record import result_of, right_images, text_of
from .golden.written import files_below


def record(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((HERE / f"{part}.json").read_text(encoding="utf-8"))
    return found


INTERFACE, RESULTS, ERRORS = record("interface"), record("results"), record("errors")
ARGUMENTS = [(verb, name) for verb, told in INTERFACE.items() for name in told["arguments"]]


def test_every_verb_is_recorded() -> None:
    assert verbs() == list(INTERFACE)


@pytest.mark.parametrize("verb", INTERFACE)
def test_verb(verb: str) -> None:
    was, now = INTERFACE[verb], describe(verb)
    assert {"help": now["help"], "description": now["description"]} == {k: was[k] for k in ("help", "description")}
    gone, new = set(was["arguments"]) - set(now["arguments"]), set(now["arguments"]) - set(was["arguments"])
    assert (gone, new) == (set(), set()), f"{verb}: {sorted(gone)} are recorded and gone, {sorted(new)} are not recorded"


@pytest.mark.parametrize(("verb", "name"), ARGUMENTS, ids=[f"{verb} {name}" for verb, name in ARGUMENTS])
def test_argument(verb: str, name: str) -> None:
    was, now = INTERFACE[verb]["arguments"][name], describe(verb)["arguments"].get(name)
    assert now is not None, f"{verb} takes no {name} any more"
    found = [f"{key}: {short(was[key])} recorded, now {short(now[key])}" for key in was if was[key] != now[key]]
    assert not found, "\n".join([f"{verb} {name}", *found])


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    """A folder with the files that 0.7.0 wrote, and the current one."""
    with furnished(tmp_path, FILES) as folder:
        yield folder


def test_everything_is_recorded() -> None:
    assert list(RESULTS["right"]) == MODELS
    assert list(RESULTS["texts"]) == TEXTS
    assert list(RESULTS["cases"]) == [case.command for case in CASES]
    assert list(ERRORS) == [*(command for command, _ in FAILS), *USAGE]


@pytest.mark.parametrize("model", MODELS)
def test_file_of_0_7_0_gets_the_same_images_right(model: str, files: Path) -> None:
    assert abs(right_images(model) - RESULTS["right"][model]) <= 1


@pytest.mark.parametrize("command", TEXTS)
def test_text(command: str, files: Path) -> None:
    was, now = RESULTS["texts"][command], text_of(command)
    assert now["status"] == was["status"]
    found = list(text_differences(was["stdout"], now["stdout"]))
    assert not found, "\n".join(["", *found[:40]])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.command)
def test_result(case: Case, files: Path) -> None:
    was, now = RESULTS["cases"][case.command], result_of(case, files)
    found = list(differences(was, now, case))
    assert not found, "\n".join(["", *found[:40]])


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("bad")
    furnish_bad_input(folder)
    return folder


def check_failure(command: str, folder: Path) -> str:
    """Run a command that must fail; it prints its recorded line on stderr and nothing else, and leaves no file behind."""
    before = {path.name for path in folder.iterdir()}
    files = files_below(folder)
    outcome = call(command)
    lines = outcome.error_lines()
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: ")
    assert "this is a defect" not in lines[0]
    assert lines[0] == ERRORS[command]["line"]
    assert outcome.status == ERRORS[command]["status"]
    assert outcome.stdout == ""
    assert files_below(folder) == files
    assert {path.name for path in folder.iterdir()} - before <= {"told"}  # explain makes its folder first
    return lines[0]


@pytest.mark.parametrize(("command", "match"), FAILS, ids=[command for command, _ in FAILS])
def test_bad_input(command: str, match: str, tmp_path: Path, bad_files: Path) -> None:
    if "cuda" in command and torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with_toy_models()
    with furnished(tmp_path, FILES, bad_files) as folder:
        assert match in check_failure(command, folder)
    assert ERRORS[command]["status"] == 1


@pytest.mark.parametrize("command", USAGE, ids=lambda command: command or "no words at all")
def test_usage(command: str, tmp_path: Path) -> None:
    with furnished(tmp_path, FILES) as folder:
        check_failure(command, folder)
    assert ERRORS[command]["status"] == 2
