"""Preprocessing against torchvision's and timm's own transforms, and what of a picture file reaches the network."""

import json
import struct
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin

from slimrank.compress.network import published, zoo
from slimrank.compress.network.checkpoint import Checkpoint, load, save
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Images, Preprocessing
from slimrank.evaluate.imagespec import ImageSpec, read_resize, read_side

Turn = Image.Transpose
HALVES = ((0.5,) * 3, (0.5,) * 3)
SIZES = [(160, 240), (97, 61), (224, 224), (256, 256), (250, 187), (187, 250), (31, 200), (300, 280), (8, 8), (90, 388)]


@pytest.fixture(scope="module")
def pictures():
    """A hundred pictures of ten sizes: noise of several grains, so that a pixel's shift shows."""
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 256, (height // grain + 1, width // grain + 1, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for grain in (2, 3, 4, 5, 6, 7, 9, 12, 20, 40)
        for height, width in SIZES
    ]


def largest_difference(ours: Preprocessing, theirs, pictures) -> float:
    """Of a pixel, in 255ths."""
    std = torch.tensor(ours.std).view(-1, 1, 1)
    return max(
        float(((ours.normalise(torch.from_numpy(ours.pixels(p).copy())[None])[0] - theirs(p)) * std * 255).abs().max())
        for p in pictures
    )


# -- as published ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b1", "inception_v3"])
def test_pixels_are_those_of_torchvisions_transform(pictures, name):
    from torchvision.models import get_model_weights

    assert largest_difference(zoo.preprocessing(name, 3), get_model_weights(name).DEFAULT.transforms(), pictures[::4]) <= 2


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize(
    ("shape", "crop_pct", "interpolation"),
    [((3, 224, 224), 0.875, "bicubic"), ((3, 160, 192), 0.95, "bilinear"), ((3, 96, 64), 1.0, "bicubic")],
    ids=["square", "wide", "tall"],
)
def test_pixels_are_those_of_timms_transform(pictures, shape, crop_pct, interpolation, mode):
    create_transform = pytest.importorskip("timm.data", reason="timm is not installed").create_transform
    config = {"input_size": shape, "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    seen = dict(zip(("mean", "std"), HALVES, strict=True))
    ours = published.from_timm({**config, **seen})
    assert ours.shape == shape
    assert largest_difference(ours, create_transform(**config, **seen), pictures[::3]) <= 2


def test_every_picture_by_the_protocol_of_imagenet(pictures):
    from torchvision.transforms._presets import ImageClassification

    ours = ImageSpec(size=224, resize=256).over(Preprocessing.default(3, 224))
    assert largest_difference(ours, ImageClassification(crop_size=224, resize_size=256), pictures) <= 2


@pytest.mark.parametrize("interpolation", ["nearest", "bicubic", "lanczos", "box", "hamming"])
def test_an_interpolation_is_pillows(pictures, interpolation):
    ours = Preprocessing(32, *HALVES, interpolation=interpolation)
    expected = pictures[0].resize((48, 32), Image.Resampling[interpolation.upper()]).crop((8, 0, 40, 32))
    assert np.array_equal(ours.pixels(pictures[0]), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [
        ("resnet50", "", (224, 232, "bilinear")),
        ("resnet50", "resnet50-0676ba61.pth", (224, 256, "bilinear")),
        ("efficientnet_v2_s", "mine.pth", (384, 384, "bilinear")),
        ("efficientnet_b4", "", (380, 384, "bicubic")),
        ("inception_v3", "", (299, 342, "bilinear")),
        ("resnet20-cifar", "", (32, None, "bilinear")),
        ("toy_models:Plain", "", (224, None, "bilinear")),
    ],
)
def test_a_name_brings_its_published_preprocessing(name, file, expected):
    seen = zoo.preprocessing(name, 3, file)
    assert (seen.size, seen.resize, seen.interpolation) == expected
    assert (zoo.preprocessing(name, 1, file).mean, zoo.preprocessing(name, 1, file).resize) == ((0.5,), expected[1])


def test_timms_borders_are_refused():
    config = {"input_size": (3, 8, 8), "crop_mode": "border", "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(SlimrankError, match="crop mode 'border'"):
        published.from_timm(config)


# -- as asked for ----------------------------------------------------------------------------------------------------

USUAL = Preprocessing(224, *HALVES, resize=256, interpolation="bicubic")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (224, 256, 1.0)),
        ({"size": 224}, (224, 256, 1.0)),  # saying the default changes nothing
        ({"size": 64}, (64, None, 1.0)),
        ({"size": (32, 64)}, ((32, 64), None, 1.0)),
        ({"size": 64, "resize": 80}, (64, 80, 1.0)),
        ({"resize": (300, 224)}, (224, (300, 224), 1.0)),
        ({"crop_pct": 0.9}, (224, None, 0.9)),
    ],
    ids=str,
)
def test_what_is_asked_for_replaces_what_is_usual(asked, expected):
    seen = ImageSpec(**asked).over(USUAL)
    assert (seen.size, seen.resize, seen.crop_pct) == expected
    assert seen.interpolation == "bicubic"


def test_values_to_255_are_the_same_numbers():
    ours = ImageSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), range=255).over(USUAL)
    x = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    mean, std = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1), torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    torch.testing.assert_close(ours.normalise(x), (x.float() - mean) / std)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"size": 256, "resize": 224}, "`size` 256 is cut from images of `resize` 224, which is smaller"),
        ({"size": (64, 96), "resize": (96, 64)}, "`resize` 96x64, which is smaller"),
        ({"size": 5000}, r"`size` is 5000, must lie in 1\.\.4096"),
        ({"size": (8, 0)}, "`size` is 8x0"),
        ({"resize": 256, "crop_pct": 0.9}, "give one of them"),
        ({"crop_pct": 1.5}, "`crop_pct` is 1.5"),
        ({"interpolation": "cubic"}, "no interpolation 'cubic'; near ones: bicubic"),
        ({"range": 255}, "`range` 255 says what `mean` and `std`"),
        ({"range": 0, "mean": (1,), "std": (1,)}, "`range` 0"),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_said(asked, match):
    with pytest.raises(SlimrankError, match=match):
        ImageSpec(**asked).over(USUAL)


@pytest.mark.parametrize(
    ("text", "side", "resize"),
    [("224", 224, 224), ("32,64", (32, 64), (32, 64)), ("32x64", (32, 64), (32, 64)), ("256x256", 256, (256, 256))],
)
def test_sides_are_read(text, side, resize):
    assert (read_side(text), read_resize(text)) == (side, resize)


def test_a_picture_narrower_than_the_crop(tmp_path):
    """A square crop is always filled, whatever the picture; a rectangle out of a scaled shorter side may not be."""
    assert Preprocessing(64, *HALVES, resize=80).pixels(Image.new("RGB", (5, 9))).shape == (3, 64, 64)
    assert Preprocessing((32, 64), *HALVES).pixels(Image.new("RGB", (40, 90))).shape == (3, 32, 64)
    Image.new("RGB", (40, 40)).save(tmp_path / "narrow.png")
    rows = Images([tmp_path / "narrow.png"], torch.zeros(1), Preprocessing((32, 64), *HALVES, resize=40))
    with pytest.raises(SlimrankError, match=r"narrow\.png: a picture of 40x40 pixels is scaled to 40x40, less than the 64x32"):
        rows.read([0])


# -- what a file holds -----------------------------------------------------------------------------------------------


def gradient(width=60, height=40):
    """Red to the right, green downwards: upright in one way only."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 0.5 * x], 2).round().astype(np.uint8)


def as_read(path, channels=3, size=(40, 60)):
    return Images([path], torch.zeros(1), Preprocessing.default(channels, size)).read([0])[0].numpy().astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_upright(tmp_path, suffix, orientation):
    undo = {
        1: None, 2: Turn.FLIP_LEFT_RIGHT, 3: Turn.ROTATE_180, 4: Turn.FLIP_TOP_BOTTOM, 5: Turn.TRANSPOSE, 6: Turn.ROTATE_90,
        7: Turn.TRANSVERSE, 8: Turn.ROTATE_270,
    }[orientation]  # fmt: skip
    upright = Image.fromarray(gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    (upright if undo is None else upright.transpose(undo)).save(path, exif=exif, quality=95)
    assert np.abs(as_read(path) - gradient().transpose(2, 0, 1)).mean() < 3


def test_damaged_exif_turns_nothing(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01", quality=95)
    assert np.abs(as_read(tmp_path / "a.jpg") - gradient().transpose(2, 0, 1)).mean() < 3


def pgm16(path, grey):
    path.write_bytes(b"P5 %d %d 65535\n" % grey.shape[::-1] + grey.astype(">u2").tobytes())


def tiff(path, grey, **tags):
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    Image.fromarray(grey).save(path, tiffinfo=info)


WIDE = {
    "png": lambda path, grey: Image.fromarray(grey).save(path),
    "tif": tiff,
    "big-endian.tif": lambda path, grey: Image.frombytes("I;16B", grey.shape[::-1], grey.astype(">u2").tobytes()).save(path),
    "white-is-0.tif": lambda path, grey: tiff(path, 65535 - grey, t262=0),
    "pgm": pgm16,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", WIDE)
def test_sixteen_bits_of_grey(tmp_path, kind, channels):
    grey = gradient()[:, :, 0].astype(np.uint16) * 257
    path = tmp_path / f"wide.{kind}"
    WIDE[kind](path, grey)
    assert np.abs(as_read(path, channels) - gradient()[:, :, 0]).max() <= 1


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_pixels_without_a_known_white_are_refused(tmp_path, dtype):
    Image.fromarray(gradient()[:, :, 0].astype(dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(SlimrankError, match=r"depth\.tif: its pixels are 32 bits wide"):
        as_read(tmp_path / "depth.tif")


def rgba():
    return np.dstack([gradient(), np.full((40, 60), 90, np.uint8)])


OTHERS = {
    "palette.png": lambda path: Image.fromarray(gradient()).quantize(255).save(path),
    "palette with tRNS.png": lambda path: Image.fromarray(gradient()).quantize(255).save(path, transparency=bytes(range(255))),
    "rgba.png": lambda path: Image.fromarray(rgba()).save(path),
    "transparent.webp": lambda path: Image.fromarray(rgba()).save(path, quality=98),
    "cmyk.jpg": lambda path: Image.fromarray(gradient()).convert("CMYK").save(path, quality=98),
    "cmyk.tif": lambda path: Image.fromarray(gradient()).convert("CMYK").save(path),
    "still.gif": lambda path: Image.fromarray(gradient()).save(path),
    "lossless.qoi": lambda path: Image.fromarray(gradient()).save(path),
    "camera.jfif": lambda path: Image.fromarray(gradient()).save(path, "JPEG", quality=98),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_colours_are_those_of_pillows_rgb(tmp_path, kind):
    """As in torchvision's ImageFolder: transparency is dropped."""
    OTHERS[kind](tmp_path / kind)
    with Image.open(tmp_path / kind) as picture:
        expected = np.asarray(picture.convert("RGBA").convert("RGB") if picture.mode == "P" else picture.convert("RGB"))
    assert np.array_equal(as_read(tmp_path / kind), expected.transpose(2, 0, 1))
    assert np.abs(expected.astype(int) - gradient()).mean() < 20


def test_four_channels_are_colour_and_transparency(tmp_path):
    Image.fromarray(rgba()).save(tmp_path / "a.png")
    assert np.array_equal(as_read(tmp_path / "a.png", 4), rgba().transpose(2, 0, 1))
    with pytest.raises(SlimrankError, match="1, 2, 3 or 4 channels, the network reads 7"):
        as_read(tmp_path / "a.png", 7)


def png(width, height, rows=None):
    """A grey PNG that says it is so large; `rows`: as many are there (all, without it)."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pixels = zlib.compress(bytes((width + 1) * (height if rows is None else rows)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD = {
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", "cannot be read as an image"),
    "huge.png": (png(30_000, 30_000, 1), "too many pixels"),
    "cut.png": (png(300, 300)[:50], "cannot be read as an image"),
    "text.jpg": (b"no picture", "cannot be read as an image"),
    "empty.gif": (b"", "cannot be read as an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is started
    content, match = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlimrankError, match=match) as caught:
        as_read(tmp_path / name, size=40)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sides", [(1, 1_000_000), (1_000_000, 1), (2, 400_000), (7, 90_000)], ids=str)
def test_of_a_strip_only_what_is_cut_is_scaled(tmp_path, monkeypatch, sides):
    """1 x 1,000,000 pixels would be scaled to a picture of 1.6 gigabytes first."""
    (tmp_path / "strip.png").write_bytes(png(*sides))
    monkeypatch.setattr("PIL.Image.Image.crop", None)
    assert as_read(tmp_path / "strip.png", size=40).shape == (3, 40, 40)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_a_strip_is_scaled_as_any_other_picture_is(tmp_path, monkeypatch, interpolation):
    strip = np.random.default_rng(0).integers(100, 156, (1100, 12, 3), dtype=np.uint8)
    seen = Preprocessing(40, (0.5,) * 3, (0.5,) * 3, interpolation=interpolation)
    whole = seen.pixels(Image.fromarray(strip)).astype(int)
    monkeypatch.setattr("slimrank.evaluate.data.preprocessing.STRIP", 0)
    assert np.abs(seen.pixels(Image.fromarray(strip)) - whole).max() <= 2


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_pictures_of_many_bits_may_have_fewer_pixels(tmp_path, monkeypatch, mode):
    Image.new(mode, (20, 20)).save(tmp_path / "deep.tif")
    monkeypatch.setattr("slimrank.evaluate.data.decode.DEEP_PIXELS", 300)
    with pytest.raises(SlimrankError, match="too many pixels"):
        as_read(tmp_path / "deep.tif")


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SlimrankError, match=r"pipe\.png: it is no regular file"):
        as_read(tmp_path / "pipe.png")


# -- it travels ------------------------------------------------------------------------------------------------------

ODD = Preprocessing((24, 40), *HALVES, resize=(30, 50), crop_pct=1.0, interpolation="lanczos")


@pytest.mark.parametrize("seen", [ODD, Preprocessing(28, *HALVES), Preprocessing(28, *HALVES, crop_pct=0.9)], ids=repr)
def test_preprocessing_survives_json(seen):
    assert Preprocessing.from_dict(json.loads(json.dumps(asdict(seen)))) == seen


def test_preprocessing_of_older_files():
    old = {"size": 28, "mean": [0.5], "std": [0.25]}
    assert Preprocessing.from_dict(old) == Preprocessing(28, (0.5,), (0.25,), None, 1.0, "bilinear")


@pytest.fixture(scope="module")
def rectangular(tmp_path_factory):
    """A ResNet-20 that reads 24x40 pixels: a folder with its foreign and its slim file, and the options for the first."""
    root = tmp_path_factory.mktemp("rectangular")
    torch.manual_seed(0)
    model = zoo.build("resnet20-cifar").eval()
    torch.save(model.state_dict(), root / "foreign.pt")
    save(Checkpoint(model, "resnet20-cifar", {}, ODD, [str(i) for i in range(10)]), root / "slim.safetensors")
    return root, {"size": (24, 40), "resize": (30, 50), "interpolation": "lanczos", "mean": HALVES[0], "std": HALVES[1]}


def test_preprocessing_travels_in_the_slim_file(rectangular):
    root, options = rectangular
    assert load(root / "slim.safetensors").preprocessing == ODD
    assert load(root / "foreign.pt", model="resnet20-cifar", **options).preprocessing == ODD
    with pytest.raises(SlimrankError, match="leave out `size`, `interpolation`"):
        load(root / "slim.safetensors", size=32, interpolation="box")


def test_an_onnx_file_says_how_it_sees_images(trained, tmp_path):
    """Same top-1 of the checkpoint and of the file alone, on pictures of which each step of the preprocessing decides."""
    from slimrank.compress.stages.evaluate import evaluate, evaluate_onnx
    from slimrank.compress.stages.export import export
    from slimrank.evaluate.data import DataSpec

    generator = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / "test" / str(label)).mkdir(parents=True)
        for i in range(4):
            pixels = generator.integers(0, 256, (50, 33 + 20 * i), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "test" / str(label) / f"{i}.png")
    seen = Preprocessing(28, (0.4,), (0.2,), resize=40, interpolation="lanczos")
    checkpoint = replace(load(trained), preprocessing=seen)
    spec = DataSpec(f"folder:{tmp_path}", validation="test:0.1")
    assert export(checkpoint, tmp_path / "model.onnx", spec.open(seen)).parity.agreement == 1
    expected = evaluate(checkpoint, spec.open(seen))
    found = evaluate_onnx(tmp_path / "model.onnx", spec)
    assert (found.top1, found.n) == (expected.top1, expected.n)
    with pytest.raises(SlimrankError, match="carries its own preprocessing; leave out `resize`"):
        evaluate_onnx(tmp_path / "model.onnx", spec, images=ImageSpec(resize=64))
