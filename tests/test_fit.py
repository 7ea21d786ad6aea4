"""Training of a head: the loss, the steps, and which weights are kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimrank.compress.channels.features import Cached, Moments
from slimrank.compress.head import fit
from slimrank.compress.head.cluster import Subspaces
from slimrank.compress.head.fit import DISTILLED_SHARES, decisions, fit_adam, refitted, top1, trained


def head(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(6, 4)


def cached(n: int, seed: int = 1) -> Cached:
    generator = torch.Generator().manual_seed(seed)
    return Cached(3 * torch.randn(n, 6, generator=generator), torch.randint(0, 4, (n,), generator=generator))


class Watched(torch.optim.Adam):
    """Adam that notes the learning rate of every step."""

    def __init__(self, *arguments: object):
        super().__init__(*arguments)
        self.rates: list[float] = []
        Watched.last = self

    def step(self, *arguments: object) -> None:
        self.rates.append(self.param_groups[0]["lr"])
        super().step(*arguments)


def watched(monkeypatch, images: Cached, epochs: int, batch: int, seed: int = 0) -> list[torch.Tensor]:
    """The batches that a training of a head sees."""
    monkeypatch.setattr(torch.optim, "Adam", Watched)
    module, seen = head(), []

    def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return F.cross_entropy(module(x), labels)

    fit_adam(module, loss, images, epochs=epochs, lr=0.01, batch=batch, seed=seed)
    return seen


def test_every_epoch_shows_each_image_once_in_an_order_of_its_own(monkeypatch):
    images = cached(23)
    seen = watched(monkeypatch, images, epochs=2, batch=10)
    assert [len(x) for x in seen] == [10, 10, 3] * 2
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    for epoch in epochs:
        assert torch.equal(epoch.sort(0).values, images.x.sort(0).values)
    assert not torch.equal(*epochs)
    again, other = (torch.cat(watched(monkeypatch, images, 2, 10, seed)) for seed in (0, 1))
    assert torch.equal(again, torch.cat(seen))
    assert not torch.equal(other, torch.cat(seen))


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_the_learning_rate_is_for_features_of_deviation_one_and_falls_by_a_cosine(monkeypatch, scale):
    images = Cached(scale * cached(23).x, cached(23).labels)
    watched(monkeypatch, images, epochs=4, batch=10)
    phase = torch.arange(12) * torch.pi / 12
    expected = 0.01 / images.x.std() * (1 + phase.cos()) / 2
    torch.testing.assert_close(torch.tensor(Watched.last.rates), expected)


@pytest.mark.parametrize("share", DISTILLED_SHARES)
def test_the_loss_mixes_the_teachers_divergence_and_the_labels_cross_entropy(monkeypatch, share):
    x, labels = (images := cached(50)).x, images.labels
    teacher, student, losses = head(7), head(), {}

    def noted(candidate, loss, *_, **__):
        losses[DISTILLED_SHARES[len(losses)]] = loss(x, labels)

    monkeypatch.setattr(fit, "fit_adam", noted)
    trained(student, (teacher.weight, teacher.bias), images, images, seed=0)
    p, q = teacher(x).softmax(1), student(x).softmax(1)
    soft, hard = (p * (p / q).log()).sum(1).mean(), -q.log()[torch.arange(50), labels].mean()
    torch.testing.assert_close(losses[share], share * soft + (1 - share) * hard)


@pytest.mark.parametrize(
    ("reached", "kept"),
    [((0.2, 0.2, 0.2), None), ((0.5, 0.4, 0.5), 0), ((0.5, 0.6, 0.4), 1), ((0.1, 0.4, 0.6), 2), ((0.3, 0.3, 0.3), None)],
)
def test_what_is_best_on_the_judge_stays_and_of_equals_the_first(monkeypatch, reached, kept):
    """The head decides for class 0 alone; the judge has it three times of ten. Each training is made to reach a share."""
    start, images = head(), cached(40)
    start.weight.data.zero_()
    start.bias.data = torch.tensor([1.0, 0, 0, 0])
    judge, tried = Cached(torch.eye(10), torch.tensor([0] * 3 + [1] * 7)), []
    start.in_features, start.weight = 10, nn.Parameter(torch.zeros(4, 10))

    def to_reach(candidate, *_, **__):
        right = round(10 * reached[len(tried)])
        candidate.weight.data.zero_()
        candidate.weight.data[0, 3:] = 5.0  # class 0, wrong from the fourth image on
        candidate.weight.data[1, 3 : 3 + max(0, right - 3)] = 9.0
        candidate.weight.data[2, : max(0, 3 - right)] = 9.0
        tried.append(candidate)

    monkeypatch.setattr(fit, "fit_adam", to_reach)
    made, told = trained(start, (torch.zeros(4, 10), torch.zeros(4)), images, judge, seed=0)
    assert made is (start if kept is None else tried[kept])
    assert told.share == (None if kept is None else DISTILLED_SHARES[kept])
    assert (told.top1_before, told.top1_after) == pytest.approx((0.3, max(0.3, *reached)))
    assert told.seconds >= 0
    assert bool((start.weight == 0).all())


def test_training_helps_where_there_is_something_to_learn():
    images, teacher = cached(600), head(7)
    images = Cached(images.x, teacher(images.x).argmax(1))
    made, told = trained(head(), (teacher.weight.detach(), teacher.bias.detach()), images, images, epochs=30, lr=0.05, seed=0)
    assert told.top1_before < 0.6
    assert told.top1_after == top1(made, images) > 0.9


def test_decisions_of_many_images_are_those_of_each():
    images = cached(2100)
    assert torch.equal(decisions(head(), images), head()(images.x).argmax(1))


@pytest.mark.parametrize("chunk", [2**25, 300, 1])
def test_each_class_is_refitted_on_its_groups_features_however_many_at_once(chunk, monkeypatch):
    """Seven classes in groups of 2, 2, 1, 1, 1, against least squares of one class after the other."""
    monkeypatch.setattr(fit, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, dtype=torch.float64, generator=generator) for size in ((200, 9), (7, 9), (7,)))
    x = x @ torch.randn(9, 9, dtype=torch.float64, generator=generator) + 1
    spaces = Subspaces(torch.rand(5, 9, generator=generator).argsort(1)[:, :4], order=torch.tensor([3, 0, 6, 1, 5, 2, 4]))
    moments = Moments()
    moments.add(x)
    fitted, constant = refitted(weight, bias, moments, spaces)
    for row, (label, group) in enumerate(zip(spaces.order.tolist(), [0, 0, 1, 1, 2, 3, 4], strict=True)):
        read = torch.cat([x[:, spaces.index[group]], torch.ones(200, 1, dtype=torch.float64)], 1)
        best = torch.linalg.lstsq(read, x @ weight[label] + bias[label]).solution
        torch.testing.assert_close(torch.cat([fitted[row], constant[row : row + 1]]), best, rtol=1e-5, atol=1e-5)
