"""Rows: every accepted layout, and a reason for each row that cannot be used."""

import copy
import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed_rows import ASSISTANT, SYSTEM, TOOL, USER, parse, rejected, unique
from paths import SHARED_POOL

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.cells import Reason
from adg_plugin.data.rows import Rejection, Row, unique_rows
from adg_plugin.data.sources import Record, iter_memory, iter_records
from adg_plugin.errors import DataError

# -- layouts


def test_alpaca():
    row = parse({"instruction": "Add.", "input": "2 and 3", "output": "5"})
    assert row.messages == ({"role": "user", "content": "Add.\n\n2 and 3"},)
    assert (row.instruction, row.input, row.reference, row.text, row.tools) == ("Add.", "2 and 3", "5", None, None)


@pytest.mark.parametrize("given", ["", None, "  \n", math.nan])
def test_alpaca_without_input_ends_with_the_instruction(given):
    row = parse({"instruction": "Add.", "input": given, "output": "5", "system": None})
    assert row.messages == ({"role": "user", "content": "Add."},)
    assert row.input == ""


def test_alpaca_with_a_system_prompt_and_other_column_names():
    data = {"sys": "Be brief.", "question": "Why?", "context": "Here.", "answer": "So."}
    names = {"field_instruction": "question", "field_input": "context", "field_output": "answer", "field_system": "sys"}
    row = parse(data, **names)
    assert row.messages == (SYSTEM, {"role": "user", "content": "Why?\n\nHere."})
    assert row.reference == "So."


@pytest.mark.parametrize(
    ("turns", "prompt", "reference"),
    [
        ([USER, ASSISTANT], [USER], "Because."),
        ([USER, ASSISTANT, USER, ASSISTANT], [USER, ASSISTANT, USER], "Because."),
        ([SYSTEM, USER], [SYSTEM, USER], ""),
        ([USER, ASSISTANT, USER], [USER, ASSISTANT, USER], ""),
        ([USER, ASSISTANT, TOOL], [USER, ASSISTANT, TOOL], ""),
        ([USER, ASSISTANT, TOOL, ASSISTANT], [USER, ASSISTANT, TOOL], "Because."),
        ([ASSISTANT, USER, ASSISTANT], [ASSISTANT, USER], "Because."),
    ],
)
def test_messages_are_cut_before_the_last_assistant_turn(turns, prompt, reference):
    row = parse({"messages": turns})
    assert row.messages == tuple(prompt)
    assert (row.instruction, row.reference) == ("Why?", reference)


@given(
    turns=st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(min_size=1)), min_size=1),
    layout=st.sampled_from(["messages", "sharegpt"]),
)
def test_prompt_and_rest_are_the_row_again(turns, layout):
    keys = ("role", "content") if layout == "messages" else ("from", "value")
    column = "messages" if layout == "messages" else "conversations"
    row = parse({column: [dict(zip(keys, turn, strict=True)) for turn in turns]})
    if isinstance(row, Rejection):
        assert row.reason in (Reason.NO_USER_TURN, Reason.WHITE_SPACE)
        return
    prompt = [(turn["role"], turn["content"]) for turn in row.messages]
    assert prompt == turns[: len(prompt)]
    rest = turns[len(prompt) :]
    assert not any(role == "user" for role, _ in rest)  # nothing that is asked is left out
    assert (rest[0] == ("assistant", row.reference)) if rest else turns[-1][0] != "assistant"
    assert not any(role == "assistant" for role, _ in rest[1:])


def test_sharegpt_with_its_own_names_and_a_system_column():
    data = {
        "system": "Be brief.",
        "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}],
    }
    row = parse(data)
    assert row.messages == (SYSTEM, USER)
    assert row.reference == "Because."
    data["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    assert parse(data).messages == (SYSTEM, USER)


def test_turns_under_other_names():
    data = {"dialog": [{"who": "human", "says": "Why?", "mood": "calm"}, {"who": "gpt", "says": "Because."}]}
    row = parse(data, field_messages="dialog", message_property_mappings={"role": "who", "content": "says"})
    assert row.messages == ({"role": "user", "content": "Why?", "mood": "calm"},)
    assert row.reference == "Because."
    assert parse({"conversations": [USER, ASSISTANT]}, type="chat_template").messages == (USER,)
    assert parse({"messages": [{"from": "human", "value": "Why?"}]}, type="sharegpt").messages == (USER,)


def test_text_parts_are_joined_and_other_parts_named():
    parts = [{"type": "text", "text": "Why", "image": None}, {"type": "text", "text": "?"}]
    assert parse({"messages": [{"role": "user", "content": parts}]}).messages == (USER,)
    image = {"type": "image", "image": "x.png"}
    reason, detail = rejected({"messages": [USER, {"role": "user", "content": [*parts, image]}]})
    assert reason == "unsupported_content"
    assert detail == "messages[1] holds a part of type 'image': only text is supported"


def test_prompt_and_completion_as_text_stay_raw():
    row = parse({"prompt": "Q: Why?\nA:", "completion": " Because."})
    assert (row.text, row.messages, row.instruction, row.reference) == ("Q: Why?\nA:", None, "Q: Why?\nA:", " Because.")
    assert parse({"prompt": "Why?"}).reference == ""


def test_prompt_and_completion_as_turns():
    assert parse({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}).messages == (SYSTEM, USER)
    assert parse({"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}).reference == "Because."
    assert parse({"prompt": [USER]}).messages == (USER,)
    assert parse({"prompt": [USER], "completion": [ASSISTANT, USER, ASSISTANT]}).messages == (USER, ASSISTANT, USER)
    reason, detail = rejected({"prompt": [USER, ASSISTANT], "completion": [ASSISTANT]})
    assert (reason, detail) == (
        "unsupported_content",
        "prompt ends with an assistant turn: move it into completion",
    )


def test_keys_that_are_none_are_no_keys():
    turn = {"role": "user", "content": "Why?", "tool_calls": None, "name": None}
    assert parse({"messages": [turn]}).messages == (USER,)


def test_tools_and_template_arguments_as_objects_or_json_text():
    tools = [{"type": "function", "function": {"name": "f"}}]
    for form in (tools, json.dumps(tools)):
        row = parse({"messages": [USER], "tools": form, "chat_template_kwargs": {"thinking": False, "x": None}})
        assert row.tools == tuple(tools)
        assert row.chat_template_kwargs == {"thinking": False}
    assert parse({"messages": [USER], "tools": []}).tools is None
    assert rejected({"messages": [USER], "tools": ["f"]})[0] == "bad_type"
    assert rejected({"messages": [USER], "chat_template_kwargs": [1]})[0] == "bad_type"


def test_csv_may_hold_turns_as_json(tmp_path):
    path = tmp_path / "p.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["messages", "n"], [json.dumps([USER, ASSISTANT]), 1]])
    (row,) = unique_rows(iter_records([DatasetSpec(path=str(path))]))
    assert row.messages == (USER,)
    assert row.data["n"] == "1"


def test_data_is_kept_unchanged():
    data = {"id": 7, "messages": [{**USER, "tool_calls": None}, ASSISTANT], "score": [1, {"a": None}]}
    assert parse(copy.deepcopy(data)).data == data


def test_layouts_may_differ_from_row_to_row_as_in_one_table():
    alpaca = {"instruction": "Add.", "output": "5", "messages": None}
    chat = {"instruction": None, "output": None, "messages": [USER]}
    first, second = unique(alpaca, chat)
    assert (first.instruction, second.instruction) == ("Add.", "Why?")


@pytest.mark.skipif(not SHARED_POOL.exists(), reason="the shared pool is not here")
def test_the_shared_pool_parses_whole():
    rows = list(unique_rows(iter_records([DatasetSpec(path=str(SHARED_POOL))])))
    assert all(isinstance(row, Row) for row in rows)
    assert all(row.id == row.data["id"] for row in rows)


def test_the_demo_pool_parses_whole():
    rows = list(unique_rows(iter_records([DatasetSpec(path="demo")])))
    assert [row for row in rows if isinstance(row, Rejection)] == []
    assert any(row.input for row in rows)
    assert any(len(row.messages) > 1 for row in rows)


# -- rejections


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"instruction": "", "output": "x"}, "no_instruction", "instruction is empty"),
        ({"instruction": None}, "no_instruction", "instruction is empty"),
        ({"instruction": " \t\u3000\n\u200b", "input": "x"}, "only_white_space", "instruction is only white space: "),
        ({"instruction": 7}, "bad_type", "instruction is int 7, expected text"),
        ({"instruction": "a", "input": ["b"]}, "bad_type", "input is list ['b'], expected text"),
        ({"instruction": "a", "id": [1]}, "bad_type", "id is [1], expected text or a whole number"),
        ({"messages": []}, "no_user_turn", "no user turn"),
        ({"messages": None}, "no_user_turn", "no turns in messages"),
        ({"messages": [SYSTEM, ASSISTANT]}, "no_user_turn", "no user turn before the last assistant turn"),
        ({"messages": [{"role": "user", "content": " "}]}, "only_white_space", "the last user turn is only white"),
        ({"messages": [{"role": "user", "content": ""}]}, "no_instruction", "the last user turn is empty"),
        ({"messages": [{"role": "user"}]}, "no_instruction", "messages[0]: a user turn without "),
        ({"messages": "Why?"}, "bad_type", "messages is str 'Why?', expected a list of turns"),
        ({"messages": ["Why?"]}, "bad_type", "messages[0] is str 'Why?', expected a turn with role and content"),
        ({"messages": [{"content": "Why?"}]}, "bad_type", "messages[0]: from is NoneType None, expected user"),
        ({"messages": [{"role": "user", "content": 3}]}, "bad_type", "messages[0]: content is int 3, expected text"),
        ({"prompt": " ", "completion": "x"}, "only_white_space", "prompt is only white space"),
        ({"prompt": "a", "completion": [ASSISTANT]}, "bad_type", "completion is list"),
        ({"prompt": [USER], "completion": "b"}, "bad_type", "completion is str 'b', expected a list of turns"),
    ],
)
def test_a_row_that_cannot_be_used_has_its_reason(row, reason, detail):
    got = rejected(row)
    assert got[0] == reason
    assert got[1].startswith(detail)


def test_a_row_without_the_columns_of_its_neighbours_is_rejected_not_lost():
    rows = unique({"output": "x"}, {"instruction": "a"}, {"input": "y"}, {"instruction": "b"}, {})
    reasons = ["no_instruction", None, "no_instruction", None, "no_instruction"]
    assert [getattr(row, "reason", None) for row in rows] == reasons
    assert [row.where for row in rows] == [f"p.jsonl:{n}" for n in (1, 2, 3, 4, 5)]


# -- unknown formats


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"a": 1, "b": 2}, "field_instruction: question and field_output: answer"),
        ({"text": "Hello."}, "`text` is finished text, no prompt to ask: split it into `prompt` and `completion`"),
        ({"chosen": [], "rejected": []}, "`chosen` and `rejected` are preference pairs"),
        ({"input_ids": [1]}, "`input_ids` are tokens already"),
    ],
)
def test_unknown_columns_are_an_error_with_what_to_do(row, hint):
    with pytest.raises(DataError) as caught:
        unique(row)
    text = str(caught.value)
    assert text.startswith(f"p.jsonl:1: unknown row format (columns: {', '.join(row)}). Accepted: alpaca (instruction,")
    assert "sharegpt (conversations)" in text
    assert hint in text


def test_a_named_type_whose_column_is_not_there():
    with pytest.raises(DataError) as caught:
        unique({"question": "a"}, {"question": "b"}, type="alpaca")
    assert str(caught.value) == (
        "p.jsonl:1: type is alpaca, but there is no column `instruction` (columns: question): set field_instruction"
    )
    with pytest.raises(
        DataError, match=r"no column `conversations` or `conversation` or `messages` .*set field_messages"
    ):
        unique({"instruction": "a"}, type="sharegpt")
    with pytest.raises(DataError, match=r"no column `ask` .*set field_prompt"):
        parse({"instruction": "a"}, type="prompt_completion", field_prompt="ask")


def test_an_unknown_format_is_told_before_the_pool_is_read_through():
    def endless():
        spec = DatasetSpec(path="p")
        n = 0
        while True:
            n += 1
            yield Record({"a": n}, f"p:{n}", spec)

    with pytest.raises(DataError, match="p:1: unknown row format"):
        next(unique_rows(endless()))


def test_preference_data_with_a_prompt_can_be_named():
    row = parse({"prompt": "a", "chosen": "b", "rejected": "c"}, type="prompt_completion", field_completion="chosen")
    assert (row.text, row.reference) == ("a", "b")


def test_rows_of_a_dataset_in_memory():
    import datasets

    dataset = datasets.Dataset.from_list([{"messages": [USER, ASSISTANT]}, {"messages": [SYSTEM, USER]}])
    rows = list(unique_rows(iter_memory(dataset)))
    assert [row.messages for row in rows] == [(USER,), (SYSTEM, USER)]
    assert rows[0].data == {"messages": [USER, ASSISTANT]}


@pytest.mark.parametrize("column", ["output", "id", "note"])
def test_half_a_character_in_any_column_rejects_the_row(column):
    good = {"id": "r", "instruction": "a", "output": "b", "note": ["c"]}
    (row,) = unique({**good, column: "cut \ud83d"})
    assert row.reason == Reason.BAD_TEXT
    assert "half a character" in row.detail


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        ({"instruction": "a", "output": "b"}, {"role": "assistant", "content": "b"}),
        ({"instruction": "a", "output": " "}, None),
        ({"instruction": "a", "output": None}, None),
        ({"messages": [{"role": "user", "content": "a"}]}, None),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}, None),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [1]}]},
            {"role": "assistant", "content": "", "tool_calls": [1]},
        ),
        ({"prompt": "a", "completion": "b"}, {"role": "assistant", "content": "b"}),
    ],
)
def test_the_answer_of_a_row(data, answer):
    (row,) = unique(data)
    assert row.answer == answer
