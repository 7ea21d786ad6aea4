"""Decoding in worker processes and random crops: the same numbers for any number of workers, errors in one line."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from slimrank.compress.stages.finetune import fresh
from slimrank.compress.training.loop import train
from slimrank.compress.training.recipe import Recipe
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import DataSpec, Preprocessing, open_data

RGB = Preprocessing.default(3, 16)
WORKERS = [0, 1, 2]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes, 24 training pictures of different shapes, 8 for test."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for split, images in (("train", 12), ("test", 4)):
        for c in ("ant", "bee"):
            (root / split / c).mkdir(parents=True)
            for i in range(images):
                pixels = generator.integers(0, 256, (20 + i, 34 - i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / c / f"{i}.png")
    return root


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    """As with images that are too many to keep decoded."""
    monkeypatch.setattr("slimrank.evaluate.data.images.CACHE_BYTES", 0)


def passes(root, workers, crops, count=2):
    """Images and labels of some passes in shuffled order, and what the global generator gives afterwards."""
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(3)
    images = open_data(f"folder:{root}", RGB, workers=workers).split("train")
    batches = images.batches(5, shuffle=generator, crops=crops)
    seen = [torch.cat(part) for _ in range(count) for part in zip(*batches, strict=True)]
    return [*seen, torch.rand(3), torch.rand(3, generator=generator)]


@pytest.mark.parametrize("crops", [False, True], ids=["middle", "random"])
@pytest.mark.parametrize("workers", WORKERS[1:])
def test_batches_do_not_depend_on_workers(root, workers, crops):
    for expected, found in zip(passes(root, 0, crops), passes(root, workers, crops), strict=True):
        assert torch.equal(expected, found)


def test_a_small_split_is_decoded_by_workers_too(root, monkeypatch):
    monkeypatch.setattr("slimrank.evaluate.data.images.CACHE_BYTES", 2**30)
    kept, plain = (open_data(f"folder:{root}", RGB, workers=workers).split("train") for workers in (2, 0))
    assert torch.equal(kept.pixels(torch.arange(22)), plain.pixels(torch.arange(22)))
    assert kept.workers == kept.sample(5, 0).workers == 2


def test_random_crops_are_torchvisions(root):
    from torchvision.transforms import v2

    images = open_data(f"folder:{root}", RGB).split("train")
    (found,) = images.read([3], [77])
    with Image.open(images.pictures[3]) as picture, torch.random.fork_rng():
        torch.manual_seed(77)
        expected = v2.RandomResizedCrop((16, 16))(picture.convert("RGB"))
    assert np.array_equal(found, np.asarray(expected).transpose(2, 0, 1))


def test_random_crops_differ_between_passes_and_images(root):
    first, _, second, _, *_ = passes(root, 0, True)
    assert not torch.equal(first, second)
    images = open_data(f"folder:{root}", RGB).split("train")
    same, other, again = images.read([0, 0, 0], [1, 2, 1])
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("workers", WORKERS[1:])
def test_a_training_does_not_depend_on_workers(root, workers):
    def trained(workers):
        data = open_data(f"folder:{root}", checkpoint.preprocessing, workers=workers)
        recipe = Recipe(2, 0.05, augment="crop+flip", batch=8, precision="fp32")
        return train(checkpoint.model, data.train, data.validation, recipe)

    checkpoint = fresh("lenet5", None, ["ant", "bee"], 3, None, 0)
    (expected, told), (found, same) = trained(0), trained(workers)
    assert told.loss == same.loss
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n"], ids=["text", "cut"])
@pytest.mark.parametrize("workers", WORKERS)
def test_a_corrupt_image_is_named(root, tmp_path, workers, content):
    (tmp_path / "train").symlink_to(root / "train")
    (tmp_path / "test").mkdir()
    for name in ("ant", "bee"):
        (tmp_path / "test" / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "test" / name / "0.png")
    broken = tmp_path / "test" / "bee" / "broken.png"
    broken.write_bytes(content)
    images = DataSpec(f"folder:{tmp_path}", workers=workers).open(RGB).split("test")
    with pytest.raises(SlimrankError) as caught:
        list(images.batches(1))
    assert str(caught.value).startswith(f"{broken} cannot be read as an image")
    assert "\n" not in str(caught.value)


def test_a_worker_that_dies_is_told(root, monkeypatch):
    images = open_data(f"folder:{root}", RGB, workers=1).split("train")
    monkeypatch.setattr(type(images), "read_batch", lambda self, batch: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(SlimrankError, match=r"a process that decodes images died.*fewer `workers`"):
        list(images.batches(5))


@pytest.mark.parametrize("workers", [-1, 1000])
def test_bad_workers(root, workers):
    with pytest.raises(SlimrankError, match=f"`workers` is {workers}"):
        DataSpec(f"folder:{root}", workers=workers).open(RGB)
