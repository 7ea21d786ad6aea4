"""SIGINT and SIGTERM end every process of a run, at any moment, in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from .forks import Place, started, waited

AT_IMPORTS = """
import os, runpy, signal, sys
left, number = int(sys.argv.pop(1)), int(sys.argv.pop(1))
def hook(event, arguments):
    global left
    if event == "import" and "slimrank.interrupts" in sys.modules and signal.getsignal(15):
        left -= 1
        if not left:
            os.kill(os.getpid(), number)
sys.addaudithook(hook)
runpy.run_module("slimrank", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("at", "number", "status", "says"), [
    (5, signal.SIGTERM, 143, "error: terminated\n"), (400, signal.SIGINT, 130, "error: interrupted\n"),
    (900, signal.SIGTERM, 143, "error: terminated\n"), (1500, signal.SIGINT, 130, "error: interrupted\n"),
])  # fmt: skip
def test_a_signal_during_imports_is_told_in_one_line(tmp_path, at, number, status, says):
    """At that many imports of a `compress` that finds no checkpoint after them."""
    words = ["compress", tmp_path / "nowhere.pt", "--data", "digits", "-o", tmp_path / "out"]
    command = [sys.executable, "-c", AT_IMPORTS, str(at), str(int(number)), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout + done.stderr) == (status, says)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures that take a while to decode, half of them a class."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(40):
        path = folder / ("train", "test")[i % 2] / str(i // 2 % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((900, 900), 50).save(path)
    return folder


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("whom", ["SIGTERM", "SIGINT to all"])
def test_processes_that_decode_end_with_the_run(pictures, tmp_path, whom):
    import slimrank.compress.stages.finetune  # noqa: F401 (imported before there are children)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    out = tmp_path / "x.safetensors"
    words = ["train", "--model", "lenet5", "--data", f"folder:{pictures}", "--workers", "2", "--epochs", "50", "-o", str(out)]
    pid, log = started(words, Place(tmp_path / "place"), tmp_path)
    torch.set_num_threads(threads)
    end = time.monotonic() + 120
    while not (found := children(pid)) and time.monotonic() < end:
        time.sleep(0.01)
    if whom == "SIGTERM":
        os.kill(pid, signal.SIGTERM)
    else:
        os.killpg(pid, signal.SIGINT)
    status = waited(pid)
    assert found
    assert status == (143 if whom == "SIGTERM" else 130)
    lines = log.read_text().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert "Traceback" not in log.read_text()
    while any(map(running, found)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(map(running, found))
    assert not out.exists()


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
