"""Algorithm 1 and the subspace head, to the last digit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimrank.compress import models
from slimrank.compress.checkpoint import load
from slimrank.compress.head import side_by_side, specialize, with_head
from slimrank.compress.subspace import SubspaceLinear, features, truncate, vote
from slimrank.compress.tracing import channel_map
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data

from .reference import algorithm_1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_votes_are_algorithm_1(seed, m, k1, k2, coarse):
    """Against the line-by-line version, ties included (coarse features tie often)."""
    k1, k2 = min(k1, m), min(k2, m)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(23, m, generator=generator)
    x = x.round() if coarse else x
    labels = torch.randint(0, 3, (23,), generator=generator)
    votes = vote([(x[:10], labels[:10]), (x[10:], labels[10:])], 3, k1)
    assert votes.choose(k2).tolist() == algorithm_1(x, labels, 3, k1, k2)
    assert votes.histogram.sum(1).tolist() == (k1 * torch.bincount(labels, minlength=3)).tolist()
    order = torch.randperm(23, generator=generator)
    assert torch.equal(vote([(x[order], labels[order])], 3, k1).histogram, votes.histogram)
    assert torch.equal(vote([(4 * x, labels)], 3, k1).choose(k2), votes.choose(k2))


def test_all_features_are_the_dense_layer():
    torch.manual_seed(0)
    dense = nn.Linear(64, 10).double()
    x = torch.randn(50, 64, dtype=torch.float64)
    everything = torch.arange(64).expand(10, 64)
    for layout in ("dense", "gather"):
        torch.testing.assert_close(truncate(dense, everything, layout)(x), dense(x), rtol=1e-12, atol=1e-12)


def test_layouts_agree_and_cutting_features_is_masking_them():
    torch.manual_seed(0)
    dense = nn.Linear(32, 7).double()
    index = torch.stack([torch.randperm(32)[:5].sort().values for _ in range(7)])
    x = torch.randn(20, 32, dtype=torch.float64)
    gather, zeros = truncate(dense, index, "gather"), truncate(dense, index, "dense")
    torch.testing.assert_close(gather(x), zeros(x), rtol=1e-12, atol=1e-12)
    assert gather.macs((32,)) == 35
    assert zeros.macs((32,)) == 224
    keep = torch.rand(32) < 0.6
    expected = gather(x * keep)
    gather.slice_channels(keep, torch.ones(7, dtype=torch.bool))
    torch.testing.assert_close(gather(x[:, keep]), expected, rtol=1e-12, atol=1e-12)


def test_a_specialised_network_can_be_pruned():
    from slimrank.compress.layers import masked
    from slimrank.compress.surgery import cut

    torch.manual_seed(0)
    model = models.build("resnet20-cifar").double().eval()
    index = torch.stack([torch.randperm(64)[:5].sort().values for _ in range(10)])
    model.linear = truncate(model.linear, index)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    channels = channel_map(model, x[:1])
    assert channels.classifier == "linear"
    gone = channels.removed({})
    gone[torch.tensor([3, 11, 40]) + channels.group("layer3.0.conv2").offset] = True
    with torch.inference_mode(), masked(model, channels, gone):
        expected = model(x)
    torch.testing.assert_close(cut(model, channels, gone)(x), expected, rtol=1e-9, atol=1e-9)


def test_bad_indices_are_refused():
    with pytest.raises(SlimrankError, match=r"0\.\.3"):
        SubspaceLinear(torch.zeros(2, 1), torch.tensor([[0], [4]]), torch.zeros(2), 4)


def test_the_papers_figures_on_cifar10_jpeg(resnet20, cifar):
    """algorithms.md, measured: dense 81.03, k1=k2=5 75.23, 10 79.70 (full train split; 5,000 training images here)."""
    checkpoint = load(resnet20, name="resnet20-cifar")
    data = open_data(f"folder:{cifar}", checkpoint.preprocessing)
    channels = channel_map(checkpoint.model, checkpoint.example())
    some = data.train.subset(torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))[:5000])
    cached = list(features(checkpoint.model, channels.classifier, some.batches()))
    for k, published in ((5, 0.7523), (10, 0.7970)):
        head = truncate(checkpoint.model.linear, vote(cached, 10, k).choose(k))
        test = data.test.subset(torch.arange(0, 10_000, 4))
        dense, sparse, agreement = side_by_side(checkpoint.model, with_head(checkpoint.model, "linear", head), test, 10)
        assert sparse.top1 < dense.top1
        assert abs(sparse.top1 - published) < 0.025  # 2,500 images: one standard error is 0.9 points
        assert agreement > 0.8


def test_specialize_keeps_to_its_limits():
    from slimrank.compress.training import fresh

    checkpoint = fresh("lenet5", {"size": 16, "padding": 2}, [str(i) for i in range(10)], 1, 16, 0)
    data = open_data("digits", checkpoint.preprocessing)
    with pytest.raises(SlimrankError, match="25 features"):
        specialize(checkpoint, data, k2=26)
    made, result = specialize(checkpoint, data, k2=25, layout="gather")
    assert result.agreement == 1.0
    assert result.ratio == 1.0
    assert len(result.indices[0]) == 25
    with pytest.raises(SlimrankError, match="specialised already"):
        specialize(made, data)
