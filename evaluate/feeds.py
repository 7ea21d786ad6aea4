"""Images of a user's own for timing: arrays in an .npz file."""

import zipfile
from pathlib import Path

import numpy as np

from ..errors import SlimrankError
from .latency import Feed
from .runner import Runner


def stored(path: Path) -> Feed:
    """Images from an .npz file, in the array called as the file's input, or its only one: [n, ...], of which a batch takes the
    first. Raises SlimrankError for a file that is none, and, when images are taken, for other shapes, types and too few."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise SlimrankError(
                f"`inputs` {path} holds one bare array; write it with numpy.savez, the array called as the input"
            )
        with file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""  # NumPy's advises to unpickle
        raise SlimrankError(f"`inputs` {path} is no .npz file of arrays{reason}; write it with numpy.savez") from error

    def images(runner: Runner, batch: int) -> np.ndarray:
        name = runner.input.name if runner.input.name in arrays else next(iter(arrays), "")
        if name != runner.input.name and len(arrays) != 1:
            held = ", ".join(arrays) or "nothing"
            raise SlimrankError(f"`inputs` {path} holds {held}, and {runner.path} reads {runner.input.name}; call the array so")
        return fitted(arrays[name], runner, batch, f"`inputs` {path}")

    return images


def fitted(array: np.ndarray, runner: Runner, batch: int, what: str) -> np.ndarray:
    """The first `batch` of the images, as the type that the file reads; `what`: where they come from."""
    runner.check_batch(batch)
    sides = runner.input.shape[1:]
    same = array.ndim == len(sides) + 1 and all(
        not isinstance(side, int) or side == given for side, given in zip(sides, array.shape[1:], strict=True)
    )
    if not same:
        raise SlimrankError(f"{what} has images of {list(array.shape)}, and {runner.path} reads {runner.input.shape}")
    if len(array) < batch:
        raise SlimrankError(
            f"{what} has {len(array)} images, fewer than `batch` {batch}; give more, or ask for smaller batches"
        )
    found = array[:batch]
    whole = runner.kind.kind != "f"
    if found.dtype.kind not in "fiub" or (whole and not np.array_equal(found, found.astype(runner.kind))):
        raise SlimrankError(f"{what} has {array.dtype} that are not what {runner.path} reads, {runner.kind}; convert them")
    return np.ascontiguousarray(found, dtype=runner.kind)
