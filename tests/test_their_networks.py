"""Networks as people write them: outputs, weights applied from outside, weights that are computed, errors of their own."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from slimrank.compress.channels import captured, channel_map, masked
from slimrank.compress.network import zoo
from slimrank.compress.network.adapt import adapt
from slimrank.compress.network.checkpoint import Checkpoint, load, save
from slimrank.compress.network.forward import forward, logits_of
from slimrank.compress.network.graph import out_of_place
from slimrank.compress.network.inputs import image_channels
from slimrank.compress.network.plain import fuse
from slimrank.compress.network.positional import exchange
from slimrank.compress.network.reading import Reading
from slimrank.compress.pruning.surgery import cut
from slimrank.compress.stages.evaluate import same_decisions
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Preprocessing
from slimrank.evaluate.dataspec import DataSpec

from . import their_networks as theirs
from .toy_models import decomposed

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cut_exactly(model: nn.Module, layer: str) -> nn.Module:
    """Cut some units of a layer's group, and hold the network against the masked one."""
    channels = channel_map(model, X[:1])
    group = channels.group(layer)
    assert group.prunable, group.why
    gone = channels.removed({group.name: [i for i in range(group.units) if i not in (1, 4, 5)]})
    with torch.inference_mode(), masked(model, channels, gone):
        expected = model(X)
    assert not torch.allclose(expected, model(X))
    smaller = cut(model, channels, gone)
    torch.testing.assert_close(smaller(X), expected, rtol=1e-9, atol=1e-9)
    return smaller


@pytest.mark.parametrize("output", theirs.OUTPUTS)
def test_logits_are_taken_from_whatever_is_returned(output):
    torch.manual_seed(0)
    model = theirs.Returns(output).double().eval()
    names, expected = list(model.state_dict()), model.fc(model.features(X))
    adapt(model, X[:1], 5)
    assert list(model.state_dict()) == names
    assert type(model).__name__ == "Returns"
    assert torch.equal(model(X), expected)
    torch.testing.assert_close(out_of_place(copy.deepcopy(model))(X), expected)
    cut_exactly(model, "a")


@pytest.mark.parametrize(
    "network", [theirs.FunctionalLinear, theirs.FunctionalConv, theirs.ForwardOfTheInstance, theirs.ByKeyword]
)
def test_a_weight_that_is_applied_from_outside_is_its_layers(network):
    torch.manual_seed(0)
    model = network().double().eval()
    expected = logits_of(model(X))
    adapt(model, X[:1])
    assert torch.equal(model(X), expected)
    with captured(model, ["a", "b", "fc"]) as inputs:
        model(X)
    assert inputs.keys() == {"a", "b", "fc"}
    cut_exactly(model, "a")
    cut_exactly(model, "b")


def functional_linear(**_: int) -> nn.Module:
    return theirs.FunctionalLinear()


def by_keyword(**_: int) -> nn.Module:
    return theirs.ByKeyword()


def computed_by_keyword(**_: int) -> nn.Module:
    model = theirs.ByKeyword()
    parametrizations.weight_norm(model.b)
    return model


@pytest.mark.parametrize("constructor", [functional_linear, by_keyword])
def test_a_classifier_applied_from_outside_or_by_keyword_is_exchanged_and_reloaded(constructor, tmp_path):
    torch.manual_seed(0)
    model = adapt(constructor().eval(), X[:1].float())
    exchange(model, "fc", decomposed(model.fc, torch.tensor([[0, 2, 5]] * 5)))
    expected = model(X.float())
    given = Checkpoint(model, f"{__name__}:{constructor.__name__}", {}, Preprocessing.default(3, 12))
    save(given, tmp_path / "slim.safetensors")
    again = load(tmp_path / "slim.safetensors", model=given.name).model
    assert torch.equal(again(X.float()), expected)
    with captured(again, ["fc"]) as inputs:
        again(X.float())
    assert inputs["fc"].shape == (2, 8)
    assert channel_map(again, X[:1].float()).classifier == "fc"


def test_what_is_called_by_keyword_is_made_plain_too(tmp_path):
    torch.manual_seed(0)
    torch.save(computed_by_keyword().state_dict(), tmp_path / "given.pt")
    given = load(tmp_path / "given.pt", model=f"{__name__}:computed_by_keyword", size=12)
    assert type(given.model.b) is nn.Conv2d
    channels = channel_map(given.model, given.example())
    smaller = cut(given.model, channels, channels.removed({"a": range(4), "b": range(3)}))
    save(given.then(smaller, step="prune"), tmp_path / "slim.safetensors")
    again = load(tmp_path / "slim.safetensors", model=given.name)
    assert torch.equal(again.model(X.float()), smaller(X.float()))


CHANGES_IN_PLACE = {
    "relu": lambda x: F.relu(x, True),
    "by keyword": lambda x: F.leaky_relu(input=x, inplace=True, negative_slope=0.3),
    "by position": lambda x: F.leaky_relu(x, 0.3, True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5, inplace=True),
    "dropout": lambda x: F.dropout(x, 0.5, training=False, inplace=True),
    "underscore": lambda x: F.leaky_relu_(x, 0.3),
    "subtraction": lambda x: operator.isub(x, 0.3),
    "division": lambda x: operator.itruediv(x, 0.3),
}


@pytest.mark.parametrize("change", CHANGES_IN_PLACE.values(), ids=CHANGES_IN_PLACE)
def test_a_graph_leaves_its_inputs_alone(change):
    class Changes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return change(x) + 1

    given = X.clone()
    found = out_of_place(Changes())(given)
    assert torch.equal(given, X)
    torch.testing.assert_close(found, Changes()(X.clone()))


def test_a_graph_that_cannot_leave_its_inputs_alone_is_refused():
    class Clamps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.clamp_(x, -0.5, 0.5)

    with pytest.raises(ValueError, match="clamp_ changes a tensor in place"):
        out_of_place(Clamps())


def test_a_dict_without_a_name_for_logits_is_told():
    with pytest.raises(SlimrankError, match="dict of left, right"):
        logits_of({"left": torch.zeros(1, 5), "right": torch.zeros(1, 5)})


@pytest.mark.parametrize("weight", theirs.COMPUTED)
def test_a_computed_weight_is_made_plain_and_cut(weight):
    torch.manual_seed(0)
    model = theirs.Computes(weight).double().eval()
    expected = model(X)
    fuse(model, X[:1])
    torch.testing.assert_close(model(X), expected, rtol=1e-9, atol=1e-9)
    assert {name for name, _ in model.named_parameters()} == {f"{m}.{t}" for m in ("a", "b", "fc") for t in ("weight", "bias")}
    cut_exactly(model, "a")
    cut_exactly(model, "b")


@pytest.mark.parametrize("weight", theirs.COMPUTED)
def test_a_slim_file_reloads_what_was_made_plain(weight, tmp_path):
    torch.manual_seed(0)
    name = f"{theirs.__name__}:computes"
    torch.save(theirs.Computes(weight).state_dict(), tmp_path / "given.pt")
    given = load(tmp_path / "given.pt", model=name, model_arg={"weight": weight}, size=12)
    channels = channel_map(given.model, given.example())
    smaller = cut(given.model, channels, channels.removed({"a": range(4), "b": range(3)}))
    save(given.then(smaller, step="prune"), tmp_path / "slim.safetensors")
    again = load(tmp_path / "slim.safetensors", model=name)
    assert torch.equal(again.model(X.float()), smaller(X.float()))
    assert str(again.model) == str(smaller)


def test_a_weight_that_depends_on_the_image_is_left_and_told():
    model = theirs.DynamicWeight().double().eval()
    fuse(model, X[:1])
    assert isinstance(model.b, theirs.Dynamic)
    group = channel_map(model, X[:1]).group("a")
    assert not group.prunable
    assert group.why


class Fails(theirs.Plain):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyError("width"), AssertionError(), AttributeError("no such"), ZeroDivisionError("x"), OSError(2, "no file")]
)
def test_an_error_of_forward_is_told_as_the_networks(error):
    with pytest.raises(SlimrankError, match=rf"fails on .*{type(error).__name__}.*test_their_networks.py, line"):
        forward(Fails(error), X.float())
    with pytest.raises(SlimrankError, match=type(error).__name__):
        channel_map(Fails(error), X.float())


def keyless() -> nn.Module:
    return {}["width"]


def compiled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.script(nn.ReLU()))


@pytest.mark.parametrize(("made", "told"), [("keyless", "KeyError: 'width'.*line"), ("compiled", "1 is compiled by torch.jit")])
def test_an_error_of_the_constructor_is_told(made, told):
    with pytest.raises(SlimrankError, match=told):
        zoo.build(f"{__name__}:{made}")


class GateFirst(theirs.Plain):
    """The first conv that is registered reads features; the image is taken apart before any conv reads it."""

    def __init__(self, channels: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        self.a = nn.Conv2d(channels * fold**2, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pixel_unshuffle(x, self.fold))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("fold", [1, 2, 4])
def test_what_an_image_is_made_of_is_found_by_running(channels, fold):
    assert image_channels(GateFirst(channels, fold), (32, 32)) == channels


def test_decisions_of_an_own_network_are_compared_where_it_is_named(tmp_path):
    torch.manual_seed(0)
    model = adapt(by_keyword().eval(), X[:1].float())
    given = Checkpoint(model, f"{__name__}:by_keyword", {"num_classes": 5}, Preprocessing.default(3, 12))
    paths = [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    for path in paths:
        save(given, path)
    for i in range(6):
        (tmp_path / "pictures" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((12, 12), 50).convert("RGB").save(tmp_path / "pictures" / str(i % 2) / f"{i}.png")
    spec = DataSpec(data=f"images:{tmp_path / 'pictures'}")
    assert same_decisions(paths, Reading(model=given.name), spec) == (1.0, pytest.approx(6, abs=5))
    with pytest.raises(SlimrankError, match="the user's own model"):
        same_decisions(paths, Reading(), spec)
