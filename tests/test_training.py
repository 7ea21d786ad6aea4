"""Training: recipes, resuming, early stop, BatchNorm recalibration."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from slimrank.compress.network import models
from slimrank.compress.stages.training import fresh
from slimrank.compress.training import loop as finetune
from slimrank.compress.training.loop import train
from slimrank.compress.training.recalibrate import recalibrate
from slimrank.compress.training.recipe import Recipe
from slimrank.errors import SlimrankError
from slimrank.evaluate.data import open_data

RECIPE = Recipe(4, 0.05, label_smoothing=0.1)


@pytest.fixture(scope="module")
def digits():
    checkpoint = fresh("lenet5", None, [str(i) for i in range(10)], 1, None, 0)
    return checkpoint.model, open_data("digits", checkpoint.preprocessing, limit=200)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_ends_as_if_it_had_not_been(digits, tmp_path, monkeypatch, after):
    """Stopped in the epoch after `after`, taken up again: the same weights, to the last bit."""
    model, data = digits
    teacher = fresh("lenet5", None, [str(i) for i in range(10)], 1, None, 7).model
    whole, told = train(model, data.train, data.validation, RECIPE, teacher=teacher)
    progress = tmp_path / "run.part"
    epoch = finetune._Run.epoch

    def stops(run):
        if len(run.losses) == after:
            raise Stopped
        epoch(run)

    monkeypatch.setattr(finetune._Run, "epoch", stops)
    with pytest.raises(Stopped):
        train(model, data.train, data.validation, RECIPE, teacher=teacher, progress=progress)
    monkeypatch.setattr(finetune._Run, "epoch", epoch)
    assert progress.exists()
    for other in (replace(RECIPE, lr=0.01), replace(RECIPE, label_smoothing=0.0)):
        with pytest.raises(SlimrankError, match="other weights, data or settings"):
            train(model, data.train, data.validation, other, teacher=teacher, progress=progress)
    with pytest.raises(SlimrankError, match="other weights, data or settings"):
        train(teacher, data.train, data.validation, RECIPE, teacher=teacher, progress=progress)
    again, retold = train(model, data.train, data.validation, RECIPE, teacher=teacher, progress=progress)
    assert same(whole, again)
    assert (retold.loss, retold.validation_top1, retold.best_epoch) == (told.loss, told.validation_top1, told.best_epoch)
    at_the_end, _ = train(model, data.train, data.validation, RECIPE, teacher=teacher, progress=progress)
    assert same(whole, at_the_end)  # stopped after the last epoch, before the result was saved


def test_a_damaged_progress_file_is_refused(digits, tmp_path):
    model, data = digits
    progress = tmp_path / "run.part"
    progress.write_bytes(b"no training state")
    with pytest.raises(SlimrankError, match="damaged"):
        train(model, data.train, data.validation, RECIPE, progress=progress)
    assert progress.read_bytes() == b"no training state"


def test_patience_ends_training_and_the_best_epoch_is_kept(digits):
    model, data = digits
    _, told = train(model, data.train, data.validation, Recipe(30, 1e-6, patience=2, precision="fp32"))
    assert told.epochs == told.best_epoch + 2 < 30
    assert "stopped early, 30 asked for" in str(told)


def test_a_diverged_run_says_so(digits):
    _, data = digits
    torch.manual_seed(0)
    unbounded = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.Linear(50, 50), nn.Linear(50, 10))
    with pytest.raises(SlimrankError, match=r"diverged in epoch .*; lower `lr` from 10"):
        train(unbounded, data.train, data.validation, Recipe(5, 10, precision="fp32"))


def test_bad_recipes():
    for wrong, match in (
        ({"epochs": 0}, "`epochs`"),
        ({"lr": 0}, "`lr`"),
        ({"label_smoothing": 1.0}, "`label_smoothing`"),
        ({"teacher_share": -0.1}, "`teacher_share`"),
        ({"patience": 0}, "`patience`"),
        ({"precision": "fp8"}, "no precision"),
        ({"augment": "cutout"}, "no augmentation"),
    ):
        with pytest.raises(SlimrankError, match=match):
            replace(RECIPE, **wrong).check()


def test_recalibrated_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    model = models.build("vgg16-cifar").eval()
    x = torch.randn(64, 3, 32, 32)
    made = recalibrate(model, [(x, torch.zeros(64))])
    first = model.features[0](x)
    torch.testing.assert_close(made.features[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.features[1].running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), made.parameters(), strict=True))
    assert not any(module.training for module in made.modules())
    assert made.features[1].momentum == model.features[1].momentum
    assert model.features[1].running_mean.abs().max() == 0  # the model itself is left alone
    plain = models.build("lenet5").eval()
    assert same(recalibrate(plain, [(torch.randn(4, 1, 28, 28), torch.zeros(4))]), plain)
