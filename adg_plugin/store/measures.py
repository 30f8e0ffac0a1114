"""measures/NAME/part-*.parquet: what a side model found of each row, once, safe against crashes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from adg_plugin.store.folder import RunFolder
from adg_plugin.store.ledger import Ledger
from adg_plugin.store.parts import digests, row_groups, take_stock
from adg_plugin.store.reader import MEASURES, RunReader

# Results are written when so many are buffered, or so many seconds have passed.
ROWS_PER_PART = 2048
FLUSH_S = 20.0


def measure_schema(*values: tuple[str, pa.DataType]) -> pa.Schema:
    """Return the columns of a measure's parts, of which those that a model finds are given."""
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("key", pa.binary(16), nullable=False),  # of the model, its type and what it was asked
            *values,
            ("tokens", pa.int32()),
            ("reason", pa.string()),
        ]
    )


@dataclass(frozen=True, slots=True)
class Finding:
    """What a side model found of a row. With a `reason` there are no values."""

    id: str
    key: bytes  # 16-byte hash of all that produces it
    values: Mapping[str, float | str]  # by column of the measure's schema
    num_tokens: int  # that were read or generated; 0 with a `reason`
    reason: str | None = None


def open_measures(run: RunFolder, name: str, schema: pa.Schema) -> Ledger[Finding]:
    """Return the measures of that name, their parts verified and cleared of what a killed process left.

    Args:
        run: the run folder, held by this process.

    Raises:
        StoreError: they cannot be read or mended.
    """
    return Ledger(run.path / MEASURES / name, schema, _record, rows_per_part=ROWS_PER_PART, flush_s=FLUSH_S)


def _record(finding: Finding) -> dict[str, Any]:
    columns = {"id": finding.id, "key": finding.key, "tokens": finding.num_tokens, "reason": finding.reason}
    return columns | dict(finding.values)


def read_measures(run: RunReader, name: str, schema: pa.Schema, wanted: Sequence[bytes]) -> pa.Table:
    """Return what is measured under that name, a row for each `row_digest` in `wanted`, in order, null if nothing.

    Damaged parts are left out; what a writer still buffers is not seen.

    Raises:
        StoreError: a part cannot be read.
    """
    parts = take_stock(run.path / MEASURES / name, repair=False).parts
    tables = [table for part in parts for table in row_groups(part, schema.names, schema)]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    places = {digest: place for place, digest in enumerate(digests(table))}
    return table.take(pa.array([places.get(digest) for digest in wanted], pa.int64()))
