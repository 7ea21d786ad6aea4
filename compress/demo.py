"""`slimrank demo`: LeNet-5 on 400 characters that are drawn here, trained here, then all of `compress`."""

from collections.abc import Callable
from pathlib import Path

from ..evaluate.dataspec import DataSpec
from ..evaluate.imagespec import ImageSpec
from ..files import ready
from .network.checkpoint import save
from .options import CompressOptions
from .pipeline import Run, start
from .pruning.options import Cut
from .stages.finetune import finetune, untrained
from .stages.options import PruneOptions
from .training.recipe import Recipe

MODEL, WIDTHS, SIZE = "lenet5", (20, 50, 800, 512), 28
GLYPHS = DataSpec(data="glyphs")
EPOCHS, LR = 10, 0.1
CUT = Cut(macs=0.3, protect=("fc2",))  # what the classifier reads is left to the class-specific head
FINETUNE, GENTLE = 2, 0.02  # the best validation top-1 of 0.01, 0.02 and 0.05


def prepare(out: str | Path, say: Callable[[str], None]) -> Run:
    """Train LeNet-5 (the classic widths) unless DIR holds it already; the compress run that follows."""
    trained = Path(out) / "trained.safetensors"
    ready(trained)
    if not trained.exists():
        blank = untrained(MODEL, {"widths": WIDTHS}, GLYPHS, seed=GLYPHS.seed, images=ImageSpec(size=SIZE))
        data = GLYPHS.open(blank.preprocessing)
        done = finetune(blank, data, Recipe(epochs=EPOCHS, lr=LR), step="train")
        save(done.checkpoint, trained)
        training = done.training
        say(
            f"train      {training.seconds:7.1f} s  {MODEL} on {training.images:,} drawn characters, {EPOCHS} epochs: {trained}"
        )
    options = CompressOptions(
        data=GLYPHS, pruning=PruneOptions(cut=CUT), training=Recipe(lr=GENTLE), epochs=FINETUNE, rivals=True,
        scratch_epochs=EPOCHS + FINETUNE,
    )  # fmt: skip
    return start(trained, out, options)
