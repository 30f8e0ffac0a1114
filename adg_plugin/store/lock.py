"""One writer per run folder. The kernel drops the lock with its process, even after kill -9."""

from __future__ import annotations

import json
import os
import socket
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from adg_plugin.errors import StoreError
from adg_plugin.store.files import write_json, writing

LOCK = ".lock"
HOLDER = ".lock.json"  # not in the lock file itself: versions of filelock differ in whether they empty it


def hold(folder: Path, *, wait_s: float) -> FileLock:
    """Return the folder's lock, held.

    Args:
        wait_s: how long to wait for another process; 0 tries once, below 0 waits for ever.

    Raises:
        StoreError: another process has it (the text says which), or the folder cannot be written.
    """
    lock = _acquired(folder, wait_s=wait_s)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    except BaseException:
        lock.release()
        raise
    return lock


def check_free(folder: Path) -> None:
    """Raise a StoreError that names the process where another one has a run folder."""
    if (folder / LOCK).exists():
        _acquired(folder, wait_s=0).release()


def let_go(folder: Path, lock: FileLock) -> None:
    """Release a lock that `hold` returned; once released it may be another's, so a second call does nothing."""
    if lock.is_locked:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _acquired(folder: Path, *, wait_s: float) -> FileLock:
    lock = FileLock(folder / LOCK, thread_local=False)
    with writing(folder / LOCK):
        try:
            lock.acquire(timeout=wait_s, poll_interval=0.1)
        except Timeout:
            raise StoreError(
                f"run folder {folder} is in use by {_holder(folder)}: wait for it, or give another --out"
            ) from None
    return lock


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_bytes())
    except FileNotFoundError:  # it has just begun and not yet written its name
        return "another process"
    return f"process {holder['pid']} on host {holder['host']} since {holder['since']}"
