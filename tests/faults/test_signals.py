"""SIGINT and SIGTERM end every process of a run, at any moment, in one line."""

import json
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
import json, os, runpy, signal, sys
run, seen, ends = os.getpid(), 0, []
def hook(event, arguments):
    global seen
    if event != "import" or os.getpid() != run or "slimrank.interrupts" not in sys.modules or not signal.getsignal(15):
        return
    seen += 1
    if seen % 150:
        return
    read, write = os.pipe()
    if not (pid := os.fork()):
        os.dup2(write, 1), os.dup2(write, 2)
        os.kill(os.getpid(), (signal.SIGTERM, signal.SIGINT)[seen // 150 % 2])
        return
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    ends.append([arguments[0], os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said])
sys.addaudithook(hook)
try:
    runpy.run_module("slimrank", run_name="__main__", alter_sys=True)
finally:
    if os.getpid() == run:
        print(json.dumps(ends))
"""


def test_a_signal_during_imports_is_told_in_one_line(tmp_path):
    """A copy of the process is signalled at every 150th import of a `compress` that finds no checkpoint after them."""
    words = ["compress", tmp_path / "nowhere.pt", "--data", "digits", "-o", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", AT_IMPORTS, *words], capture_output=True, text=True)
    ends = json.loads(done.stdout.splitlines()[-1])
    assert len(ends) > 10
    allowed = [[143, "error: terminated\n"], [130, "error: interrupted\n"]]
    assert [end for end in ends if end[1:] not in allowed] == []


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
