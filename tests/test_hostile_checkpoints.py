"""Checkpoints of strangers: whatever a file says of itself is checked before anything is built, read or run for it."""

import io
import json
import os
import pickle
import resource
import stat
import struct
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import load
from slimrank.compress.network.state import check_sound, oddity
from slimrank.errors import SlimrankError

HERE = Path(__file__).parent / "golden" / "files"
OLD = sorted(path.name for path in HERE.glob("*.safetensors"))


@contextmanager
def little_memory(more: int = 2**30):
    """Within the context this process cannot take more than so many bytes of address space on top of what it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def edited(tmp_path, name, change, tensors=None):
    """A golden file whose header's object `change` has changed."""
    with safe_open(HERE / name, "pt") as file:
        header = json.loads(file.metadata()["slimrank"])
    header = change(header) or header
    save_file({**load_file(HERE / name), **(tensors or {})}, tmp_path / "bad.safetensors", {"slimrank": json.dumps(header)})
    return tmp_path / "bad.safetensors"


def put(*path, value):
    """A change that sets the value at a path of keys."""

    def change(header):
        for key in path[:-1]:
            header = header[key]
        header[path[-1]] = value

    return change


def nested(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("name", OLD)
def test_files_of_older_releases_load(name):
    assert load(HERE / name).outputs() == 10


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "1"), (("format",), None), (("model",), ["lenet5"]), (("model",), "lenet5" * 10**6), (("model",), ""),
        (("arguments",), []), (("arguments", "num_classes"), 10**400), (("arguments", "num_classes"), True),
        (("arguments", "num_classes"), float("nan")), (("arguments", "num_classes"), -3), (("arguments", "x"), nested(9)),
        (("arguments", "x"), nested(500)), (("arguments", "x" * 1001), 1), (("arguments", "num_classes"), "9" * 2000),
        (("modules",), [1]), (("modules", "fc3"), None), (("modules", "fc3"), {"type": "os.system"}), (("modules", "fc3"), {}),
        (("modules", "fc3"), {"type": "SubspaceLinear", "layout": "tiled", "in_features": 84, "rescore": "all"}),
        (("modules", "fc3"), {"type": "SubspaceLinear", "layout": ["tiled"], "in_features": 84}),
        (("modules", "conv1"), {"type": "SubspaceLinear", "layout": "dense", "in_features": 25}),
        (("modules", "conv1"), {"type": "Conv2d", "bias": "yes"}), (("modules", "conv1"), {"type": ["Conv2d"], "bias": True}),
        (("modules", "conv1"), {"type": "Conv2d", "bias": True, "stride": 0}), (("modules", "conv1"), {"groups": 0}),
        (("modules", "conv1"), {"type": "Conv2d", "bias": True, "groups": 3}), (("modules", ""), {"groups": 1}),
        (("modules", "conv1"), {"type": "Conv2d", "bias": True, "padding": "round"}),
        (("modules", "conv1"), {"type": "Conv2d", "bias": True, "padding": [[1, 1], 1]}),
        (("modules", "conv1"), {"source": [0, 1], "in_channels": 2}), (("modules", "conv1"), {"source": [], "in_channels": 2}),
        (("preprocessing",), [28]), (("preprocessing", "size"), float("inf")), (("preprocessing", "size"), [28, 28, 28]),
        (("preprocessing", "size"), True), (("preprocessing", "mean"), [10**400]), (("preprocessing", "mean"), "0.5"),
        (("preprocessing", "mean"), [float("nan")]), (("preprocessing", "std"), [0]), (("preprocessing", "resize"), {}),
        (("preprocessing", "interpolation"), 3), (("preprocessing", "crop_pct"), "1"),
        (("classes",), 5), (("classes",), [1] * 10), (("classes",), []), (("classes",), ["a"] * 9), (("classes",), ["a"] * 11),
        (("classes",), ["\ud800"] * 10), (("classes",), ["a" * 1001] * 10), (("classes",), {"0": "a"}),
        (("history",), 5), (("history",), [5]), (("history",), {"step": "read"}), (("history",), None),
        (("trained_on",), "x"), (("trained_on",), [5]), (("trained_on",), [{"data": 5}]), (("trained_on",), {}),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_a_header_of_other_types_and_ranges_is_one_line(tmp_path, path, value):
    """And a short one, whatever stands in it."""
    bad = edited(tmp_path, "dense.safetensors", put(*path, value=value))
    with pytest.raises(SlimrankError) as caught:
        load(bad)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("text", ["", "[]", "5", "null", "{", "[" * 10**5, '{"a":' * 10**5, '"' + "x" * 100, "9" * 10**4])
def test_a_header_that_is_no_object_is_one_line(tmp_path, text):
    save_file(load_file(HERE / "dense.safetensors"), tmp_path / "bad.safetensors", {"slimrank": text})
    with pytest.raises(SlimrankError, match="slimrank did not write"):
        load(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("dense", ("arguments", "in_channels"), 10**6), ("dense", ("arguments", "in_channels"), 10**7),
        ("dense", ("arguments", "num_classes"), 10**7), ("resnet", ("arguments", "widths"), [4000, 4000, 100]),
        ("resnet", ("arguments", "widths"), [10**6, 1, 1]), ("resnet", ("preprocessing", "size"), 4096),
        ("resnet", ("preprocessing", "size"), 20_000), ("dense", ("preprocessing", "size"), 4096),
        ("resnet", ("preprocessing", "mean"), [0.5] * 5000), ("resnet", ("arguments",), {"widths": [16] * 10**5}),
        ("gather", ("modules", "fc3", "in_features"), 10**6),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_header_that_asks_for_too_much_is_refused_before_memory_is(tmp_path, name, path, value):
    bad = edited(tmp_path, f"{name}.safetensors", put(*path, value=value))
    with little_memory(), pytest.raises(SlimrankError):
        load(bad)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**6, 1]]}), ("mobilenet_v2", {"width_mult": 1e4}),
        ("resnet50", {"width_per_group": 10**5}), ("densenet121", {"growth_rate": 10**5}), ("vgg11", {"num_classes": 10**6}),
        ("timm/resnet18", {"layers": [10**6, 2, 2, 2]}), ("timm/resnet18", {"channels": [10**5, 10**5, 8, 8]}),
    ],
    ids=str,
)  # fmt: skip
def test_no_name_and_argument_build_a_huge_network(tmp_path, model, arguments):
    if model.startswith("timm"):
        pytest.importorskip("timm")
    bad = edited(tmp_path, "dense.safetensors", lambda header: {**header, "model": model, "arguments": arguments})
    with little_memory(), pytest.raises(SlimrankError, match=r"out of all proportion|does not take"):
        load(bad)


@pytest.mark.parametrize(
    "change",
    [{"type": "Conv2d", "bias": True, "padding": 1024}, {"type": "PaddedConv2d", "bias": True, "before": [1024] * 4}],
    ids=lambda change: change["type"],
)
def test_a_layer_cannot_be_changed_to_give_huge_images(tmp_path, change):
    """Nor can a tensor: a million filters of one pixel are 4 MB in a file."""
    wide = {"conv1.weight": torch.ones(40_000, 1, 1, 1), "conv1.bias": torch.ones(40_000)}
    bad = edited(tmp_path, "dense.safetensors", put("modules", "conv1", value=change), wide)
    with little_memory(), pytest.raises(SlimrankError, match="MB in one of the network's layers"):
        load(bad)


def test_a_head_may_be_written_out_as_large_as_it_was(monkeypatch):
    """However small an image's activations must be: the dense form of a class-specific head is no activation."""
    largest = max(tensor.numel() for tensor in zoo.build("lenet5").parameters())
    monkeypatch.setattr("slimrank.compress.network.limits.ACTIVATION", 100)
    monkeypatch.setattr("slimrank.compress.network.limits.SMALL", 100)
    assert largest > 10 * 28 * 28
    assert load(HERE / "int8.safetensors").outputs() == 10


@pytest.mark.parametrize(
    "tensors",
    [
        {"fc3.weight": torch.ones(10, 84).to(torch.float8_e4m3fn)}, {"fc3.weight": torch.ones(10, 84, dtype=torch.complex64)},
        {"fc3.weight": torch.ones(0, 84)}, {"fc3.weight": torch.tensor(1.0)}, {"fc3.weight": torch.ones(10, 84).int()},
        {"fc3.weight": torch.ones(10, 84).double()}, {"conv1.weight": torch.full((6, 1, 5, 5), torch.inf)},
        {"conv2.weight": torch.ones(16, 6)}, {"slimrank.gates": torch.ones(5)}, {"slimrank.gates": torch.ones(10, 84).long()},
        {"slimrank.gates": torch.ones(84, 3)}, {"more": torch.ones(3)},
    ],
    ids=lambda tensors: f"{[*tensors]} {[(t.dtype, list(t.shape)) for t in tensors.values()]}",
)  # fmt: skip
def test_tensors_of_a_slim_file_that_do_not_fit_are_one_line(tmp_path, tensors):
    with pytest.raises(SlimrankError):
        load(edited(tmp_path, "dense.safetensors", lambda header: None, tensors))


def quantised():
    return torch.quantize_per_channel(torch.ones(10, 84), torch.ones(10), torch.zeros(10), 0, torch.qint8)


ODD = {
    "float8": lambda: torch.ones(10, 84).to(torch.float8_e5m2),
    "complex": lambda: torch.ones(10, 84, dtype=torch.complex64),
    "uint16": lambda: torch.ones(10, 84, dtype=torch.uint16),
    "coo": lambda: torch.ones(10, 84).to_sparse(),
    "csr": lambda: torch.ones(10, 84).to_sparse_csr(),
    "bsc": lambda: torch.ones(10, 84).to_sparse_bsc((2, 2)),
    "meta": lambda: torch.ones(10, 84, device="meta"),
    "per channel": quantised,
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "repeated": lambda: torch.ones(1, 84).expand(10, 84),
    "overlapping": lambda: torch.ones(100).as_strided((10, 84), (1, 1)),
    "huge": lambda: torch.ones(1).expand(10**6, 10**6),
}


@pytest.mark.parametrize("kind", [*ODD])
def test_odd_tensors_are_named_in_one_line(tmp_path, kind, recwarn):
    state = {**zoo.build("lenet5").state_dict(), "fc3.weight": ODD[kind]()}
    torch.save({"model": state}, tmp_path / "odd.pt")
    recwarn.clear()
    with little_memory(), pytest.raises(SlimrankError, match=r"fc3\.weight"):
        load(tmp_path / "odd.pt", model="lenet5")
    assert not [one for one in recwarn if issubclass(one.category, UserWarning)]


@pytest.mark.parametrize("kind", [*ODD])
def test_odd_tensors_beside_the_weights_do_not_matter(tmp_path, kind):
    """Quantised statistics, sparse optimisers, a second set of weights: what a network is not filled with may be anything."""
    state = zoo.build("lenet5").state_dict()
    torch.save({"model": state, "optimizer": [ODD[kind]()], "again": {**state, "fc3.weight": ODD[kind]()}}, tmp_path / "odd.pt")
    assert load(tmp_path / "odd.pt", model="lenet5", state_dict="model").outputs() == 10


@pytest.mark.parametrize(
    "tensor", [torch.ones(3, 4).T, torch.ones(8)[2:], torch.ones(()), torch.ones(0, 3), torch.ones(4)[::2]]
)
def test_views_of_enough_memory_are_sound(tmp_path, tensor):
    assert not oddity(tensor)
    check_sound({"view": tensor}, tmp_path)


@pytest.mark.parametrize(
    "keys", [(0, 1), (("a", 1), None), (b"x", 1.5), ("." * 10**6, "a." * 200)], ids=lambda keys: str(keys)[:40]
)
def test_keys_that_are_no_names_fit_no_network(tmp_path, keys):
    torch.save({key: torch.ones(3) for key in keys}, tmp_path / "keys.pt")
    with pytest.raises(SlimrankError, match=r"no checkpoint of lenet5|holds no state_dict"):
        load(tmp_path / "keys.pt", model="lenet5")


def test_lists_that_hold_one_another_billions_of_times_end(tmp_path):
    lists = [torch.ones(2)]
    for _ in range(40):
        lists = [lists, lists]
    torch.save({"state_dict": lists}, tmp_path / "lists.pt")
    with pytest.raises(SlimrankError, match="lists in one another"):
        load(tmp_path / "lists.pt", model="lenet5")


def bomb(path):
    """A checkpoint whose archive is compressed, a thousand times smaller than what is in it."""
    torch.save({"weight": torch.zeros(2**24)}, held := io.BytesIO())
    with zipfile.ZipFile(held) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
        for member in plain.infolist():
            small.writestr(member.filename, plain.read(member))


def declared(path):
    """An archive whose directory says that it holds four gigabytes."""
    torch.save({"weight": torch.zeros(1000)}, path)
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    path.write_bytes(content)


def overlapping(path):
    """An archive with the same bytes under a thousand names."""
    torch.save({"weight": torch.zeros(2**16)}, path)
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    end = content.rindex(b"PK\x05\x06")
    end = content.rindex(b"PK\x06\x06") if b"PK\x06\x06" in content else end
    directory = content[start:end] * 200
    tail = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1000, 1000, len(directory), start, 0)
    path.write_bytes(content[:start] + directory + tail)


@pytest.mark.parametrize("make", [bomb, declared, overlapping], ids=lambda make: make.__name__)
def test_an_archive_that_unpacks_to_far_more_is_refused_before(tmp_path, make):
    make(tmp_path / "bomb.pt")
    with little_memory(2**26), pytest.raises(SlimrankError, match=r"unpack to|damaged"):
        load(tmp_path / "bomb.pt", model="lenet5")


def test_a_storage_that_is_not_there_is_not_allocated(tmp_path):
    """Of the old format: a pickle that declares forty gigabytes."""
    torch.save({"weight": torch.zeros(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "old.pt").read_bytes()
    whole = pickle.dumps(10**10, protocol=2)[2:-1]
    at = content.index(b"K\x03", content.index(b"cpu"))
    (tmp_path / "old.pt").write_bytes(content[:at] + whole + content[at + 2 :])
    with little_memory(), pytest.raises(SlimrankError):
        load(tmp_path / "old.pt", model="lenet5")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.onnx"])
def test_a_pipe_is_no_checkpoint(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SlimrankError, match="a pipe or a device"):
        load(tmp_path / name, model="lenet5")
    assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)


@pytest.mark.parametrize(
    ("source", "name", "says"),
    [
        ("dense.safetensors", "a.SAFETENSORS", None), ("dense.safetensors", "a.pt", None),
        ("tiled.onnx", "b.ONNX", "is an ONNX file"), ("tiled.onnx", "b.pt", "is an ONNX file"),
        ("tiled.onnx", "b.safetensors", "is an ONNX file"), (None, "c.safetensors", "what torch.save writes"),
    ],
)  # fmt: skip
def test_a_file_is_what_is_in_it(tmp_path, source, name, says):
    """And what is advised fits it: never to trust a file that holds no code."""
    if source is None:
        torch.save(zoo.build("lenet5").state_dict(), tmp_path / name)
    else:
        (tmp_path / name).write_bytes((HERE / source).read_bytes())
    if says is None:
        assert load(tmp_path / name).outputs() == 10
        return
    with pytest.raises(SlimrankError, match=says) as caught:
        load(tmp_path / name, model=None)
    assert "trust" not in str(caught.value)


@pytest.mark.parametrize("length", [2**26, 2**62, 1])
def test_the_length_of_a_safetensors_header_is_bounded(tmp_path, length):
    with open(tmp_path / "long.safetensors", "wb") as file:
        file.write(struct.pack("<Q", length) + b"{")
        file.truncate(2**26 + 100 if length < 2**62 else 1000)
        file.write(b"}")
    with little_memory(), pytest.raises(SlimrankError, match="damaged"):
        load(tmp_path / "long.safetensors")
