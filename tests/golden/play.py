"""Run a command line in this process, in a folder that holds the files it names."""

import contextlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slimrank.cli import main

HERE = Path(__file__).parent
FILES = HERE / "files"
# Words of Python, PyTorch and ONNX Runtime inside our lines; they change with their versions.
LIBRARIES = (
    r"(PyTorch checkpoint \()[^)]*(\); copy)",
    r"(exporter refuses this model: ).*(/toy_models.py:)\d+",
    r"(ONNX Runtime cannot load \S+: ).*(; export it again)",
    r"(invalid choice: '\w+' \(choose from ).*(\); `slimrank)",
)


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was printed; the folder that the command ran in reads `.`, so that no text depends on its name."""

    status: int
    stdout: str
    stderr: str

    def error_lines(self) -> list[str]:
        """Lines on stderr that are neither empty nor a warning."""
        return [line for line in self.stderr.splitlines() if line and not line.startswith("warning: ")]


def call(command: str, *more: str) -> Outcome:
    """Run `slimrank COMMAND` with what it prints kept; `command` is split as a shell would."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            status: int | str | None = main([*shlex.split(command), *more])
        except SystemExit as stop:
            status = stop.code
    return Outcome(int(status or 0), _portable(stdout.getvalue()), _portable(stderr.getvalue()))


def _portable(text: str) -> str:
    """Leave out of a text where the folders lie, and what other libraries' versions say."""
    text = text.replace(str(Path.cwd()), ".")
    for pattern in LIBRARIES:
        text = re.sub(pattern, r"\1...\2", text)
    return text


@contextlib.contextmanager
def furnished(folder: Path, *sources: Path) -> Iterator[Path]:
    """Copy what the `sources` hold into `folder`, and work there."""
    for source in sources:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    with contextlib.chdir(folder):
        yield folder


def furnish_bad_input(folder: Path) -> None:
    """Make the files that only the bad commands name: foreign weights, a log, images of wrong classes, an empty folder."""
    import torch
    from PIL import Image
    from safetensors.torch import load_file

    from ..toy_models import Branching

    torch.save(load_file(FILES / "dense.safetensors"), folder / "foreign.pt")
    torch.save(Branching().state_dict(), folder / "odd.pt")
    (folder / "log.txt").write_text("baseline       4.0 s  40,551,040 MACs\nrank           0.0 s\n")
    (folder / "empty").mkdir()
    for name, classes in (("two", ["cat", "dog"]), ("ten", [f"class{i}" for i in range(10)])):
        for split in ("train", "test"):
            for label in classes:
                (folder / name / split / label).mkdir(parents=True)
                Image.new("L", (28, 28)).save(folder / name / split / label / "0.png")


def with_toy_models() -> None:
    """Let `--model toy_models:NAME` find the tests' own networks."""
    if str(HERE.parent) not in sys.path:
        sys.path.append(str(HERE.parent))
