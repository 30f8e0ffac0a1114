"""Digests of files by every byte: computed once, and remembered as long as the system says that a file is unchanged."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

_BLOCK_BYTES = 32 << 20  # hashed by a thread of its own
_SMALL_BYTES = 1 << 20  # below it, reading takes no longer than looking it up
_SETTLED_NS = 2 * 10**9  # a file that changed so lately may change again without a newer time


def cache_folder() -> Path:
    """Return where this package keeps what can be made again: `$XDG_CACHE_HOME/adg_plugin`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "adg_plugin"


def files_digest(paths: Iterable[Path]) -> str:
    """Return a 128-bit digest of names and contents of files, in their order; an OSError where one cannot be read.

    Contents are told by every byte. What the system says of a large file (path, size, inode, times of change in ns, of
    which the second cannot be set back by hand) finds a digest of an earlier call, if the cache folder can be written.
    """
    known = _Remembered.open()
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        digest.update(json.dumps([path.name, known.digest(path)]).encode())
    return digest.hexdigest()


class _Remembered:
    """Digests of earlier calls by path, with what the system said of the file then."""

    def __init__(self, path: Path, entries: dict[str, Any]) -> None:
        self._path = path
        self._entries = entries

    @classmethod
    def open(cls) -> _Remembered:
        path = cache_folder() / "digests.json"
        try:
            entries = json.loads(path.read_bytes())
        except (OSError, ValueError):
            entries = {}
        return cls(path, entries if isinstance(entries, dict) else {})

    def digest(self, path: Path) -> str:
        stats = _stats(path)
        if stats[0] < _SMALL_BYTES:
            return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        name = os.path.realpath(path)
        if (found := self._entries.get(name)) and found[:-1] == stats:
            return str(found[-1])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # The other processes of this machine wait, and find the digest then.
            with FileLock(self._path.with_suffix(".lock")):
                self._entries = self.open()._entries
                if (found := self._entries.get(name)) and found[:-1] == stats:
                    return str(found[-1])
                digest = _content(path)
                if _stats(path) == stats and time.time_ns() - max(stats[2:]) > _SETTLED_NS:
                    self._remember(name, [*stats, digest])
                return digest
        except (OSError, NotImplementedError):  # the cache cannot be written, or its file system has no locks
            return _content(path)  # nothing is remembered

    def _remember(self, name: str, entry: list[Any]) -> None:
        kept = {path: found for path, found in self._entries.items() if os.path.exists(path)}
        self._entries = {**kept, name: entry}
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(self._entries))
        temporary.replace(self._path)


def _stats(path: Path) -> list[int]:
    """Return size, inode, and the times of the last change of content and of anything, in ns."""
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _content(path: Path) -> str:
    """Return a digest of the digests of a file's blocks: so all cores share the work."""

    def block(start: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.blake2b(file.read(_BLOCK_BYTES), digest_size=16).digest()

    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        blocks = pool.map(block, range(0, path.stat().st_size, _BLOCK_BYTES))
        return hashlib.blake2b(b"".join(blocks), digest_size=16).hexdigest()
