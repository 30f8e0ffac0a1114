"""What a run folder can be asked. Reading takes no lock and changes nothing on the disk."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import StoreError
from adg_plugin.store import staging
from adg_plugin.store.assemble import Geometry, assemble
from adg_plugin.store.files import digest_file, reading
from adg_plugin.store.json_files import read_config, read_manifest, read_seal
from adg_plugin.store.lookup import PartIndex, find_result, first_rows, results_of
from adg_plugin.store.names import ANSWERS, INDEX, PROMPTS, REJECTED, SAMPLES, SCORES, SELECTED
from adg_plugin.store.parts import Inventory, take_stock
from adg_plugin.store.records import Prompt, RowResult, Sampled
from adg_plugin.store.staging import Rejection, StagedRow, digests, row_digest


@dataclass(frozen=True, slots=True)
class Counts:
    """How far a run is, in rows."""

    prompts: int  # to be sampled, done or not
    completed: int  # of these, with a result (an engine's rejection is one)
    rejected: int  # while staging
    sampled: int = 0  # with answers that are still to be embedded

    @property
    def pending(self) -> int:
        """Prompts without a result."""
        return self.prompts - self.completed

    @property
    def unsampled(self) -> int:
        """Prompts without answers."""
        return self.pending - self.sampled


class RunReader:
    """A run folder as it is. Damaged parts are left out and named in `damage`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damaged_pool: list[str] = []

    @cached_property
    def stock(self) -> Inventory:
        """The verified parts of answers with vectors; the first use reads every byte of them."""
        return take_stock(self.path / ANSWERS, repair=False)

    @cached_property
    def samples_stock(self) -> Inventory:
        """The verified parts of answers without vectors; the first use reads every byte of them."""
        return take_stock(self.path / SAMPLES, repair=False)

    def flush(self) -> None:
        """Do nothing: all that a reader knows is on the disk. Whoever writes has results to write first."""

    @property
    def damage(self) -> list[str]:
        """Sentences, each naming a file that cannot be used and what is lost with it."""
        return [*self._damaged_pool, *self.stock.damage, *self.samples_stock.damage]

    @property
    def selected_path(self) -> Path:
        """Where the chosen rows are, once the run is complete."""
        return self.path / SELECTED

    def read_config(self) -> dict[str, Any]:
        """Return what `write_config` was given, empty before that; of a damaged one, what the manifest has of it."""
        return read_config(self.path)

    def manifest(self) -> dict[str, Any] | None:
        """Return what `write_manifest` was given, with digests under `files`, or None for an incomplete run.

        A run whose selected rows or scores were altered or removed since is not complete.

        Raises:
            StoreError: the manifest itself is damaged.
        """
        manifest = read_manifest(self.path)
        if manifest is None:
            return None
        for name in {SELECTED, SCORES, *manifest["files"]}:
            entry, path = manifest["files"].get(name), self.path / name
            if entry is None or not path.is_file() or digest_file(path) != entry["blake2b"]:
                return None
        return manifest

    def staged_digest(self) -> str | None:
        """Return the digest that `stage_prompts` was given, or None where no usable pool is staged.

        A pool that was altered is named in `damage`. Reads every byte of it.
        """
        path = self.path / PROMPTS
        seal = self._pool_seal()
        if not (seal and path.exists()):
            return None
        with reading(path, fix="delete it and run the same command again"):
            is_whole = digest_file(path) == seal["blake2b"]
        if not is_whole:
            self._damaged_pool = [f"{path} is damaged (it does not match its checksum): the pool will be staged again"]
            return None
        return str(seal["digest"])

    def _pool_seal(self) -> dict[str, Any]:
        seal, damage = read_seal(self.path)
        self._damaged_pool = damage or self._damaged_pool
        return seal

    def counts(self) -> Counts:
        """Return how many rows are staged, completed and rejected. Reads the ids and keys of the pool."""
        prompts = completed = sampled = 0
        done, drawn = self.stock.completed, self.samples_stock.completed
        for table in staging.groups(self.path / PROMPTS, ["id", "key"]):
            prompts += table.num_rows
            for digest in digests(table):
                completed += digest in done
                sampled += digest not in done and digest in drawn
        rejected = sum(t.num_rows for t in staging.groups(self.path / PROMPTS, ["id"], rejected=True))
        return Counts(prompts, completed, rejected, sampled)

    def iter_windows(self, *, pending_only: bool = True, unsampled_only: bool = False) -> Iterator[list[Prompt]]:
        """Yield the prompts, about 2,000 at a time, in the pool's order.

        Args:
            pending_only: leave out those that have a result when their window is reached,
            unsampled_only: and those that have answers without vectors.

        Raises:
            StoreError: no pool is staged, or its file is damaged.
        """
        completed = self.stock.completed if pending_only or unsampled_only else set()
        drawn = self.samples_stock.completed if unsampled_only else set()
        return staging.windows(self.path / PROMPTS, lambda digest: digest not in completed and digest not in drawn)

    def sampled_windows(self) -> Iterator[list[Sampled]]:
        """Yield the rows to be embedded by groups, in the pool's order; a StoreError without a pool, or if damaged."""
        completed, parts = self.stock.completed, PartIndex(self.samples_stock)
        for window in staging.windows(self.path / PROMPTS, lambda d: d in parts and d not in completed):
            found = {result.id: result for result in parts.results({row_digest(p.id, p.key) for p in window})}
            yield [Sampled(prompt, found[prompt.id].answers) for prompt in window]

    def staged_rows(self, ids: Collection[str]) -> Iterator[StagedRow]:
        """Yield the staged rows with these ids, in the pool's order."""
        wanted = pa.array(sorted(set(ids)), pa.string())
        for table in staging.groups(self.path / PROMPTS, [*staging.PROMPT.names, *staging.ROW]):
            table = table.filter(pc.is_in(table["id"], value_set=wanted))
            for prompt, row in zip(staging.prompts_of(table), table.select(staging.ROW).to_pylist(), strict=True):
                yield StagedRow(prompt, **row)

    def staged_columns(self, columns: list[str]) -> Iterator[pa.Table]:
        """Yield columns of the prompts by groups, in the pool's order; a StoreError without a pool, or if damaged."""
        for table in staging.groups(self.path / PROMPTS, columns):
            yield table.select(columns)

    def staged_notes(self) -> list[str]:
        """Return the sentences about the pool that `stage_prompts` was given."""
        return list(self._pool_seal().get("notes", []))

    def staged_rejections(self) -> Iterator[Rejection]:
        """Yield the rows rejected while staging, in the pool's order."""
        for table in staging.groups(self.path / PROMPTS, ["id", "where", "detail"], rejected=True):
            for row in table.to_pylist():
                yield Rejection(**row)

    def unsampled(self, reason: str, reasons: Mapping[str, str] | None = None) -> Iterator[Rejection]:
        """Yield prompts without a result as rejections, in the pool's order, for `reasons` by id or `reason`."""
        known = reasons or {}
        for table in staging.groups(self.path / PROMPTS, ["id", "key", "where"]):
            for row, digest in zip(table.to_pylist(), digests(table), strict=True):
                if digest not in self.stock.completed:
                    yield Rejection(row["id"], known.get(row["id"], reason), where=row["where"])

    def results(self, ids: Collection[str] | None = None) -> Iterator[RowResult]:
        """Yield the results of the current prompts, in the order in which they were stored.

        Args:
            ids: only these rows; None: all. Memory holds 16 bytes per row.
        """
        self.flush()
        return results_of(self.stock.parts, self._answered(ids))

    def _answered(self, ids: Collection[str] | None = None) -> set[bytes]:
        """Return the digests of the current prompts, or of some of them, that have a result."""
        wanted = set()
        for table in staging.groups(self.path / PROMPTS, ["id", "key"]):
            for id, key in zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True):
                if ids is None or id in ids:
                    wanted.add(row_digest(id, key))
        return wanted & self.stock.completed

    def result(self, prompt: Prompt) -> RowResult | None:
        """Return the result of one prompt, or None. Of a finished run, only the part that holds it is read."""
        digest = row_digest(prompt.id, prompt.key)
        found = find_result(self.path / INDEX, self.path / ANSWERS, prompt.id, digest)
        return found or next(self.results([prompt.id]), None)

    def answer_texts(self) -> Iterator[tuple[str, list[str]]]:
        """Yield id and answers, as texts, of the current prompts that have a result, in the order of `results`."""
        self.flush()
        for table in first_rows(self.stock.parts, self._answered(), ["id", "key", "answers"]):
            for id, answers in zip(table["id"].to_pylist(), table["answers"].to_pylist(), strict=True):
                yield id, [answer["text"] for answer in answers]

    def geometry(self, *, vectors: bool = True) -> Geometry:
        """Return Gram matrices and prompt vectors of the current prompts that have a result, by ascending id.

        Args:
            vectors: whether to read the prompt vectors; only bins need them.

        Raises:
            StoreError: no pool is staged, or a file is damaged.
        """
        self.flush()
        return assemble(self.path / PROMPTS, self.stock.parts, vectors=vectors)

    def scores(self) -> pa.Table:
        """Return what `write_scores` was given; a StoreError where there are no scores yet."""
        path = self.path / SCORES
        with reading(path, fix="run the selection in this run folder first"):
            return pq.read_table(path)

    def rejections(self) -> Iterator[Rejection]:
        """Yield what `write_rejected` was given; a StoreError where there is no such file yet."""
        path = self.path / REJECTED
        with reading(path, fix="run the selection in this run folder first"), path.open(encoding="utf-8") as lines:
            for line in lines:
                yield Rejection(**json.loads(line))


def finished(run: RunReader) -> ADGConfig:
    """Return the settings of the selection in a run folder; a StoreError where there is none yet."""
    manifest = run.manifest()
    if manifest is None:
        raise StoreError(f"{run.path} is not complete yet: run adg select on it")
    return ADGConfig.of_run(manifest["config"])


def seconds_of(stats: Mapping[str, Any]) -> float:
    """Return the seconds of drawing or measuring, and of embedding or grading after it."""
    parts = (stats, stats.get("embedding", {}), stats.get("rating", {}))
    return sum(float(part.get("seconds", 0.0)) for part in parts)


def check_answers(run: RunReader, geometry: Geometry) -> None:
    """Raise a StoreError where a finished run has lost answers of scored rows; `geometry` is before any filter."""
    answered = pa.array(geometry.ids, pa.string())
    if not pc.all(pc.is_in(run.scores()["id"], value_set=answered), min_count=0).as_py():
        raise lost_answers(run)


def lost_answers(run: RunReader) -> StoreError:
    """Return the error for a finished run folder whose answers were removed or damaged since."""
    return StoreError(f"{run.path} lost answers since it was finished: run adg select on it again")
