"""ZIP over a run folder: the rows that together compress worst, and whole steps of their choice to go on from.

The steps are kept in measures/zip/steps-*.npz, for an interrupted choice or another budget.
"""

from __future__ import annotations

import io
import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from adg_plugin.console import SamplingProgress
from adg_plugin.errors import StoreError
from adg_plugin.selectors.base import Selector, Task
from adg_plugin.selectors.candidates import Candidates, Picked
from adg_plugin.selectors.measure import text_key
from adg_plugin.selectors.zip.greedy import Steps, zip_order
from adg_plugin.store.files import digest_bytes, make_folder, remove_leftovers, replacing, writing
from adg_plugin.store.names import MEASURES

logger = logging.getLogger(__name__)

_FILES = "steps-*.npz"  # a checksum of its bytes is in the name, as with all that a mirror takes for a part
_EVERY_S = 20.0  # between two writings: a killed process loses so much
_VERSION = 1  # raise it when the same texts come to give other steps
_PROBED = 200  # texts whose compressed bytes tell one zlib from another of the same version


class ZIP(Selector):
    """The set that compresses worst; see `zip_order`. Source: arXiv 2407.06645."""

    reads = ("instruction", "reference")
    stepwise = True
    score_meaning = "place in the choice, counted from its end"
    part_meanings: ClassVar[Mapping[str, str]] = {
        "set_compression_ratio": "compression ratio of the choice, up to the row's step"
    }

    def pick(self, rows: Candidates, budget: int, task: Task) -> Picked:
        """Return the choice; whole steps are kept to resume from under any budget, or a StoreError is raised."""
        pairs = zip(rows.instructions, rows.references, strict=True)
        texts = [f"{asked}\n{answer}".encode() for asked, answer in pairs]
        with KeptSteps(task.run.path / MEASURES / self.name, texts) as kept:
            done = 0 if kept.begun is None else min(budget, len(kept.begun.order))
            with SamplingProgress(budget, done, verb="choosing", show=task.show) as progress:

                def chosen(count: int) -> None:
                    for _ in range(count - progress.done):
                        progress.add(0, rejected=False)

                def advance(steps: Steps) -> None:
                    chosen(len(steps.order))
                    kept.add(steps)

                order, ratios = zip_order(texts, budget, begun=kept.begun, advance=advance)
                chosen(len(order))
        return Picked.stepwise(order, len(texts), {"set_compression_ratio": ratios})


class KeptSteps:
    """Steps over the texts of one pool, in a folder; `begun` are those that were there already, None for none.

    As a context it writes at the end what was added, also after an error. A choice that is made stands, and an error
    stays the first one, though the last steps cannot be written.
    """

    def __init__(self, folder: Path, texts: Sequence[bytes]) -> None:
        probe = zlib.compress(b"\n".join(texts[:_PROBED]), 9)
        self._folder = folder
        self._key = text_key(f"{_VERSION} {zlib.ZLIB_RUNTIME_VERSION}".encode() + probe, *texts)
        remove_leftovers(folder)
        # The longest of the steps over these texts: a folder brought together from two places may hold more.
        found = [self._read(path) for path in folder.glob(_FILES)]
        usable = [steps for steps in found if steps is not None and steps.scores.shape == (len(texts),)]
        self.begun = max(usable, key=lambda steps: len(steps.order), default=None)
        self._newest: Steps | None = None
        self._written_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write()
        except StoreError as err:
            logger.warning("the last steps of zip are not kept: %s", err)

    def add(self, steps: Steps) -> None:
        """Take all that is done so far, and write it if it is time; a StoreError where it cannot be written."""
        self._newest = steps
        if time.monotonic() - self._written_at >= _EVERY_S:
            self._write()

    def _write(self) -> None:
        """Write what was taken since the last time."""
        if self._newest is None:
            return
        make_folder(self._folder)
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

    def _read(self, path: Path) -> Steps | None:
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
