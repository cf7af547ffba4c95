"""Ctrl-C and SIGTERM while kgen works: the library winds down at once, also in the middle of a long call, and the front
gets KeyboardInterrupt with everything that was learnt in the journal.

Python runs a signal's handler only between bytecodes, so a thread that reads the wake-up descriptor tells the library
in the meantime.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass

from . import _libkgen
from .errors import KgenError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """wanted: the user asked to stop, and nobody was told by an exception yet."""

    wanted: bool = False

    def check(self) -> None:
        """Raises KeyboardInterrupt when it is wanted."""
        if self.wanted:
            raise KeyboardInterrupt


def _in_search(frame: types.FrameType | None) -> bool:
    """An exception there would come out of a callback of C, where nothing can catch it."""
    while frame is not None:
        if frame.f_code is _libkgen.search.__code__:
            return True
        frame = frame.f_back
    return False


def _watch(descriptor: int) -> None:
    wanted = {int(s) for s in SIGNALS}
    while data := os.read(descriptor, 64):
        if wanted.intersection(data):
            _libkgen.stop(True)
    os.close(descriptor)


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Work that can be stopped. Outside of the main thread the front's own handlers stay, and decide."""
    stop = Stop()

    def ask(_: int, frame: types.FrameType | None) -> None:
        stop.wanted = True
        _libkgen.stop(True)
        if not _in_search(frame):
            raise KeyboardInterrupt

    _libkgen.stop(False)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    read, write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(write, False)
    held = {number: signal.signal(number, ask) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    try:
        yield stop
    except KgenError as e:
        if stop.wanted:  # whatever was in the way of the stop failed of it
            raise KeyboardInterrupt from e
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in held.items():
            signal.signal(number, handler)
        os.close(write)
        _libkgen.stop(False)
