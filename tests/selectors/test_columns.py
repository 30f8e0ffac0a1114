"""Numbers of a table of scores, as people see them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from adg_plugin.selectors.columns import by_rank, plain, shown


@pytest.mark.parametrize(
    ("value", "text", "signed"),
    [
        (None, "", ""),
        (float("nan"), "", ""),
        (48.0, "48", "+48"),
        (-3, "-3", "-3"),
        (0.91234, "0.9123", "+0.9123"),
        (0, "0", "+0"),
    ],
)
def test_numbers_are_shown_as_they_are(value, text, signed):
    assert (shown(plain(value)), shown(plain(value), "+")) == (text, signed)


def test_rows_without_a_rank_come_last_by_id():
    scores = pa.table({"id": list("abcd"), "rank": pa.array([None, 2, None, 1], pa.int32())})
    assert by_rank(scores).tolist() == [3, 1, 0, 2]
