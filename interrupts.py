"""SIGINT and SIGTERM end a run by an exception, raised where Python and its libraries can bear one."""

import itertools
import os
import signal
import sys
import threading
from _thread import interrupt_main
from types import FrameType
from typing import Any

from .errors import Terminated

UNBROKEN = {  # functions, by module, that an exception from outside must not enter
    ("importlib._bootstrap", "_find_and_load"),  # modules in C take it for an error of their own, or abort the process
    ("slimrank.files", "clear"),
    ("slimrank.evaluate.data.loading", "_started"),  # a loader that is half made cannot end its processes
    ("tempfile", "__init__"), ("tempfile", "mkdtemp"), ("tempfile", "cleanup"), ("tempfile", "_cleanup"),
}  # fmt: skip
# import before there is anything to lose
BEGINS = ("__main__", "slimrank.__main__", "slimrank.cli", "slimrank.verbs", "slimrank.compress.stages.options")
SOON = 0.05  # seconds until a signal that came at a bad moment is tried again
_tries = itertools.count()
PATIENCE = 600  # tries; what never ends is interrupted all the same


def install() -> None:
    """Raise KeyboardInterrupt at SIGINT, unless it is ignored as behind nohup, and Terminated at SIGTERM."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    sys.unraisablehook = _dropped


def _stop(number: int, frame: FrameType | None) -> None:
    if _importer(frame).startswith(BEGINS):
        print("error: terminated" if number == signal.SIGTERM else "error: interrupted", file=sys.stderr, flush=True)
        os._exit(128 + number)
    if _unbroken(frame) and next(_tries) < PATIENCE:
        return _again(number)
    raise Terminated("terminated") if number == signal.SIGTERM else KeyboardInterrupt


def _importer(frame: FrameType | None) -> str:
    """The module that began the outermost import on the stack; empty where nothing is imported."""
    importer, inside = "", False
    while frame is not None:
        machinery = frame.f_code.co_filename.startswith("<frozen importlib")
        if inside and not machinery:
            importer = str(frame.f_globals.get("__name__"))
        inside, frame = machinery, frame.f_back
    return importer


def _unbroken(frame: FrameType | None) -> bool:
    """Whether a module is on its way in, or something temporary on its way out."""
    while frame is not None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) in UNBROKEN:
            return True
        frame = frame.f_back
    return False


def _dropped(unraisable: Any) -> None:
    """Where the exception was raised in a callback, from which nothing rises, raise it again."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _again(signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT)
    else:
        sys.__unraisablehook__(unraisable)


def _again(number: int) -> None:
    timer = threading.Timer(SOON, interrupt_main, (number,))
    timer.daemon = True
    timer.start()
