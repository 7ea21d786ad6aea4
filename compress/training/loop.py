"""The training loop: from scratch, fine-tuning, distillation; its state is written to disk after every epoch."""

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...clone import clone
from ...errors import SlimrankError
from ...evaluate.data import Images
from ...evaluate.dataspec import needs_labels
from .augment import augmented
from .average import averaged
from .judge import Judge
from .parallel import agreed, averaged_over_processes, check_batch, parallel, rows, summed, too_small, weight
from .recipe import Recipe
from .regularisers import Regulariser, regularisers
from .result import Settings, Training
from .resume import going_on, leave, run_identity, take_up

TEMPERATURE = 4  # of the teacher's softened logits


def train(
    model: nn.Module,
    images: Images,
    validation: Images | None,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    keep_best: bool = True,
    keep_start: bool = False,
    progress: Path | None = None,
    gates: Tensor | None = None,
) -> tuple[nn.Module, Training]:
    """Train a copy of `model` as `recipe` says.

    Images without labels are learnt from the teacher alone, and what validates best is what decides most often as it does.
    With `keep_best` and a validation split, the weights of its best epoch are returned, else the last; with `keep_start` as
    well, those it began with are one more candidate, which is fair where they have not been trained on these images.
    `progress`: a file that holds everything after every epoch; where it is there already, the run goes on from it and ends as
    if it had never been stopped; the caller removes it once the result is saved. `gates`: to go on from, [features, classes],
    where the recipe has gates. Raises SlimrankError when the loss is no longer finite, for images without labels and
    no teacher, and for a `progress` file of another run.
    """
    recipe.check()
    if teacher is None and not images.labelled:
        raise needs_labels("training", "add `teacher`, whose decisions are learnt, or data with classes")
    keep_best = keep_best and not recipe.keeps_last
    torch.manual_seed(recipe.seed)
    student = clone(model).to(recipe.device).to(memory_format=torch.channels_last)
    if teacher is not None:
        teacher = clone(teacher).to(recipe.device).to(memory_format=torch.channels_last).eval()
    example = torch.zeros(1, *images.preprocessing.shape, device=recipe.device)
    joining = regularisers(student, recipe, example, gates)
    forward = parallel(student, recipe, example)
    run = TrainingRun(student, images, validation, recipe, teacher, keep_best, joining, forward)
    name, state = "", None
    if progress is not None:
        name = run_identity(recipe, (keep_best, keep_start), (images, validation), (model, teacher), gates)
        state = take_up(progress, name)
    if state is not None and progress is not None:
        with going_on(progress):
            run.load(state)
    elif keep_start and keep_best:
        run.judge.start(run.learner)
    while not run.finished:
        run.epoch()
        if progress is not None:
            leave(progress, name, run.state())
    return run.result()


def settings(recipe: Recipe, images: Images, teacher: bool) -> Settings:
    """Resolve what the recipe leaves to the images and the hardware."""
    return Settings(
        batch=recipe.batch or (128 if len(images) >= 5000 else 32),
        weight_decay=recipe.decay,
        augment=recipe.augment or ("shift+flip" if len(images.preprocessing.mean) == 3 else "shift"),
        teacher=teacher,
        label_smoothing=recipe.label_smoothing,
        patience=recipe.patience,
        precision="bf16" if bf16(recipe) else "fp32",
        asked=recipe.epochs,
        accumulate=recipe.accumulate,
        ema=recipe.ema,
    )


def bf16(recipe: Recipe) -> bool:
    """Whether forward and backward run in bfloat16 on this machine."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if recipe.device != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def optimizer_and_schedule(
    model: nn.Module, recipe: Recipe, steps: int
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.OneCycleLR]:
    """SGD whose weight decay spares biases and norms (vectors), and its learning rate over epochs of `steps` each."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.decay}, {"params": plain, "weight_decay": 0.0}],
        lr=recipe.lr, momentum=0.9, nesterov=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=max(2, recipe.epochs * steps),
        pct_start=min(0.3, 1 / recipe.epochs), cycle_momentum=False, final_div_factor=1e3,
    )  # fmt: skip
    return optimizer, schedule


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes [images, classes], times the temperature squared."""
    student, taught = F.log_softmax(logits / TEMPERATURE, 1), F.softmax(teacher_logits / TEMPERATURE, 1)
    return TEMPERATURE**2 * F.kl_div(student, taught, reduction="batchmean")


class TrainingRun:
    """One training on its way, an epoch a call. `state` holds all that an epoch changes, so that `load` can go on."""

    def __init__(
        self, model: nn.Module, images: Images, validation: Images | None, recipe: Recipe, teacher: nn.Module | None,
        keep_best: bool, regularisers: list[Regulariser], forward: nn.Module | None = None,
    ):  # fmt: skip
        self.model, self.images, self.recipe = model, images, recipe
        self.forward = model if forward is None else forward
        self.teacher, self.regularisers = teacher, regularisers
        self.began = time.perf_counter()
        self.settings = settings(recipe, images, teacher is not None)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        check_batch(min(self.settings.batch, len(images)))
        self.batches = math.ceil(len(images) / self.settings.batch)
        self.steps = math.ceil(self.batches / recipe.accumulate)
        self.optimizer, self.schedule = optimizer_and_schedule(model, recipe, self.steps)
        self.average = None if recipe.ema is None else averaged(model, recipe.ema)
        self.losses: list[float] = []
        self.judge = Judge(validation, teacher, keep_best, recipe.device)

    @property
    def learner(self) -> nn.Module:
        """The network that is validated and kept."""
        return self.model if self.average is None else self.average.module

    @property
    def finished(self) -> bool:
        patience = self.recipe.patience
        return len(self.losses) >= self.recipe.epochs or (patience is not None and self.judge.idle >= patience)

    def epoch(self) -> None:
        """Train on all images once, then validate. Raises SlimrankError when the loss is no longer finite."""
        recipe, number = self.recipe, len(self.losses) + 1
        active = [regulariser for regulariser in self.regularisers if regulariser.active(number - 1)]
        self.forward.train()
        agreed(self.generator)
        total, n = 0.0, len(self.images)
        crops, batch = self.settings.augment.startswith("crop"), self.settings.batch
        batches = self.images.batches(batch, shuffle=self.generator, device=recipe.device, crops=crops, rows=rows())
        usable = n - (n % batch if too_small(n % batch) else 0)
        bar = tqdm(
            batches[: math.ceil(usable / batch)], desc=f"epoch {number}/{recipe.epochs}", leave=False, disable=None
        )  # fmt: skip
        group = recipe.accumulate * batch
        seen = 0
        for x, labels in bar:
            size = min(batch, usable - seen)
            share = size / min(group, usable - seen // group * group)
            total, seen = total + self.gradients(x, labels, active, size, share) * len(x), seen + size
            if seen % group == 0 or seen == usable:
                self.step(active)
        self.losses.append(summed(total) / n)
        averaged_over_processes((*self.model.buffers(), *(() if self.average is None else self.average.buffers())))
        if not math.isfinite(self.losses[-1]):
            raise SlimrankError(f"training diverged in epoch {number} (loss {self.losses[-1]}); {recipe.remedy}")
        self.judge.epoch(self.learner)

    def gradients(self, x: Tensor, labels: Tensor, active: list[Regulariser], size: int, share: float) -> float:
        """Add the gradients of this process's part of a batch of `size` images, which are this share of a step's; gives its
        loss."""
        x = augmented(x, self.settings.augment, self.generator, size, rows()).contiguous(memory_format=torch.channels_last)
        share *= weight(len(x), size)
        with ExitStack() as contexts:
            seen = [contexts.enter_context(regulariser.context(labels)) for regulariser in active]
            loss = self.loss(x, labels)
        for regulariser, maps in zip(active, seen, strict=True):
            loss = loss + regulariser.penalty(maps, self.generator)
        torch.autograd.backward(loss if share == 1 else share * loss)
        return loss.item()

    def step(self, active: list[Regulariser]) -> None:
        """Take one step along the gradients that have added up."""
        self.optimizer.step()
        for regulariser in active:
            regulariser.after_step(self.optimizer.param_groups[0]["lr"])
        self.optimizer.zero_grad()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the logits, mixed with the divergence from a teacher's; where there are no labels, that alone."""
        recipe = self.recipe
        taught: Tensor | None = None
        half = self.settings.precision == "bf16"
        with torch.autocast(torch.device(recipe.device).type, torch.bfloat16, enabled=half):
            logits = self.forward(x)
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(x)
        logits = logits.float()
        if taught is not None and not self.images.labelled:
            return distillation(logits, taught.float())
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if taught is not None:
            share = recipe.teacher_share
            loss = (1 - share) * loss + share * distillation(logits, taught.float())
        return loss

    def state(self) -> dict[str, Any]:
        """All that an epoch changes, as torch.save takes it and torch.load gives it with weights_only."""
        schedule = self.schedule.state_dict()
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in schedule.items() if isinstance(v, (int, float, bool))},
            "generator": self.generator.get_state(), "random": torch.get_rng_state(), "losses": self.losses,
            "average": {} if self.average is None else self.average.state_dict(), "learnt": self.learnt(),
            **self.judge.state(), "seconds": time.perf_counter() - self.began,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        for regulariser in self.regularisers:
            regulariser.load(state["learnt"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        self.losses = list(map(float, state["losses"]))
        self.judge.load(state)
        self.began -= state["seconds"]

    def learnt(self) -> dict[str, Tensor]:
        return {name: value for regulariser in self.regularisers for name, value in regulariser.state().items()}

    def result(self) -> tuple[nn.Module, Training]:
        """The network on the CPU, in eval mode, with the weights to keep, and the account of the run."""
        self.model.load_state_dict(self.judge.best or self.learner.state_dict())
        training = Training(
            epochs=len(self.losses), lr=self.recipe.lr, images=len(self.images), seconds=time.perf_counter() - self.began,
            loss=self.losses, validation_top1=self.judge.tops, start_top1=self.judge.start_top1,
            best_epoch=len(self.losses) if self.judge.best_epoch is None else self.judge.best_epoch,
            seed=self.recipe.seed, options=self.settings, labelled=self.images.labelled,
            learnt={name: value.cpu() for name, value in self.learnt().items()},
        )  # fmt: skip
        return self.model.cpu().to(memory_format=torch.contiguous_format).eval(), training
