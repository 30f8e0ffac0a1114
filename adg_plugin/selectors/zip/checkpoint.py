"""measures/zip/steps-*.npz: whole steps of a choice by ZIP, which an interrupted one or another budget goes on from."""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from adg_plugin.errors import StoreError
from adg_plugin.selectors.zip.greedy import Steps
from adg_plugin.store.files import digest_bytes, remove_leftovers, replacing, writing

logger = logging.getLogger(__name__)

_FILES = "steps-*.npz"  # a checksum of its bytes is in the name, as with all that a mirror takes for a part
_EVERY_S = 20.0  # between two writings: a killed process loses so much
_VERSION = 1  # raise it when the same texts come to give other steps
_PROBED = 200  # texts whose compressed bytes tell one zlib from another of the same version


class KeptSteps:
    """Steps over the texts of one pool, in a folder; `begun` are those that were there already, None for none."""

    def __init__(self, folder: Path, texts: Sequence[bytes]) -> None:
        self._folder, self._key = folder, _key(texts)
        remove_leftovers(folder)
        self.begun = self._read(len(texts))
        self._newest: Steps | None = None
        self._written_at = time.monotonic()

    def add(self, steps: Steps) -> None:
        """Take all that is done so far, and write it if it is time; a StoreError where it cannot be written."""
        self._newest = steps
        if time.monotonic() - self._written_at >= _EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what was taken since the last time."""
        if self._newest is None:
            return
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        np.savez(file, key=np.frombuffer(self._key, np.uint8), order=self._newest.order, scores=self._newest.scores)
        data = file.getbuffer()
        path = self._folder / _FILES.replace("*", digest_bytes(data))
        with replacing(path) as sink:
            sink.write(data)
        for old in self._folder.glob(_FILES):
            if old != path:
                with writing(old):
                    old.unlink()
        self._newest, self._written_at = None, time.monotonic()

    def _read(self, rows: int) -> Steps | None:
        """Return the longest of the steps over these texts: a folder brought together from two places may hold more."""
        found = [self._read_file(path) for path in self._folder.glob(_FILES)]
        usable = [steps for steps in found if steps is not None and steps.scores.shape == (rows,)]
        return max(usable, key=lambda steps: len(steps.order), default=None)

    def _read_file(self, path: Path) -> Steps | None:
        try:
            data = path.read_bytes()
        except OSError as err:
            logger.warning("%s cannot be read (%s): zip does without", path, err.strerror or err)
            return None
        if digest_bytes(data) not in path.name:
            logger.warning("%s is damaged (its checksum differs): zip does without", path)
            return None
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            if file["key"].tobytes() != self._key:
                return None
            return Steps(file["order"], file["scores"])


@contextmanager
def kept_steps(folder: Path, texts: Sequence[bytes]) -> Iterator[KeptSteps]:
    """Yield the steps over these texts in a folder; what was added is written at the end, also after an error.

    A choice that is made stands, and an error stays the first one, though the last steps cannot be written.
    """
    steps = KeptSteps(folder, texts)
    try:
        yield steps
    finally:
        try:
            steps.write()
        except StoreError as err:
            logger.warning("the last steps of zip are not kept: %s", err)


def _key(texts: Sequence[bytes]) -> bytes:
    hashed = hashlib.blake2b(f"{_VERSION} {zlib.ZLIB_RUNTIME_VERSION}".encode(), digest_size=16)
    hashed.update(zlib.compress(b"\n".join(texts[:_PROBED]), 9))
    for text in texts:
        hashed.update(len(text).to_bytes(8, "little"))  # where one ends and the next begins
        hashed.update(text)
    return hashed.digest()
