"""Training: recipes, resuming, early stop, BatchNorm recalibration."""

import copy
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from torch import nn

from slimrank.compress.network import zoo
from slimrank.compress.stages.finetune import finetune, fresh
from slimrank.compress.training.judge import Judge
from slimrank.compress.training.loop import TrainingRun, train
from slimrank.compress.training.recalibrate import recalibrate
from slimrank.compress.training.recipe import BlockNorm, Csg, Recipe
from slimrank.errors import SlimrankError
from slimrank.evaluate.accuracy import accuracy, predictor
from slimrank.evaluate.data import open_data
from slimrank.evaluate.imagespec import ImageSpec
from slimrank.option import options

RECIPE = Recipe(4, 0.05, label_smoothing=0.1)
RECIPES = {
    "plain": RECIPE,
    "bf16": replace(RECIPE, precision="bf16"),
    "block norm": replace(RECIPE, block_norm=BlockNorm(2, 1, 5, 0.3, 0.1, 0.1)),
    "gates": replace(RECIPE, csg=Csg(1)),
    "averaged": replace(RECIPE, ema=0.9, accumulate=3),
}


def lenet(seed: int):
    return fresh("lenet5", None, [str(i) for i in range(10)], 1, None, seed)


@pytest.fixture(scope="module")
def digits():
    checkpoint = lenet(0)
    return checkpoint.model, open_data("digits", checkpoint.preprocessing, limit=200)


@pytest.fixture(scope="module")
def teacher():
    return lenet(7).model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Stopped(Exception):
    pass


def interrupt(after, *args, **kwargs):
    """Train, and stop in the epoch after `after`."""
    epoch = TrainingRun.epoch

    def stops(run):
        if len(run.losses) == after:
            raise Stopped
        epoch(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "epoch", stops)
        with pytest.raises(Stopped):
            train(*args, **kwargs)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_ends_as_if_it_had_not_been(digits, teacher, tmp_path, recipe, after):
    """Stopped in the epoch after `after`, taken up again: the same weights and gates, to the last bit."""
    model, data = digits
    run, progress = (model, data.train, data.validation, recipe), tmp_path / "run.part"
    expected, training = train(*run, teacher=teacher)
    interrupt(after, *run, teacher=teacher, progress=progress)
    assert progress.exists()
    resumed, again = train(*run, teacher=teacher, progress=progress)
    assert same(expected, resumed)
    assert {**again.to_dict(), "seconds": 0} == {**training.to_dict(), "seconds": 0}
    assert (again.gates is None) == (recipe.csg is None)
    assert again.gates is None or torch.equal(again.gates, training.gates)
    at_the_end, _ = train(*run, teacher=teacher, progress=progress)
    assert same(expected, at_the_end)  # stopped after the last epoch, before the result was saved


@pytest.mark.parametrize(
    "other", [{"lr": 0.01}, {"label_smoothing": 0.0}, {"csg": Csg(1)}, None], ids=["lr", "smoothing", "gates", "weights"]
)
def test_the_progress_of_another_run_is_refused(digits, teacher, tmp_path, other):
    model, data = digits
    progress = tmp_path / "run.part"
    interrupt(1, model, data.train, data.validation, RECIPE, progress=progress)
    model, recipe = (teacher, RECIPE) if other is None else (model, replace(RECIPE, **other))
    with pytest.raises(SlimrankError, match="other weights, data or settings"):
        train(model, data.train, data.validation, recipe, progress=progress)


def test_a_damaged_progress_file_is_refused(digits, tmp_path):
    model, data = digits
    progress = tmp_path / "run.part"
    progress.write_bytes(b"no training state")
    with pytest.raises(SlimrankError, match="damaged"):
        train(model, data.train, data.validation, RECIPE, progress=progress)
    assert progress.read_bytes() == b"no training state"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", 5), ("optimizer", {"state": {}}), ("random", torch.ones(3, dtype=torch.uint8)), ("losses", None), ("tops", 3),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_a_progress_file_of_other_content_is_refused(digits, tmp_path, key, value):
    """Whatever does not fit shows before the training goes on, or does not matter to it."""
    model, data = digits
    progress = tmp_path / "run.part"
    interrupt(1, model, data.train, data.validation, RECIPE, progress=progress)
    state = torch.load(progress, weights_only=True)
    torch.save({**state, key: value}, progress)
    with suppress(SlimrankError):
        train(model, data.train, data.validation, RECIPE, progress=progress)


class Every2nd:
    """A regulariser that notes what it is asked, and takes part in every second epoch."""

    def __init__(self):
        self.calls, self.count = [], torch.zeros(1)

    def active(self, epoch):
        return epoch % 2 == 0

    @contextmanager
    def context(self, labels):
        self.calls.append("enter")
        yield {"labels": labels}
        self.calls.append("leave")

    def penalty(self, seen, generator):
        assert seen["labels"].dtype == torch.int64
        self.calls.append("penalty")
        return 1.0

    def after_step(self, lr):
        assert lr > 0
        self.calls.append("step")
        self.count += 1

    def state(self):
        return {"count": self.count}

    def load(self, state):
        self.count = state["count"]


def test_a_regulariser_acts_around_every_step_of_its_epochs(digits):
    model, data = digits
    plain, regulariser = train(model, data.train, None, RECIPE)[1], Every2nd()
    torch.manual_seed(RECIPE.seed)
    run = TrainingRun(lenet(0).model, data.train, None, RECIPE, None, False, [regulariser])
    while not run.finished:
        run.epoch()
    assert regulariser.calls == ["enter", "leave", "penalty", "step"] * (2 * run.steps)
    assert run.losses[:2] == pytest.approx([plain.loss[0] + 1.0, plain.loss[1]])  # a constant moves no weight
    _, training = run.result()
    assert float(training.learnt["count"]) == 2 * run.steps
    assert run.state()["learnt"] == training.learnt


def test_a_training_in_json(digits):
    """Other programs read these keys."""
    model, data = digits
    recipe = replace(RECIPE, epochs=1, precision="fp32")
    told = train(model, data.train, data.validation, recipe)[1].to_dict()
    assert list(told) == [
        "epochs",
        "lr",
        "images",
        "seconds",
        "loss",
        "validation_top1",
        "best_epoch",
        "start_top1",
        "seed",
        "options",
    ]
    assert told["options"] == {
        "batch": 32, "weight_decay": 5e-4, "augment": "shift", "teacher": False, "smoothing": 0.1, "patience": None,
        "precision": "fp32", "asked": 1, "accumulate": 1, "ema": None,
    }  # fmt: skip


@pytest.mark.parametrize("start", [True, False])
def test_of_weights_that_tie_the_first_are_kept(digits, start):
    model, data = digits
    judge = Judge(data.validation, None, True, "cpu")
    tied = copy.deepcopy(model)
    for tensor in (tied.fc3.weight, tied.fc3.bias):
        tensor.data.mul_(2)  # decides the same
    if start:
        judge.start(model)
    else:
        judge.epoch(model)
    judge.epoch(tied)
    assert judge.best_epoch == (0 if start else 1)
    assert torch.equal(judge.best["fc3.weight"], model.fc3.weight)
    assert judge.idle == (0 if start else 1)  # patience counts epochs since the first of them


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_smoothed_cross_entropy_and_softened_divergence(digits, teacher, share, smoothing):
    """Szegedy et al. 2016, section 7; Hinton et al. 2015, section 2: at temperature 4, times its square."""
    model, data = digits
    recipe = Recipe(1, 0.1, label_smoothing=smoothing, teacher_share=share, precision="fp32")
    x, labels = next(iter(data.train.batches(16)))
    found = TrainingRun(model.eval(), data.train, None, recipe, teacher.eval(), True, []).loss(x, labels)
    logits, taught = model(x), teacher(x)
    wanted = smoothing / 10 + (1 - smoothing) * nn.functional.one_hot(labels, 10)
    hard = -(wanted * logits.log_softmax(1)).sum(1).mean()
    p, q = (taught / 4).softmax(1), (logits / 4).softmax(1)
    soft = 4**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(found, (1 - share) * hard + share * soft)


def test_patience_ends_training_and_the_best_epoch_is_kept(digits):
    model, data = digits
    _, training = train(model, data.train, data.validation, Recipe(30, 1e-6, patience=2, precision="fp32"))
    assert training.epochs == training.best_epoch + 2 < 30
    assert "stopped early, 30 asked for" in str(training)


@pytest.mark.parametrize("keep_start", [True, False])
def test_weights_that_no_epoch_bettered_are_kept_where_they_are_a_candidate(digits, keep_start):
    model, data = digits
    good, _ = train(model, data.train, data.validation, Recipe(3, 0.05, precision="fp32"))
    ruinous = Recipe(1, 3.0, augment="none", precision="fp32")
    after, training = train(good, data.train, data.validation, ruinous, keep_start=keep_start)
    assert same(good, after) is keep_start
    assert training.best_epoch == (0 if keep_start else 1)
    assert (training.start_top1 is None) is not keep_start
    assert ("left as they were" in str(training)) is keep_start


@pytest.mark.parametrize(
    ("validation", "trained_here", "kept"),
    [("test:0.2", False, True), ("train:0.1", False, False), ("train:0.1", True, True)],
    ids=["held from test", "perhaps seen", "known unseen"],
)
def test_the_start_is_a_candidate_only_where_validation_is_new_to_it(digits, validation, trained_here, kept):
    model, _ = digits
    data = open_data("digits", lenet(0).preprocessing, validation=validation, limit=200)
    checkpoint = replace(lenet(0), model=model, trained_on=[data.identity] if trained_here else None)
    found = finetune(checkpoint, data, Recipe(1, 0.01, precision="fp32"))
    assert (found.training.start_top1 is not None) is kept


def test_a_diverged_run_says_so(digits):
    _, data = digits
    torch.manual_seed(0)
    unbounded = nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.Linear(50, 50), nn.Linear(50, 10))
    with pytest.raises(SlimrankError, match=r"diverged in epoch .*; lower `lr` from 10"):
        train(unbounded, data.train, data.validation, Recipe(5, 10, precision="fp32"))


@pytest.mark.parametrize(("batch", "accumulate", "images"), [(8, 4, 180), (50, 3, 180), (7, 5, 180), (12, 2, 49)])
def test_accumulated_gradients_are_those_of_one_large_batch(digits, batch, accumulate, images):
    """LeNet has no BatchNorm. The last step has fewer batches, and of 49 images one of a single image, which is left out."""
    model, data = digits
    train_images = data.train.subset(torch.arange(images))
    recipe = replace(RECIPE, epochs=2, augment="none", precision="fp32")
    (small, told), (large, whole) = (
        train(model, train_images, None, replace(recipe, batch=b, accumulate=n))
        for b, n in ((batch, accumulate), (batch * accumulate, 1))
    )
    if images % batch != 1:
        assert told.loss == pytest.approx(whole.loss, rel=1e-4)
        for a, b in zip(small.parameters(), large.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    else:
        assert told.loss[0] == pytest.approx(whole.loss[0], rel=0.05)


def test_the_average_is_that_of_the_weights_after_each_step(digits, monkeypatch):
    model, data = digits
    seen = []
    step = TrainingRun.step
    monkeypatch.setattr(
        TrainingRun, "step", lambda run, active: (step(run, active), seen.append(run.model.fc1.weight.detach().clone()))
    )
    recipe = replace(RECIPE, epochs=2, precision="fp32", ema=0.6)
    found, training = train(model, data.train, None, recipe)
    expected = seen[0]
    for n, weight in enumerate(seen[1:], 1):
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(found.fc1.weight, expected)
    assert len(seen) == 2 * -(-len(data.train) // 32)
    assert training.to_dict()["options"]["ema"] == 0.6


def test_what_is_validated_and_kept_is_the_average(digits):
    """Its top-1, told, is that of the network that comes back."""
    model, data = digits
    found, training = train(model, data.train, data.validation, replace(RECIPE, precision="fp32", ema=0.5))
    right = accuracy(predictor(found), data.validation.batches(), 10).top1
    assert right == max(training.validation_top1) == training.validation_top1[training.best_epoch - 1]


def test_an_average_of_batchnorm_is_finite_and_counts(digits):
    _, data = digits
    model = fresh("resnet20-cifar", {"widths": [4, 4, 4]}, [str(i) for i in range(10)], 1, ImageSpec(size=16), 0).model
    found, _ = train(model, data.train.subset(torch.arange(64)), None, Recipe(1, 0.05, ema=0.9, precision="fp32"))
    norm = next(m for m in found.modules() if isinstance(m, nn.BatchNorm2d))
    assert int(norm.num_batches_tracked) == 2
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"epochs": 0}, "`epochs` is 0"),
        ({"lr": 0}, "`lr` is 0"),
        ({"label_smoothing": 1.0}, "`label_smoothing` is 1.0"),
        ({"teacher_share": -0.1}, "`teacher_share` is -0.1"),
        ({"patience": 0}, "`patience` is 0"),
        ({"precision": "fp8"}, "no precision 'fp8'"),
        ({"augment": "cutout"}, "no augmentation 'cutout'"),
        ({"accumulate": 0}, "`accumulate` is 0"),
        ({"ema": 1.0}, "`ema` is 1.0"),
        ({"ema": 0.9, "csg": Csg(1)}, "`ema` keeps averaged weights"),
    ],
    ids=lambda case: "-".join(case) if isinstance(case, dict) else "",
)
def test_bad_recipes(wrong, match):
    with pytest.raises(SlimrankError, match=match):
        replace(RECIPE, **wrong).check()


def test_a_recipe_is_read_without_torch():
    """The parser reads options, and `slimrank --help` waits for no heavy import."""
    code = "import sys, slimrank.compress.training.recipe; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert list(options(Recipe)) == [
        "epochs", "lr", "augment", "label_smoothing", "patience", "precision", "teacher_share", "accumulate", "ema",
        "sync_batchnorm",
        "seed", "device",
    ]  # fmt: skip


def test_recalibrated_statistics_are_those_of_the_images():
    torch.manual_seed(0)
    model = zoo.build("vgg16-cifar").eval()
    x = torch.randn(64, 3, 32, 32)
    made = recalibrate(model, [(x, torch.zeros(64))])
    first = model.features[0](x)
    torch.testing.assert_close(made.features[1].running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made.features[1].running_var, first.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), made.parameters(), strict=True))
    assert not any(module.training for module in made.modules())
    assert made.features[1].momentum == model.features[1].momentum
    assert model.features[1].running_mean.abs().max() == 0  # the model itself is left alone
    plain = zoo.build("lenet5").eval()
    assert same(recalibrate(plain, [(torch.randn(4, 1, 28, 28), torch.zeros(4))]), plain)
