"""selected.jsonl: the chosen rows as they were, in the order asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adg_plugin.store.files import TEMPORARY, Sink, replacing
from adg_plugin.store.staging import groups


def write_chosen(prompts: Path, path: Path, ids: Sequence[str]) -> None:
    """Write the original rows of `ids`, in that order, one JSON object a line.

    The pool is read once, in its own order, into a spool next to `path`; the lines are then copied in the order asked
    for. Memory is 16 bytes and an id per chosen row, however long the rows are.

    Raises:
        StoreError: the pool cannot be read or the file not be written.
        ValueError: an id is given twice, or is not among the prompts.
    """
    rank = {id: index for index, id in enumerate(ids)}
    if len(rank) < len(ids):
        raise ValueError(f"{len(ids) - len(rank)} of the {len(ids)} chosen ids are repeated: give each once")
    spool = path.with_name(path.name + ".spool" + TEMPORARY)
    try:
        offsets = _write_spool(prompts, spool, rank)
        if (offsets[:, 1] == 0).any():
            missing = ids[int(np.argmin(offsets[:, 1]))]
            raise ValueError(f"the chosen id {missing!r} is not among the prompts in {prompts}")
        with spool.open("rb") as lines, replacing(path) as sink:
            for offset, size_bytes in offsets.tolist():
                lines.seek(offset)
                sink.write(lines.read(size_bytes))
    finally:
        spool.unlink(missing_ok=True)


def _write_spool(prompts: Path, spool: Path, rank: dict[str, int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    offsets = np.zeros((len(rank), 2), np.int64)  # start and length of each chosen row's line
    end = 0
    wanted = pa.array(list(rank), pa.string())
    sink = Sink(spool, shown=spool)
    try:
        for table in groups(prompts, ["id", "data"]):
            table = table.filter(pc.is_in(table["id"], value_set=wanted))
            lines = []
            for id, data in zip(table["id"].to_pylist(), table["data"].to_pylist(), strict=True):
                lines.append(_line(id, data))
                offsets[rank[id]] = end, len(lines[-1])
                end += len(lines[-1])
            sink.write(b"".join(lines))
    finally:
        sink.close()
    return offsets


def _line(id: str, data: str) -> bytes:
    # Outside of strings a JSON text may break its lines, inside it cannot: blanks mean the same and keep it one line.
    data = data.replace("\r", " ").replace("\n", " ").strip()
    row = json.loads(data)
    if "id" not in row:
        rest = data[1:].lstrip()
        data = f'{{"id": {json.dumps(id, ensure_ascii=False)}{", " if row else ""}{rest}'
    return (data + "\n").encode()
