"""`compress` is the verbs in a row: the same options by hand, one verb after another, give the same slim file, bit for bit."""

import pytest

from slimrank.cli import main

DIGITS = ("--data", "digits")
TUNE = ("--epochs", "1", "--lr", "0.05")
SETS = {
    "plain": (("--macs", "0.5"), (), ()),
    "labels and a head": (
        ("--ratio", "0.3", "--ranker", "influential", "--align", "1"), ("--label-smoothing", "0.1"),
        ("--layout", "gather", "--k2", "8", "--fit", "refit"),
    ),
    "not recalibrated, global": (("--params", "0.5", "--scope", "global", "--ranker", "l1", "--no-recalibrate"), (), ()),
    "two steps": (("--macs", "0.5", "--steps", "2", "--recover", "1", "--lr", "0.05"), (), ()),
    "largest drop": (("--max-drop", "0.1", *TUNE), None, ()),
    "distilled, seed 3": (("--macs", "0.6", "--seed", "3", "--distill"), ("--seed", "3", "--teacher", "INPUT"), ()),
}  # fmt: skip


def run(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


def by_hand(network, data, name, folder):
    """prune, finetune (unless the trials were trained), specialize."""
    prune, finetune, head = SETS[name]
    slim = folder / "pruned.safetensors"
    run("prune", network, *data, *prune, "-o", slim)
    if finetune is not None:
        finetune = [str(network) if word == "INPUT" else word for word in finetune]
        run("finetune", slim, *data, *TUNE, *finetune, "-o", folder / "tuned.safetensors")
        slim = folder / "tuned.safetensors"
    if head:
        run("specialize", slim, *data, *head, "-o", folder / "head.safetensors")
        slim = folder / "head.safetensors"
    return slim


def in_one(network, data, name, out):
    prune, finetune, head = SETS[name]
    words = [w for w in prune if w not in ("--lr", "0.05")] if name == "two steps" else list(prune)
    words += [] if finetune is None else [*TUNE, *(w for w in finetune if w not in ("--teacher", "INPUT"))]
    words += ["--head" if word == "--layout" else word for word in head] or ["--head", "linear"]
    run("compress", network, *data, *words, "--batch", 1, "-o", out)
    return out / "slim.safetensors"


@pytest.mark.parametrize("name", list(SETS))
def test_verbs_by_hand_and_compress_are_equal_bit_for_bit(trained, tmp_path, name):
    hand = by_hand(trained, DIGITS, name, tmp_path)
    assert hand.read_bytes() == in_one(trained, DIGITS, name, tmp_path / "out").read_bytes()


def test_resnet20_by_hand_and_in_one(resnet20, cifar, tmp_path):
    name, foreign = "labels and a head", ("--model", "resnet20-cifar")  # its three verbs read files of each other
    data = ("--data", f"folder:{cifar}", "--validation", "test:0.2", "--limit", 100)
    slim = tmp_path / "resnet20.safetensors"  # by hand, every verb but the first reads a slim file
    prune, finetune, head = SETS[name]
    run("prune", resnet20, *foreign, *data, *prune, "-o", slim)
    run("finetune", slim, *data, *TUNE, *finetune, "-o", slim.with_stem("tuned"))
    slim = slim.with_stem("tuned")
    if head:
        run("specialize", slim, *data, *head, "-o", slim.with_stem("head"))
        slim = slim.with_stem("head")
    assert slim.read_bytes() == in_one(resnet20, (*foreign, *data), name, tmp_path / "out").read_bytes()
