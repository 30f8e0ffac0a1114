"""RunFolder: the one writer of a run folder. Whatever it has written survives a crash.

The kernel drops the lock with its process, even after kill -9.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from adg_plugin.errors import StoreError
from adg_plugin.store import staging
from adg_plugin.store.files import (
    TEMPORARY,
    digest_file,
    make_folder,
    read_json,
    remove_leftovers,
    replacing,
    write_json,
    writing,
)
from adg_plugin.store.json_files import Holder, check_is_run_folder, write_config, write_manifest
from adg_plugin.store.ledger import SMALL_PARTS, Ledger
from adg_plugin.store.lookup import write_index
from adg_plugin.store.names import (
    ANSWERS,
    CONFIG,
    HOLDER,
    INDEX,
    LOCK,
    MANIFEST,
    PROMPTS,
    REJECTED,
    REPORT,
    SAMPLES,
    SCORES,
    SELECTED,
)
from adg_plugin.store.parts import SCHEMA, impossible_answers, to_record
from adg_plugin.store.reader import RunReader
from adg_plugin.store.records import RowResult
from adg_plugin.store.spool import write_chosen
from adg_plugin.store.staging import Rejection, StagedRow, digests

logger = logging.getLogger(__name__)


class RunFolder(RunReader):
    """A run folder held by this process alone. Use it in a `with` statement: leaving it writes what is buffered."""

    def __init__(self, path: Path, *, wait_s: float, rows_per_part: int, flush_s: float) -> None:
        super().__init__(path)
        self._lock = _hold(path, wait_s=wait_s)
        try:
            remove_leftovers(path)
            if (damage := _check_content(path)) is not None:
                logger.warning("%s", damage)
            if damage is not None or not (path / CONFIG).exists():
                write_config(path, self.read_config() if damage is not None else {})
            make_folder(path / ANSWERS)
            self._answers, self._samples = (
                Ledger(path / folder, SCHEMA, to_record, rows_per_part=rows_per_part, flush_s=flush_s)
                for folder in (ANSWERS, SAMPLES)
            )
            self.stock, self.samples_stock = self._answers.stock, self._samples.stock
        except BaseException:
            self._let_go()
            raise

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        create: bool = True,
        wait_s: float = 0.0,
        rows_per_part: int = 256,
        flush_s: float = 20.0,
    ) -> Self:
        """Return the run folder, locked, its parts verified and cleared of what a killed process left.

        Args:
            path: a run folder, or a new or empty folder.
            create: make the folder where there is none.
            wait_s: how long to wait for another process that has it; 0 not at all, below 0 for ever.
            rows_per_part: results are written when so many are buffered,
            flush_s: or when so many seconds have passed since the last time.

        Raises:
            StoreError: in use by another process, not a run folder, missing, or unwritable.
        """
        path = Path(path)
        if create:
            make_folder(path)
        elif not path.is_dir():
            raise StoreError(f"there is no run folder {path}: give the folder of an earlier run")
        _check_content(path)
        return cls(path, wait_s=wait_s, rows_per_part=rows_per_part, flush_s=flush_s)

    @staticmethod
    def read(path: str | Path) -> RunReader:
        """Return the run folder for reading, without a lock, also while it is written; a StoreError if it is none."""
        path = Path(path)
        if not path.is_dir():
            raise StoreError(f"there is no run folder {path}: give the folder of an earlier run")
        if (damage := check_is_run_folder(path)) is not None:
            logger.warning("%s", damage)
        return RunReader(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            self.flush()
            if error is None:
                self.compact(more_than=SMALL_PARTS)
                self._samples.compact(more_than=SMALL_PARTS)
        except StoreError:
            if error is None:
                raise  # otherwise the first error is the one to see
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._lock.is_locked:  # once released it may be another's
            (self.path / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def close(self) -> None:
        """Write what is buffered, merge small parts where there are many, and release the lock."""
        self.__exit__(None, None, None)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, whole or not at all."""
        write_config(self.path, config)

    def stage_prompts(
        self, rows: Iterable[StagedRow | Rejection], *, digest: str, notes: Sequence[str] = (), given: bool = False
    ) -> int:
        """Write prompts.parquet from a stream of rows and return the number of prompts.

        Args:
            rows: in any order, prompts and rejected rows mixed; ids must be unique among the prompts.
            digest: of all that staging depends on; `staged_digest` gives it back.
            notes: sentences about the pool, as `staged_notes` gives them back; looked at after the last row.
            given: the prompts have answers that somebody else generated.

        Raises:
            StoreError: it cannot be written; the pool staged before is still there.
        """
        self._drop_manifest()
        return staging.stage(self.path / PROMPTS, rows, digest=digest, notes=notes, given=given)

    def append(self, result: RowResult) -> None:
        """Take one result, as `Ledger.append` does; a ValueError where it is neither rejected nor complete."""
        if result.reason is None and (result.gram is None or result.prompt_vector is None):
            raise ValueError(f"row {result.id!r} has neither a reason nor both a Gram matrix and a prompt vector")
        if result not in self._answers:
            self._drop_manifest()
            self._answers.append(result)

    def append_sample(self, result: RowResult) -> None:
        """Take the answers of one row that are still to be embedded; like `append`, which takes it with its vectors."""
        if result.reason is not None:  # there is nothing to embed
            self.append(result)
        elif result not in self._answers and result not in self._samples:
            self._drop_manifest()
            self._samples.append(result)

    def drop_impossible_answers(self, vocabulary: int, eos_ids: Sequence[int]) -> int:
        """Forget the results of staged rows whose answers a model cannot have given, and return how many.

        Answers under other keys, which came of another model or other settings, stay. Errors are those of `drop_rows`.
        """
        staged = {digest for table in self.staged_columns(["id", "key"]) for digest in digests(table)}
        is_bad = partial(impossible_answers, vocabulary=vocabulary, eos_ids=eos_ids)
        return sum(ledger.drop_rows("answers", is_bad, staged) for ledger in (self._answers, self._samples))

    def drop_embedded_samples(self) -> None:
        """Delete parts of answers without vectors whose rows all have vectors now; a StoreError where that fails."""
        self.flush()
        self._samples.drop_parts_within(self.stock.completed)

    def flush(self) -> None:
        """Write the buffered results, which then survive a power cut; after a StoreError they stay buffered."""
        self._answers.flush()
        self._samples.flush()

    def compact(self, *, more_than: int = 1) -> int:
        """Merge small neighbours if over `more_than`; return how many fewer parts. A StoreError loses no result."""
        return self._answers.compact(more_than=more_than)

    def write_scores(self, table: pa.Table) -> None:
        """Write scores.parquet, whole or not at all."""
        self._drop_manifest()
        with replacing(self.path / SCORES) as sink:
            pq.write_table(table, sink, compression="zstd")

    def write_selected(self, ids: Sequence[str]) -> Path:
        """Write the chosen rows to selected.jsonl in the order of `ids`, and return its path.

        Each line is the original row, byte for byte; a row without a field `id` gets one in front.

        Raises:
            StoreError: it cannot be written, or no pool is staged.
            ValueError: an id is given twice, or is not among the prompts.
        """
        self._drop_manifest()
        write_chosen(self.path / PROMPTS, self.selected_path, ids)
        return self.selected_path

    def write_rejected(self, rejections: Iterable[Rejection]) -> dict[str, int]:
        """Write rejected.jsonl and return the number of rows for each reason, most frequent first."""
        self._drop_manifest()
        reasons: Counter[str] = Counter()
        with replacing(self.path / REJECTED) as sink:
            for rejection in rejections:
                reasons[rejection.reason] += 1
                sink.write((json.dumps(asdict(rejection), ensure_ascii=False) + "\n").encode(errors="backslashreplace"))
        return dict(reasons.most_common())

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write manifest.json, which means complete; a StoreError where scores or selected rows are not written yet."""
        files = {}
        for name in (SELECTED, SCORES):
            path = self.path / name
            if not path.is_file():
                raise StoreError(f"{path} does not exist: write it before {MANIFEST}, which says that all is there")
            files[name] = {"blake2b": digest_file(path), "bytes": path.stat().st_size}
        write_index(self.path / INDEX, self.path / PROMPTS, self.stock.parts)
        write_manifest(self.path, manifest, files)

    def _drop_manifest(self) -> None:
        for name in (MANIFEST, REPORT):  # a page about another choice would be taken for this one's
            with writing(self.path / name):
                (self.path / name).unlink(missing_ok=True)


def check_folder(path: str | Path) -> None:
    """Raise a StoreError where a folder, if it is there, is in use, no run folder, or unwritable; nothing changes."""
    path = Path(path)
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    with writing(path), TemporaryFile(dir=there):
        pass
    if there == path:
        _check_content(path)
        if (path / LOCK).exists():
            _acquired(path, wait_s=0).release()


def _check_content(path: Path) -> str | None:
    """Return what `check_is_run_folder` does; None for a new folder, too."""
    with writing(path):
        names = [entry.name for entry in path.iterdir()]
    is_new = all(name in (LOCK, HOLDER) or name.endswith(TEMPORARY) for name in names)
    return None if is_new else check_is_run_folder(path)


def _hold(folder: Path, *, wait_s: float) -> FileLock:
    lock = _acquired(folder, wait_s=wait_s)
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder / HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    except BaseException:
        lock.release()
        raise
    return lock


def _acquired(folder: Path, *, wait_s: float) -> FileLock:
    lock = FileLock(folder / LOCK, mode=0o600, thread_local=False)
    with writing(folder / LOCK):
        try:
            lock.acquire(timeout=wait_s, poll_interval=0.1)
        except Timeout:
            who = "another process"  # which may have just begun, and not yet written its name
            with suppress(StoreError):
                if holder := read_json(folder / HOLDER, fix="", shape=Holder):
                    who = f"process {holder['pid']} on host {holder['host']} since {holder['since']}"
            raise StoreError(f"run folder {folder} is in use by {who}: wait for it, or give another --out") from None
    return lock
