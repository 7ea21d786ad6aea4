"""The training loop: from scratch, fine-tuning, distillation."""

import copy
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import SlimrankError, near
from ..evaluate.accuracy import accuracy, predictor
from ..evaluate.data import Images

AUGMENT = ("none", "shift", "shift+flip")


@dataclass(frozen=True)
class Training:
    """What a run did. `validation_top1` has one entry an epoch; the weights kept are those of `best_epoch` (from 1)."""

    epochs: int
    lr: float
    images: int
    seconds: float
    loss: list[float]
    validation_top1: list[float]
    best_epoch: int
    seed: int
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        tops = " ".join(f"{t:.4f}" for t in self.validation_top1)
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        return f"{epochs} of {self.images:,} images in {self.seconds:.0f} s; validation top-1 {tops}"


def check(epochs: int, lr: float, augment: str | None) -> None:
    """Raise SlimrankError for settings that cannot train."""
    if epochs < 1:
        raise SlimrankError(f"--epochs is {epochs}, must be at least 1")
    if not 0 < lr <= 10:
        raise SlimrankError(f"--lr is {lr}, must lie between 0 and 10; 0.02 to 0.1 is usual")
    if augment is not None and augment not in AUGMENT:
        raise SlimrankError(f"no augmentation {augment!r}; {near(augment, AUGMENT)}")


def train(
    model: nn.Module,
    images: Images,
    validation: Images | None,
    *,
    epochs: int,
    lr: float,
    batch: int | None = None,
    weight_decay: float = 5e-4,
    seed: int = 0,
    device: str = "cpu",
    teacher: nn.Module | None = None,
    augment: str | None = None,
    keep_best: bool = True,
) -> tuple[nn.Module, Training]:
    """Train a copy of `model`: SGD with Nesterov momentum 0.9, one epoch's warm-up at most, cosine to zero.

    `batch`: images a step (default: 128, 32 where there are fewer than 5,000 images, so that an epoch has enough steps).
    `teacher`: half of the loss becomes cross-entropy against its softened logits (Hinton et al. 2015, temperature 4).
    `augment`: `shift` by up to an eighth of the image, `flip` left-right; default `shift+flip` for colour images and
    `shift` for grey ones (digits are not mirror images). With `keep_best` and a validation split, the weights of its
    best epoch are returned, else the last. Raises SlimrankError when the loss is no longer finite.
    """
    check(epochs, lr, augment)
    augment = augment or ("shift+flip" if len(images.preprocessing.mean) == 3 else "shift")
    start = time.perf_counter()
    batch = batch or (128 if len(images) >= 5000 else 32)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=lr, momentum=0.9, nesterov=True,
    )  # fmt: skip
    per_epoch = -(-len(images) // batch)
    steps = max(2, epochs * per_epoch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, lr, total_steps=steps, pct_start=min(0.3, 1 / epochs), cycle_momentum=False, final_div_factor=1e3
    )
    if teacher is not None:
        teacher = teacher.to(device).eval()
    losses, tops = [], []
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, epochs, {})
    for epoch in range(1, epochs + 1):
        model.train()
        total = 0.0
        progress = tqdm(
            images.batches(batch, shuffle=generator, device=device),
            desc=f"epoch {epoch}/{epochs}", total=per_epoch, leave=False, disable=None,
        )  # fmt: skip
        for x, labels in progress:
            if len(x) < 2:  # BatchNorm cannot train on one image
                continue
            x = augmented(x, augment, generator).contiguous(memory_format=torch.channels_last)
            logits = model(x)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.inference_mode():
                    soft = F.softmax(teacher(x) / 4, 1)
                loss = 0.5 * loss + 0.5 * 16 * F.kl_div(F.log_softmax(logits / 4, 1), soft.clone(), reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(x)
        losses.append(total / len(images))
        if not torch.isfinite(torch.tensor(losses[-1])):
            raise SlimrankError(f"training diverged in epoch {epoch} (loss {losses[-1]}); lower --lr from {lr}")
        if validation is not None and len(validation):
            top1 = accuracy(predictor(model), validation.batches(device=device), logits.shape[1]).top1
            tops.append(top1)
            if keep_best and top1 > best[0]:
                best = (top1, epoch, {k: v.clone() for k, v in model.state_dict().items()})
    if best[2]:
        model.load_state_dict(best[2])
    options = {"batch": batch, "weight_decay": weight_decay, "augment": augment, "teacher": teacher is not None}
    seconds = time.perf_counter() - start
    model = model.cpu().to(memory_format=torch.contiguous_format).eval()
    return model, Training(epochs, lr, len(images), seconds, losses, tops, best[1], seed, options)


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
