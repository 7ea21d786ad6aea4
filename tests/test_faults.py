"""tests/faults in a process of its own: it forks the process that it runs in, which must hold no threads of other tests."""

import signal
import subprocess
import sys
from pathlib import Path

FAULTS = Path(__file__).with_name("faults")


def test_faults():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "0", "--dist", "no", FAULTS]
    done = subprocess.run(
        command, cwd=FAULTS.parents[1], capture_output=True, text=True, timeout=400,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
