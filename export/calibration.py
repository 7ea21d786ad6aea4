"""Which numbers an int8 activation stands for: ranges of a network's tensors on real images, by several methods.

The histograms are ONNX Runtime's own, collected in one pass over the images; each method reads its ranges off them.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorData, TensorsData, create_calibrator
from torch import Tensor
from tqdm import tqdm

from ..errors import SlimrankError
from ..files import Scratch

BATCH = 32  # images; a range that fewer have seen is chance
METHODS = ("minmax", "entropy", "percentile")
PERCENTILE = 99.99  # of the values, half of the rest cut off at either end
BINS = 2048
ENTROPY_BINS = 256  # neighbours merged: the search over widths is quadratic in them

Ranges = dict[str, Any]  # TensorData by tensor name


def calibrate(path: str | Path, images: Iterable[Tensor], ops: Iterable[str]) -> dict[str, Ranges]:
    """Ranges of the tensors that operators of types `ops` read and make, by method.

    `images`: batches [batch, channels, height, width], at least one. Raises SlimrankError where ONNX Runtime's calibrator
    refuses the network, as where activations are infinite.
    """
    with Scratch() as folder, quiet():
        calibrator = create_calibrator(
            Path(path), list(ops), augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod.Percentile, use_external_data_format=_large(path),
            extra_options={"symmetric": False, "num_bins": BINS},
        )  # fmt: skip
        for batch in tqdm(images, desc="calibration", leave=False, disable=None):
            feed = _Once(calibrator.infer_session.get_inputs()[0].name, batch)
            with refusing("calibrate"):
                calibrator.collect_data(feed)
        with refusing("calibrate"):
            return {method: RANGES[method](calibrator.collector) for method in METHODS}


def observed(path: str | Path, images: Tensor, ops: Iterable[str]) -> Ranges:
    """Least and greatest values on one batch: enough to time an int8 file, not to use it."""
    with Scratch() as folder, quiet():
        calibrator = create_calibrator(
            Path(path), list(ops), augmented_model_path=str(Path(folder) / "augmented.onnx"),
            use_external_data_format=_large(path),
        )  # fmt: skip
        calibrator.collect_data(_Once(calibrator.infer_session.get_inputs()[0].name, images))
        found: TensorsData = calibrator.compute_data()
        return dict(found.items())


def _minmax(collector: Any) -> Ranges:
    return {name: _range(seen[2], seen[3]) for name, seen in collector.histogram_dict.items()}


def _percentile(collector: Any) -> Ranges:
    collector.percentile = PERCENTILE
    return {name: _range(*found[:2]) for name, found in collector.compute_percentile().items()}


def _entropy(collector: Any) -> Ranges:
    found = {}
    for name, seen in collector.histogram_dict.items():
        low, high = collector.get_entropy_threshold((*_merged(seen[0], seen[1]), *seen[2:]), 128)
        found[name] = _range(low, high)
    return found


RANGES: dict[str, Callable[[Any], Ranges]] = {"minmax": _minmax, "entropy": _entropy, "percentile": _percentile}


def _range(low: Any, high: Any) -> Any:
    return TensorData(lowest=np.float32(low), highest=np.float32(high))


def _merged(histogram: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A histogram about zero with at most ENTROPY_BINS bins, the outermost on either side merged with empty ones."""
    times = -(-len(histogram) // ENTROPY_BINS)
    half = -(-(len(histogram) // 2) // times)  # bins on either side of zero
    padded = np.pad(histogram, half * times - len(histogram) // 2)
    top = half * times * (edges[-1] - edges[0]) / len(histogram)
    return padded.reshape(-1, times).sum(1), np.linspace(-top, top, 2 * half + 1, dtype=edges.dtype)


@contextlib.contextmanager
def refusing(what: str, option: str = "int8") -> Iterator[None]:
    """Turn whatever ONNX Runtime's quantiser raises into one line; `what` it could not do to the network for `option`."""
    try:
        yield
    except Exception as error:  # the quantiser's exceptions share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise SlimrankError(f"ONNX Runtime cannot {what} this network: {reason}; leave out `{option}`") from error


class _Once:
    """One batch of images, as ONNX Runtime's calibrators ask for it."""

    def __init__(self, name: str, images: Tensor):
        self.feeds: Iterator[dict[str, np.ndarray]] = iter([{name: images.numpy()}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def _large(path: str | Path) -> bool:
    return Path(path).with_name(f"{Path(path).name}.data").exists()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence ONNX Runtime's quantiser, which prints every step and recommends what is done already."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
