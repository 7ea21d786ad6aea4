"""`slimrank demo`: the paper's ResNet-20 on scikit-learn's digits, trained here, then all of `compress`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..evaluate.data import open_data
from ..files import ready
from .network.checkpoint import save
from .options import Options
from .pipeline import Run, start
from .stages.training import fresh
from .training.loop import train
from .training.recipe import Recipe

MODEL, SIZE, SEED = "resnet20-cifar", 16, 0
EPOCHS, FINETUNE = 10, 6


def prepare(out: str | Path, say: Callable[[str], None]) -> Run:
    """Train ResNet-20 (its own widths, 16-32-64) unless DIR holds it already; the compress run that follows."""
    out = Path(out)
    trained = out / "trained.safetensors"
    ready(trained)
    if not trained.exists():
        blank = fresh(MODEL, None, [str(i) for i in range(10)], 1, SIZE, SEED)
        data = open_data("digits", blank.preprocessing, seed=SEED)
        model, training = train(blank.model, data.split("train"), data.validation, Recipe(EPOCHS, 0.1, seed=SEED))
        made = blank.then(model, step="train", epochs=EPOCHS, lr=0.1, seed=SEED, images=len(data.split("train")))
        save(replace(made, trained_on=data.identity), trained)
        say(f"train      {training.seconds:7.1f} s  {MODEL} on {len(data.split('train')):,} digits, {EPOCHS} epochs")
    options = Options(
        data="digits", epochs=FINETUNE, lr=0.05, batch=(1, 8, 32), rivals=True, scratch_epochs=EPOCHS + FINETUNE, seed=SEED
    )
    return start(trained, out, options)
