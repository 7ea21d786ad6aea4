"""Real data and checkpoints for the tests that need them; unpacked once a run."""

import fcntl
import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from slimrank.compress.coalitions import screen

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SLIMRANK_SHARED", ROOT.parent / "shared"))

if "PYTEST_XDIST_WORKER" in os.environ:  # two workers on two cores have a thread each; alone, a run has both cores
    os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def shared(path: str) -> Path:
    """A file under shared/, or skip: users have none of this."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {found}")
    return found


@pytest.fixture(scope="session")
def resnet20() -> Path:
    return shared("checkpoints/resnet20-12fca82f.th")


@pytest.fixture(scope="session")
def resnet18() -> Path:
    return shared("checkpoints/resnet18-tiny-imagenet.pt")


@pytest.fixture(scope="session")
def cifar(tmp_path_factory) -> Path:
    """CIFAR-10 (JPEG) as a folder with train/ and test/: 60,000 files, unpacked once for all workers."""
    archive, run = shared("data/cifar10-jpeg.tar.gz"), tmp_path_factory.getbasetemp()
    folder = (run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "cifar"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            if tar := shutil.which("tar"):
                subprocess.run([tar, "xzf", archive], cwd=folder, check=True)
            else:
                shutil.unpack_archive(archive, folder, filter="data")
            (folder / "done").touch()
    return folder / "cifar10-jpeg"


@pytest.fixture(scope="session")
def mnist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mnist")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for packed in shared("data/MNIST/raw").glob("*.gz"):
        with gzip.open(packed) as source, open(raw / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A LeNet on digits, trained for a moment."""
    from slimrank.cli import main

    path = tmp_path_factory.mktemp("trained") / "lenet.safetensors"
    words = ["train", "--model", "lenet5", "--data", "digits", "--epochs", "3", "--lr", "0.05", "-o", str(path)]
    assert main(words) == 0
    return path


@pytest.fixture
def pays(monkeypatch):
    """Screen whatever the processor and however small the game."""
    monkeypatch.setattr(screen, "FEWEST_PAIRS", 1)
    monkeypatch.setattr(screen, "FEWEST_CONVS", 0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
