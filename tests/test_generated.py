"""Networks that nobody wrote: whatever the architecture, masked equals sliced and ONNX agrees, or the refusal says why."""

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .generated import chain, generated

EXAMPLES, MOST_REFUSED = 25, 8  # of 300 by seed, 47 were refused (benchmarks/generated_architectures.py)


def test_any_architecture_is_cut_exactly():
    """A budget may be out of reach, as the refusal says; most must be cut."""
    results = []

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(data=st.data())
    def cut(data):
        choose = lambda options: data.draw(st.sampled_from(options))  # noqa: E731
        torch.manual_seed(data.draw(st.integers(0, 99)))
        with tempfile.TemporaryDirectory() as folder:
            results.append(chain(generated(choose).eval(), choose, Path(folder)))

    cut()
    refused = sum("refused" in result for result in results)
    assert len(results) >= EXAMPLES
    assert refused <= MOST_REFUSED, f"{refused} of {len(results)} refused"
