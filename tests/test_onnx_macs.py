"""The count of an ONNX file is that of the module that it was made of, and of the formulas by hand."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from slimrank.cli import main
from slimrank.compress.head.timing import head_files, random_head
from slimrank.errors import SlimrankError
from slimrank.evaluate.macs import count
from slimrank.evaluate.onnx_macs import count_onnx
from slimrank.export.to_onnx import export

FEATURES, CLASSES = 48, 30
TILED = {"class_groups": 4, "tile": 4}
HEADS = {  # all that benchmarks/onnx_macs.py has are too many for here
    "dense, rescored": ("dense", {"rescore": 5}),
    "gather, rescored, reordered": ("gather", {"rescore": 5, "reorder": True}),
    "int8": ("int8", {"class_groups": 1}),
    "tiled, rescored, reordered": ("tiled", {**TILED, "rescore": 5, "reorder": True}),
    "two-level, rescored": ("tiled", {**TILED, "probe": 2, "rescore": 5}),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_layout_of_a_head(tmp_path, name):
    layout, given = HEADS[name]
    head = random_head(FEATURES, CLASSES, 16, layout, **given)
    (path,) = head_files({"head": head}, FEATURES, tmp_path).values()
    assert count_onnx(path).macs == count(head, (FEATURES,)).macs


@pytest.fixture(scope="module")
def fewer_bits(tmp_path_factory):
    return head_files({"linear": nn.Linear(64, CLASSES)}, 64, tmp_path_factory.mktemp("bits"), ("int8", "int4"))


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_matrices_of_fewer_bits(fewer_bits, bits):
    assert count_onnx(fewer_bits[bits]).macs == 64 * CLASSES


class Many(nn.Module):
    """Grouped, dilated, strided and transposed convolutions, a product of activations, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, groups=8),
            nn.Conv2d(8, 12, 3, dilation=2, groups=4), nn.ConvTranspose2d(12, 6, 3, 2, groups=2),
        )  # fmt: skip
        self.classify = nn.Linear(6, 5)

    def forward(self, x):
        y = self.convs(x).flatten(2)
        return self.classify((torch.softmax(y @ y.transpose(1, 2), -1) @ y).mean(2))


def test_networks(tmp_path):
    model, shape = Many().eval(), (3, 21, 17)
    counted = count_onnx(export(model, torch.zeros(1, *shape), tmp_path / "m.onnx", {}))
    assert counted.macs == count(model, shape).macs == sum(counted.nodes.values())
    assert not {"Conv", "ConvTranspose", "MatMul", "Gemm"} & set(counted.uncounted)


def file(path, nodes, shape=("n", 3, 10, 10), **weights):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), path)
    return path


FILTERS = np.zeros((4, 3, 3, 3), np.float32)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")


def test_a_fixed_batch_is_counted_for_one_image(tmp_path):
    each = 8 * 8 * 4 * 27
    assert count_onnx(file(tmp_path / "m.onnx", [CONV], (5, 3, 10, 10), w=FILTERS)).macs == each
    assert count_onnx(file(tmp_path / "m.onnx", [CONV], w=FILTERS)).nodes == {"conv": each}


def test_open_sides_are_given_or_told(tmp_path):
    path = file(tmp_path / "m.onnx", [CONV], ("n", 3, "h", "w"), w=FILTERS)
    assert count_onnx(path, (3, 12, 10)).macs == 10 * 8 * 4 * 27
    unknown = count_onnx(path)
    assert (unknown.macs, unknown.uncounted) == (0, {"Conv of unknown shape": 1})
    assert "Conv of unknown shape x1" in str(unknown)


QUANTIZED = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
    helper.make_node("QLinearConv", ["q", "s", "z", "w", "s", "z", "s", "z"], ["c"]),
    helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"]),
]
QDQ = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]), helper.make_node("Conv", ["d", "v"], ["y"]),
]  # fmt: skip


@pytest.mark.parametrize("nodes", [QUANTIZED, QDQ], ids=["operators of int8", "QDQ"])
def test_files_of_int8(tmp_path, nodes):
    one = {"s": np.float32(1).reshape(()), "z": np.zeros((), np.uint8), "w": FILTERS.astype(np.uint8)}
    assert count_onnx(file(tmp_path / "m.onnx", nodes, **one)).macs == 8 * 8 * 4 * 27


@pytest.mark.parametrize(
    ("node", "macs"),
    [
        (helper.make_node("Gemm", ["x", "w"], ["y"], transA=1), 7 * 4 * 5),
        (helper.make_node("Einsum", ["x", "w"], ["y"], equation="ab, ac -> bc"), 7 * 4 * 5),
        (helper.make_node("Add", ["x", "w"], ["y"]), 0),
    ],
    ids=["transposed", "einsum", "no product"],
)
def test_products(tmp_path, node, macs):
    shape, width = ((7, 4), 5) if macs else ((7, 5), 5)
    found = count_onnx(file(tmp_path / "m.onnx", [node], shape, w=np.zeros((7, width), np.float32)))
    assert found.macs == macs // 7
    assert found.uncounted == ({} if macs else {"Add": 1})


def test_inspect_shows_the_macs_of_an_onnx_file(tmp_path, capsys):
    path = str(file(tmp_path / "m.onnx", [CONV], w=FILTERS))
    assert main(["inspect", path]) == 0
    assert "6,912" in capsys.readouterr().out


def test_what_is_no_onnx_file_is_one_line(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(SlimrankError, match="is no ONNX file"):
        count_onnx(tmp_path / "m.onnx")


class Composed(nn.Module):
    """Operations that PyTorch makes of others, and attention, which it fuses in eval mode."""

    def __init__(self):
        super().__init__()
        self.line = nn.Sequential(nn.Conv1d(8, 4, 3), nn.ConvTranspose1d(4, 6, 3))
        self.attend = nn.MultiheadAttention(6, 2, batch_first=True)
        self.pair = nn.Bilinear(6, 6, 5)

    def forward(self, x):
        y = self.line(x.flatten(2))
        z = torch.baddbmm(torch.zeros(1, 1, 1), torch.einsum("bct,bdt->bcd", y, y), y)
        tokens = z.transpose(1, 2)
        mean = self.attend(tokens, tokens, tokens, need_weights=False)[0].mean(1)
        return self.pair(mean, mean)


def test_operations_made_of_others(tmp_path):
    model = Composed().eval()
    counted = count(model, (8, 4, 5))
    assert counted.macs == count_onnx(export(model, torch.zeros(1, 8, 4, 5), tmp_path / "m.onnx", {})).macs > 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert not {"einsum", "baddbmm", "bilinear", "native_multi_head_attention"} & set(counted.uncounted)
