"""One forward pass of anybody's network: what it returns becomes logits, what it raises is told as the network's own error."""

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SlimrankError

LOGITS = ("logits", "out", "output", "outputs", "pred", "preds", "scores")  # names of logits, the likeliest first
Keys = tuple[Any, ...]  # of dicts, places in tuples and lists, names of attributes
NOT_THEIRS = {Path(__file__).resolve().parents[1], Path(torch.__file__).resolve().parent}  # folders of code


def forward(model: nn.Module, images: Tensor) -> Any:
    """Run a network in eval mode, without gradients. Raises SlimrankError that tells what its forward() raised, and where."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # what a module keeps for later must not be an inference tensor: it may be trained
            return model(images)
    except SlimrankError:
        raise
    except Exception as error:  # a user's forward() raises whatever it likes
        raise failure(error, images) from error
    finally:
        model.train(training)


def failure(error: Exception, images: Tensor) -> SlimrankError:
    """Make the error for a forward() that fails on images [n, channels, height, width]."""
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return SlimrankError(
            f"the model's forward() takes more than one tensor ({error}); slimrank compresses classifiers of one image tensor: "
            "wrap the model in a module that fills in the rest"
        )
    return SlimrankError(
        f"the model fails on an input of shape {list(images.shape)}: {told(error)}; check `size`, `mean` and `model`"
    )


def told(error: BaseException) -> str:
    """An error of the user's code in words: its type, the first line of its message, and the line of code where that is his."""
    text = str(error).strip()
    reason = type(error).__name__ + (f": {text.splitlines()[0][:200]}" if text else "")
    frames = [(Path(frame.filename).resolve(), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    users = [(path, line) for path, line in frames if path.exists() and not NOT_THEIRS & set(path.parents)]
    return reason + (f" ({users[-1][0].name}, line {users[-1][1]})" if users else "")


def logits_of(output: object, classes: int | None = None) -> Tensor:
    """Take the logits, [images, classes], out of what a network returns. Raises SlimrankError where there are none."""
    logits = flat(at(output, place(output, classes)))
    if logits.dim() != 2:
        raise _no_logits(logits)
    return logits


def place(output: object, classes: int | None = None) -> Keys:
    """Find the logits in what a network returns, a tensor or a tuple, list, dict or object that holds one: keys to follow.

    A name that says so decides, then the one tensor that is as wide as there are `classes`, then the first tensor [images, n].
    Raises SlimrankError where there is none, and where nothing tells which of several it is.
    """
    if isinstance(output, Tensor):
        return ()
    tensors = [(keys, tensor) for keys, tensor in _tensors(output) if _is_logits(tensor)]
    found = [(keys, tensor) for keys, tensor in tensors if tensor.dim() > 1] or tensors
    named = [keys for name in LOGITS for keys, _ in found if name in keys]
    fitting = [keys for keys, tensor in found if tensor.shape[1:2] == (classes,)]
    if not found:
        raise _no_logits(output)
    if not named and len(fitting) != 1 and len(found) > 1 and isinstance(output, Mapping):
        raise SlimrankError(
            f"the model returns a dict of {', '.join(map(str, output))}, none of which is called logits; call them so"
        )
    return (named or fitting or [keys for keys, _ in found])[0]


def at(output: Any, keys: Keys) -> Any:
    """Follow keys into what a network returns."""
    for key in keys:
        output = (
            output[key] if isinstance(output, (Mapping, Sequence)) and not hasattr(output, "_fields") else getattr(output, key)
        )
    return output


def flat(logits: object) -> Tensor:
    """Logits without the axes of one position that stand behind the classes in a fully convolutional network."""
    if not isinstance(logits, Tensor) or not _is_logits(logits):
        raise _no_logits(logits)
    return logits.flatten(1) if logits.dim() > 2 else logits


def _is_logits(tensor: Tensor) -> bool:
    """Tell whether a tensor has the shape of logits: [images, classes], perhaps one position behind, or [images]."""
    return tensor.is_floating_point() and tensor.dim() > 0 and tensor.shape[2:].numel() == 1


def _no_logits(output: object) -> SlimrankError:
    return SlimrankError(
        f"the model must return one tensor of logits, [images, classes], and returns {_described(output)}; "
        "wrap it so that it does"
    )


def _described(output: object) -> str:
    return f"a tensor of shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _parts(output: object) -> list[tuple[Any, object]]:
    """Names (or places) and values of what a forward() returns together; none for anything that holds no other values."""
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return list(zip(output._fields, output, strict=True))
    if isinstance(output, (tuple, list)):
        return list(enumerate(output))
    return list(getattr(output, "__dict__", {}).items())


def _tensors(output: object, depth: int = 3) -> list[tuple[Keys, Tensor]]:
    """Every tensor in what a forward() returns, with the keys that lead to it, at most `depth` of them."""
    if isinstance(output, Tensor):
        return [((), output)]
    parts = _parts(output) if depth else []
    return [((name, *keys), tensor) for name, part in parts for keys, tensor in _tensors(part, depth - 1)]
