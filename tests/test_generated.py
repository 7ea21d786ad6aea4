"""Networks that nobody wrote: whatever the architecture, masked equals sliced and ONNX agrees, or the refusal says why."""

import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .generated import chain, generated


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_architecture_is_cut_exactly(data):
    choose = lambda options: data.draw(st.sampled_from(options))  # noqa: E731
    torch.manual_seed(data.draw(st.integers(0, 99)))
    with tempfile.TemporaryDirectory() as folder:
        chain(generated(choose).eval(), choose, Path(folder))
