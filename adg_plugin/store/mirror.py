"""A run folder on an object store or any other file system that fsspec knows, worked on in a local copy."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
from filelock import FileLock, Timeout

from adg_plugin.errors import ADGError, ConfigError, StoreError, first_line
from adg_plugin.store.files import TEMPORARY, digest_file, make_folder, parse_json
from adg_plugin.store.json_files import Heartbeat
from adg_plugin.store.names import ANSWERS, CONFIG, HOLDER, LOCK, MANIFEST, MEASURES, SAMPLES

logger = logging.getLogger(__name__)

_HEARTBEAT = "in-use.json"
_PUSH_EVERY_S = 20.0
_STALE_S = 300.0  # a heartbeat this old is of a process that is gone
_SETTLE_S = 0.5  # after a claim, before it is read back: no store is asked whether it creates a file at most once
_HALF_WRITTEN = (0.1, 0.4, 1.6)  # seconds until a claim that is empty is read again
_UPLOADED = ".uploaded"  # beside a local copy that the URL has all of
_KEPT_S = 14 * 86400.0  # such a copy that nobody used for so long is removed
_OWN = (LOCK, HOLDER, _HEARTBEAT)


@contextmanager
def local_run_folder(out: str | Path) -> Iterator[Path]:
    """Yield the folder to work in: `out`, or, where that is a URL, a local copy that is kept in step with it.

    New parts are uploaded while the work goes on, and everything when it ends, also by an error. The copy is under
    `$ADG_RUN_CACHE`, else in the user's cache. It may be deleted between runs; the next run behind a URL deletes those
    that have been uploaded and were not used for 14 days.

    Raises:
        StoreError: the URL cannot be read or written, or another process works on it.
    """
    if "://" not in str(out):
        yield Path(out)
        return
    mirror = _Mirror(str(out))
    with mirror.alone_here(), mirror.held():
        _remove_old_copies(mirror.path.parent)
        mirror.pull()
        try:
            with mirror.now_and_then(mirror.push_parts):
                yield mirror.path
        finally:
            mirror.push_all()
            mirror.path.with_suffix(_UPLOADED).touch()


def check_url(url: str) -> None:
    """Validate the form of a URL, reading nothing; a ConfigError for a password, a StoreError without a driver."""
    _Mirror(url)


class _Mirror:
    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        if urlsplit(self.url).username or urlsplit(self.url).password:
            raise ConfigError(["--out is a URL with a password in it: leave that to the driver's own configuration"])
        with self._reaching("use"):
            self._fs, root = fsspec.core.url_to_fs(self.url)
            self._root = str(root).rstrip("/")
        cache = Path(os.environ.get("ADG_RUN_CACHE") or Path.home() / ".cache" / "adg_plugin" / "runs")
        self.path = cache / hashlib.blake2b(self.url.encode(), digest_size=8).hexdigest()
        self._id = uuid.uuid4().hex
        self._claiming = threading.Lock()  # not every store replaces a file at once: one thread reads or writes it
        self._known: set[str] = set()  # files of the URL that this process has seen or made, and so may delete

    @contextmanager
    def _reaching(self, verb: str) -> Iterator[None]:
        try:
            yield
        except ADGError:
            raise
        except Exception as err:  # every driver has errors of its own
            raise StoreError(
                f"cannot {verb} {self.url}: {first_line(err)}. Check the URL, the credentials and that its fsspec "
                "driver (s3fs, gcsfs, ...) is installed; re-run the same command to resume"
            ) from err

    # --- one process at a time

    @contextmanager
    def alone_here(self) -> Iterator[None]:
        """Keep other processes of this machine from the local copy; a StoreError where one has it."""
        make_folder(self.path)
        try:
            lock = FileLock(self.path.with_suffix(".lock"), thread_local=False).acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"run folder {self.url} is in use by another process of this machine: wait for it, or give "
                "another --out"
            ) from None
        with lock:
            self.path.with_suffix(_UPLOADED).unlink(missing_ok=True)
            yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Claim the URL, as far as a store without locks allows; a StoreError where another process still claims it.

        A new claim is created, so that a store that knows exclusive writes takes one. It is read back in any case: of
        several that were written at the same moment, over one that is stale, too, the last one counts.
        """
        while (holder := self._claim()) is None or time.time() - holder["time"] >= _STALE_S:
            self._beat(new=holder is None)
            time.sleep(_SETTLE_S)
        if holder["id"] != self._id:
            raise StoreError(
                f"run folder {self.url} is in use by process {holder['pid']} on host {holder['host']}: wait for it (if "
                f"it was killed, {_STALE_S:.0f} s), or give another --out"
            )
        with self.now_and_then(self._check, self._beat):
            try:
                yield
            finally:
                if (self._claim() or {}).get("id") == self._id:
                    self._remove(_HEARTBEAT)

    def _claim(self) -> dict[str, Any] | None:
        beat = f"{self._root}/{_HEARTBEAT}"
        with self._claiming, self._reaching("read"):
            data = b""
            for wait_s in (0.0, *_HALF_WRITTEN):
                time.sleep(wait_s)
                self._fs.invalidate_cache()
                try:
                    data = self._fs.cat_file(beat)
                except FileNotFoundError:
                    return None
                if data:
                    break
            fix = f"where nobody else works on {self.url}, delete it and run the same command again"
            return parse_json(data, f"{self.url}/{_HEARTBEAT}", fix=fix, shape=Heartbeat)

    def _beat(self, *, new: bool = False) -> None:
        """Write the claim; a `new` one not over that of another process, where driver and store can tell."""
        beat = f"{self._root}/{_HEARTBEAT}"
        about = {"id": self._id, "pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
        data = json.dumps(about).encode().ljust(512)  # of one length: on a disk, of two at once neither leaves a tail
        with self._claiming, self._reaching("write"):
            self._fs.makedirs(self._root, exist_ok=True)
            if new:
                try:
                    with self._fs.open(beat, "xb") as file:
                        file.write(data)
                    return
                except FileExistsError:
                    return  # who it was is read back
                except Exception as err:  # no exclusive mode; where it is something else, it comes again
                    logger.debug("%s cannot be created: %s", beat, err)
            self._fs.pipe_file(beat, data)

    def _check(self) -> None:
        """Raise a StoreError where another process took the URL over, after this one had been out of reach for long."""
        other = self._claim()
        if other is not None and other["id"] != self._id:
            raise StoreError(
                f"run folder {self.url} was taken over by process {other['pid']} on host {other['host']}: nothing more "
                f"is uploaded from here; what this process has is in {self.path}"
            )

    @contextmanager
    def now_and_then(self, *work: Callable[[], None]) -> Iterator[None]:
        """Do `work` every 20 seconds during the block; its errors are warnings."""
        done = threading.Event()

        def loop() -> None:
            while not done.wait(_PUSH_EVERY_S):
                try:
                    for step in work:
                        step()
                except Exception as err:  # it must go on: the next time may be better
                    logger.warning("%s", err)

        thread = threading.Thread(target=loop, name="adg-mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    # --- there and back

    def pull(self) -> None:
        """Update the local copy: parts of both, all other files of the URL; a StoreError where that cannot be read."""
        remote = self._remote()
        self._known = set(remote)
        for path in self._local():
            if not _is_part(path) and path not in remote:
                (self.path / path).unlink()
        for path, size in remote.items():
            local = self.path / path
            has_part = _is_part(path) and local.is_file()
            if has_part and (local.stat().st_size == size or digest_file(local) in local.name):
                continue  # where the sizes differ and ours is whole, an upload was cut off
            make_folder(local.parent)
            arriving = local.with_name(local.name + TEMPORARY)
            with self._reaching("read"):
                self._fs.get_file(f"{self._root}/{path}", str(arriving))
            arriving.chmod(0o600)
            arriving.replace(local)

    def push_parts(self) -> None:
        """Upload new parts; a StoreError where the URL cannot be written or was taken over."""
        self._check()
        remote = self._remote()
        for path in self._local():
            if _is_part(path):
                local = self.path / path
                with suppress(FileNotFoundError):  # merged with others in the meantime
                    if remote.get(path) != local.stat().st_size:
                        self._put(path)

    def push_all(self) -> None:
        """Upload everything; a StoreError leaves all in the local copy.

        The manifest goes first and comes last, so that it is there only with what it names.
        """
        local = set(self._local())
        if CONFIG not in local:
            return  # nothing was begun here
        self._check()
        self._remove(MANIFEST)
        self.push_parts()
        local = set(self._local())
        for path in sorted(path for path in local if not _is_part(path) and path != MANIFEST):
            self._put(path)
        for path in self._remote():
            if path not in local and path in self._known:
                self._check()
                self._remove(path)
        if MANIFEST in local:
            self._put(MANIFEST)

    def _put(self, path: str) -> None:
        target = f"{self._root}/{path}"
        with self._reaching("write"):
            self._fs.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            try:
                self._fs.put_file(str(self.path / path), target)
            except FileNotFoundError:
                if (self.path / path).exists():
                    raise
                return  # merged with others in the meantime
        self._known.add(path)

    def _remove(self, path: str) -> None:
        with self._reaching("write"), suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{path}")

    def _remote(self) -> dict[str, int]:
        with self._reaching("read"):
            self._fs.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
        files = {name[len(self._root) :].lstrip("/"): int(about["size"]) for name, about in found.items()}
        return {path: size for path, size in files.items() if path not in _OWN}

    def _local(self) -> list[str]:
        files = (p for p in self.path.rglob("*") if p.is_file() and not p.name.endswith(TEMPORARY))
        return [p for p in (file.relative_to(self.path).as_posix() for file in files) if p not in _OWN]


def _remove_old_copies(cache: Path) -> None:
    for mark in cache.glob(f"*{_UPLOADED}"):
        with suppress(Timeout), FileLock(mark.with_suffix(".lock"), timeout=0):
            if mark.exists() and time.time() - mark.stat().st_mtime >= _KEPT_S:
                shutil.rmtree(mark.with_suffix(""), ignore_errors=True)
                mark.unlink()


def _is_part(path: str) -> bool:
    return PurePosixPath(path).parts[0] in (ANSWERS, SAMPLES, MEASURES)
