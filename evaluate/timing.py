"""What is timed in ONNX Runtime, as options; the clock itself is latency.py. Free of torch: the parser reads it."""

from dataclasses import dataclass

from ..errors import SlimrankError
from ..option import option


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Every combination of batch size, thread count and execution provider."""

    batch: tuple[int, ...] = option((1, 8, 32), "batch sizes (default {default})")
    threads: tuple[int, ...] = option((1,), "thread counts, comma-separated")
    providers: tuple[str, ...] = option(("cpu",), "cpu, cuda, tensorrt, openvino", flag=("--providers", "--provider"))

    def check(self) -> "Timing":
        """Raise SlimrankError for settings that cannot be timed on this machine."""
        from .latency import check_settings

        for name in ("batch", "threads", "providers"):
            if not getattr(self, name):
                raise SlimrankError(f"`{name}` is empty; name at least one")
        check_settings(self.providers, self.batch, self.threads)
        return self

    def single(self, why: str) -> "Timing":
        """Check that one thread count and one provider are given; `why` opens the error, as in "prune times at one ..."."""
        if len(self.threads) > 1 or len(self.providers) > 1:
            raise SlimrankError(why)
        return self
