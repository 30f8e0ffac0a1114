"""A run folder for a comparison: an earlier selection in it stays, and with it the pool that it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.store import RunFolder, StagedRow, keys
from adg_plugin.store.names import MANIFEST
from adg_plugin.store.reader import RunReader
from adg_plugin.store.staging import Rejection

_FIX = (
    "run `adg select` with these settings to bring the folder up to date (it keeps the answers), or give another --out"
)
# What the staged pool depends on, beside its rows, `datasets`, `filters` and the recipe of the answers.
_SETTINGS = ("template", "max_prompt_tokens", "truncate", "eos_token")


class ComparisonRunFolder(RunFolder):
    """A run folder whose finished selection, if it has one, stays: answers may be added, another pool may not."""

    _asked: Mapping[str, Any] = {}  # what config.json would say, were there no selection

    @cached_property
    def keeps(self) -> bool:
        """Whether there was a selection."""
        return (self.path / MANIFEST).exists()

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.json, unless it is the selection's."""
        self._asked = config
        if not self.keeps:
            super().write_config(config)

    def stage_prompts(
        self, rows: Iterable[StagedRow | Rejection], *, digest: str, notes: Sequence[str] = (), given: bool = False
    ) -> int:
        """Stage a pool as `RunFolder` does; beside a selection, only compare it with what is staged.

        Raises:
            StoreError: the selection was made from another pool; the text says which rows and settings differ.
        """
        if not self.keeps:
            return super().stage_prompts(rows, digest=digest, notes=notes, given=given)
        staged = self.staged_digest()
        if staged is None:
            raise StoreError(
                f"run folder {self.path} holds a selection, and its pool (prompts.parquet, prompts.json) is damaged or "
                f"gone: {_FIX}"
            )
        # Another digest may come of a file that was only touched, or of another version of this package.
        if staged != digest and (other := _differences(self, rows)):
            settings = keys.changes(_flat(self.read_config()), _flat(self._asked)).values()
            raise StoreError(
                f"run folder {self.path} holds a selection from another pool: {'; '.join([*other, *settings])}: {_FIX}"
            )
        return self.counts().prompts

    def _drop_manifest(self) -> None:
        if not self.keeps:
            super()._drop_manifest()


def _flat(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json holds of the settings and the version that a staged pool depends on, by key."""
    config = stored.get("config", {})
    found = {key: config.get(key) for key in _SETTINGS}
    for number, spec in enumerate(config.get("datasets") or ()):
        found |= {f"datasets.{number}.{key}": value for key, value in spec.items()}
    found |= {f"filters.{key}": value for key, value in (config.get("filters") or {}).items()}
    return {**found, "adg-plugin": stored.get("versions", {}).get("adg-plugin")}


def _differences(run: RunReader, rows: Iterable[StagedRow | Rejection]) -> list[str]:
    """Return a sentence on each way in which `rows` differ from those that are staged; none where they do not."""
    # Of both pools: a digest of each prompt by id, and the rejected rows by id and reason.
    before: dict[str, bytes] = {}
    columns = ["key", "text", "reference", "data", "dataset"]
    for table in run.staged_columns(["id", *columns]):
        before |= {staged["id"]: _digest(*(staged[name] for name in columns)) for staged in table.to_pylist()}
    rejected_before = Counter((rejection.id, rejection.reason) for rejection in run.staged_rejections())
    now: dict[str, bytes] = {}
    rejected: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if isinstance(row, Rejection):
            rejected[row.id.encode(errors="backslashreplace").decode(), row.reason] += 1
        else:
            now[row.prompt.id] = _digest(row.prompt.key, row.text, row.reference, row.data, row.dataset)
    why = dict(rejected.keys())
    ids_of = {
        "gone": [id for id in before if id not in now],
        "new": [id for id in now if id not in before],
        "changed": [id for id, digest in before.items() if now.get(id, digest) != digest],
    }
    found = [_counted(how, ids, why) for how, ids in ids_of.items() if ids]
    if not found and rejected != rejected_before:
        (id, reason), *_ = {**(rejected - rejected_before), **(rejected_before - rejected)}
        found = [f"other rows are rejected, {id!r} ({reason}) first"]
    return found


def _counted(how: str, ids: list[str], why: Mapping[str, str]) -> str:
    first = f"{ids[0]!r}" + (f" (now rejected: {why[ids[0]]})" if ids[0] in why and how == "gone" else "")
    return f"1 row is {how}, {first}" if len(ids) == 1 else f"{len(ids):,} rows are {how}, {first} first"


def _digest(key: bytes, text: str | None, reference: str | None, data: str | None, dataset: int | None) -> bytes:
    return keys.digest({"row": [key.hex(), text or "", reference or "", data or "", dataset or 0]})
