"""The training loop: from scratch, fine-tuning, distillation; what it had reached is on disk after every epoch."""

import copy
import hashlib
import pickle
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import SlimrankError
from ...evaluate.accuracy import accuracy, predictor
from ...evaluate.data import Images
from ...files import whole
from ..channels.features import classifier
from ..channels.tracing import channel_map
from .block_norm import Regularizer
from .gates import Gates
from .recipe import Recipe


@dataclass(frozen=True)
class Training:
    """What a run did. `validation_top1` has one entry an epoch; the weights kept are those of `best_epoch` (from 1).

    `epochs` were run, fewer than asked for where `patience` ended it. `seconds` counts a run that was taken up again in full.
    """

    epochs: int
    lr: float
    images: int
    seconds: float
    loss: list[float]
    validation_top1: list[float]
    best_epoch: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    gates: Tensor | None = field(default=None, repr=False)  # [features, classes], where the recipe has them

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "gates"}

    def __str__(self) -> str:
        tops = " ".join(f"{t:.4f}" for t in self.validation_top1)
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        early = f" (stopped early, {self.options['asked']} asked for)" if self.options.get("asked", 0) > self.epochs else ""
        return f"{epochs}{early} of {self.images:,} images in {self.seconds:.0f} s; validation top-1 {tops}"


def bf16(recipe: Recipe) -> bool:
    """Whether forward and backward run in bfloat16 on this machine."""
    if recipe.precision != "auto":
        return recipe.precision == "bf16"
    if recipe.device != "cpu":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def train(
    model: nn.Module,
    images: Images,
    validation: Images | None,
    recipe: Recipe,
    *,
    teacher: nn.Module | None = None,
    keep_best: bool = True,
    progress: Path | None = None,
    gates: Tensor | None = None,
) -> tuple[nn.Module, Training]:
    """Train a copy of `model` as `recipe` says.

    With `keep_best` and a validation split, the weights of its best epoch are returned, else the last. `progress`: a file
    that holds everything after every epoch; where it is there already, the run goes on from it and ends as if it had never
    been stopped; who called removes it once the result is saved. Raises SlimrankError when the loss is no longer finite, and
    for a `progress` file of another run. `gates`: to go on from, [features, classes], where the recipe has gates.
    """
    recipe.check()
    run = _Run(model, images, validation, recipe, teacher, keep_best, gates)
    if progress is not None:
        run.take_up(progress)
    while not run.finished:
        run.epoch()
        if progress is not None:
            run.leave(progress)
    return run.result()


class _Run:
    """One training on its way: everything that an epoch changes is in `state()`."""

    def __init__(self, model, images, validation, recipe: Recipe, teacher, keep_best: bool, gates: Tensor | None):
        self.recipe, self.images, self.validation, self.keep_best = recipe, images, validation, keep_best
        self.began = time.perf_counter()
        self.batch = recipe.batch or (128 if len(images) >= 5000 else 32)
        self.augment = recipe.augment or ("shift+flip" if len(images.preprocessing.mean) == 3 else "shift")
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.given = model
        self.model = copy.deepcopy(model).to(recipe.device).to(memory_format=torch.channels_last)
        self.teacher = None
        if teacher is not None:
            self.teacher = copy.deepcopy(teacher).to(recipe.device).to(memory_format=torch.channels_last).eval()
        self.norm: Regularizer | None = None
        self.gates: Gates | None = None
        if recipe.block_norm is not None or recipe.csg is not None:
            self.keep_best = False
            example = torch.zeros(1, *images.preprocessing.shape, device=recipe.device)
            channels = channel_map(self.model, example)
            if recipe.block_norm is not None:
                self.norm = Regularizer(self.model, channels, recipe.block_norm)
            if recipe.csg is not None:
                name, linear = classifier(self.model, channels)
                self.gates = Gates(self.model, name, linear.weight, gates)
        self.given_gates = gates
        self.decay = decay = 0.0 if recipe.block_norm is not None and recipe.block_norm.strength else recipe.weight_decay
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        plain = [p for p in self.model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}],
            lr=recipe.lr, momentum=0.9, nesterov=True,
        )  # fmt: skip
        self.per_epoch = -(-len(images) // self.batch)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, recipe.lr, total_steps=max(2, recipe.epochs * self.per_epoch),
            pct_start=min(0.3, 1 / recipe.epochs), cycle_momentum=False, final_div_factor=1e3,
        )  # fmt: skip
        self.classes = 0
        self.losses: list[float] = []
        self.tops: list[float] = []
        self.best: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        return self.tops.index(max(self.tops)) + 1 if self.keep_best and self.tops else len(self.losses)

    @property
    def finished(self) -> bool:
        patience = self.recipe.patience
        idle = len(self.tops) - (self.tops.index(max(self.tops)) + 1 if self.tops else 0)
        return len(self.losses) >= self.recipe.epochs or (patience is not None and idle >= patience)

    def epoch(self) -> None:
        recipe, number = self.recipe, len(self.losses) + 1
        self.model.train()
        gated = recipe.csg is not None and self.gates is not None and recipe.csg.gated(number - 1)
        total = 0.0
        bar = tqdm(
            self.images.batches(self.batch, shuffle=self.generator, device=recipe.device),
            desc=f"epoch {number}/{recipe.epochs}", total=self.per_epoch, leave=False, disable=None,
        )  # fmt: skip
        for x, labels in bar:
            if len(x) < 2:  # BatchNorm cannot train on one image
                continue
            x = augmented(x, self.augment, self.generator).contiguous(memory_format=torch.channels_last)
            loss = self.loss(x, labels, gated)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            lr = self.optimizer.param_groups[0]["lr"]
            if self.norm is not None:
                self.norm.shrink(lr)
            if gated and self.gates is not None:
                self.gates.step(lr)
            self.schedule.step()
            total += loss.item() * len(x)
        self.losses.append(total / len(self.images))
        if not torch.isfinite(torch.tensor(self.losses[-1])):
            less = " or `block_norm`'s LAMBDA" if recipe.block_norm is not None else ""
            raise SlimrankError(
                f"training diverged in epoch {number} (loss {self.losses[-1]}); lower `lr` from {recipe.lr}{less}"
            )
        if self.validation is not None and len(self.validation):
            batches = self.validation.batches(device=recipe.device)
            top1 = accuracy(predictor(self.model), batches, self.classes).top1
            if self.keep_best and top1 > max(self.tops, default=-1.0):
                self.best = {k: v.clone() for k, v in self.model.state_dict().items()}
            self.tops.append(top1)

    def loss(self, x: Tensor, labels: Tensor, gated: bool) -> Tensor:
        maps: dict[str, Tensor] = {}
        with ExitStack() as watching:
            if gated and self.gates is not None:
                watching.enter_context(self.gates.on(labels))
            if self.norm is not None:
                maps = watching.enter_context(self.norm.watch())
            loss = self.of_logits(x, labels)
        if gated and self.gates is not None:
            loss = loss + self.gates.penalty()
        return loss if self.norm is None else loss + self.norm.penalty(maps, self.generator)

    def of_logits(self, x: Tensor, labels: Tensor) -> Tensor:
        recipe = self.recipe
        with torch.autocast(torch.device(recipe.device).type, torch.bfloat16, enabled=bf16(recipe)):
            logits = self.model(x)
            soft = None
            if self.teacher is not None:
                with torch.no_grad():
                    soft = self.teacher(x)
        logits, self.classes = logits.float(), logits.shape[1]
        loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
        if soft is None:
            return loss
        hint = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(soft.float() / 4, 1), reduction="batchmean")
        return (1 - recipe.teacher_share) * loss + recipe.teacher_share * 16 * hint

    def result(self) -> tuple[nn.Module, Training]:
        if self.best:
            self.model.load_state_dict(self.best)
        recipe = self.recipe
        options = {
            "batch": self.batch, "weight_decay": self.decay, "augment": self.augment,
            "teacher": self.teacher is not None, "smoothing": recipe.label_smoothing, "patience": recipe.patience,
            "precision": "bf16" if bf16(recipe) else "fp32", "asked": recipe.epochs,
        }  # fmt: skip
        seconds = time.perf_counter() - self.began
        model = self.model.cpu().to(memory_format=torch.contiguous_format).eval()
        done = Training(
            len(self.losses),
            recipe.lr,
            len(self.images),
            seconds,
            self.losses,
            self.tops,
            self.best_epoch,
            recipe.seed,
            options,
            None if self.gates is None else self.gates.values.detach().cpu(),
        )
        return model, done

    # -- an interrupted run goes on -------------------------------------------------------------------------------------

    def identity(self) -> str:
        """Names the run: recipe, images, and the weights that it starts from and learns from."""
        digest = hashlib.sha256(repr((self.recipe, self.keep_best)).encode())
        for images in (self.images, self.validation):
            if images is not None:
                digest.update(repr(images.preprocessing).encode() + images.labels.numpy().tobytes())
                for picture in images.pictures:
                    digest.update(picture.tobytes() if hasattr(picture, "tobytes") else str(picture).encode())
        if self.given_gates is not None:
            digest.update(self.given_gates.numpy().tobytes())
        for model in (self.given, self.teacher):
            for tensor in () if model is None else model.state_dict().values():
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def leave(self, path: Path) -> None:
        """Write the state to a temporary name, then rename."""
        state = {
            "run": self.identity(), "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if isinstance(v, (int, float, bool))},
            "generator": self.generator.get_state(), "random": torch.get_rng_state(), "losses": self.losses,
            "gates": None if self.gates is None else self.gates.values.detach(),
            "tops": self.tops, "best": self.best, "seconds": time.perf_counter() - self.began,
        }  # fmt: skip
        with whole(path) as temporary:
            torch.save(state, temporary)

    def take_up(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            raise SlimrankError(f"{path} is damaged and cannot be gone on from; remove it to train from the start") from error
        if not isinstance(state, dict) or state.get("run") != self.identity():
            raise SlimrankError(
                f"{path} is of an interrupted run with other weights, data or settings; remove it to train from the start, "
                "or go on with the settings it was started with"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.gates is not None:
            self.gates.values.data.copy_(state["gates"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        self.losses, self.tops, self.best = state["losses"], state["tops"], state["best"]
        self.began -= state["seconds"]


def augmented(x: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to an eighth of its side (zeros, the mean, come in) and mirrored by a coin's toss."""
    n, _, height, width = x.shape
    if "flip" in augment:
        flip = torch.rand(n, generator=generator).to(x.device) < 0.5
        x = torch.where(flip.view(-1, 1, 1, 1), x.flip(3), x)
    if "shift" in augment:
        pad = max(1, height // 8)
        padded = F.pad(x, (pad,) * 4)
        top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
        rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
        every = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        x = padded[every, channel, rows, columns]
    return x
