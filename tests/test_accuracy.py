"""Accuracy and decisions: counted over all batches, whatever their sizes."""

import pytest
import torch
from torch.nn import functional as F

from slimrank.errors import SlimrankError
from slimrank.evaluate.accuracy import accuracy, decisions, predictor

PLACES = [1, 1, 2, 5, 6, 8, 4]  # of each image's own class among its logits, largest first
LABELS = torch.tensor([0, 3, 7, 7, 2, 0, 5])


def ranked():
    """Logits of 8 classes in which each image's own class has its place of PLACES, in batches of 3, 3 and 1."""
    logits = torch.empty(len(LABELS), 8)
    for row, label, place in zip(logits, LABELS.tolist(), PLACES, strict=True):
        order = [c for c in range(8) if c != label]
        order.insert(place - 1, label)
        row[order] = torch.arange(8.0, 0, -1)
    return list(zip(logits.split(3), LABELS.split(3), strict=True))


def test_top1_and_top5_count_places_over_all_batches():
    found = accuracy(lambda x: x, ranked(), 8)
    assert (found.n, found.top1, found.top5) == (7, 2 / 7, 5 / 7)
    assert found.per_class == pytest.approx([0.5, 0, 0, 1, 0, 0, 0, 0])


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_of_five_classes_or_fewer_every_image_is_right_in_its_top5(classes):
    found = accuracy(lambda x: x, [(torch.eye(classes), torch.arange(classes).roll(1))], classes)
    assert (found.top1, found.top5) == (0, 1)


def test_decisions_are_those_of_every_image_in_order():
    batches = ranked()
    assert torch.equal(decisions(lambda x: x, batches), torch.cat([x.argmax(1) for x, _ in batches]))


def test_a_tie_goes_to_the_lower_class():
    equal = [(torch.ones(2, 4), torch.tensor([0, 3]))]
    assert accuracy(lambda x: x, equal, 4).top1 == 0.5
    assert decisions(lambda x: x, equal).tolist() == [0, 0]


def test_a_predictor_does_not_train():
    model = torch.nn.Sequential(torch.nn.Linear(8, 100), torch.nn.Dropout(0.5)).train()
    logits = predictor(model)(torch.ones(4, 8))
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model[0](torch.ones(4, 8)).detach())


@pytest.mark.parametrize(
    ("logits", "labels", "match"),
    [
        (torch.zeros(2, 9), [0, 1], "9 outputs, the data 8"),
        (torch.zeros(2, 8), [0, -1], "label"),
        (F.pad(torch.full((2, 1), torch.nan), (0, 7)), [0, 1], "NaN"),
    ],
    ids=["outputs", "no label", "not a number"],
)
def test_what_cannot_be_counted_is_said(logits, labels, match):
    with pytest.raises(SlimrankError, match=match):
        accuracy(lambda x: x, [(logits, torch.tensor(labels))], 8)


@pytest.mark.parametrize("measure", [lambda: accuracy(None, [], 8), lambda: decisions(None, [])], ids=["accuracy", "decisions"])
def test_no_images_are_said(measure):
    with pytest.raises(SlimrankError, match="no images"):
        measure()
