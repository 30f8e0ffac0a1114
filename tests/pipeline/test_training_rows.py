"""The table of chosen rows that TRL trains on."""

from __future__ import annotations

import json

import datasets
import pyarrow.parquet as pq
import pytest
from tiny_runs import choose, pool_rows, write_jsonl

from adg_plugin.pipeline import training_rows
from adg_plugin.pipeline.training_rows import TRAINING_FILE

pytestmark = pytest.mark.tiny


def table(run):
    return pq.read_table(run / TRAINING_FILE).to_pylist()


def test_each_row_is_read_by_its_own_entry_of_datasets(model, tmp_path):
    plain = write_jsonl(tmp_path / "plain.jsonl", pool_rows(4))
    other = [
        {"id": f"o{n}", "instruction": "not this", "question": f"Why {n}?", "answer": f"So {n}."} for n in range(4)
    ]
    named = {"path": str(write_jsonl(tmp_path / "other.jsonl", other)), "type": "alpaca"}
    named |= {"field_instruction": "question", "field_output": "answer"}
    choose(None, model, tmp_path / "run", datasets=[{"path": str(plain)}, named], budget=8)
    rows = {row["id"]: row for row in table(tmp_path / "run")}
    assert len(rows) == 8
    assert rows["o2"]["prompt"] == [{"role": "user", "content": "Why 2?"}]
    assert rows["o2"]["completion"] == [{"role": "assistant", "content": "So 2."}]
    assert "not this" not in json.dumps(rows)


@pytest.mark.parametrize("group", [2, 1000])
def test_rows_are_written_in_the_order_of_the_choice_a_group_at_a_time(model, tmp_path, monkeypatch, group):
    monkeypatch.setattr(training_rows, "_GROUP_ROWS", group)
    rows = pool_rows(9)
    rows[3]["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]  # in one row only
    selection = choose(rows, model, tmp_path / "run", budget=9)
    found = table(tmp_path / "run")
    assert [row["id"] for row in found] == list(selection.ids)
    assert {row["id"]: row.get("tools") for row in found if row.get("tools")} == {"row-3": json.dumps(rows[3]["tools"])}


def test_a_chosen_row_without_an_answer_leaves_the_table_to_the_others(model, tmp_path, caplog):
    rows = [*pool_rows(3), {"id": "x", "instruction": "Say no."}]
    choose(rows, model, tmp_path / "run", budget=4)
    assert {row["id"] for row in table(tmp_path / "run")} == {"row-0", "row-1", "row-2"}
    (warning,) = [r.message for r in caplog.records if "no answer to train on" in r.message]
    assert warning.startswith("1 of the chosen rows have no answer to train on")
    assert warning.endswith("(first: dataset:4)")


def test_without_any_answer_there_is_no_table_and_a_warning(model, tmp_path, caplog):
    choose([{"id": f"x{n}", "instruction": f"Say {n}."} for n in range(3)], model, tmp_path / "run", budget=3)
    assert not (tmp_path / "run" / TRAINING_FILE).exists()
    (warning,) = [r for r in caplog.records if "is not written: " in r.message]
    assert (warning.levelname, "the row has no answer to train on" in warning.message) == ("WARNING", True)


TURNS = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}


@pytest.mark.parametrize("group", [2, 1000])
def test_conversations_stay_whole_only_where_all_rows_are_some(model, tmp_path, monkeypatch, group):
    monkeypatch.setattr(training_rows, "_GROUP_ROWS", group)
    whole = [{"id": f"t{n}", **TURNS} for n in range(6)]
    choose(whole, model, tmp_path / "whole", budget=6, template="chat")
    assert [row["messages"] for row in table(tmp_path / "whole")] == [TURNS["messages"]] * 6
    choose([*whole, *pool_rows(1)], model, tmp_path / "mixed", budget=7, template="chat")
    found = {row["id"]: (row["prompt"], row["completion"]) for row in table(tmp_path / "mixed")}
    assert len(found) == 7
    assert all(found[f"t{n}"] == (TURNS["messages"][:1], TURNS["messages"][1:]) for n in range(6))


def test_each_chosen_row_is_parsed_once_and_nothing_temporary_is_left(model, tmp_path, monkeypatch):
    parse, read = training_rows.parse_chosen, []
    monkeypatch.setattr(
        training_rows, "parse_chosen", lambda data, *rest: read.append(data["id"]) or parse(data, *rest)
    )
    selection = choose(pool_rows(9), model, tmp_path / "run", budget=5)
    assert read == list(selection.ids)
    refused = [*pool_rows(3), {"id": "x", "instruction": "Say no."}]
    choose(refused, model, tmp_path / "run", budget=4)
    assert not list((tmp_path / "run").rglob("*.adg-tmp"))


def test_contents_of_texts_and_of_parts_make_one_column(model, tmp_path):
    parts = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    rows = [{"id": "text", **TURNS}, {"id": "parts", "messages": [parts, TURNS["messages"][1]]}]
    choose(rows, model, tmp_path / "run", budget=2, template="chat")
    assert [row["messages"] for row in table(tmp_path / "run")] == [TURNS["messages"]] * 2


def test_no_row_gets_the_keys_of_another_one_as_nulls(model, tmp_path):
    """In tool calls, tools and template arguments; a null that was written stays."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]

    def call(**arguments):
        made = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        return [turns[0], made, {"role": "tool", "content": "42"}, turns[1]]

    rows = [
        {"id": "one", "messages": call(city="Lima"), "chat_template_kwargs": {"date": "1 May"}},
        {"id": "two", "messages": call(a=1, b=None), "chat_template_kwargs": {"other": True}},
        {"id": "three", "messages": turns},
    ]
    template = tmp_path / "calls.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls or '' }}\n{% endfor %}")
    pool = [str(write_jsonl(tmp_path / "pool.jsonl", rows))]
    choose(None, model, tmp_path / "run", budget=3, template=str(template), datasets=pool)
    stored = datasets.load_dataset(str(tmp_path / "run"), cache_dir=str(tmp_path / "cache"))["train"]
    found = {row["id"]: row for row in stored}
    for row in rows:
        assert found[row["id"]]["messages"] == row["messages"]
        assert found[row["id"]]["chat_template_kwargs"] == row.get("chat_template_kwargs", {})
