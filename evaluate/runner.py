"""An ONNX file in ONNX Runtime, anybody's: one input of images, one output of logits, told what it reads and gives.

Other exporters fix the batch (PyTorch's own default), read float16 or raw pixels, or give more than the logits. What can be
served is; the rest is refused in one line when the file is opened.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..errors import SlimrankError, near

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
SWAP = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
LOGITS = "logits"
KINDS = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(uint8)": "uint8",
    "tensor(int8)": "int8", "tensor(uint16)": "uint16", "tensor(int16)": "int16", "tensor(uint32)": "uint32",
    "tensor(int32)": "int32", "tensor(uint64)": "uint64", "tensor(int64)": "int64",
}  # fmt: skip
LARGEST_FEED = 2**31  # bytes of one batch of random images


class Runner:
    """An ONNX file ready to run: images (float32, [batch, channels, height, width]) in, logits (float32) out.

    Images are fed as the type that the file reads, in its own batch where it has a fixed one. A file that reads whole
    numbers takes pixels 0..255. The logits are its only output, or of several the one called `logits`, or the only one of
    [batch, classes]. `threads`: of one operator; None takes all cores. Raises SlimrankError for a file that ONNX Runtime
    cannot load, one that reads more than one tensor, a provider that is not there, and where ONNX Runtime quietly falls
    back to another one.
    """

    def __init__(self, path: str | Path, provider: str = "cpu", threads: int | None = None):
        wanted = check_provider(provider)
        self.path = str(path)
        self.session = _session(path, wanted, threads)
        actual = self.session.get_providers()[0]
        if actual != wanted:
            raise SlimrankError(
                f"ONNX Runtime fell back to {actual} instead of {wanted}: its CUDA libraries did not load; "
                "check the driver and the CUDA version of onnxruntime-gpu"
            )
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
            (logits,) = self.session.run([output.name], {self.input.name: self._fed(torch.cat([images, rest]))})
        except SlimrankError:
            raise
        except Exception as error:
            raise self._refusal(f"on images of {list(images.shape)}", error) from error
        found = torch.from_numpy(np.asarray(logits))
        if found.dim() < 2 or any(side != 1 for side in found.shape[2:]) or not found.is_floating_point():
            raise SlimrankError(
                f"{self.path} gives {output.name}, {found.dtype} of {list(found.shape)}, must give logits of [batch, classes]; "
                "export the network without what follows them"
            )
        return found.flatten(1).float()[: len(images)]

    def _fed(self, images: Tensor) -> np.ndarray:
        """Images as the type that the file reads."""
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

    def example(self, batch: int) -> np.ndarray:
        """Random images of [batch, ...] in the type that the file reads.

        Raises SlimrankError for a file that leaves more than the batch open, takes another batch, or reads images too large.
        """
        shape = self.input.shape[1:]
        if not all(isinstance(side, int) for side in shape):
            raise SlimrankError(f"{self.path} leaves its input open ({self.input.shape}); export it with a fixed image size")
        if self.batch not in (None, batch):
            raise SlimrankError(f"{self.path} has a fixed batch of {self.batch}, not of {batch}; ask for `batch` {self.batch}")
        if (size := batch * int(np.prod(shape, dtype=object)) * 4) > LARGEST_FEED:
            raise SlimrankError(f"{self.path} reads {size:,} bytes a batch of {batch}; at most {LARGEST_FEED:,} can be tried")
        generator = np.random.default_rng(0)
        if self.kind.kind == "f":
            return generator.standard_normal((batch, *shape), dtype=np.float32).astype(self.kind, copy=False)
        return generator.integers(0, min(256, int(np.iinfo(self.kind).max)), (batch, *shape)).astype(self.kind)

    def bound(self, batch: int) -> Callable[[], object]:
        """A call that runs random images, inputs and outputs bound: ONNX Runtime's time without Python's in `session.run`."""
        images, binding = self.example(batch), self.session.io_binding()
        outputs = self.session.get_outputs()
        if not outputs or not all(one.type.startswith("tensor(") for one in outputs):
            given = ", ".join(f"{one.name}: {one.type}" for one in outputs) or "nothing"
            raise SlimrankError(f"{self.path} gives {given}; only files that give tensors are timed; export the network alone")
        binding.bind_cpu_input(self.input.name, images)
        for output in outputs:
            binding.bind_output(output.name)

        def call() -> object:
            self.session.run_with_iobinding(binding)
            return images  # bound by address: it must live as long as the call

        try:
            call()
        except Exception as error:
            raise self._refusal(f"at `batch` {batch}", error) from error
        return call

    def _refusal(self, where: str, error: Exception) -> SlimrankError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        return SlimrankError(f"{self.path} does not run {where}: {reason}")


def _session(path: str | Path, provider: str, threads: int | None) -> onnxruntime.InferenceSession:
    if Path(path).suffix == ".safetensors":
        raise SlimrankError(f"{path} is a checkpoint, not an ONNX file; `slimrank export` makes one of it")
    if not Path(path).is_file():
        raise SlimrankError(f"no ONNX file at {path}; check the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).strip().splitlines()[0][:200]
        raise SlimrankError(f"ONNX Runtime cannot load {path}: {reason}; export it again") from error


def check_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider (cpu, cuda); raises SlimrankError where this machine does not have it."""
    if provider not in PROVIDERS:
        raise SlimrankError(f"no provider {provider!r}; {near(provider, list(PROVIDERS))}")
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise SlimrankError(f"this onnxruntime has no {wanted}; on a machine with an NVIDIA GPU: {SWAP}")
    return wanted
