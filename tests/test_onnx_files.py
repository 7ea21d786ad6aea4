"""ONNX files that other exporters made: what they read and give is served, or refused in one line."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from slimrank.compress.stages.evaluate import evaluate_onnx
from slimrank.errors import SlimrankError
from slimrank.evaluate.dataspec import DataSpec
from slimrank.evaluate.imagespec import ImageSpec
from slimrank.evaluate.latency import compare
from slimrank.evaluate.runner import Runner

WEIGHT = np.random.default_rng(0).standard_normal((64, 10), dtype=np.float32)


def written(path, shape=("n", 1, 8, 8), kind=TensorProto.FLOAT, nodes=(), gives=("logits",), inputs=()):
    """A file that flattens its images, computes in float32 and gives images @ WEIGHT, and whatever `nodes` add.

    Images of another shape than [1, 8, 8] are averaged instead.
    """
    last = helper.make_node("MatMul", ["flat", "weight"], ["logits"])
    if tuple(shape[1:]) != (1, 8, 8):
        last = helper.make_node("ReduceMean", ["flat"], ["logits"], axes=[1])
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["real"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["real"], ["flat"]),
            last,
            *nodes,
        ],
        "g",
        [helper.make_tensor_value_info("images", kind, shape), *inputs],
        [one if not isinstance(one, str) else helper.make_empty_tensor_value_info(one) for one in gives],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def expected(images):
    return images.flatten(1) @ torch.from_numpy(WEIGHT)


@pytest.mark.parametrize("batch", [1, 3, "n"])
def test_a_fixed_batch_is_kept_to(tmp_path, batch):
    images = torch.randn(7, 1, 8, 8)
    runner = Runner(written(tmp_path / "m.onnx", (batch, 1, 8, 8)))
    torch.testing.assert_close(runner(images), expected(images), rtol=1e-4, atol=1e-4)
    assert runner.batch == (None if batch == "n" else batch)


def test_a_fixed_batch_is_what_is_timed(tmp_path):
    fixed, free = written(tmp_path / "a.onnx", (4, 1, 8, 8)), written(tmp_path / "b.onnx")
    found = compare({"a": free, "b": fixed}, batches=(1, 8), seconds=0.001)
    assert {row.batch for row in found.results} == {4}
    assert "b takes a batch of 4" in found.note
    assert found.note in str(found)
    assert compare({"a": free, "b": fixed}, batches=(4,), seconds=0.001).note == ""
    other = written(tmp_path / "c.onnx", (2, 1, 8, 8))
    with pytest.raises(SlimrankError, match="cannot be compared: b takes a batch of 4, c takes a batch of 2"):
        compare({"a": free, "b": fixed, "c": other}, seconds=0.001)


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "UINT8", "INT64", "INT32", "UINT16"])
def test_images_come_as_the_type_that_is_read(tmp_path, kind):
    path = written(tmp_path / "m.onnx", kind=getattr(TensorProto, kind))
    pixels = torch.randint(0, 256, (5, 1, 8, 8)).float()
    torch.testing.assert_close(Runner(path)(pixels), expected(pixels), rtol=1e-3, atol=1e-1)
    assert compare({"a": path}, batches=(2,), seconds=0.001).results[0].batch == 2


@pytest.mark.parametrize(("kind", "fits"), [("UINT8", False), ("INT8", False), ("FLOAT16", True)])
def test_normalised_images_are_never_cut_to_whole_numbers(tmp_path, kind, fits):
    runner = Runner(written(tmp_path / "m.onnx", kind=getattr(TensorProto, kind)))
    images = torch.randn(2, 1, 8, 8)
    if fits:
        torch.testing.assert_close(runner(images), expected(images), rtol=1e-2, atol=1e-1)
        return
    for bad in (images, images.round() * 100):
        with pytest.raises(SlimrankError, match="reads whole numbers"):
            runner(bad)


def test_a_file_of_whole_numbers_is_evaluated_on_pixels(tmp_path):
    spec = DataSpec(data="digits", limit=50)
    plain = written(tmp_path / "f.onnx")
    whole = written(tmp_path / "u.onnx", kind=TensorProto.UINT8)
    given = evaluate_onnx(plain, spec, images=ImageSpec(mean=(0.0,), std=(1 / 255,)))
    assert evaluate_onnx(whole, spec).top1 == given.top1
    with pytest.raises(SlimrankError, match="leave out `mean`"):
        evaluate_onnx(whole, spec, images=ImageSpec(mean=(0.5,), std=(0.5,)))


FEATURES = helper.make_node("Identity", ["flat"], ["features"])
COPY = helper.make_node("Identity", ["logits"], ["scores"])
MAPS = helper.make_node("Identity", ["images"], ["maps"])
WIDE = [
    helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([2, 3]))),
    helper.make_node("Unsqueeze", ["logits", "axes"], ["wide"]),
]


@pytest.mark.parametrize(
    ("nodes", "gives"),
    [([FEATURES], ("features", "logits")), ([MAPS, COPY], ("maps", "scores")), (WIDE, ("wide",))],
    ids=["by name", "by shape", "1x1 maps"],
)
def test_the_logits_among_several_outputs(tmp_path, nodes, gives):
    path, images = written(tmp_path / "m.onnx", nodes=nodes, gives=gives), torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(Runner(path)(images), expected(images), rtol=1e-4, atol=1e-4)
    compare({"a": path}, batches=(2,), seconds=0.001)


SECOND = helper.make_tensor_value_info("size", TensorProto.INT64, [2])
BEST = helper.make_node("ArgMax", ["logits"], ["best"], axis=1, keepdims=0)
ZIP = helper.make_node("SplitToSequence", ["logits"], ["listed"], axis=1)
BAKED = [
    helper.make_node("Constant", [], ["five"], value=numpy_helper.from_array(np.array([5, 10]))),
    helper.make_node("Reshape", ["logits", "five"], ["baked"]),
]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": [FEATURES, COPY], "gives": ("features", "scores")}, "features, scores: which of them"),
        ({"nodes": [BEST], "gives": ("best",)}, "must give logits"),
        ({"nodes": [ZIP], "gives": ("listed",)}, "which of them"),
        ({"inputs": [SECOND]}, r"2 inputs \(images, size\)"),
        ({"kind": TensorProto.BOOL}, "must read numbers"),
        ({"shape": ("n", 1, 9, 9)}, "does not run"),
        ({"nodes": BAKED, "gives": ("baked",)}, "does not run on images of"),
    ],
    ids=["two matrices", "a class", "a sequence", "two inputs", "booleans", "another size", "baked batch"],
)
def test_what_cannot_be_evaluated_is_one_line(tmp_path, given, says):
    with pytest.raises(SlimrankError, match=says):
        Runner(written(tmp_path / "m.onnx", **given))(torch.randn(3, 1, 8, 8))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"nodes": [ZIP], "gives": ("listed",)}, "only files that give tensors"),
        ({"nodes": BAKED, "gives": ("baked",)}, "does not run at `batch` 2"),
        ({"shape": ("n", 1, "h", "w")}, "leaves its input open"),
        ({"shape": ("n", 1, 30000, 30000)}, "bytes are the limit"),
    ],
    ids=["a sequence", "baked batch", "open size", "huge"],
)
def test_what_cannot_be_timed_is_one_line(tmp_path, given, says):
    with pytest.raises(SlimrankError, match=says):
        compare({"a": written(tmp_path / "m.onnx", **given)}, batches=(2,), seconds=0.001)


@pytest.mark.parametrize(
    ("shape", "says"), [(("n", 8, 8, 3), "1 to 4 channels"), (("n", 64), "must read"), (("n", 1, "h", "w"), "add `size`")]
)
def test_other_layouts_of_images_are_named(tmp_path, shape, says):
    with pytest.raises(SlimrankError, match=says):
        evaluate_onnx(written(tmp_path / "m.onnx", shape), DataSpec(data="digits"))


@pytest.mark.parametrize(
    "text",
    [
        "{", "[]", '"text"', '{"preprocessing": 5}', '{"preprocessing": {"size": 8}}',
        json.dumps({"preprocessing": {"size": 8, "mean": [10**400], "std": [1]}}),
        json.dumps({"preprocessing": {"size": 20000, "mean": [0], "std": [1]}}),
    ],
)  # fmt: skip
def test_damaged_metadata_is_one_line(tmp_path, text):
    path = written(tmp_path / "m.onnx")
    model = onnx.load(path)
    helper.set_model_props(model, {"slimrank": text})
    onnx.save(model, path)
    with pytest.raises(SlimrankError, match="export it again"):
        evaluate_onnx(path, DataSpec(data="digits"))
