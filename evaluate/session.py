"""How an ONNX file is opened in ONNX Runtime: provider, threads, optimisation level, spinning.

Free of torch: the process that tells how long a start takes, and how much memory, holds ONNX Runtime and nothing else.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from ..errors import SlimrankError, near

PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}  # fmt: skip
SWAP = "pip uninstall -y onnxruntime && pip install onnxruntime"  # builds of ONNX Runtime share a folder
REMEDIES = {
    "cuda": f"on a machine with an NVIDIA GPU: {SWAP}-gpu",
    "tensorrt": f"on a machine with an NVIDIA GPU: {SWAP}-gpu, and pip install tensorrt",
    "openvino": f"on an Intel processor or GPU: {SWAP}-openvino",
}
DEVICES = {"cuda": "cuda", "tensorrt": "cuda"}  # whose memory images and logits stay in while files are timed; others: cpu
PROVIDER_OPTIONS = {"cuda": {"cudnn_conv_algo_search": "EXHAUSTIVE"}}  # ONNX Runtime's own default, said
THREADS = {"openvino": "num_of_threads"}  # providers with threads of their own, and what sets their number
LEVELS = {
    name: getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{value}")
    for name, value in {
        "all": "ENABLE_ALL", "extended": "ENABLE_EXTENDED", "basic": "ENABLE_BASIC", "none": "DISABLE_ALL",
    }.items()
}  # fmt: skip
SPINNING = {
    "in a run": {"session.force_spinning_stop": "1"},
    "never": {"session.intra_op.allow_spinning": "0"},
    "always": {"session.intra_op.allow_spinning": "1"},
}


@dataclass(frozen=True)
class Tuning:
    """What a session is opened with besides provider and threads.

    `spinning`: whether worker threads wait busily `in a run` only (so that several models can be timed in turn), `always`
    (ONNX Runtime's default) or `never`.
    """

    optimisation: str = "all"
    spinning: str = "in a run"

    def code(self, path: str | Path, provider: str, threads: int) -> str:
        """Python that opens the file so."""
        entries = "".join(f'options.add_session_config_entry("{k}", "{v}")\n' for k, v in SPINNING[self.spinning].items())
        return (
            "import onnxruntime\n\noptions = onnxruntime.SessionOptions()\n"
            f"options.intra_op_num_threads = {threads}\n"
            "options.graph_optimization_level = onnxruntime.GraphOptimizationLevel."
            f"{LEVELS[self.optimisation].name}\n{entries}"
            f"session = onnxruntime.InferenceSession({str(path)!r}, options, providers=[{_asked(provider, threads)!r}])"
        )


PLAIN = Tuning()


def opened(
    path: str | Path, provider: str = "cpu", threads: int | None = None, tuning: Tuning = PLAIN, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open an ONNX file; `threads` of one operator, None: all cores; `profile`: prefix of the file that times every operator.

    Raises SlimrankError for a file that ONNX Runtime cannot load, a provider that is not there, and where ONNX Runtime
    quietly falls back to another one.
    """
    wanted = check_provider(provider)
    if Path(path).suffix.lower() == ".safetensors":
        raise SlimrankError(f"{path} is a checkpoint, not an ONNX file; `slimrank export` makes one of it")
    if not Path(path).is_file():
        raise SlimrankError(f"no ONNX file at {path}; check the path")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or os.cpu_count() or 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = LEVELS[tuning.optimisation]
    for key, value in SPINNING[tuning.spinning].items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[_asked(provider, options.intra_op_num_threads)])
    except Exception as error:  # onnxruntime's exceptions share no base class
        from .external import trouble

        if told := trouble(path):
            raise SlimrankError(told) from error
        reason = str(error).strip().splitlines()[0][:200]
        raise SlimrankError(f"ONNX Runtime cannot load {path}: {reason}; export it again") from error
    actual = session.get_providers()[0]
    if actual != wanted:
        raise SlimrankError(
            f"ONNX Runtime fell back to {actual} instead of {wanted}: its libraries did not load; check the driver, and that "
            f"their versions are those that this onnxruntime wants ({REMEDIES[provider]})"
        )
    return session


def _asked(provider: str, threads: int) -> str | tuple[str, dict[str, str]]:
    """A provider as a session takes it, with its own options where it has some."""
    own = dict(PROVIDER_OPTIONS.get(provider, {}))
    if provider in THREADS:
        own[THREADS[provider]] = str(threads)
    return (PROVIDERS[provider], own) if own else PROVIDERS[provider]


def check_provider(provider: str) -> str:
    """ONNX Runtime's name of a provider; raises SlimrankError where this machine does not have it."""
    if provider not in PROVIDERS:
        raise SlimrankError(f"no provider {provider!r}; {near(provider, list(PROVIDERS))}")
    wanted = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise SlimrankError(f"this onnxruntime has no {wanted}; {REMEDIES[provider]}")
    return wanted
