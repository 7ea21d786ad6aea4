"""The public face: every name is there, lazily, with a docstring."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import slimrank
from slimrank.errors import SlimrankError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", slimrank.__all__)
def test_every_name_is_there_and_says_what_it_is(name):
    found = getattr(slimrank, name)
    assert name == "RANKERS" or (found.__doc__ or "").strip()
    assert callable(found) or name == "RANKERS"
    assert name in dir(slimrank)


def test_types_are_said_for_the_same_names():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.asname for node in block.body for alias in node.names) == slimrank.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'shrink'"):
        _ = slimrank.shrink


@pytest.mark.parametrize("words", ["import slimrank", "import slimrank.cli", "from slimrank import PruneOptions, Cut, RANKERS"])
def test_nothing_heavy_is_imported_before_it_is_used(words):
    code = f"{words}; import sys; assert not {{'torch', 'numpy', 'onnx', 'onnxruntime', 'PIL'}} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_verbs_that_are_packages_are_both(trained, tmp_path):
    from slimrank.export.to_onnx import size

    checkpoint = slimrank.load(trained)
    exported = slimrank.export(checkpoint, tmp_path / "model.onnx")
    assert exported.bytes == size(tmp_path / "model.onnx")
    data = slimrank.DataSpec(data="digits").open(checkpoint.preprocessing)
    assert slimrank.evaluate(checkpoint, data).top1 > 0.8


def test_python_errors_name_the_parameter(trained):
    checkpoint = slimrank.load(trained)
    with pytest.raises(slimrank.SlimrankError, match=r"^`ratio` is 1.2, must lie strictly between 0 and 1"):
        slimrank.prune(checkpoint, None, slimrank.PruneOptions(cut=slimrank.Cut(ratio=1.2)))
    with pytest.raises(slimrank.SlimrankError, match="ranker l1 takes no `samples`; it takes no options"):
        slimrank.rank(checkpoint, "l1", samples=3)


@pytest.mark.parametrize("verb", ["finetune", "specialize", "explain", "evaluate"])
def test_images_that_are_missing_are_said(trained, verb):
    options = {
        "finetune": [slimrank.Recipe(epochs=1)], "specialize": [slimrank.HeadOptions()],
        "explain": [slimrank.ExplainOptions()], "evaluate": [],
    }  # fmt: skip
    with pytest.raises(slimrank.SlimrankError, match="needs images; give `data`"):
        getattr(slimrank, verb)(slimrank.load(trained), None, *options[verb])


def test_a_layer_may_be_named_without_a_list(trained):
    checkpoint = slimrank.load(trained)
    assert list(slimrank.rank(checkpoint, "l1", layers="conv1").scores) == ["conv1"]
    kept = slimrank.prune(checkpoint, None, slimrank.PruneOptions(cut=slimrank.Cut(macs=0.6, protect="conv1", align=1)))
    assert "conv1" not in kept.keep


def test_scripts_written_for_0_7_find_what_they_import(trained):
    from slimrank.compress.checkpoint import load
    from slimrank.compress.models import build
    from slimrank.compress.tracing import channel_map

    given = load(trained)
    assert type(build("lenet5")) is type(given.model)
    assert channel_map(given.model, given.example()).classifier == "fc3"
    with pytest.raises(SlimrankError, match="leave out `model`"):
        load(trained, name="resnet18")
