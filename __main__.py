"""`slimrank`, and `python -m slimrank`: from its first moment on, whatever stops it is told in one line.

What is imported here is there already when Python starts: the rest is imported where an interrupt is caught.
"""

import os
import sys


def main() -> int:
    """Run the command line; the exit status, 130 for an interrupt and 143 for SIGTERM among them."""
    try:
        status = _run()
    except KeyboardInterrupt as stop:  # before there was a verb to stop
        print(f"error: {stop.args[0] if stop.args else 'interrupted'}", file=sys.stderr)
        status = 143 if stop.args else 130
    if status in (130, 143):
        _leave(status)
    return status


def _run() -> int:
    from . import interrupts

    interrupts.install()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (as long as the process)
        else:
            stream.reconfigure(errors="backslashreplace")  # a class name may have characters that a terminal lacks
    from .cli import main as run

    return run()


def _leave(status: int) -> None:
    """End with this status: where an interrupt has passed through exec(), Python would end by the signal instead."""
    import atexit

    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
