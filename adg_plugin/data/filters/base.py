"""What a filter is, and what filters look at in a row."""

from __future__ import annotations

from typing import Protocol

from adg_plugin.data.layouts import Reason
from adg_plugin.data.rows import Row

Rejected = tuple[Reason, str]  # for counting, and a detail for reading


class RowFilter(Protocol):
    """Looks at rows one by one, in the pool's order, each once."""

    def __call__(self, row: Row) -> Rejected | None:
        """Return why the row is rejected, or None where it stays."""
        ...


def asked(row: Row) -> str:
    """Return the last user turn: the instruction with its input."""
    return f"{row.instruction}\n\n{row.input}" if row.input else row.instruction
