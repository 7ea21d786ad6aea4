"""The head as a stage: the dense layer stays where no head is faster, and the report still knows what each class lives on."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from slimrank.compress.head import timing
from slimrank.compress.head.classifier import Classifier
from slimrank.compress.head.options import HeadOptions, default_k
from slimrank.compress.head.specialize import specialize
from slimrank.compress.network.checkpoint import Checkpoint, load
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import Preprocessing, open_data
from slimrank.evaluate.latency import Comparison, Speedup, machine

FASTER, SLOWER = 2.0, 0.5


@pytest.fixture
def clock(monkeypatch):
    """Every head runs at this speedup, whatever the machine does."""

    def set_to(speedup: float) -> None:
        def timed(heads, *_):
            return Comparison([], [Speedup(name, "linear", "cpu", 1, 1, speedup) for name in heads], machine())

        monkeypatch.setattr(timing, "time_heads", timed)

    return set_to


@pytest.fixture
def given(trained):
    checkpoint = load(trained)
    return checkpoint, open_data("digits", checkpoint.preprocessing, limit=200)


def indices_of(checkpoint, data, **options):
    return specialize(checkpoint, data, HeadOptions(fit="refit", layout="dense", **options)).result.indices


def test_a_slower_head_is_refused_and_its_subspaces_are_reported(given, clock):
    clock(SLOWER)
    checkpoint, data = given
    specialized = specialize(checkpoint, data, HeadOptions(only_faster=True, fit="refit"))
    assert specialized.checkpoint is checkpoint
    assert "no layout beats" in specialized.kept_dense_because
    assert specialized.report is specialized.result
    assert (specialized.result.layout, specialized.result.fit, specialized.result.latency) == ("dense", "refit", None)
    assert specialized.result.indices == indices_of(checkpoint, data)


def test_a_faster_head_that_loses_accuracy_is_refused(given, clock):
    clock(FASTER)
    checkpoint, data = given
    specialized = specialize(checkpoint, data, HeadOptions(only_faster=True, fit="truncate", k2=1, max_drop=0.0))
    assert specialized.checkpoint is checkpoint
    assert "within `max_drop` 0.0" in specialized.kept_dense_because


def test_a_faster_head_is_taken(given, clock):
    clock(FASTER)
    checkpoint, data = given
    specialized = specialize(checkpoint, data, HeadOptions(only_faster=True, fit="refit", max_drop=0.9))
    assert specialized.kept_dense_because == ""
    assert specialized.report is specialized.result
    assert specialized.checkpoint.history[-1]["layout"] == specialized.result.layout != "dense"


@pytest.mark.parametrize("fit", ["refit", "train"])
def test_an_int8_head_reports_the_subspaces_of_the_same_statistics(given, fit):
    checkpoint, data = given
    specialized = specialize(checkpoint, data, HeadOptions(layout="int8", fit=fit, report=True, rival=False))
    assert (specialized.result.layout, specialized.result.k2) == ("int8", 25)
    assert (specialized.report.layout, specialized.report.k2) == ("dense", default_k(25))
    assert specialized.report.indices == indices_of(checkpoint, data)
    assert torch.is_tensor(specialized.checkpoint.model.fc3.weight)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"k2": 26}, "k2"),
        ({"rescore": 11}, "rescore"),
        ({"layout": "tiled", "groups": 11}, "groups"),
        ({"fit": "magic"}, "fit"),
    ],
    ids=["k2", "rescore", "groups", "fit"],
)
def test_errors_name_the_parameter(given, options, name):
    with pytest.raises(SlimrankError, match=f"`{name}`"):
        specialize(*given, HeadOptions(**options))


def test_options_need_no_torch():
    code = "import sys, slimrank.compress.head.options; sys.exit(bool({'torch', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class NotTheEnd(nn.Module):
    """A network whose last linear layer does not give its logits, by `how`."""

    def __init__(self, how):
        super().__init__()
        self.stem, self.fc, self.how = nn.Conv2d(1, 8, 3), nn.Linear(8, 10), how
        self.second, self.norm, self.scale = nn.Linear(8, 10), nn.BatchNorm1d(10), nn.Parameter(torch.tensor(2.0))
        nn.init.uniform_(self.norm.bias)

    def forward(self, x):
        x = self.stem(x).relu()
        x, other = x.mean((2, 3)), x.amax((2, 3))
        ends = {
            "averaged": lambda: (self.fc(x) + self.second(x)) / 2, "twice": lambda: self.fc(x) + self.fc(other),
            "norm": lambda: self.norm(self.fc(x)), "scale": lambda: self.fc(x) * self.scale,
            "softmax": lambda: self.fc(x).softmax(1), "bias": lambda: self.fc(x) + self.norm.bias,
            "flipped": lambda: self.fc(x).flip(1), "end": lambda: self.fc(x), "reshaped": lambda: self.fc(x).view(-1, 10) * 1.0,
        }  # fmt: skip
        return ends[self.how]()


@pytest.mark.parametrize("how", ["averaged", "twice", "norm", "scale", "softmax", "bias", "flipped"])
def test_a_layer_that_does_not_give_the_logits_is_no_classifier(how):
    checkpoint = Checkpoint(NotTheEnd(how).eval(), "x", {}, Preprocessing(8, (0.5,), (0.5,)))
    with pytest.raises(SlimrankError, match=r"logits are not what its last linear layer|the classifier .* is a"):
        Classifier.of(checkpoint)


@pytest.mark.parametrize("how", ["end", "reshaped"])
def test_a_layer_that_gives_the_logits_is_the_classifier(how):
    checkpoint = Checkpoint(NotTheEnd(how).eval(), "x", {}, Preprocessing(8, (0.5,), (0.5,)))
    assert Classifier.of(checkpoint).layer == "fc"
