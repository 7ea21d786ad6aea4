"""Data specs, splits and preprocessing."""

import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from slimrank.errors import SlimrankError
from slimrank.evaluate.data import DataSpec, Images, Preprocessing, open_data, readable

RGB = Preprocessing.default(3, 16)
GREY = Preprocessing.default(1, 28)


def folder(root, splits=("train", "test"), classes=("ant", "bee"), images=10):
    generator = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def test_digits_are_stable_and_disjoint():
    a, b = open_data("digits", GREY), open_data("digits", GREY, seed=5)
    assert (len(a.train), len(a.validation), len(a.test)) == (1294, 144, 359)
    assert torch.equal(a.test.labels, b.test.labels)  # the seed moves validation, never test
    assert not torch.equal(a.validation.labels, b.validation.labels)
    x, labels = next(iter(a.test.batches(32)))
    assert x.shape == (32, 1, 28, 28)
    assert x.dtype == torch.float32
    assert labels.max() < 10


def test_mnist(mnist):
    data = open_data(f"mnist:{mnist}", GREY, limit=500)
    assert len(data.train) == len(data.validation) == len(data.test) == 500
    assert len(data.test.labels.unique()) == 10
    full = open_data(f"mnist:{mnist}", GREY, validation="test:0.2")
    assert (len(full.train), len(full.validation), len(full.test)) == (60_000, 2_000, 8_000)
    with pytest.raises(SlimrankError, match="`download`"):
        open_data(f"mnist:{mnist}/nowhere", GREY)


def test_folder_roles(tmp_path):
    two = open_data(f"folder:{folder(tmp_path / 'a')}", RGB)
    assert (len(two.train), len(two.validation), len(two.test)) == (18, 2, 20)
    val = open_data(f"folder:{folder(tmp_path / 'b', ('train', 'val'))}", RGB, validation="test:0.2")
    assert (len(val.train), len(val.validation), len(val.test)) == (20, 4, 16)
    three = open_data(f"folder:{folder(tmp_path / 'c', ('train', 'val', 'test'))}", RGB)
    assert (len(three.train), len(three.validation), len(three.test)) == (20, 20, 20)
    assert three.validation_from == "its own folder"
    alone = open_data(f"folder:{folder(tmp_path / 'd', ('test',))}", RGB, validation="test:0.5")
    assert alone.train is None
    with pytest.raises(SlimrankError, match="no train images"):
        alone.split("train")
    assert two.classes == ["ant", "bee"]


def test_preprocessing_crops_the_middle_and_normalises():
    picture = Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 255, 0), (10, 0, 30, 20))
    pixels = Preprocessing(20, (0.5,) * 3, (0.25,) * 3).pixels(picture)
    assert pixels.shape == (3, 20, 20)
    assert (pixels[1] == 255).all()
    x = Preprocessing(20, (0.5,) * 3, (0.25,) * 3).normalise(torch.from_numpy(pixels.copy())[None])
    assert x[0, 1, 3, 3] == 2.0
    assert x[0, 0, 3, 3] == -2.0


def test_shuffled_batches_hold_every_image_once():
    data = open_data("digits", GREY)
    order = torch.cat([y for _, y in data.test.batches(64, shuffle=torch.Generator().manual_seed(1))])
    assert torch.equal(order.sort().values, data.test.labels.sort().values)
    assert not torch.equal(order, data.test.labels)


def test_identical_pixels_with_and_without_cache(tmp_path, monkeypatch):
    spec = f"folder:{folder(tmp_path)}"
    cached = torch.cat([x for x, _ in open_data(spec, RGB).test.batches(7)])
    monkeypatch.setattr("slimrank.evaluate.data.images.CACHE_BYTES", 0)
    assert torch.equal(torch.cat([x for x, _ in open_data(spec, RGB).test.batches(7)]), cached)


@pytest.mark.parametrize("n", [1, 100, 359, 10_000])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_sample_is_the_head_of_a_seeded_shuffle(n, seed):
    images = open_data("digits", GREY).test
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    expected = images.subset(order[:n])
    sampled = images.sample(n, seed)
    assert isinstance(sampled, Images)
    assert torch.equal(sampled.labels, expected.labels)
    assert torch.equal(sampled.pixels(torch.arange(len(sampled))), expected.pixels(torch.arange(len(expected))))


@pytest.mark.parametrize("fields", [{}, {"validation": "test:0.2"}, {"limit": 20}, {"seed": 3}], ids=str)
def test_a_spec_opens_as_open_data_does(fields):
    ours, reference = DataSpec("digits", **fields).open(GREY), open_data("digits", GREY, **fields)
    assert ours.identity == reference.identity
    for name in ("train", "validation", "test"):
        assert torch.equal(ours.split(name).labels, reference.split(name).labels)


def test_a_spec_is_read_without_torch():
    code = "import sys, slimrank.evaluate.dataspec; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("imagenet:x", "no data kind"),
        ("folder:TMP/nowhere", "no such folder"),
        ("folder:TMP", "holds no train/"),
        ("cifar10", "needs a folder"),
    ],
)
def test_bad_specs(tmp_path, spec, match):
    folder(tmp_path / "a")
    with pytest.raises(SlimrankError, match=match):
        open_data(spec.replace("TMP", str(tmp_path)), RGB)


@pytest.mark.parametrize("validation", ["train", "train:2", "val:0.1", "test:x", "train:nan"])
def test_bad_validation(validation):
    with pytest.raises(SlimrankError, match="`validation`"):
        open_data("digits", GREY, validation=validation)


def test_bad_limit():
    with pytest.raises(SlimrankError, match="`limit`"):
        open_data("digits", GREY, limit=0)


def test_broken_and_uneven_folders(tmp_path):
    root = folder(tmp_path / "a")
    (root / "test" / "bee" / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(SlimrankError, match=r"broken\.jpg cannot be read"):
        list(open_data(f"folder:{root}", RGB).test.batches())
    (root / "train" / "empty").mkdir()
    (root / "test" / "empty").mkdir()
    with pytest.raises(SlimrankError, match="empty"):
        open_data(f"folder:{root}", RGB)
    odd = folder(tmp_path / "odd")
    (odd / "test" / "bee").rename(odd / "test" / "wasp")
    with pytest.raises(SlimrankError, match="bee, wasp"):
        open_data(f"folder:{odd}", RGB)


@pytest.mark.parametrize(
    ("mean", "std", "match"),
    [((0.5, 0.5), (0.5,), "one of each"), ((), (), "one of each"), ((0.5,), (0.0,), "positive"), ((np.nan,), (1,), "finite")],
)
def test_bad_preprocessing(mean, std, match):
    with pytest.raises(SlimrankError, match=match):
        Preprocessing(8, mean, std)


def test_names_for_people(tmp_path):
    for name in ("n01", "n02", "n03", "n04"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "0.png")
    data = open_data(f"folder:{tmp_path}", Preprocessing.default(3, 8))
    assert readable(data) == ["n01", "n02", "n03", "n04"]
    (tmp_path / "words.txt").write_text("n01\ttabby, tabby cat\nn02\tcrane\nn03\tcrane\nn99\tother\n")
    assert readable(data) == ["tabby", "crane (n02)", "crane (n03)", "n04"]


@pytest.mark.parametrize("damage", ["cut", "empty", "another kind", "fewer labels", "labels beyond", "declared"])
def test_damaged_files_of_mnist_are_one_line(tmp_path, damage):
    """torchvision checks no hash of these, and raises what it likes."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 4, 28, 28) + bytes(4 * 784))
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 4) + bytes(4))
    spec = DataSpec(data=f"mnist:{tmp_path}")
    assert len(spec.open(Preprocessing.default(1, 28)).split("test")) == 4
    images, labels = raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"
    path, content = {
        "cut": (images, images.read_bytes()[:100]), "empty": (images, b""), "another kind": (images, b"<html></html>"),
        "fewer labels": (labels, struct.pack(">II", 2049, 3) + bytes(3)),
        "labels beyond": (labels, struct.pack(">II", 2049, 4) + b"\0\1\2\xff"),
        "declared": (images, struct.pack(">IIII", 2051, 2**31 - 1, 2**31 - 1, 28)),
    }[damage]  # fmt: skip
    path.write_bytes(content)
    with pytest.raises(SlimrankError, match="mnist:"):
        spec.open(Preprocessing.default(1, 28))
