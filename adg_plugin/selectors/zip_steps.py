"""measures/zip/steps.npz: whole steps of a choice by ZIP, which an interrupted one or another budget goes on from."""

from __future__ import annotations

import hashlib
import io
import logging
import time
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from adg_plugin.selectors.zip_ratio import Steps
from adg_plugin.store.files import replacing, writing

logger = logging.getLogger(__name__)

_FILE = "steps.npz"
_EVERY_S = 20.0  # between two writings: a killed process loses so much
_VERSION = 1  # raise it when the same texts come to give other steps


class KeptSteps:
    """Steps over the texts of one pool, in a folder.

    Attributes:
        begun: those that are there already; None where there are none of these texts.
    """

    def __init__(self, folder: Path, texts: Sequence[bytes]) -> None:
        self._folder, self._key = folder, _key(texts)
        self.begun = self._read(len(texts))
        self._newest: Steps | None = None
        self._written_at = time.monotonic()

    def add(self, steps: Steps) -> None:
        """Take all that is done so far, and write it if it is time.

        Raises:
            StoreError: it cannot be written.
        """
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
        with replacing(self._folder / _FILE) as sink:
            sink.write(file.getbuffer())
        self._newest, self._written_at = None, time.monotonic()

    def _read(self, rows: int) -> Steps | None:
        path = self._folder / _FILE
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                if file["key"].tobytes() != self._key:
                    return None
                steps = Steps(file["order"], file["scores"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as err:
            logger.warning("%s cannot be read (%s): zip begins anew", path, err)
            return None
        return steps if steps.scores.shape == (rows,) else None


@contextmanager
def kept_steps(folder: Path, texts: Sequence[bytes]) -> Iterator[KeptSteps]:
    """Yield the steps over these texts in a folder; what was added is written at the end, also after an error."""
    steps = KeptSteps(folder, texts)
    try:
        yield steps
    finally:
        steps.write()


def _key(texts: Sequence[bytes]) -> bytes:
    hashed = hashlib.blake2b(f"{_VERSION} {zlib.ZLIB_RUNTIME_VERSION}".encode(), digest_size=16)
    for text in texts:
        hashed.update(len(text).to_bytes(8, "little"))  # where one ends and the next begins
        hashed.update(text)
    return hashed.digest()
