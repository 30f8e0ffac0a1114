"""Stages in processes of their own that do not outlive the command that started them, even if that one is killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adg_plugin.adapters.secrets import handed_over
from adg_plugin.config.run_folder import PRIVATE
from adg_plugin.console import print_error, set_up_logging, show_traceback
from adg_plugin.errors import ADGError, StoreError
from adg_plugin.store.files import make_folder

_VARIABLE = "ADG_PARENT_LOCK"
_POLL_S = 0.5
_WAIT_S = 30.0  # for the stages of a killed command to notice and to write what they hold
_NAME = ".adg-run.lock"


@contextmanager
def parent_watchdog(folder: Path) -> Iterator[None]:
    """Hold `folder` for this command, whose stages end with it whatever ends it; a StoreError where another has it."""
    make_folder(folder)
    lock = _acquired(folder, timeout_s=_WAIT_S)
    outer = os.environ.get(_VARIABLE)  # of the command that this process is a stage of
    os.environ[_VARIABLE] = str(folder / _NAME)
    try:
        yield
    finally:
        if outer is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = outer
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
        shown = folder.parent if folder.name == PRIVATE else folder
        raise StoreError(f"{shown} is in use by another `adg run`: wait for it, or give another --out") from None
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


def run_stage(name: str, arguments: Sequence[str], unwritten: Mapping[str, Any] | None = None) -> None:
    """Run `python ARGUMENTS` to its end, in a group of processes of its own.

    Args:
        unwritten: settings that its files leave out, such as tokens: `secrets.taken_over` gives them there.

    Raises:
        StageError: it failed; it has printed why.
        KeyboardInterrupt: this process was interrupted, and the stage has ended.
    """
    # Launchers look for `accelerate` and `torchrun` on the path, where an environment that is not active has none.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path, **handed_over(unwritten or {})}
    code = run_on_stderr([sys.executable, *arguments], env=env, own_group=True)
    if code:
        raise StageError(name, code)


def run_on_stderr(command: Sequence[str], *, env: Mapping[str, str] | None = None, own_group: bool = False) -> int:
    """Run a command that prints on this process's stderr, and return its exit code.

    A stderr without a descriptor, as notebooks and frameworks may have, gets the lines one by one; without any they are
    dropped.

    Raises:
        KeyboardInterrupt: this process was interrupted, and the command (with `own_group` all its processes) has ended.
    """
    try:
        where = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):
        where = subprocess.PIPE
    process = subprocess.Popen(
        command,
        start_new_session=own_group,
        stdout=where,
        stderr=subprocess.STDOUT,
        env=env,
        encoding="utf-8",
        errors="replace",
    )
    try:
        for line in process.stdout or ():
            if sys.stderr is not None:
                sys.stderr.write(line)
        return process.wait()
    except KeyboardInterrupt:
        if own_group:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            process.terminate()
        process.communicate()
        raise


class StageError(ADGError):
    """A stage ended with an error, which it has printed itself."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed (exit code {code}); see above. Re-run the same command to resume")
        self.exit_code = code if code in (1, 2, 3, 4) else 1


def guarded(main: Callable[[], None]) -> None:
    """Run a stage's `main`; errors of this package end the process with a message and their exit code."""
    set_up_logging()
    sys.excepthook = show_traceback
    logging.getLogger("adg_plugin").setLevel(logging.INFO)
    try:
        main()
    except ADGError as err:
        print_error(err)
        sys.exit(err.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
