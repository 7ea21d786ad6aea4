"""What holds for every ranker, torch-pruning's criteria, and the comparison of two."""

import copy
import re
import sys
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from slimrank.compress import rankers
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.network import zoo
from slimrank.compress.network.reading import Reading
from slimrank.compress.pruning.select import select
from slimrank.compress.rankers import DATA_FREE, RANKERS
from slimrank.compress.rankers.compare import LayerAgreement, compare_scores
from slimrank.compress.rankers.scores import FilterScores
from slimrank.compress.rankers.torch_pruning_criteria import CRITERIA
from slimrank.compress.stages.options import RankOptions
from slimrank.errors import SlimrankError
from slimrank.evaluate.dataspec import DataSpec
from slimrank.option import options

from . import toy_models
from .digits import Digits
from .test_reconstruct import pictures
from .test_surgery import lively
from .toy_models import PadsFirst


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


# -- all of them ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(RANKERS))
def test_every_ranker_scores_every_group_and_leaves_the_model_alone(name, digits):
    model = copy.deepcopy(digits.model).float() if name != "bn-scale" else lively(zoo.build("vgg16-cifar")).float()
    x = digits.x.float() if name != "bn-scale" else torch.randn(20, 3, 32, 32)
    channels = channel_map(model, x[:1])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = None if name in DATA_FREE else [(x, digits.y)]
    assert (name in DATA_FREE) == (RANKERS[name].split is None)
    scores = RANKERS[name](model, channels, batches, classes=10, seed=3)
    assert scores.ranker == name
    assert [n for n in channels.chosen(None) if name != "bn-scale" or n != "classifier.5"] == list(scores.scores)
    for layer, values in scores.scores.items():
        assert len(values) == channels.group(layer).units
        assert bool(torch.isfinite(torch.tensor(values)).all())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    again = RANKERS[name](model, channels, batches, classes=10, seed=3)
    assert again.scores == scores.scores
    some = RANKERS[name](model, channels, batches, classes=10, seed=3, layers=[list(scores.scores)[1]])
    assert list(some.scores) == [list(scores.scores)[1]]


class Written(nn.Module):
    """A network with two convs that pad first: by a class of the user's own, or `plain`."""

    def __init__(self, plain: bool, traceable: bool = True) -> None:
        super().__init__()
        conv = nn.Conv2d if plain else PadsFirst
        self.one, self.norm = conv(3, 8, 3), nn.BatchNorm2d(8)
        self.two, self.norm2 = conv(8, 10, 3, stride=2), nn.BatchNorm2d(10)
        self.plain, self.traceable, self.classifier = plain, traceable, nn.Linear(10, 5)

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 1, 0, 1)) if self.plain else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.one(self.pad(x))).relu()
        if not self.traceable and float(x.detach().sum()) > 1e9:
            return x
        return self.classifier(self.norm2(self.two(self.pad(x))).relu().mean((2, 3)))


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize("name", ["influential", "car", "switch", "taylor", "reconstruct"])
def test_what_a_layer_of_the_users_own_class_does_beside_its_operator_counts(name, traceable):
    """It scores as the same network with it written out; only least squares need to be able to see it."""
    x, labels = pictures(40), torch.arange(40) % 5
    scores = []
    for plain in (True, False):
        torch.manual_seed(0)
        model = toy_models.lively(Written(plain, traceable), x)
        scores.append(RANKERS[name](model, channel_map(model, x[:1]), [(x, labels)], classes=5, seed=3).scores)
    assert scores[0].keys() == scores[1].keys()
    for layer, values in scores[0].items():
        if name == "reconstruct" and not traceable:
            assert all(map(isfinite, scores[1][layer]))
        else:
            torch.testing.assert_close(torch.tensor(scores[1][layer]), torch.tensor(values))


def test_scores_round_trip_with_what_only_one_ranker_tells(tmp_path, digits):
    scores = RANKERS["car"](digits.model, digits.channels, digits.batches, classes=10)
    scores.save(tmp_path / "s.json")
    again = FilterScores.load(tmp_path / "s.json")
    assert again == scores
    assert again.car_by_class


def test_ties_decide_between_equal_scores_then_the_index(digits):
    scores = FilterScores(
        ranker="x", scores={"conv1": [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]}, ties={"conv1": [0.0, 3.0, 2.0, 2.0, 5.0, -1.0]}
    )
    assert scores.order("conv1") == [2, 3, 1, 5, 0, 4]
    plan = select(digits.model, digits.channels, scores, ratio=0.5)
    assert plan.keep["conv1"] == [0, 4, 5]


def test_layers_that_cannot_be_ranked():
    model = lively(zoo.build("shufflenet_v2_x0_5"))
    channels = channel_map(model, torch.randn(1, 3, 32, 32).double())
    with pytest.raises(
        SlimrankError, match=r"branch1.2 cannot be pruned or masked alone \(tied to stage3.0.branch2.5, .*\): its 48 channels"
    ):
        channels.chosen(["stage3.0.branch1.2"])
    with pytest.raises(SlimrankError, match="its outputs are the model's classes"):
        channels.chosen(["fc"])
    assert channels.chosen(["fc"], features=True) == ["fc"]


# -- torch-pruning's criteria --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(CRITERIA))
def test_criteria_are_theirs(name):
    """On a network that their graph follows, the same numbers as from their own groups."""
    torch.manual_seed(0)
    model = lively(zoo.build("vgg16-cifar", {"widths": [8, 8, 12, 12, 16, 16, 16, 20, 20, 20, 20, 20, 20, 24, 28]})).float()
    x, y = torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    channels = channel_map(model, x[:1])
    layers = ["features.0", "features.14"]  # their groups of hidden linear layers leave BatchNorm1d out
    ours = RANKERS[name](model, channels, [(x, y)], classes=10, layers=layers)
    theirs = copy.deepcopy(model).eval()
    if name == "taylor":
        nn.functional.cross_entropy(theirs(x), y, reduction="sum").backward()
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, example_inputs=x[:1])
    for layer in layers:
        conv = theirs.get_submodule(layer)
        group = graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, idxs=list(range(conv.out_channels)))
        torch.testing.assert_close(torch.tensor(ours.scores[layer]).float(), CRITERIA[name]()(group), rtol=1e-4, atol=1e-5)


def test_bn_scale_needs_batchnorm(digits):
    with pytest.raises(SlimrankError, match="bn-scale says nothing of conv1, conv2, fc1, fc2: no BatchNorm"):
        RANKERS["bn-scale"](digits.model, digits.channels)
    vgg = lively(zoo.build("vgg16-cifar")).float()
    channels = channel_map(vgg, torch.randn(1, 3, 32, 32))
    assert "says nothing of classifier.5: no BatchNorm follows, left out" in str(RANKERS["bn-scale"](vgg, channels))
    with pytest.raises(SlimrankError, match=r"classifier\.5: no BatchNorm follows; take another"):
        RANKERS["bn-scale"](vgg, channels, layers=["features.0", "classifier.5"])


# -- comparison ----------------------------------------------------------------------------------------------------------


def test_compare():
    a = FilterScores(ranker="a", scores={"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], "y": [1.0, 1.0]})
    same = compare_scores(a, a)
    assert same.layers["x"] == LayerAgreement(spearman=pytest.approx(1), shared=5, by_chance=25 / 7)
    assert same.layers["y"].spearman is None
    assert same.to_dict()["layers"]["x"] == {"spearman": pytest.approx(1), "top5": 5, "by_chance": 25 / 7}
    back = compare_scores(a, FilterScores(ranker="b", scores={"x": [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}), top=2)
    assert back.layers == {"x": LayerAgreement(spearman=pytest.approx(-1), shared=0, by_chance=4 / 7)}


@pytest.mark.parametrize(
    ("scores", "top", "message"),
    [
        ({"z": [1.0]}, 5, "no layer in common"),
        ({"x": [1.0]}, 5, "7 filters in one file and 1 in the other"),
        ({"x": [1.0] * 7}, 0, "`top` is 0, must be at least 1 filter"),
    ],
    ids=["layers", "widths", "top"],
)
def test_what_cannot_be_compared(scores, top, message):
    a = FilterScores(ranker="a", scores={"x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]})
    with pytest.raises(SlimrankError, match=message):
        compare_scores(a, FilterScores(ranker="b", scores=scores), top)


# -- adding one ---------------------------------------------------------------------------------------------------------


def test_the_ranker_of_the_docs_works(digits, monkeypatch):
    """docs/rankers.md, its blocks run as they stand."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "rankers.md").read_text()
    function, declared, record, test = re.findall(r"```py\n(.*?)```", page, re.S)
    space = vars(rankers).copy()
    exec(declared, space)
    monkeypatch.setattr(rankers, "SpreadOptions", space["SpreadOptions"], raising=False)
    module = ModuleType("slimrank.compress.rankers.spread")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vars(module)["__package__"] = "slimrank.compress.rankers"
    exec(function, vars(module))
    (added,) = eval(f"({record.strip()})", space)
    monkeypatch.setitem(RANKERS, "spread", added)
    space = {"RANKERS": RANKERS, "pytest": pytest}
    exec(test, space)
    next(value for name, value in space.items() if name.startswith("test_"))(digits)
    scores = RANKERS["spread"](digits.model, digits.channels, power=2.0)
    assert scores.options == {"power": 2.0}
    with pytest.raises(SlimrankError, match="`power` is -1"):
        RANKERS["spread"](digits.model, digits.channels, power=-1)
    with pytest.raises(SlimrankError, match="takes no `samples`; it takes `power`"):
        RANKERS["spread"](digits.model, digits.channels, samples=1)


def test_names_of_options_are_free_and_mean_one_thing():
    from slimrank.cli import COMMON, VERBS

    own = {"name", "checkpoint", "layers", "batches", "classes", "model", "channels", "out"}
    own |= {name for tree in (*COMMON, Reading, DataSpec, RankOptions) for name in options(tree)}
    types = {}
    for record in RANKERS.values():
        for name, one in options(record.options).items() if record.options else ():
            assert name not in own, f"{record.name}: {name} is an option of rank itself"
            hint = get_type_hints(one.owner)[name]
            assert types.setdefault(name, hint) == hint, f"{record.name}: {name} has another type elsewhere"
    assert types.keys() <= VERBS["rank"].options.keys()
