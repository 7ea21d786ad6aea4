"""An ONNX file in ONNX Runtime, anybody's: one input of images, one output of logits, told what it reads and gives.

Other exporters fix the batch (PyTorch's own default), read float16 or raw pixels, or give more than the logits. What can be
served is; the rest is refused in one line when the file is opened.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..errors import SlimrankError
from .declared import check_declared
from .imagespec import Side
from .session import DEVICES, PLAIN, PROVIDERS, Tuning, check_provider, opened

__all__ = ["PROVIDERS", "Runner", "check_provider"]
LOGITS = "logits"
KINDS = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(uint16)": "uint16", "tensor(int16)": "int16", "tensor(uint32)": "uint32",
    "tensor(int32)": "int32", "tensor(uint64)": "uint64", "tensor(int64)": "int64",
}  # fmt: skip
LARGEST_FEED = 2**29  # bytes of one batch of random images


class Runner:
    """An ONNX file ready to run: images (float32, [batch, channels, height, width]) in, logits (float32) out.

    Images are fed as the type that the file reads, in its own batch where it has a fixed one. A file that reads whole
    numbers takes pixels 0..255. The logits are its only output, or of several the one called `logits`, or the only one of
    [batch, classes]. `threads`: of one operator; None takes all cores. `size`: pixels of images where the file leaves them
    open. Raises SlimrankError for a file that ONNX Runtime cannot load, one that reads more than one tensor, a provider
    that is not there, and where ONNX Runtime quietly falls back to another one.
    """

    def __init__(
        self, path: str | Path, provider: str = "cpu", threads: int | None = None, *, size: Side | None = None,
        tuning: Tuning = PLAIN, profile: Path | None = None,
    ):  # fmt: skip
        self.path, self.provider, self.size = str(path), provider, size
        check_declared(path)
        self.session = opened(path, provider, threads, tuning, profile)
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            named = ", ".join(one.name for one in inputs) or "none"
            raise SlimrankError(f"{path} has {len(inputs)} inputs ({named}), must have one, the images; export it so")
        self.input = inputs[0]
        if self.input.type not in KINDS or not self.input.shape:
            raise SlimrankError(
                f"{path} reads a {self.input.type} of {self.input.shape}, must read numbers of [batch, ...]; export it so"
            )
        self.kind = np.dtype(KINDS[self.input.type])

    @property
    def batch(self) -> int | None:
        """The only batch size that the file takes; None where it takes any."""
        first = self.input.shape[0]
        return first if isinstance(first, int) else None

    def __call__(self, images: Tensor) -> Tensor:
        step = self.batch or len(images)
        parts = [self._logits(part, step) for part in images.split(max(1, step))]
        return torch.cat(parts)

    def _logits(self, images: Tensor, batch: int) -> Tensor:
        """Run one batch; fewer images than the file takes are filled up with the last one."""
        rest = images[-1:].expand(batch - len(images), *images.shape[1:])
        output = self._logits_output()
        try:
            (logits,) = self.session.run([output.name], {self.input.name: self.fed(torch.cat([images, rest]))})
        except SlimrankError:
            raise
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise self._refusal(f"on images of {list(images.shape)}", error) from error
        found = torch.from_numpy(np.asarray(logits))
        if found.dim() < 2 or any(side != 1 for side in found.shape[2:]) or not found.is_floating_point():
            raise SlimrankError(
                f"{self.path} gives {output.name}, {found.dtype} of {list(found.shape)}, must give logits of [batch, classes]; "
                "export the network without what follows them"
            )
        return found.flatten(1).float()[: len(images)]

    def fed(self, images: Tensor) -> np.ndarray:
        """Images as the type that the file reads; SlimrankError where it reads whole numbers and they are none."""
        if self.kind.kind == "f":
            return images.numpy().astype(self.kind, copy=False)
        whole, limits = images.round(), np.iinfo(self.kind)
        inside = limits.min <= float(whole.min()) and float(whole.max()) <= limits.max
        if not inside or bool((images - whole).abs().max() > 1e-2):
            raise SlimrankError(
                f"{self.path} reads whole numbers ({self.kind}), which these images are not; leave out `mean` and `std`, or "
                "export it with float32 images"
            )
        return whole.numpy().astype(self.kind)

    def _logits_output(self) -> Any:
        outputs = [one for one in self.session.get_outputs() if one.type.startswith("tensor(")]
        flat = [one for one in outputs if len(one.shape) == 2]
        for likely in (outputs, [one for one in outputs if one.name == LOGITS], flat):
            if len(likely) == 1:
                return likely[0]
        named = ", ".join(one.name for one in self.session.get_outputs()) or "none"
        raise SlimrankError(
            f"{self.path} gives {named}: which of them are the logits of [batch, classes] it does not say; export it with "
            f"these alone, or call them {LOGITS}"
        )

    def sides(self) -> tuple[int, ...]:
        """The shape of one image; height and width that the file leaves open are `size`, open channels 3.

        Raises SlimrankError where more is open, and where the file takes another size.
        """
        given = tuple(self.input.shape[1:])
        if self.size is None:
            if all(isinstance(side, int) for side in given):
                return given
            raise SlimrankError(
                f"{self.path} leaves its input open ({self.input.shape}); say its images' `size`, as 224 or 224x320"
            )
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        for wanted in ((None, *size), (*size, None)):  # channels first, channels last
            pairs = list(zip(given, wanted, strict=False))
            if len(given) == 3 and all(w is None or not isinstance(side, int) or side == w for side, w in pairs):
                return tuple(side if isinstance(side, int) else w or 3 for side, w in pairs)
        raise SlimrankError(f"{self.path} reads {self.input.shape}, not images of `size` {size[0]}x{size[1]}; leave `size` out")

    def example(self, batch: int) -> np.ndarray:
        """Random images of [batch, ...] in the type that the file reads; of another batch than it takes, an error."""
        shape = self.sides()
        self.check_batch(batch)
        if (bytes_fed := batch * int(np.prod(shape, dtype=object)) * 4) > LARGEST_FEED:
            raise SlimrankError(
                f"{self.path} reads {bytes_fed:,} bytes a batch of {batch}; at most {LARGEST_FEED:,} can be tried"
            )
        generator = np.random.default_rng(0)
        if self.kind.kind == "f":
            return generator.standard_normal((batch, *shape), dtype=np.float32).astype(self.kind, copy=False)
        return generator.integers(0, min(256, int(np.iinfo(self.kind).max)), (batch, *shape), dtype=self.kind)

    def check_batch(self, batch: int) -> None:
        if self.batch not in (None, batch):
            raise SlimrankError(f"{self.path} has a fixed batch of {self.batch}, not of {batch}; ask for `batch` {self.batch}")

    def bound(self, batch: int, images: np.ndarray | None = None) -> Callable[[], object]:
        """A call that runs `images` (None: random ones of that batch), inputs and outputs bound where the provider computes:
        ONNX Runtime's time without Python's in `session.run`, and without copies to and from a GPU."""
        binding, outputs = self.session.io_binding(), self.session.get_outputs()
        if not outputs or not all(one.type.startswith("tensor(") for one in outputs):
            given = ", ".join(f"{one.name}: {one.type}" for one in outputs) or "nothing"
            raise SlimrankError(f"{self.path} gives {given}; only files that give tensors are timed; export the network alone")
        device = DEVICES.get(self.provider, "cpu")
        fed = self.example(batch) if images is None else np.ascontiguousarray(images)
        value = onnxruntime.OrtValue.ortvalue_from_numpy(fed, device, 0)
        binding.bind_ortvalue_input(self.input.name, value)
        for output in outputs:
            binding.bind_output(output.name, device)

        def call() -> object:
            self.session.run_with_iobinding(binding)
            return value, fed  # bound by address: they must live as long as the call

        try:
            call()
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise self._refusal(f"at `batch` {batch}", error) from error
        return call

    def _refusal(self, where: str, error: Exception) -> SlimrankError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        return SlimrankError(f"{self.path} does not run {where}: {reason}")
