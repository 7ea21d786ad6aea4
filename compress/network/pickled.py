"""Read a pickled file without running what is in it, and say what a file is that cannot be read so."""

import argparse
import pathlib
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import SlimrankError

SAVE = "save model.state_dict() and take that file"
NUMBER = np.float64(0).__reduce__()[0]  # what makes NumPy's scalars, under its names in old and new files
# What training scripts put beside the weights, and what does nothing when it is made: arguments, folders, a best accuracy.
HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, np.dtype, *{type(np.dtype(kind)) for kind in "fdeilqbB?"},
    (NUMBER, "numpy.core.multiarray.scalar"), (NUMBER, "numpy._core.multiarray.scalar"),
]  # fmt: skip
OTHERS = {  # how a file begins that is no PyTorch checkpoint -> what it is, what to do
    b"version https://git-lfs": ("a pointer of Git LFS, not the weights", "fetch them with git lfs pull"),
    b"<": ("a web page, not the weights", "download the file itself"),
    b"\x89HDF": ("an HDF5 file, as Keras writes them", "slimrank reads PyTorch's checkpoints"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it first"),
}


def read_pickle(path: Path, trust_pickle: bool) -> Any:
    """Read what torch.save wrote; with `trust_pickle`, whatever else is in it, too, and TorchScript's archives."""
    script = _refuse_others(path)
    if script and not trust_pickle:
        raise SlimrankError(
            f"{path} is a TorchScript archive, which holds a program beside the tensors: {SAVE}, or add `trust_pickle` if you "
            "made the file yourself"
        )
    try:
        if script:
            return torch.jit.load(path, map_location="cpu")
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:  # torch has one type for damaged files and for files that would run code
        if "weights_only" in str(error).lower() or "WeightsUnpickler" in str(error) or "Unsupported" in str(error):
            raise SlimrankError(
                f"{path} holds more than tensors and would run code when read; save model.state_dict() instead, "
                "or add `trust_pickle` if you made the file yourself"
            ) from error
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint; copy or make it again") from error
    except Exception as error:  # of other bytes the unpickler makes Index-, Type-, Assertion- or struct.error, too
        reason = f"{type(error).__name__}: {str(error)[:100]}".splitlines()[0]
        raise SlimrankError(f"{path} is damaged or no PyTorch checkpoint ({reason}); copy or make it again") from error


def is_safetensors(path: Path) -> bool:
    """Tell a .safetensors file by its content: the length of the header, then the header, a JSON object."""
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _refuse_others(path: Path) -> bool:
    """Raise SlimrankError for a sound file of another kind; True for a TorchScript archive."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    known = next((told for magic, told in OTHERS.items() if start.startswith(magic)), None)
    names = _members(path)
    if any(name.endswith("archive_format") for name in names):
        known = "an archive of torch.export", SAVE
    elif names and all(name.endswith(".npy") for name in names):
        known = "an archive of NumPy", SAVE
    elif not names and tarfile.is_tarfile(path):
        known = "a tar archive", "unpack it first"
    if known is not None:
        raise SlimrankError(f"{path} is {known[0]}; {known[1]}")
    return any(name.endswith("/constants.pkl") for name in names)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return []
