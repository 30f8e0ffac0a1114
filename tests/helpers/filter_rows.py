"""Rows for the tests of filters, and what a filter decides over them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adg_plugin.config.groups import Filters
from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.filters import RowFilters
from adg_plugin.data.rows import Row, parse_row
from adg_plugin.data.sources import Record

SPEC = DatasetSpec(path="memory")
IN_LANGUAGES = {
    "en": "Please explain how the tides are caused by the moon and the sun.",
    "es": "Explica por favor cómo la luna y el sol causan las mareas.",
    "de": "Bitte erkläre, wie der Mond und die Sonne die Gezeiten verursachen.",
    "fr": "Explique s'il te plaît comment la lune et le soleil causent les marées.",
    "zh": "请解释月亮和太阳是如何引起潮汐的，并举例说明这一现象对沿海城市的影响。",
    "ru": "Объясните, пожалуйста, как луна и солнце вызывают приливы.",
}


def row(instruction: Any = "", id: str = "r", **columns: Any) -> Row:
    data = {"id": id, **({"instruction": instruction} if instruction else {}), **columns}
    parsed = parse_row(Record(data, f"memory:{id}", SPEC))
    assert isinstance(parsed, Row)
    return parsed


def rejected(rows: Iterable[Row], **filters: Any) -> dict[str, tuple[str, str]]:
    """Return reason and detail of the rejected rows by id."""
    checked = RowFilters(Filters(**filters))
    found = [checked.rejection(one) for one in rows]
    return {one.id: (one.reason.value, one.detail) for one in found if one is not None}
