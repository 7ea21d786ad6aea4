"""`slimrank`, and `python -m slimrank`: from its first moment on, whatever stops it is told in one line."""

import os
import signal
import sys
from typing import NoReturn

from .errors import Terminated


def main() -> int:
    """Run the command line; the exit status, 130 for an interrupt and 143 for SIGTERM among them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        else:
            stream.reconfigure(errors="backslashreplace")  # a class name may have characters that a terminal lacks
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from .cli import main as run

        return run()
    except KeyboardInterrupt as stop:  # before there was a verb to stop
        print(f"error: {stop.args[0] if stop.args else 'interrupted'}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated("terminated")


if __name__ == "__main__":
    sys.exit(main())
