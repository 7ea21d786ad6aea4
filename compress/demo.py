"""`slimrank demo`: the paper's ResNet-20 on scikit-learn's digits, trained here, then all of `compress`."""

from collections.abc import Callable
from pathlib import Path

from ..evaluate.dataspec import DataSpec
from ..evaluate.imagespec import ImageSpec
from ..files import ready
from .network.checkpoint import save
from .options import CompressOptions
from .pipeline import Run, start
from .stages.finetune import finetune, untrained
from .training.recipe import Recipe

MODEL, SIZE = "resnet20-cifar", 16
DIGITS = DataSpec(data="digits")
EPOCHS, FINETUNE = 10, 6
GENTLE = 0.005  # after a repair: the best mean validation top-1 of six epochs among 0.05, 0.02, 0.01, 0.005 and 0.002


def prepare(out: str | Path, say: Callable[[str], None]) -> Run:
    """Train ResNet-20 (its own widths, 16-32-64) unless DIR holds it already; the compress run that follows."""
    trained = Path(out) / "trained.safetensors"
    ready(trained)
    if not trained.exists():
        blank = untrained(MODEL, None, DIGITS, seed=DIGITS.seed, images=ImageSpec(size=SIZE))
        data = DIGITS.open(blank.preprocessing)
        done = finetune(blank, data, Recipe(epochs=EPOCHS, lr=0.1), step="train")
        save(done.checkpoint, trained)
        training = done.training
        say(f"train      {training.seconds:7.1f} s  {MODEL} on {training.images:,} digits, {EPOCHS} epochs")
    options = CompressOptions(
        data=DIGITS, training=Recipe(lr=GENTLE), epochs=FINETUNE, rivals=True, scratch_epochs=EPOCHS + FINETUNE
    )
    return start(trained, out, options)
