"""Read a pickled file without running what is in it, and say what a file is that cannot be read so."""

import argparse
import pathlib
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import SlimrankError
from .contents import SAVE, check_archive

NUMBER = np.float64(0).__reduce__()[0]  # what makes NumPy's scalars, under its names in old and new files
# What training scripts put beside the weights, and what does nothing when it is made: arguments, folders, a best accuracy.
HARMLESS: list[Any] = [
    argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath, np.dtype, *{type(np.dtype(kind)) for kind in "fdeilqbB?"},
    (NUMBER, "numpy.core.multiarray.scalar"), (NUMBER, "numpy._core.multiarray.scalar"),
]  # fmt: skip


def read_pickle(path: Path, trust_pickle: bool = False) -> Any:
    """Read what torch.save wrote; with `trust_pickle`, whatever else is in it, too, and TorchScript's archives."""
    script = check_archive(path)
    if script and not trust_pickle:
        raise SlimrankError(
            f"{path} is a TorchScript archive, which holds a program beside the tensors: {SAVE}, or add `trust_pickle` if you "
            "made the file yourself"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of kinds of tensors that are refused when they are used
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
