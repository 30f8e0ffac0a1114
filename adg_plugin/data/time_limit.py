"""A limit to the time that a call may take, in any thread: for code of others, such as chat templates."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class TimeLimit:
    """Ends calls that run too long: a thread that watches raises a TimeoutError in the thread that called.

    It reaches loops of Python code, not a single call into C. One call at a time.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._ends: float | None = None  # of the call that runs, None between calls
        self._caller = 0
        self._watcher: threading.Thread | None = None

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; a TimeoutError after the limit."""
        with self._lock:
            self._ends, self._caller = time.monotonic() + self.seconds, threading.get_ident()
            if self._watcher is None or not self._watcher.is_alive():  # a forked process has no threads of its parent
                self._watcher = threading.Thread(target=self._watch, daemon=True, name="adg-time-limit")
                self._watcher.start()
        try:
            return work()
        finally:
            with self._lock:
                self._ends = None
                raise_in(self._caller, None)  # what was raised too late

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self.seconds / 4))
            with self._lock:
                if self._ends is not None and time.monotonic() > self._ends:
                    self._ends = None
                    raise_in(self._caller, TimeoutError)


def raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an error in a thread before its next step in Python; None takes back one that was not raised yet."""
    argument = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), argument)
