"""Stages in processes of their own that do not outlive the command that started them, even if that one is killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.logging import RichHandler

from adg_plugin.errors import ADGError, StoreError

_VARIABLE = "ADG_PARENT_LOCK"
_POLL_S = 0.5
_WAIT_S = 30.0  # for the stages of a killed command to notice and to write what they hold
_NAME = ".adg-run.lock"


@contextmanager
def parent_watchdog(folder: Path) -> Iterator[None]:
    """Hold `folder` for this command, whose stages end with it whatever ends it; a StoreError where another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = _acquired(folder, timeout_s=_WAIT_S)
    os.environ[_VARIABLE] = str(folder / _NAME)
    try:
        yield
    finally:
        del os.environ[_VARIABLE]
        lock.release()


def check_free(folder: Path) -> None:
    """Raise a StoreError where another command has the output folder, which need not be there."""
    if (folder / _NAME).exists():
        _acquired(folder, timeout_s=0).release()


def _acquired(folder: Path, *, timeout_s: float) -> FileLock:
    lock = FileLock(folder / _NAME)
    try:
        lock.acquire(timeout=timeout_s, poll_interval=_POLL_S)
    except Timeout:
        raise StoreError(f"{folder} is in use by another `adg run`: wait for it, or give another --out") from None
    return lock


def follow() -> None:
    """End this process by SIGTERM when the command that started it ends. Does nothing outside of `parent_watchdog`.

    The kernel drops a killed process's lock, so getting it means that the command is gone. It is kept until this
    process ends, so that a new command waits for what is still being written.
    """
    path = os.environ.get(_VARIABLE)
    if path is None:
        return
    lock = FileLock(path, thread_local=False)

    def wait() -> None:
        lock.acquire(poll_interval=_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="adg-parent-watchdog").start()


def run_stage(name: str, arguments: Sequence[str]) -> None:
    """Run `python ARGUMENTS` to its end, in a group of processes of its own.

    Raises:
        StageError: it failed; it has printed why.
        KeyboardInterrupt: this process was interrupted, and the stage has ended.
    """
    # Launchers look for `accelerate` and `torchrun` on the path, where an environment that is not active has none.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    process = subprocess.Popen(
        [sys.executable, *arguments],
        start_new_session=True,
        stdout=sys.stderr.fileno(),
        env={**os.environ, "PATH": path},
    )
    try:
        code = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if code:
        raise StageError(name, code)


class StageError(ADGError):
    """A stage ended with an error, which it has printed itself."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed (exit code {code}); see above. Re-run the same command to resume")
        self.exit_code = code if code in (1, 2, 3, 4) else 1


def guarded(main: Callable[[], None]) -> None:
    """Run a stage's `main`; errors of this package end the process with a message and their exit code."""
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("adg_plugin").setLevel(logging.INFO)
    try:
        main()
    except ADGError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
