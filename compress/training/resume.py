"""Progress file of an interrupted training: its state after the last whole epoch, and the name of the run it belongs to."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SlimrankError
from ...evaluate.data import Images
from ...files import whole
from ...processes import alone
from ..network.pickled import read_pickle
from .recipe import Recipe


def run_identity(
    recipe: Recipe, keep: tuple[bool, bool], splits: Sequence[Images | None], models: Sequence[nn.Module | None],
    gates: Tensor | None,
) -> str:  # fmt: skip
    """Hash the recipe, which epochs may be kept, the images, and the weights that a run starts from and learns from."""
    digest = hashlib.sha256(repr((recipe, keep)).encode())
    for images in splits:
        if images is not None:
            digest.update(repr(images.preprocessing).encode() + images.labels.numpy().tobytes())
            for picture in images.pictures:
                digest.update(picture.tobytes() if hasattr(picture, "tobytes") else str(picture).encode())
    if gates is not None:
        digest.update(gates.numpy().tobytes())
    for model in models:
        for tensor in () if model is None else model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def leave(path: Path, run: str, state: dict[str, Any]) -> None:
    """Replace the progress file by the state of the run named `run`, at once or not at all."""

    def write() -> None:
        packed = io.BytesIO()  # torch.save() tells a full disk as an error of its own
        torch.save({"run": run, **state}, packed)
        with whole(path) as temporary:
            temporary.write_bytes(packed.getbuffer())

    alone(write)


def take_up(path: Path, run: str) -> dict[str, Any] | None:
    """Read the state that `leave` wrote; None where there is no file.

    Raises SlimrankError for a file that is damaged or belongs to another run.
    """
    if not path.exists():
        return None
    try:
        state = read_pickle(path)
    except SlimrankError as error:
        raise _damaged(path) from error
    if not isinstance(state, dict) or state.get("run") != run:
        raise SlimrankError(
            f"{path} is of an interrupted run with other weights, data or settings; remove it to train from the start, "
            "or go on with the settings it was started with"
        )
    return state


@contextmanager
def going_on(path: Path) -> Iterator[None]:
    """Within the context what does not fit is a damaged progress file."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> SlimrankError:
    return SlimrankError(f"{path} is damaged and cannot be gone on from; remove it to train from the start")
