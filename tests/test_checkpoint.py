"""Checkpoints: everybody's in, the slim one out and back in a fresh process."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.checkpoint import Checkpoint, load, save
from slimrank.compress.network.inputs import image_channels
from slimrank.compress.pruning.select import select
from slimrank.compress.pruning.surgery import apply_plan
from slimrank.compress.rankers import RANKERS
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Preprocessing

from .toy_models import decomposed

FRESH = """
import sys, torch
from slimrank.compress.network.checkpoint import load

c = load(sys.argv[1])
assert "torch_pruning" not in sys.modules
x = torch.randn(3, *c.preprocessing.shape, generator=torch.Generator().manual_seed(1))
with torch.inference_mode():
    torch.save([c.model(x), c.classes, c.history, [str(m) for m in c.model.modules()]], sys.argv[2])
"""


def pruned(name: str, arguments: dict | None = None, size: int = 64, head: bool = False) -> Checkpoint:
    torch.manual_seed(0)
    model = zoo.build(name, arguments).eval()
    shape = (image_channels(model, (size, size)), size, size)
    channels = channel_map(model, torch.zeros(1, *shape))
    plan = select(model, channels, RANKERS["random"](model, channels, seed=1), macs=0.4)
    smaller = apply_plan(model, channels, plan, torch.randn(1, *shape))
    if head:
        dense = smaller.get_submodule(channels.classifier)
        index = torch.stack([torch.randperm(dense.in_features)[:6] for _ in range(dense.out_features)]).sort(1).values
        smaller.linear = decomposed(dense, index)
    preprocessing = Preprocessing.default(shape[0], size)
    return Checkpoint(smaller, name, arguments or {}, preprocessing, None, [{"step": "prune", "note": "größer"}])


@pytest.mark.parametrize(
    ("name", "size", "head"),
    [
        ("resnet20-cifar", 32, True),
        ("lenet5", 28, False),
        ("resnet18", 64, False),
        ("densenet121", 64, False),
        ("mobilenet_v2", 64, False),
        ("resnext50_32x4d", 64, False),
    ],
)
def test_slim_checkpoints_round_trip_in_a_fresh_process(tmp_path, name, size, head):
    made = pruned(name, size=size, head=head)
    save(made, tmp_path / "slim.safetensors")
    subprocess.run([sys.executable, "-c", FRESH, tmp_path / "slim.safetensors", tmp_path / "out.pt"], check=True, cwd=tmp_path)
    logits, classes, history, modules = torch.load(tmp_path / "out.pt")
    x = torch.randn(3, *made.preprocessing.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.equal(logits, made.model(x))
    assert (classes, history) == (made.classes, made.history)
    assert modules == [str(m) for m in made.model.modules()]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_pruned_twice(tmp_path):
    save(pruned("resnet20-cifar", size=32), tmp_path / "a.safetensors")
    once = load(tmp_path / "a.safetensors")
    channels = channel_map(once.model, once.example())
    plan = select(once.model, channels, RANKERS["l1"](once.model, channels), macs=0.5)
    twice = apply_plan(once.model, channels, plan, once.example())
    save(once.then(twice, step="again"), tmp_path / "b.safetensors")
    again = load(tmp_path / "b.safetensors")
    torch.testing.assert_close(again.model(once.example()), twice(once.example()))


@pytest.mark.parametrize("wrap", ["plain", "nested", "module", "model"])
def test_foreign_files(tmp_path, wrap):
    torch.manual_seed(0)
    model = zoo.build("resnet20-cifar", {"num_classes": 7})
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    if wrap == "module":
        state = {f"module.{k}": v for k, v in state.items()}
    values = {"nested": {"epoch": 3, "state_dict": state}, "module": {"state_dict": state}, "model": {"model": state}}
    value = values.get(wrap, state)
    torch.save(value, tmp_path / "foreign.pth")
    found = load(tmp_path / "foreign.pth", model="resnet20-cifar")
    assert found.arguments == {"num_classes": 7}  # told by the last bias
    x = found.example()
    assert torch.equal(found.model(x), model.eval()(x))
    assert found.preprocessing == Preprocessing(32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "foreign.safetensors")
    assert torch.equal(load(tmp_path / "foreign.safetensors", model="resnet20-cifar").model(x), model(x))


def test_the_shared_checkpoints_load(resnet20, resnet18):
    assert load(resnet20, model="resnet20-cifar").outputs() == 10
    assert load(resnet18, size=64).name == "resnet18"  # the file names a network that we know
    assert load(resnet18, size=64).outputs() == 200


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("nested", [False, True])
def test_code_is_not_run(tmp_path, monkeypatch, nested):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "optimizer": Code()} if nested else Code(), "evil.pt")
    with pytest.raises(SlimrankError, match="would run code"):
        load("evil.pt", model="lenet5")
    assert not (tmp_path / "executed").exists()


def test_code_in_a_bare_pickle_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Code()))
    with pytest.raises(SlimrankError):
        load("raw.pt", model="lenet5")
    assert not (tmp_path / "executed").exists()


def test_a_pickled_module_only_when_trusted(tmp_path):
    model = zoo.build("lenet5")
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(SlimrankError, match="`trust_pickle`"):
        load(tmp_path / "whole.pt", model="lenet5")
    assert load(tmp_path / "whole.pt", model="lenet5", trust_pickle=True).outputs() == 10


@pytest.fixture(scope="module")
def slim(tmp_path_factory):
    """A slim lenet5."""
    path = tmp_path_factory.mktemp("slim") / "ok.safetensors"
    save(pruned("lenet5", size=28), path)
    return path


@pytest.fixture
def foreign(tmp_path):
    """Somebody's lenet5."""
    torch.save(zoo.build("lenet5").state_dict(), tmp_path / "ok.pt")
    return tmp_path / "ok.pt"


@pytest.mark.parametrize("what", ["cut", "empty", "text"])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_damaged_files(tmp_path, slim, foreign, kind, what):
    whole = (slim if kind == "safetensors" else foreign).read_bytes()
    content = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello, this is no checkpoint"}[what]
    (tmp_path / f"bad.{kind}").write_bytes(content)
    with pytest.raises(SlimrankError, match="damaged"):
        load(tmp_path / f"bad.{kind}", model="lenet5")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SlimrankError, match="no checkpoint at"):
        load(tmp_path / "missing.pt")


def test_a_file_without_weights(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "stateless.pt")
    with pytest.raises(SlimrankError, match="no state_dict"):
        load(tmp_path / "stateless.pt", model="lenet5")


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({}, "`model` NAME"),
        ({"model": "vgg16_cifar"}, "vgg16"),
        ({"model": "resnet18"}, "check `model`"),
        ({"model": "lenet5", "model_arg": {"widths": [1, 2, 3, 4]}}, "check `model`"),
        ({"model": "lenet5", "model_arg": {"depth": 4}}, "`model_arg`"),
    ],
    ids=["no name", "near name", "other network", "other widths", "unknown argument"],
)
def test_options_that_do_not_fit_a_foreign_file(foreign, options, remedy):
    with pytest.raises(SlimrankError, match=remedy):
        load(foreign, **options)


def test_a_slim_file_needs_no_options(slim):
    with pytest.raises(SlimrankError, match="its own model"):
        load(slim, size=32)


def test_values_that_are_not_finite(tmp_path):
    state = zoo.build("lenet5").state_dict()
    state["conv2.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(SlimrankError, match=r"conv2\.weight holds NaN"):
        load(tmp_path / "nan.pt", model="lenet5")


@pytest.fixture(scope="module")
def slim_with_head(tmp_path_factory):
    """Tensors and header of a slim resnet20 with a subspace head."""
    path = tmp_path_factory.mktemp("head") / "ok.safetensors"
    save(pruned("resnet20-cifar", size=32, head=True), path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["slimrank"])
    return load_file(path), header


@pytest.mark.parametrize(
    "edit",
    [
        {"model": "os:system"}, {"model": "subprocess:run"}, {"model": "nothing"}, {"model": 3}, {"format": 99}, {"modules": 5},
        {"modules": {"linear": {"type": "SubspaceLinear", "layout": "dense", "in_features": -1}}},
        {"modules": {"nowhere": {"groups": 2}}}, {"preprocessing": None}, {"preprocessing": {"size": "x"}},
        {"arguments": {"num_classes": "ten"}},
        {"modules": {"layer2.0.shortcut": {"source": [99] * 32, "in_channels": 3}}},
    ],
    ids=lambda edit: json.dumps(edit)[:60],
)  # fmt: skip
def test_hostile_headers(tmp_path, slim_with_head, edit):
    """Header edits: an error in one line, never an import, never a traceback of another kind."""
    tensors, header = slim_with_head
    save_file(tensors, tmp_path / "bad.safetensors", {"slimrank": json.dumps({**header, **edit})})
    with pytest.raises(SlimrankError):
        load(tmp_path / "bad.safetensors")


def test_a_users_model_is_named_on_the_command_line(tmp_path):
    name = "slimrank_user_model:fixed_pad_net"
    (tmp_path / "slimrank_user_model.py").write_text(
        "from torch import nn\n"
        "def fixed_pad_net(num_classes=5):\n"
        "    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        made = pruned(name, size=32)
        save(made, tmp_path / "own.safetensors")
        with pytest.raises(SlimrankError, match="say `model`"):
            load(tmp_path / "own.safetensors")
        again = load(tmp_path / "own.safetensors", model=name)
        torch.testing.assert_close(again.model(made.example()), made.model(made.example()))
    finally:
        sys.path.remove(str(tmp_path))


def test_a_failed_write_leaves_nothing(tmp_path):
    made = pruned("lenet5", size=28)
    made.history.append({"bad": object()})
    with pytest.raises(TypeError):
        save(made, tmp_path / "half.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("resnet18", "weights"),
        ("resnet18", "pretrained"),
        ("resnet50", "weights_backbone"),
        ("timm/resnet10t", "checkpoint_path"),
    ],
)
def test_no_argument_makes_a_constructor_fetch_weights(name, argument):
    """Neither a slim file's header nor --model-arg goes to the network, or to a file, for weights."""
    with pytest.raises(SlimrankError, match=f"{argument} would fetch weights"):
        zoo.build(name, {argument: "DEFAULT"}, trusted=False)


def test_an_argument_that_fetches_nothing_is_taken():
    assert zoo.build("googlenet", {"init_weights": True, "num_classes": 10}).fc.out_features == 10
