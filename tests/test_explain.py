"""`explain`: what it tells of a network whose features mean something known, and the whole verb on the shared ResNet-20."""

import json
import math
import re

import pytest
import torch
from torch import nn

from slimrank.compress.channels.features import Moments, Votes
from slimrank.compress.channels.tracing import channel_map
from slimrank.compress.explain.classes import Means, class_features, membership, noise_test, overlap, pairwise_information
from slimrank.compress.explain.filters import colour_order, greyed, kernel_colour, redundancy
from slimrank.compress.explain.responses import Responses
from slimrank.compress.network.papers import CifarResnet, Lenet5
from slimrank.compress.training import gates
from slimrank.errors import SlimrankError
from slimrank.evaluate.concepts import generate
from slimrank.evaluate.data import Preprocessing

from .test_cli import fails, run


def told(x, labels, linear, k):
    votes, means, moments = Votes(3, k), Means(3), Moments()
    for keep in (votes, means, moments):
        keep.add(x, labels)
    return votes, means, moments


def test_classes_live_on_their_features():
    """Feature c is loud on class c alone: it carries the logit, and noise there, nowhere else, costs the class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    x = 0.05 * torch.rand(900, 6, generator=generator)
    x[torch.arange(900), labels] += 4
    linear = nn.Linear(6, 3)
    linear.weight.data = torch.cat([torch.eye(3), torch.zeros(3, 3)], 1)
    linear.bias.data.zero_()
    votes, means, moments = told(x, labels, linear, 1)
    classes = class_features(["a", "b", "c"], linear, votes, means, 1)
    for c, row in enumerate(classes):
        assert [f[0] for f in row.features] == [c]
        assert row.features[0][2] == 1.0  # every image votes for it
        assert row.carried > 0.95
        assert row.shared_with == []
    noise = noise_test([(x, labels)], linear, votes.choose(1), moments)
    assert noise.mean("whole") == 1.0
    assert noise.mean("influential_replaced") < 0.8
    assert noise.mean("others_replaced") > noise.mean("influential_replaced")


def test_gates_are_those_of_the_images_class():
    """Feature c is loud on class c and every class's gate opens for its own feature alone; one class's weights are swapped."""
    labels = torch.arange(30) % 3
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 2, 1]])  # class 2 wins on the images of class 1
    batches = [(torch.eye(3)[labels], labels)]
    measured = gates.measure_gates(model, "0", torch.eye(3), batches, 3)
    assert measured.top1 == pytest.approx(2 / 3)
    assert measured.top1_gated == pytest.approx(2 / 3)  # the gate of the true class lets its feature pass, and class 2 reads it
    assert measured.top1_own == 1  # class 2 reads feature 2 alone
    shifted = gates.measure_gates(model, "0", torch.eye(3)[:, [1, 2, 0]], batches, 3)
    assert shifted.top1_gated == pytest.approx(1 / 3)  # the gates of other classes: nothing passes, argmax takes class 0
    assert shifted.density == pytest.approx(1 / 3)


def test_overlap_as_the_authors_count_it():
    """Five of 64 features, ten classes: the diagonal alone gives 0.027 (algorithms.md)."""
    far = torch.arange(50).view(10, 5)
    found = overlap(far, 64)
    p = 5 / 64
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert pairwise_information(membership(far, 64)).diagonal().tolist() == pytest.approx([entropy] * 10)
    assert entropy / 10 == pytest.approx(0.0275, abs=1e-3)
    assert found.all_pairs == pytest.approx(entropy / 10 + 0.9 * found.different_classes)
    same = overlap(far[:1].expand(10, 5), 64)
    assert same.all_pairs == pytest.approx(entropy)
    assert same.common == 5
    brute = pairwise_information(torch.tensor([[1.0, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.float64))[0, 1]
    assert float(brute) == pytest.approx(0, abs=1e-12)  # independent


def test_a_dead_network_has_no_shares():
    x, labels = torch.zeros(30, 6), torch.arange(30) % 3
    linear = nn.Linear(6, 3)
    votes, means, _ = told(x, labels, linear, 2)
    classes = class_features(["a", "b", "c"], linear, votes, means, 2)
    assert [c.carried for c in classes] == [None] * 3
    assert colour_order(torch.zeros(8), list(range(8)), 2).spearman is None


def test_colour():
    grey = torch.randn(4, 1, 3, 3).expand(4, 3, 3, 3)
    opponent = torch.randn(4, 1, 3, 3) * torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1)
    assert torch.allclose(kernel_colour(grey), torch.zeros(4), atol=1e-6)
    assert torch.allclose(kernel_colour(opponent), torch.ones(4), atol=1e-6)
    assert kernel_colour(torch.zeros(1, 3, 3, 3)).tolist() == [0]
    p = Preprocessing.default(3, 8)
    images = torch.randn(2, 3, 8, 8)
    once = greyed(images, p)
    assert torch.allclose(greyed(once, p), once, atol=1e-6)
    pixels = once * torch.tensor(p.std).view(3, 1, 1) + torch.tensor(p.mean).view(3, 1, 1)
    assert torch.allclose(pixels[:, 0], pixels[:, 1], atol=1e-6)
    first = colour_order(torch.arange(20.0), list(range(19, -1, -1)), 5)
    assert (first.selective, first.expected) == (5, 2.5)
    assert first.p == pytest.approx(math.comb(10, 5) / math.comb(20, 5), abs=1e-6)
    assert first.spearman == pytest.approx(-1)


def test_pruned_filters_that_repeat_kept_ones():
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([x, x[:, :1] * 2 + 1, torch.zeros(500, 1)], 1)  # 4 repeats 0, 5 is silent
    moments = Moments()
    moments.add(x)
    spread = moments.covariance.diagonal().sqrt()
    correlation = moments.covariance / torch.where(spread > 0, spread, torch.nan)[:, None] / spread[None, :]
    found = redundancy(correlation, [4, 5])
    assert found.pruned == [(4, 0, 1.0)]
    assert found.mean_kept is not None
    assert found.mean_kept < 0.2


def test_responses_are_what_the_next_layer_reads():
    model = CifarResnet(8).eval()
    channels = channel_map(model, torch.zeros(1, 3, 16, 16))
    x = torch.randn(3, 3, 16, 16)
    maps = Responses(model, channels, ["layer2.0.conv1", "conv1"])(x)
    assert {name: tuple(m.shape) for name, m in maps.items()} == {"layer2.0.conv1": (3, 32, 8, 8), "conv1": (3, 16, 16, 16)}
    with torch.inference_mode():
        stem = torch.relu(model.bn1(model.conv1(x)))
    assert torch.allclose(maps["conv1"], stem, atol=1e-6)
    lenet = Lenet5()
    channels = channel_map(lenet, torch.zeros(1, 1, 28, 28))
    with pytest.raises(SlimrankError, match="not with maps"):
        Responses(lenet, channels, ["fc1"])


def test_the_verb_on_resnet20(capsys, tmp_path, resnet20, cifar):
    out = tmp_path / "told"
    words = ("explain", resnet20, "--model", "resnet20-cifar", "--data", f"folder:{cifar}", "--validation", "test:0.2")
    concepts = generate(tmp_path / "concepts", 120)
    found = run(capsys, *words, "--limit", 200, "--k2", 5, "--layer", "conv1", "--concepts", concepts, "-o", out)
    assert json.loads((out / "explain.json").read_text())["classes"] == found["classes"]
    assert [len(c["features"]) for c in found["classes"]] == [5] * 10
    noise = found["noise"]
    assert noise["mean_influential_replaced"] < noise["mean_random_replaced"]
    conv1 = found["layers"]["conv1"]
    assert sorted(conv1["order"]) == list(range(16))
    assert all(0 <= f["colour"] <= 1 for f in conv1["filters"])
    assert found["dissection"]["layers"]["conv1"]["unique"] >= 1  # colours, at the first layer
    page = (out / "explain.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained
    for name in found["class_names"]:
        assert name in page
    assert "Broden" in fails(capsys, *words, "--limit", 50, "--concepts", tmp_path / "nowhere", "-o", out)
    assert "linear" in fails(capsys, *words, "--limit", 50, "--layer", "linear", "-o", out)


def test_grey_networks_have_no_colour_part(capsys, tmp_path):
    path = tmp_path / "lenet.safetensors"
    run(capsys, "train", "--model", "lenet5", "--data", "digits", "--epochs", 12, "--lr", 0.05, "--csg", "-o", path)
    found = run(capsys, "explain", path, "--data", "digits", "-o", tmp_path / "told")
    assert any("no colour part" in note for note in found["notes"])
    assert found["layers"]["conv1"]["mean_colour"] is None
    assert found["gates"]["density"] <= 1
    head = run(capsys, "specialize", path, "--data", "digits", "--select", "gates", "--k2", 5, "-o", tmp_path / "h.safetensors")
    assert head["select"] == "gates"
    pruned = tmp_path / "pruned.safetensors"
    run(capsys, "prune", path, "--macs", 0.5, "--align", 1, "-o", pruned)  # gates are cut along
    run(capsys, "specialize", pruned, "--data", "digits", "--select", "gates", "--k2", 5, "-o", tmp_path / "p.safetensors")


def test_block_norm_by_the_verb(capsys, tmp_path):
    path = tmp_path / "lenet.safetensors"
    words = ("train", "--model", "lenet5", "--data", "digits", "--epochs", 8, "--lr", 0.05, "-o", path)
    found = run(capsys, *words, "--block-norm", "2,1,5,0.3")["block_norm"]
    assert found["solver"] == "proximal"
    assert found["filters"] > 0
    assert found["max_abs_diff"] < 1e-5
    assert run(capsys, "evaluate", path, "--data", "digits")["top1"] > 0.5
    assert "take at most 10" in fails(capsys, *words, "--block-norm", "2,1,50,0.1")
    assert "no gates" in fails(
        capsys, "specialize", path, "--data", "digits", "--select", "gates", "-o", tmp_path / "x.safetensors"
    )
