"""Other people's files: weights wherever they lie and whatever their names begin with, and what holds no weights."""

import argparse
import bz2
import gzip
import io
import lzma
import resource
import tarfile
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from slimrank.compress.network.checkpoint import load, save
from slimrank.errors import SlimrankError, SlimrankWarning


class Small(nn.Module):
    """A network of 5 classes unless told otherwise."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(conv1=nn.Conv2d(3, 6, 3), norm1=nn.BatchNorm2d(6), conv2=nn.Conv2d(6, 8, 3, bias=False))
        )
        self.classifier = nn.Linear(8, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        return F.relu(self.features(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pooled(x))


class Inner(nn.Module):
    """All of it is in `net`."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.net = Small(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


SMALL, INNER = f"{__name__}:Small", f"{__name__}:Inner"


def weights(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Its state_dict, random, statistics of BatchNorm included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.1 + torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for key, tensor in model.state_dict().items()
    }


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


def renamed(old: str, new: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace(old, new): tensor for key, tensor in state.items()}


LAYOUTS = {
    "plain": lambda s: s,
    "scalars beside it": lambda s: {"epoch": torch.tensor(3), "weights": s, "best_top1": torch.tensor(0.7), "lr": 0.1},
    "nested twice": lambda s: {"run": {"step": 4, "student": s}, "optimizer": {"state": {0: {"exp_avg": torch.ones(9)}}}},
    "a list": lambda s: [s, {"epoch": 3}],
    "arguments and numpy": lambda s: {"state_dict": s, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)},
    "doubled": lambda s: prefixed("module.module.", s),
    "anybody's": lambda s: prefixed("my_net.backbone._orig_mod.", s),
    "in a Sequential": lambda s: {"0.mean": torch.zeros(3), **prefixed("1.", s)},
    "wrapped inside": lambda s: renamed("features.", "features.module.", renamed("classifier.", "classifier.module.", s)),
    "a layer wrapped": lambda s: {"state_dict": prefixed("module.", renamed("conv2.", "conv2._orig_mod.", s))},
    "older names": lambda s: renamed("norm1.", "norm.1.", s),
    "half": lambda s: {k: t.half() if t.is_floating_point() else t for k, t in s.items()},
    "without counters": lambda s: {k: t for k, t in s.items() if "num_batches" not in k},
}


def quiet(path, **words):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlimrankWarning)
        return load(path, size=16, **words)


def same(found, state: dict[str, Tensor]) -> bool:
    expected = Small(len(state["classifier.weight"])).eval()
    expected.load_state_dict(state)
    return torch.allclose(found.model(found.example()), expected(found.example()), rtol=1e-2)


@pytest.mark.parametrize(
    ("layout", "model"), [*((name, SMALL) for name in LAYOUTS), *((name, INNER) for name in LAYOUTS if name != "older names")]
)
def test_weights_are_found_wherever_they_lie(tmp_path, layout, model):
    state = weights(Small(7))
    torch.save(LAYOUTS[layout](state), tmp_path / "theirs.pt")
    assert same(quiet(tmp_path / "theirs.pt", model=model), state)


@pytest.mark.parametrize("name", ["m.safetensors", "m.bin"])
@pytest.mark.parametrize("layout", ["plain", "doubled", "wrapped inside"])
def test_safetensors_are_known_by_their_content(tmp_path, layout, name):
    state = weights(Small(3))
    save_file(LAYOUTS[layout](state), tmp_path / name)
    assert same(quiet(tmp_path / name, model=SMALL), state)


def averaged(layout: str) -> tuple[dict, dict, dict]:
    plain, ema = weights(Small(), 0), weights(Small(), 1)
    file = {
        "torchvision": {"model": plain, "model_ema": {"n_averaged": torch.tensor(5), **prefixed("module.", ema)}},
        "timm": {"state_dict_ema": ema, "state_dict": plain},
        "one mapping": {**prefixed("ema_net.", ema), **prefixed("net.", plain)},
    }[layout]
    return file, plain, ema


@pytest.mark.parametrize(
    ("layout", "asked"), [("torchvision", "model_ema"), ("timm", "state_dict_ema"), ("one mapping", "ema_net")]
)
def test_of_two_the_plain_weights_are_taken_and_it_is_said(tmp_path, layout, asked):
    file, plain, ema = averaged(layout)
    torch.save(file, tmp_path / "two.pt")
    with pytest.warns(SlimrankWarning, match=f"`state_dict` takes another: {asked}"):
        found = load(tmp_path / "two.pt", model=SMALL, size=16)
    assert same(found, plain)
    assert same(quiet(tmp_path / "two.pt", model=SMALL, state_dict=asked), ema)


def test_a_place_that_is_not_there_lists_those_that_are(tmp_path):
    torch.save(averaged("torchvision")[0], tmp_path / "two.pt")
    with pytest.raises(SlimrankError, match=r"`state_dict` swa.*: model, model_ema"):
        load(tmp_path / "two.pt", model=SMALL, size=16, state_dict="swa")


def test_the_same_weights_twice_are_no_question(tmp_path):
    state = weights(Small())
    torch.save({"model": state, "ema": state}, tmp_path / "same.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "same.pt", model=SMALL, size=16)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"total_ops": torch.zeros(1).double(), "features.conv1.total_params": torch.zeros(1)}, "total_ops, total_params"),
        ({"features.norm1.steps": torch.tensor(3)}, "steps"),
    ],
)
def test_counters_are_left_out_and_named(tmp_path, more, told):
    state = weights(Small())
    torch.save({**state, **more}, tmp_path / "counted.pt")
    with pytest.warns(SlimrankWarning, match=told):
        assert same(load(tmp_path / "counted.pt", model=SMALL, size=16), state)


def test_what_stands_beside_the_weights_is_named(tmp_path):
    state = {**prefixed("model.", weights(Small())), "probe.weight": torch.ones(2, 5)}
    torch.save({"state_dict": state}, tmp_path / "beside.pt")
    with pytest.warns(SlimrankWarning, match=r"probe\.weight"):
        load(tmp_path / "beside.pt", model=SMALL, size=16)


# -- the number of classes -------------------------------------------------------------------------------------------


class Headed(Small):
    """A classifier of some kind, `head`, with vectors registered behind it."""

    def __init__(self, head: str = "no bias", num_classes: int = 4) -> None:
        super().__init__()
        del self.classifier
        self.head = {
            "no bias": lambda: nn.Linear(8, num_classes, bias=False),
            "conv": lambda: nn.Sequential(nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, num_classes, 1), nn.Flatten()),
            "normalised": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, num_classes, bias=False)),
            "scaled": lambda: nn.Sequential(nn.Linear(8, num_classes), nn.BatchNorm1d(num_classes)),
        }[head]()
        self.zz_norm = nn.BatchNorm1d(11)
        self.zz_power = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pooled(x) ** self.zz_power)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("head", ["no bias", "conv", "normalised", "scaled"])
def test_the_classifier_tells_how_many_classes(tmp_path, head, suffix):
    state = weights(Headed(head, 13))
    (save_file if suffix == "safetensors" else torch.save)(state, tmp_path / f"m.{suffix}")
    found = load(tmp_path / f"m.{suffix}", model=f"{__name__}:Headed", model_arg={"head": head}, size=16)
    assert found.outputs() == 13


def fixed() -> nn.Module:
    return Small(6)


def picky(num_classes: int = 6) -> nn.Module:
    if num_classes > 100:
        raise ValueError("at most 100 classes")
    return Small(num_classes)


def looking(num_classes: int = 6) -> nn.Module:
    model = Small(num_classes)
    assert float(model.classifier.weight.detach().sum()) != 0  # no constructor for meta tensors
    return model


@pytest.mark.parametrize("constructor", ["fixed", "picky", "looking"])
def test_constructors_that_leave_less_choice(tmp_path, constructor):
    torch.save(weights(Small(6)), tmp_path / "m.pt")
    assert load(tmp_path / "m.pt", model=f"{__name__}:{constructor}", size=16).outputs() == 6


# -- one output ------------------------------------------------------------------------------------------------------


class One(Small):
    def __init__(self, end: str = "plain", num_classes: int = 1) -> None:
        super().__init__(num_classes)
        self.end = end
        if end == "conv":
            self.classifier = nn.Conv2d(8, num_classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pooled(x) - 1.8
        if self.end == "conv":
            return self.classifier(x[..., None, None]).flatten(1)
        z = self.classifier(x)
        return {"plain": z, "sigmoid": z.sigmoid(), "squeezed": z.squeeze(1), "flat": z.flatten()}[self.end]


@pytest.mark.parametrize("end", ["plain", "sigmoid", "squeezed", "conv"])
def test_one_output_becomes_two_logits(tmp_path, end):
    state = weights(One(end))
    state["classifier.weight"] -= 0.6
    torch.save(state, tmp_path / "one.pt")
    plain = One(end)
    plain.load_state_dict(state)
    with pytest.warns(SlimrankWarning, match="second class"):
        found = load(tmp_path / "one.pt", model=f"{__name__}:One", model_arg={"end": end}, size=16)
    x = found.example(40)
    with torch.inference_mode():
        z, logits = plain.eval()(x).flatten(), found.model(x)
    assert torch.equal(logits.argmax(1) == 1, z > (0.5 if end == "sigmoid" else 0))
    if end != "sigmoid":
        torch.testing.assert_close(logits.softmax(1)[:, 1], z.sigmoid())
    save(found, tmp_path / "slim.safetensors")
    again = load(tmp_path / "slim.safetensors", model=f"{__name__}:One")
    assert torch.equal(again.model(x), found.model(x))


# -- what is no checkpoint of this network ---------------------------------------------------------------------------


def test_another_network_is_told_by_its_first_three_keys(tmp_path):
    state = weights(Small())
    del state["features.norm1.bias"]
    state |= {
        "features.conv2.weight": torch.ones(8, 6, 5, 5),
        "classifier.scale": torch.ones(5),
        "classifier.to": torch.ones(5),
    }
    torch.save({"state_dict": prefixed("module.", state)}, tmp_path / "other.pt")
    with pytest.raises(SlimrankError) as caught:
        load(tmp_path / "other.pt", model=SMALL, size=16)
    told = str(caught.value)
    assert "features.norm1.bias is missing; features.conv2.weight is [8, 6, 5, 5], not [8, 6, 3, 3]; " in told
    assert "classifier.scale is too much; 1 more" in told


@pytest.mark.parametrize(("theirs", "ours"), [("resnet32-cifar", "resnet20-cifar"), ("resnet20-cifar", "resnet32-cifar")])
def test_a_deeper_network_of_the_same_family_is_another(tmp_path, theirs, ours):
    from slimrank.compress.network import zoo

    torch.save(zoo.build(theirs).state_dict(), tmp_path / "other.pt")
    with pytest.raises(SlimrankError, match=r"layer1\.3\.conv1\.weight is"):
        load(tmp_path / "other.pt", model=ours)


def tar(name: str = "weights") -> bytes:
    with tarfile.open(fileobj=(held := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return held.getvalue()


def nameless_tar() -> bytes:
    """As tar wrote it before POSIX: no magic, only the sum of its header."""
    header = bytearray(tar())
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return bytes(header)


def npz() -> bytes:
    np.savez(held := io.BytesIO(), weight=np.ones(3))
    return held.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "Keras"),
        (gzip.compress(b"weights"), "gzip"),
        (lzma.compress(b"weights"), "xz"),
        (bz2.compress(b"weights"), "bzip2"),
        (b"\x28\xb5\x2f\xfd\x20\x07", "zstd"),
        (tar(), "tar"),
        (nameless_tar(), "tar"),
        (tar("sys_info"), "PyTorch 0.1"),
        (npz(), "NumPy"),
    ],
    ids=["git lfs", "html", "hdf5", "gzip", "xz", "bzip2", "zstd", "tar", "tar of 1979", "torch 0.1", "npz"],
)
def test_sound_files_of_another_kind_are_named(tmp_path, content, what):
    (tmp_path / "other.pt").write_bytes(content)
    with pytest.raises(SlimrankError, match=what) as caught:
        load(tmp_path / "other.pt", model=SMALL)
    assert "damaged" not in str(caught.value)


def test_nothing_is_unpacked_to_see_what_it_is(tmp_path):
    """Python's tarfile.is_tarfile tries every compression, and xz asks for as much memory as a file says."""
    (tmp_path / "x.safetensors").write_bytes(b"\x5d\xff\xff\xff\xff" + b"\xff" * 8 + bytes(1000))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        with pytest.raises(SlimrankError, match="damaged or no safetensors file"):
            load(tmp_path / "x.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, torch.ones(1, 3, 16, 16))])
def test_torchscript_is_named_and_read_when_trusted(tmp_path, make):
    model = Small(3)
    model.load_state_dict(weights(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        make(model.eval()).save(tmp_path / "script.pt")
        with pytest.raises(SlimrankError, match=r"TorchScript.*`trust_pickle`"):
            load(tmp_path / "script.pt", model=SMALL, size=16)
        assert same(load(tmp_path / "script.pt", model=SMALL, size=16, trust_pickle=True), model.state_dict())


def test_a_program_of_torch_export_is_named(tmp_path):
    torch.export.save(torch.export.export(Small().eval(), (torch.ones(1, 3, 16, 16),)), tmp_path / "program.pt2")
    with pytest.raises(SlimrankError, match=r"torch\.export"):
        load(tmp_path / "program.pt2", model=SMALL)


def test_a_file_that_holds_itself_is_read_to_its_end(tmp_path):
    nest: dict = {}
    nest["state_dict"], nest["again"] = nest, [nest, {"more": nest}]
    torch.save(nest, tmp_path / "cycle.pt")
    with pytest.raises(SlimrankError, match="holds no state_dict"):
        load(tmp_path / "cycle.pt", model="lenet5")
