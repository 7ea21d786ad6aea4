"""Networks of timm and of local Hugging Face folders: found by name, filled from the user's file, seen as published."""

import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load, save
from slimrank.compress.network.published import from_transformers
from slimrank.compress.stages.options import PruneOptions
from slimrank.compress.stages.prune import prune
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Preprocessing, differing, open_data
from slimrank.option import built

HALF = built(PruneOptions(), {"ranker": "l1", "macs": 0.5})
CONFIGS = {  # small ones: transformers' class names begin so, and take these
    "ResNet": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "embedding_size": 8},
    "ConvNext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "MobileNetV1": {"depth_multiplier": 0.25},
    "RegNet": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "groups_width": 8, "embedding_size": 8},
}


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


def pretrained(family: str, place, labels: list[str]) -> torch.nn.Module:
    """A network of transformers with random weights, saved as its users have it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = getattr(transformers, f"{family}Config")(**CONFIGS[family], id2label=dict(enumerate(labels)))
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    model.save_pretrained(place)
    return model.eval()


def half(checkpoint, path) -> None:
    """Cut a checkpoint to half of its MACs, save it, and hold the file to what was cut."""
    cut = prune(checkpoint, None, HALF)
    assert 0.4 < cut.after.macs / cut.before.macs <= 0.5
    save(cut.checkpoint, path)
    again, x = load(path), checkpoint.example(2)
    assert torch.equal(again.model(x), cut.checkpoint.model(x))
    assert again.name == checkpoint.name


# -- timm ------------------------------------------------------------------------------------------------------------


def test_a_timm_network_is_filled_from_the_users_file(tmp_path, timm):
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=9).eval()
    torch.save({"arch": "mobilenetv3_small_050", "state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    found = load(tmp_path / "theirs.pth", model="timm/mobilenetv3_small_050", size=32)
    x = found.example(2)
    assert torch.equal(found.model(x), theirs(x))
    half(found, tmp_path / "slim.safetensors")


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "tf_efficientnet_b0", "inception_v3", "lcnet_050"])
def test_a_timm_network_sees_images_as_it_was_published(name, timm):
    from timm.data import resolve_data_config

    wanted = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    found = zoo.preprocessing(f"timm/{name}", 3)
    assert (3, *found.shape[1:]) == wanted["input_size"]
    assert (found.mean, found.std) == (wanted["mean"], wanted["std"])
    assert (found.crop_pct, found.interpolation) == (wanted["crop_pct"], wanted["interpolation"])


@pytest.mark.parametrize(
    ("name", "told"),
    [("timm/resnett18", "near ones: resnet18"), ("timm/vit_tiny_patch16_224", "transformer"), ("timm/hf-hub:a/b", "own model")],
)
def test_names_that_timm_does_not_give(name, told, timm):
    with pytest.raises(SlimrankError, match=told):
        zoo.build(name, {"num_classes": 3}, trusted=False)


@pytest.mark.parametrize("arguments", [{"pretrained": True}, {"checkpoint_path": "/etc/passwd"}], ids=str)
def test_nothing_is_downloaded_or_read_from_elsewhere(arguments, timm):
    with pytest.raises(SlimrankError, match="would fetch weights"):
        zoo.build("timm/resnet18", arguments, trusted=False)


@pytest.mark.parametrize(("name", "package", "extra"), [("timm/resnet18", "timm", "timm"), ("hf/resnet", "transformers", "hf")])
def test_a_missing_package_names_the_extra(monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SlimrankError, match=rf"pip install 'slimrank\[{extra}\]'"):
        zoo.build(name)


def test_a_folder_of_timm(tmp_path, timm):
    theirs = timm.create_model("lcnet_050", num_classes=4).eval()
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    seen = {"input_size": [3, 48, 48], "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
    config = {"architecture": "lcnet_050", "num_classes": 4, "pretrained_cfg": seen, "label_names": ["a", "b", "c", "d"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load(tmp_path)
    assert found.name == "timm/lcnet_050"
    assert found.preprocessing == Preprocessing(48, (0.4,) * 3, (0.2,) * 3, crop_pct=0.9, interpolation="bicubic")
    assert found.classes == ["a", "b", "c", "d"]


# -- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_a_folder_of_hugging_face(tmp_path, family):
    labels = ["ant", "bee", "cat"]
    theirs = pretrained(family, tmp_path / "net", labels)
    found = load(tmp_path / "net" / "model.safetensors", model=f"hf/{tmp_path / 'net'}", size=64)
    x = found.example(2)
    with torch.inference_mode():
        assert torch.allclose(found.model(x), theirs(x).logits, atol=1e-5)
    assert found.classes == labels
    half(found, tmp_path / "slim.safetensors")


def test_the_folder_alone_is_enough_and_its_place_is_not_kept(tmp_path):
    pretrained("ResNet", tmp_path / "net", [f"LABEL_{i}" for i in range(3)])
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 40}, "resample": 3}))
    found = load(tmp_path / "net")
    assert found.name == "hf/resnet"
    assert found.classes is None
    assert (found.preprocessing.size, found.preprocessing.interpolation) == (40, "bicubic")
    assert str(tmp_path) not in json.dumps(found.arguments)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "cannot read"),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "of type vit; slimrank compresses these CNNs"),
        ({"model_type": "bert"}, "of type bert"),
        ({"model_type": "resnet", "architectures": ["ResNetBackbone"]}, "ResNetBackbone, no classifier"),
        ({}, "of type None"),
    ],
    ids=str,
)
def test_folders_that_hold_no_cnn_classifier(tmp_path, config, told):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "m.pt").write_bytes(b"")
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    with pytest.raises(SlimrankError, match=told):
        load(tmp_path / "m.pt", model=f"hf/{tmp_path}")


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(SlimrankError, match=r"holds no weights: neither model\.safetensors"):
        load(tmp_path)


THREE, TWICE = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}, {"resize": 256}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"crop_pct": 0.875}),
        ({"size": 224, "crop_pct": 0.875}, {"crop_pct": 0.875}),
        ({"size": {"height": 224, "width": 224}}, {"resize": (224, 224)}),
        ({"size": 224, "image_mean": THREE, "image_std": THREE, "include_top": True}, {"mean": THREE, "std": TWICE}),
        ({"size": 224, "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({"size": 224, "image_mean": THREE, "image_std": THREE, "rescale_factor": 1 / 127.5, "rescale_offset": True},
         {"mean": (0.75,) * 3, "std": TWICE}),
    ],
    ids=["cropped", "convnext", "older", "squashed", "efficientnet", "plain", "offset"],
)  # fmt: skip
def test_preprocessor_config(said, expected):
    found = from_transformers({"resample": 2, **said}, {})
    assert found.size == 224
    assert all(getattr(found, name) == pytest.approx(value) for name, value in expected.items())
    assert found.interpolation == "bilinear"


# -- class names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["n01", "n02"], None),
        (["tench, Tinca tinca", "goldfish"], None),
        (["Tench", "goldfish, Carassius auratus"], None),
        (["goldfish", "tench"], ("goldfish", "n01")),
        (["tench", "shark"], ("shark", "n02")),
    ],
)
def test_class_names_may_be_those_of_words_txt(tmp_path, names, pair):
    from PIL import Image

    for name in ("n01", "n02"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8)).save(tmp_path / "test" / name / f"{i}.png")
    (tmp_path / "words.txt").write_text("n01\ttench, Tinca tinca\nn02\tgoldfish, Carassius auratus\n")
    data = open_data(f"folder:{tmp_path}", Preprocessing.default(3, 8), validation="test:0.5")
    assert differing(data, names) == pair


def test_a_slim_file_of_hugging_face_holds_no_code_or_path(tmp_path):
    """A header's `hf/` name is a type out of a table; a folder's name there is refused."""
    pretrained("ResNet", tmp_path / "net", ["a", "b"])
    save(load(tmp_path / "net", size=32), tmp_path / "slim.safetensors")
    with safe_open(tmp_path / "slim.safetensors", "pt") as file:
        header = {**json.loads(file.metadata()["slimrank"]), "model": f"hf/{tmp_path / 'net'}", "arguments": {}}
    save_file(load_file(tmp_path / "slim.safetensors"), tmp_path / "bad.safetensors", {"slimrank": json.dumps(header)})
    with pytest.raises(SlimrankError, match="no model hf/"):
        load(tmp_path / "bad.safetensors")
