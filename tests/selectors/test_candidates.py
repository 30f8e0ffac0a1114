"""The rows that selectors choose among, as they are read from a staged pool."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from adg_plugin.selectors.candidates import read_candidates
from adg_plugin.store import RunFolder, StagedRow, staging
from adg_plugin.store.records import Prompt

NO_ANSWER = "there is no answer of the row's own; name its column (field_output, field_completion) if there is one"


def row(id, reference="yes", **data):
    prompt = Prompt(id, np.array([5, 6, 7], np.int32), (1, 2), id.encode()[:1] * 16, f"ask {id}")
    return StagedRow(prompt, f"text {id}", reference, json.dumps(data), f"pool.jsonl:{id}")


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """A function that stages rows, three in a group, and returns the run folder and the columns that are read of it."""
    monkeypatch.setattr(staging, "ROWS_PER_GROUP", 3)
    read = []
    groups = staging.groups

    def noted(path, columns, **options):
        read.append(tuple(columns))
        return groups(path, columns, **options)

    def stage(rows):
        with RunFolder.open(tmp_path / "run") as run:
            run.stage_prompts(rows, digest="0" * 32)
        monkeypatch.setattr(staging, "groups", noted)
        return RunFolder.read(tmp_path / "run"), read

    return stage


def test_rows_of_many_groups_come_by_code_point_each_with_its_own_texts(staged):
    ids = ["b", "é", "a10", "Z", "a9", "𝒳", "豈", "a", "c", "d"]
    run, _ = staged([row(id, f"answer {id}", n=id) for id in ids])
    found, rejected = read_candidates(run, ("instruction", "reference", "data"))
    assert list(found.ids) == sorted(ids, key=lambda id: id.encode())
    assert list(found.instructions) == [f"ask {id}" for id in found.ids]
    assert list(found.references) == [f"answer {id}" for id in found.ids]
    assert list(found.where) == [f"pool.jsonl:{id}" for id in found.ids]
    assert [json.loads(text) for text in found.data] == [{"n": id} for id in found.ids]
    assert rejected == []


def test_only_what_a_method_asks_for_is_read_and_held(staged):
    run, read = staged([row(id) for id in "dcba"])
    found, _ = read_candidates(run, needs_reference="turn")
    assert read == [("id", "where", "reference")]
    assert (list(found.ids), found.instructions, found.references, found.data) == (list("abcd"), (), (), ())
    found, _ = read_candidates(run, ("reference",))
    assert read[1:] == [("id", "where", "reference")]
    assert (found.references, found.data) == (["yes"] * 4, ())


def test_rows_without_an_answer_are_told_by_id_and_a_call_of_a_tool_is_one(staged):
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    turns = [{"role": "user", "content": "ask"}, call]
    run, _ = staged([row("d", " \n"), row("c"), row("b", "", messages=turns), row("a", "")])
    found, rejected = read_candidates(run, ("reference",))
    assert (list(found.ids), found.references) == (["c"], ["yes"])
    assert [(left.id, left.where) for left in rejected] == [(id, f"pool.jsonl:{id}") for id in "abd"]
    assert {(left.reason, left.detail) for left in rejected} == {("no_answer", NO_ANSWER)}
    found, rejected = read_candidates(run, needs_reference="turn")
    assert (list(found.ids), [left.id for left in rejected]) == (["b", "c"], ["a", "d"])
    found, rejected = read_candidates(run, needs_reference="none")
    assert (list(found.ids), rejected) == (list("abcd"), [])


def test_a_pool_with_more_than_two_gibibytes_in_a_column_is_read():
    """As one Arrow array of 32-bit offsets it cannot be: `offset overflow while concatenating arrays`."""
    text, groups = "x" * (64 << 20), 33
    long = pa.array([text], pa.string())
    assert groups * len(text) > 2**31

    def staged_columns(columns):
        for number in range(groups, 0, -1):
            id = pa.array([f"{number:02}"])
            yield pa.table({"id": id, "where": id, "reference": long}).select(columns)

    found, _ = read_candidates(SimpleNamespace(staged_columns=staged_columns), needs_reference="turn")
    assert list(found.ids) == [f"{number:02}" for number in range(1, groups + 1)]
