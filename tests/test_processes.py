"""Two processes of one job come to what one process comes to; what cannot work is refused; one that dies is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from slimrank.cli import main
from slimrank.verbs.given import part

TRAIN = "train --model lenet5 --model-arg widths=[4,6,9,10] --size 16 --data digits --lr 0.05"
SAME = {  # commands whose result is the same to the bit, whatever number of processes there are
    "evaluate": "evaluate {ckpt} --data digits --split train",
    "car": "rank {ckpt} --ranker car --data digits --limit 150 -o {out}/car.json",
    "greedy car": "rank {ckpt} --ranker car --greedy --remove 2 --data digits --limit 30 -o {out}/greedy.json",
    "shapley": "rank {ckpt} --ranker shapley --samples 1 --data digits --limit 60 -o {out}/shapley.json",
    "switch": "rank {ckpt} --ranker switch --epochs 1 --sampled --data digits --limit 100 -o {out}/switch.json",
    "taylor": "rank {ckpt} --ranker taylor --data digits --limit 600 -o {out}/taylor.json",
    "influential": "rank {ckpt} --ranker influential --data digits -o {out}/influential.json",
    "reconstruct": "rank {ckpt} --ranker reconstruct --data digits --limit 100 -o {out}/reconstruct.json",
    "sensitivity": "sensitivity {ckpt} --data digits --limit 100 -o {out}/sensitivity.json",
    "prune": "prune {ckpt} --ranker car --macs 0.5 --data digits --limit 600 -o {out}/prune.safetensors",
}
NEAR = {  # training: a batch's gradient is summed in another order
    "train": f"{TRAIN} --epochs 2 -o {{out}}/train.safetensors",
    "finetune": "finetune {ckpt} --data digits --epochs 1 -o {out}/finetune.safetensors",
    "compress": "compress {ckpt} --data digits --epochs 1 --batch 1 --limit 200 --head linear --no-reconstruct -o {out}/run",
}
REFUSED = {
    "other options": (
        ["evaluate {ckpt} --data digits --limit 99", "evaluate {ckpt} --data digits --limit 98"], "--limit 98, not 99"
    ),
    "other checkpoints": (["evaluate {ckpt} --data digits", "evaluate {copy} --data digits"], "process 1 has another command"),
    "too many for a batch": (["finetune {ckpt} --data digits --limit 3 -o {out}/few.safetensors"] * 2, "start 1 or fewer"),
    "an error in one": (["evaluate {ckpt} --data digits", "fail evaluate {ckpt} --data digits"], "NaN in this process alone"),
    "one that is killed": (["evaluate {ckpt} --data digits", "kill evaluate {ckpt} --data digits"], "process 1 of 2"),
    "the first is killed": (["kill evaluate {ckpt} --data digits", "evaluate {ckpt} --data digits"], "process 0 of 2"),
}  # fmt: skip


class Several:
    """Every job above, run by two processes in `folder`."""

    def __init__(self, folder, trained):
        self.folder, self.trained = folder, trained
        for name in ("one", "two"):
            (folder / name).mkdir()
        (folder / "copy.safetensors").write_bytes(trained.read_bytes() + b" ")
        self.names = [*SAME, *NEAR, *REFUSED]
        texts = [[text] * 2 for text in (*SAME.values(), *NEAR.values())] + [both for both, _ in REFUSED.values()]
        jobs = [[self.words(text, "two") for text in both] for both in texts]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        several = Path(__file__).with_name("several.py")  # by its place: an installed slimrank has no tests
        command = [sys.executable, several, folder / "jobs.json"]
        subprocess.run(command, check=True, timeout=400)

    def words(self, text, out):
        there = text.format(ckpt=self.trained, copy=self.folder / "copy.safetensors", out=self.folder / out)
        return [*there.split(), "--json"]

    def of(self, name, rank, what):
        """What a process left: status, out or err."""
        return (self.folder / f"{self.names.index(name)}-{rank}.{what}").read_text()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A LeNet of few filters, trained for a moment."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    assert main([*TRAIN.split(), "--epochs", "1", "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def several(tmp_path_factory, tiny):
    return Several(tmp_path_factory.mktemp("several"), tiny)


@pytest.fixture
def one(several, capsys):
    """The JSON that one process makes of a job."""

    def run(name):
        text = {**SAME, **NEAR}[name]
        assert main(several.words(text, "one")) == 0
        return json.loads(capsys.readouterr().out)

    return run


def without_clock(value):
    """JSON without seconds, and without the folder that was written to."""
    if isinstance(value, dict):
        return {key: without_clock(part) for key, part in value.items() if key not in ("seconds", "out", "chart", "table")}
    return [without_clock(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", SAME)
def test_two_processes_come_to_the_same(several, one, name):
    assert (several.of(name, 0, "status"), several.of(name, 1, "status")) == ("0", "0"), several.of(name, 0, "err")
    assert without_clock(json.loads(several.of(name, 0, "out"))) == without_clock(one(name))


def test_two_processes_cut_the_same_network(several, one):
    one("prune")
    alone, together = (load_file(several.folder / out / "prune.safetensors") for out in ("one", "two"))
    assert alone.keys() == together.keys()
    assert all(alone[name].equal(together[name]) for name in alone)


@pytest.mark.parametrize("name", NEAR)
def test_training_comes_near(several, one, name):
    assert several.of(name, 0, "status") == "0", several.of(name, 0, "err")
    found, alone = json.loads(several.of(name, 0, "out")), one(name)
    if name == "compress":
        found, alone = found["compressed"], alone["compressed"]
        assert found["macs"] == alone["macs"]
    top1 = "top1" if "top1" in found else "top1_after"
    assert abs(found[top1] - alone[top1]) < 0.1


@pytest.mark.parametrize("name", [*SAME, *NEAR])
def test_only_the_first_speaks(several, name):
    assert several.of(name, 1, "out") == several.of(name, 1, "err") == ""


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(several, name):
    lines = [line for rank in (0, 1) for line in several.of(name, rank, "err").splitlines()]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert REFUSED[name][1] in lines[0]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"WORLD_SIZE": "2"}, "lacks RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"}, "lacks MASTER_PORT"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, "RANK is '2'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
    ids=lambda value: None if isinstance(value, str) else " ".join(f"{k}={v}" for k, v in value.items()),
)
def test_an_environment_that_is_no_rendezvous(monkeypatch, capsys, tiny, environment, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["evaluate", str(tiny), "--data", "digits"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_verbs_that_run_in_one_process(monkeypatch, capsys, tiny):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["inspect", str(tiny)]) == 1
    assert "inspect runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--device", "cpu"]])
def test_sync_batchnorm_is_for_cuda(tmp_path, capsys, tiny, more):
    words = ["finetune", str(tiny), "--data", "digits", "--sync-batchnorm", "-o", str(tmp_path / "x.safetensors"), *more]
    assert main(words) == 1
    assert "--sync-batchnorm" in capsys.readouterr().err


def worker(launcher, rank):
    """The process id of torchrun's child of a rank."""
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text().replace("LOCAL_RANK", "").replace("GROUP_RANK", ""):
            return int(child)
    raise LookupError(rank)


def test_a_worker_is_killed_under_torchrun_and_one_process_goes_on(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    words = [*TRAIN.split(), "--epochs", "6", "-o", str(out)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "slimrank", *words]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 200
    while not part(out).exists() and launcher.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(worker(launcher.pid, 1), signal.SIGKILL)
    errors = launcher.communicate(timeout=60)[1]
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert "process 1 of 2" in lines[0]
    assert "`slimrank train` goes on when run again, in any number of processes" in lines[0]
    assert not out.exists()
    assert main(words) == 0
    assert "6 epochs" in capsys.readouterr().out
