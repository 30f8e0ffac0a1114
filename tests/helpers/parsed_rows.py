"""Turns and rows for the tests of parsing."""

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.rows import Rejection, parse_row, unique_rows
from adg_plugin.data.sources import Record

USER = {"role": "user", "content": "Why?"}
ASSISTANT = {"role": "assistant", "content": "Because."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "42", "name": "answer"}


def records(rows, **settings):
    spec = DatasetSpec.model_validate({"path": "p.jsonl", **settings})
    return [Record(row, f"p.jsonl:{n}", spec) for n, row in enumerate(rows, 1)]


def parse(row, **settings):
    return parse_row(records([row], **settings)[0])


def unique(*rows, **settings):
    return list(unique_rows(records(rows, **settings)))


def rejected(row, **settings):
    result = parse(row, **settings)
    assert isinstance(result, Rejection)
    assert result.data == row
    return result.reason, result.detail
