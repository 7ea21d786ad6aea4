"""`compress --device` reaches every stage. There is no second device here, so moves are watched instead of made."""

import pytest
from torch import nn

from slimrank.evaluate.data import Images

OWN = "cpu:0"  # PyTorch takes it for the CPU; nothing here asks for it unless it was told


@pytest.fixture
def asked(monkeypatch):
    """Where images are sent, and where models are, as (file of the asking code or "model", device)."""
    seen = []
    batches, to = Images.batches, nn.Module.to

    def watched_batches(self, *words, device="cpu", **more):
        seen.append(("images", device))
        return batches(self, *words, device=device, **more)

    def watched_to(self, *words, **more):
        seen.extend(("model", word) for word in words if isinstance(word, str))
        return to(self, *words, **more)

    monkeypatch.setattr(Images, "batches", watched_batches)
    monkeypatch.setattr(nn.Module, "to", watched_to)
    return seen


def test_every_stage_that_reads_images_uses_the_device(trained, tmp_path, asked):
    from slimrank.cli import main

    words = ["--data", "digits", "--ranker", "influential", "--epochs", "1", "--lr", "0.05", "--head", "linear", "--batch", "1"]
    assert main(["compress", str(trained), *words, "--device", OWN, "-o", str(tmp_path / "out")]) == 0
    images = [device for kind, device in asked if kind == "images"]
    # baseline, ranking, recalibration, pruned, epoch, validation, tuned, slim: on the device; parity reads on the CPU
    assert images.count(OWN) >= 8
    assert images.count("cpu") == 1
    assert sum(device == OWN for kind, device in asked if kind == "model") >= 7
