"""Every command of the README runs, in order, in a folder that holds what the README names."""

import re
import shlex
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from slimrank.cli import main

from .conftest import shared

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line[2:] for block in re.findall(r"```console\n(.*?)```", TEXT, re.S) for line in block.splitlines() if line[:2] == "$ "
]
SLIMRANK = [c for c in COMMANDS if c.startswith("slimrank ")]


def subset(source: Path, target: Path) -> None:
    """A CIFAR folder with 40 training and 10 test images a class."""
    for split, n in (("train", 40), ("test", 10)):
        for folder in sorted((source / split).iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for picture in sorted(folder.iterdir())[:n]:
                shutil.copy(picture, target / split / folder.name)


def test_the_readme_has_its_two_commands():
    assert any("pip install" in c and c.endswith("slimrank demo") for c in COMMANDS)
    assert any("pip install" in c and c.endswith("-m pytest") for c in COMMANDS)
    verbs = {c.split()[1] for c in SLIMRANK}
    assert verbs >= {
        "inspect",
        "evaluate",
        "rank",
        "prune",
        "finetune",
        "specialize",
        "export",
        "bench",
        "bench-head",
        "explain",
        "train",
        "compress",
    }


def few(archive: Path, target: Path) -> None:
    """Tiny ImageNet as it is packed, with 5 training and 3 test images a class."""
    seen: Counter[str] = Counter()
    with tarfile.open(archive) as packed:
        for member in packed:
            folder = str(Path(member.name).parent)
            seen[folder] += member.isfile()
            if member.isfile() and seen[folder] <= (5 if "/train/" in folder else 3):
                packed.extract(member, target, filter="data")


def test_every_command_runs(tmp_path, resnet20, resnet18, cifar, monkeypatch, capsys):
    shutil.copy(resnet20, tmp_path / "resnet20.th")
    shutil.copy(resnet18, tmp_path / "resnet18.pt")
    subset(cifar, tmp_path / "cifar10")
    few(shared("data/tiny-imagenet-200.tar.gz"), tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in SLIMRANK:
        words = shlex.split(command)[1:]
        if "--epochs" in words:
            words[words.index("--epochs") + 1] = "1"
        assert main(words) == 0, f"{command}\n{capsys.readouterr().err}"


def test_the_python_example_runs(tmp_path, resnet20, monkeypatch):
    shutil.copy(resnet20, tmp_path / "resnet20.th")
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        exec(block, {})
    assert (tmp_path / "slim.safetensors").exists()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    from slimrank.compress.demo import prepare

    return prepare(tmp_path_factory.mktemp("demo") / "out", print).finish(print)


def test_demo(demo):
    """What the README promises of the demo, the clock aside."""
    before, after = demo["baseline"], demo["compressed"]
    assert after["macs"] <= 0.5 * before["macs"]
    assert after["top1"] >= before["top1"] - 0.01
    stages = {s["name"]: s for s in demo["stages"]}
    assert stages["export"]["parity"]["agreement"] == 1.0
    assert stages["export"]["parity"]["images"] == demo["test_images"] == 359
    plain = next(r for r in stages["rivals"]["rows"] if r["name"].startswith("plain uniform"))
    assert abs(plain["macs"] / after["macs"] - 1) < 0.02
    widths = list(stages["prune"]["widths"].values())
    assert [w[0] for w in widths][:4] == [16, 16, 16, 16]  # ResNet-20's own widths
    assert demo["validation_seen_in_training"] is False
