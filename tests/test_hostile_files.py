"""Files of strangers that are no checkpoints: JSON of every kind, lists, ONNX graphs. One line each, and no memory taken."""

import json
import os
import re
import resource

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from slimrank.compress.folder import Folder
from slimrank.compress.head.matrix import Matrix
from slimrank.compress.network.hf_models import read_folder
from slimrank.compress.rankers.scores import FilterScores
from slimrank.errors import SlimrankError
from slimrank.evaluate.concepts import Concepts, generate
from slimrank.evaluate.data import Preprocessing
from slimrank.evaluate.data.folders import read_names
from slimrank.evaluate.declared import check_declared
from slimrank.evaluate.runner import Runner
from slimrank.files import read_json

GOOD = {"ranker": "l1", "scores": {"conv1": [1.0, 2.0], "conv2": [3, 4, 5]}}


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"5", b"{", b"\xff{}", b"[" * 10**5, b'{"a":' * 10**5, b'{"a": ' + b"9" * 5000 + b"}", b"\x00" * 100],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_json_object_is_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(SlimrankError) as caught:
        read_json(tmp_path / "x.json", "the list")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "large", "zero byte"])
def test_what_is_no_small_file_is_not_read(tmp_path, kind):
    path = {"device": "/dev/zero", "zero byte": tmp_path / "a\0b"}.get(kind, tmp_path / "x.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with open(path, "wb") as file:
            file.truncate(2**40)
    with pytest.raises(SlimrankError, match=r"check the path"):
        read_json(path, "the list")


@pytest.mark.parametrize(
    "edit",
    [
        {"scores": []}, {"scores": {"conv1": 5}}, {"scores": {"conv1": ["1"]}}, {"scores": {"conv1": [10**400]}},
        {"scores": {"conv1": [None]}}, {"scores": {"conv1": [True]}}, {"scores": {"conv1": [[1.0]]}}, {"scores": None},
        {"scores": {"conv1": [float("nan")]}}, {"ranker": 5}, {"comparable": "yes"}, {"ties": {"conv1": [1.0]}},
        {"ties": {"conv3": [1.0]}}, {"ties": {"conv1": [float("inf"), 0]}}, {"ties": 1}, {"evaluations": "many"},
        {"sensitivity": {"conv1": [[0.5, 1]]}}, {"sensitivity": {"conv1": [[0.5, 1, float("nan")]]}}, {"error": [1]},
        {"sensitivity": {"conv1": 5}}, {"car_by_class": {"conv1": [["a"]]}}, {"car_by_class": [1]}, {"notes": "none"},
        {"options": []}, {"seconds": "long"}, {"images": 1.5}, {"seed": "x"}, {"estimated": None},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_scores_file_of_other_types_is_one_line(tmp_path, edit):
    (tmp_path / "s.json").write_text(json.dumps({**GOOD, **edit}))
    with pytest.raises(SlimrankError, match=r"s\.json"):
        FilterScores.load(tmp_path / "s.json")


def test_scores_keep_what_is_beside_them(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({**GOOD, "more": {"any": [1]}}))
    assert FilterScores.load(tmp_path / "s.json").extra == {"more": {"any": [1]}}


@pytest.mark.parametrize("damage", ["a figure", "another type", "no hashes", "hashes", "asked", "files", "stages", "names"])
def test_a_row_of_state_json_is_as_it_was_left(tmp_path, damage):
    (tmp_path / "given.pt").write_bytes(b"weights")
    arguments = tmp_path / "c", {"macs": 0.5}, "", ("baseline", "rank"), tmp_path / "given.pt"
    with Folder.open(*arguments) as folder:
        folder.place.at("dense.onnx").write_bytes(b"network")
        folder.finish("baseline", {"name": "baseline", "macs": 5, "seconds": 0.1})
    with Folder.open(*arguments) as folder:
        assert folder.done["baseline"]["macs"] == 5
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    if damage == "a figure":
        state["stages"][0]["macs"] = 6
    elif damage == "another type":
        state["stages"][0]["seconds"] = [0.1]
    elif damage == "no hashes":
        del state["rows"]
    elif damage == "names":
        state["stages"][0]["name"] = ["baseline"]
    else:
        state["rows" if damage == "hashes" else damage] = 5
    (tmp_path / "c" / "state.json").write_text(json.dumps(state))
    with pytest.raises(SlimrankError, match="damaged"):
        Folder.open(*arguments)


HF = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}
TIMM = {"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0], "std": [1]}}


@pytest.mark.parametrize(
    "config",
    [
        {}, {**HF, "architectures": 5}, {**HF, "id2label": {"a": "b"}}, {**HF, "image_size": {"x": 1}},
        {**HF, "depths": [10**9]}, {**HF, "num_channels": 2**40}, {**HF, "num_channels": 1e300},
        {**HF, "num_channels": "three"}, {**HF, "image_size": 10**9}, {**HF, "model_type": ["resnet"]},
        {**TIMM, "pretrained_cfg": 5}, {**TIMM, "pretrained_cfg": {"input_size": 64}}, {**TIMM, "model_args": [1]},
        {**TIMM, "label_names": [1, 2]}, {**TIMM, "num_classes": 10**9}, {**TIMM, "label_names": 5},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_folder_of_other_types_is_one_line(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SlimrankError):
        read_folder(tmp_path)


@pytest.fixture
def broden(tmp_path):
    generate(tmp_path / "broden", 4, 32)
    return tmp_path / "broden"


@pytest.mark.parametrize("name", ["../outside.png", "/etc/hostname", "a/../../outside.png", "x\0y.png", "x" * 5000])
@pytest.mark.parametrize("column", ["image", "color"])
def test_a_list_of_concepts_names_no_path_outside(broden, column, name):
    rows = (broden / "index.csv").read_text().splitlines()
    at = rows[0].split(",").index(column)
    first = rows[1].split(",")
    first[at] = name
    (broden / "outside.png").write_bytes((broden / "images" / rows[2].split(",")[0]).read_bytes())
    (broden / "index.csv").write_text("\n".join([rows[0], ",".join(first), *rows[2:]]))
    with pytest.raises(SlimrankError, match=r"no file in its images|cannot read"):
        Concepts(broden)


@pytest.mark.parametrize("name", ["index.csv", "label.csv"])
@pytest.mark.parametrize("kind", ["pipe", "large", "many rows", "one long field"])
def test_lists_of_concepts_are_bounded(broden, name, kind, monkeypatch):
    rows = {"index.csv": 3, "label.csv": 5}[name] if kind == "many rows" else 500_000
    monkeypatch.setattr("slimrank.evaluate.concepts.broden.MAX_ROWS", rows)
    if kind == "pipe":
        (broden / name).unlink()
        os.mkfifo(broden / name)
    elif kind == "large":
        os.truncate(broden / name, 2**40)
    elif kind == "one long field":
        (broden / name).write_text("image,sh,sw,color,number,name,category\n" + "x" * 200_000)
    with pytest.raises(SlimrankError, match=re.escape(name)):
        Concepts(broden)


def test_masks_of_one_image_are_bounded(broden, monkeypatch):
    monkeypatch.setattr("slimrank.evaluate.concepts.broden.MAX_MASKS", 100)
    concepts = Concepts(broden)
    with pytest.raises(SlimrankError, match="too many labels"):
        [concepts.annotation(i) for i in range(len(concepts))]


def test_names_of_classes_are_a_small_file(tmp_path):
    os.mkfifo(tmp_path / "words.txt")
    with pytest.raises(SlimrankError, match="is no file"):
        read_names(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "declared", "objects", "archive"])
def test_a_matrix_is_what_is_in_its_file(tmp_path, kind):
    path = tmp_path / "w.npy"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "declared":
        np.save(path, np.ones((2, 2), np.float32))
        path.write_bytes(path.read_bytes().replace(b"(2, 2), }" + b" " * 10, b"(99999999999, 2), }"))
    elif kind == "objects":
        np.save(path, np.array([[{}]]), allow_pickle=True)
    else:
        np.savez(path.open("wb"), a=np.ones(3))
    with pytest.raises(SlimrankError, match="weights"):
        Matrix.read(path, path)


# -- ONNX --------------------------------------------------------------------------------------------------------------


def graph(path, nodes, shape=("n", 1, 8, 8), constants=(), sparse=()):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", [images], [logits], [numpy_helper.from_array(np.array(v), n) for n, v in constants])
    made.sparse_initializer.extend(sparse)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


FLAT = helper.make_node("Flatten", ["images"], ["logits"])


def body(name, inputs=(), first=()):
    """A branch or loop body that makes a huge tensor, and gives a number."""
    random = [
        helper.make_node("RandomNormal", [], [f"{name} all"], shape=[10**6, 10**6]),
        helper.make_node("ReduceMean", [f"{name} all"], [name], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info(one, kind, None) for one, kind in ((*first, (name, onnx.TensorProto.FLOAT)))]
    taken = [helper.make_tensor_value_info(one, kind, shape) for one, kind, shape in inputs]
    passed = [helper.make_node("Identity", ["go"], ["on"])] if inputs else []
    return helper.make_graph([*random, *passed], name, taken, outputs)


HUGE = {
    "input": ([FLAT], {"shape": ("n", 1, 20_000, 20_000)}),
    "fixed batch": ([FLAT], {"shape": (10_000, 3, 224, 224)}),
    "constant": (
        [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["images", "c"], ["logits"])],
        {"constants": [("s", [100_000, 100_000])]},
    ),
    "expand": (
        [helper.make_node("Expand", ["images", "s"], ["logits"])],
        {"constants": [("s", [10**6, 1, 100, 8])], "shape": (1, 1, 1, 8)},
    ),
    "tile": ([helper.make_node("Tile", ["images", "s"], ["logits"])], {"constants": [("s", [1, 1, 20_000, 20_000])]}),
    "resize": (
        [helper.make_node("Resize", ["images", "", "", "s"], ["logits"])],
        {"constants": [("s", [1, 1, 40_000, 40_000])], "shape": (1, 1, 8, 8)},
    ),
    "padding": (
        [helper.make_node("Pad", ["images", "s"], ["logits"])],
        {"constants": [("s", [0, 0, 0, 0, 0, 0, 60_000, 60_000])]},
    ),
    "conv": (
        [helper.make_node("Conv", ["images", "w"], ["logits"], pads=[20_000] * 4)],
        {"constants": [("w", np.ones((8, 1, 3, 3), np.float32))]},
    ),
    "range": (
        [helper.make_node("Range", ["a", "b", "c"], ["r"]), helper.make_node("ReduceSum", ["r"], ["logits"])],
        {"constants": [("a", np.array(0)), ("b", np.array(10**9)), ("c", np.array(1))]},
    ),
    "random": ([helper.make_node("RandomNormal", [], ["logits"], shape=[10**6, 10**6])], {}),
    "branch": (
        [helper.make_node("If", ["c"], ["logits"], then_branch=body("a"), else_branch=body("b"))],
        {"constants": [("c", np.array(True))]},
    ),
    "loop": (
        [helper.make_node("Loop", ["n", "c"], ["logits"], body=body(
            "a", [("i", onnx.TensorProto.INT64, []), ("go", onnx.TensorProto.BOOL, [])], [("on", onnx.TensorProto.BOOL)]
        ))],
        {"constants": [("n", np.array(2)), ("c", np.array(True))]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HUGE)
def test_a_graph_that_makes_huge_tensors_is_not_loaded(tmp_path, kind):
    nodes, more = HUGE[kind]
    with pytest.raises(SlimrankError, match="bytes are the limit"):
        Runner(graph(tmp_path / "m.onnx", nodes, **more))


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand"])
def test_values_of_large_tensors_are_not_followed(tmp_path, kind):
    """ONNX would keep them one by one, in a hundred bytes each: two gigabytes here."""
    inputs, value = (["one", "s"], {}) if kind == "Expand" else (["s"], {"value": numpy_helper.from_array(np.array([1]))})
    nodes = [
        helper.make_node(kind, inputs, ["r"], **value), helper.make_node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c"], ["logits"]),
    ]  # fmt: skip
    path = graph(tmp_path / "m.onnx", nodes, constants=[("s", [2 * 10**7]), ("one", [1])])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_declared(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kilobytes


def test_a_file_may_make_tensors_as_large_as_it_is(tmp_path, monkeypatch):
    weight = np.ones((64, 1000), np.float32)
    turned = helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])
    product = helper.make_node("Gemm", ["flat", "t"], ["logits"], transB=1)
    flat = helper.make_node("Flatten", ["images"], ["flat"])
    path = graph(tmp_path / "m.onnx", [flat, turned, product], constants=[("w", weight)])
    monkeypatch.setattr("slimrank.evaluate.declared.LARGEST", 1000)
    check_declared(path)


def test_a_sparse_constant_counts_as_large_as_it_is_dense(tmp_path):
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
        [10**5, 10**5],
    )
    path = graph(tmp_path / "m.onnx", [helper.make_node("MatMul", ["images", "s"], ["logits"])], sparse=[sparse])
    with pytest.raises(SlimrankError, match="bytes are the limit"):
        check_declared(path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\x08\x08" + b"\xff" * 50, b"nothing"], ids=repr)
def test_a_file_that_cannot_be_read_is_left_to_the_runtime(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    check_declared(tmp_path / "m.onnx")
    with pytest.raises(SlimrankError, match="cannot load"):
        Runner(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "value",
    [
        None, 5, [], "x", {}, {"size": 8}, {"size": 8, "mean": 1, "std": [1]}, {"size": "8", "mean": [1], "std": [1]},
        {"size": [8], "mean": [1], "std": [1]}, {"size": 8.5, "mean": [1], "std": [1]}, {"size": 8, "mean": [[1]], "std": [1]},
        {"size": {"h": 8}, "mean": [1], "std": [1]}, {"size": 8, "mean": ["a"], "std": [1]},
        {"size": 8, "mean": [1], "std": [1], "interpolation": []}, {"size": 8, "mean": [1], "std": [1], "crop_pct": "x"},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_preprocessing_of_other_types_is_a_value_error(value):
    with pytest.raises(ValueError):
        Preprocessing.from_dict(value)
