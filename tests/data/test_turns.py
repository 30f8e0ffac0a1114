"""Turns as data sets of the field write them: roles, tool calls, history, system columns."""

import json

import pytest
from parsed_rows import parse, rejected
from paths import SHARED
from prompt_rows import CHATML, built, renderer, row_of, with_template

from adg_plugin.data.rows import Rejection

ASK, ANSWER = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
CALL = {"name": "w", "arguments": {"city": "Lima"}}
TOOL_CALL = {"type": "function", "function": CALL}
SHOWS_CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] or '') }}"
    "{% for call in m.tool_calls or [] %}{{ '<call>' + (call.function | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("user", ["user", "human", "User", "HUMAN", "prompter"])
@pytest.mark.parametrize(
    "assistant", ["gpt", "assistant", "Assistant", "bing", "bard", "claude", "ai", "chatgpt", "model"]
)
def test_the_names_of_the_field_are_roles(user, assistant):
    row = parse({"conversations": [{"from": user, "value": "Why?"}, {"from": assistant, "value": "So."}]})
    assert row.messages == (ASK,)
    assert row.answer == ANSWER


@pytest.mark.parametrize(
    ("name", "role"), [("developer", "system"), ("observation", "tool"), ("ipython", "tool"), ("function", "tool")]
)
def test_other_names_stand_for_system_and_tools(name, role):
    row = parse({"messages": [{"role": name, "content": "x"}, ASK, ANSWER]})
    assert row.messages[0] == {"role": role, "content": "x"}


def test_an_unknown_role_is_rejected_by_name_and_turn():
    reason, detail = rejected({"messages": [ASK, {"role": "narrator", "content": "x"}, ANSWER]})
    assert reason == "unknown_role"
    assert detail.startswith("messages[1]: role is 'narrator': not a known name (system, developer, user, ")


def test_names_of_roles_can_be_given():
    turns = [{"from": "customer", "value": "Why?"}, {"from": "agent", "value": "So."}]
    row = parse({"conversations": turns}, roles={"user": ["customer"], "assistant": "agent"})
    assert (row.messages, row.answer) == ((ASK,), ANSWER)


@pytest.mark.parametrize("value", [CALL, json.dumps(CALL), [CALL], json.dumps([CALL])])
def test_a_function_call_is_an_assistant_turn_with_a_tool_call(value):
    row = parse({"conversations": [{"from": "human", "value": "Why?"}, {"from": "function_call", "value": value}]})
    assert row.answer == {"role": "assistant", "tool_calls": [TOOL_CALL]}
    assert row.reference == ""
    turn = {"role": "assistant", "content": None, "function_call": CALL}
    row = parse({"messages": [ASK, turn, {"role": "function", "name": "w", "content": "42"}, ANSWER]})
    assert row.messages[1:] == (
        {"role": "assistant", "tool_calls": [TOOL_CALL]},
        {"role": "tool", "name": "w", "content": "42"},
    )


def test_a_function_call_that_is_none_is_named():
    reason, detail = rejected(
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "function_call", "value": "w()"}]}
    )
    assert reason == "bad_type"
    assert detail == "conversations[1] is a call, str 'w()': expected JSON with `name` and `arguments`"


@pytest.mark.parametrize("answered", [True, False])
def test_a_template_that_leaves_tool_calls_out_rejects_the_row(answered):
    turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}]
    row = row_of({"messages": [*turns, {"role": "tool", "content": "42"}, ANSWER] if answered else turns})
    silent = renderer(with_template(built("byte_level"), CHATML)).render(row)
    assert isinstance(silent, Rejection)
    assert silent.detail == "the chat template does not show the tool call of turn 2: use a template that does"
    shown = renderer(with_template(built("byte_level"), SHOWS_CALLS)).render(row)
    assert not isinstance(shown, Rejection)
    assert ("<call>" in shown.text) == answered


@pytest.mark.parametrize("template", ["alpaca", "raw"])
def test_templates_of_texts_refuse_tool_calls(template):
    row = row_of({"messages": [ASK, {"role": "assistant", "tool_calls": [TOOL_CALL]}]})
    refused = renderer(built("byte_level"), template).render(row)
    assert refused.detail == f"the {template} template cannot show tools: use a chat template"


@pytest.mark.parametrize("content", [None, "", "  "])
def test_an_assistant_turn_with_nothing_in_it_is_no_answer(content):
    assert parse({"messages": [ASK, {"role": "assistant", "content": content}]}).answer is None


@pytest.mark.parametrize("content", [None, ""])
def test_a_tool_call_without_content_is_an_answer(content):
    row = parse({"messages": [ASK, {"role": "assistant", "content": content, "tool_calls": [TOOL_CALL]}]})
    assert row.answer["tool_calls"] == [TOOL_CALL]


@pytest.mark.parametrize("pack", [lambda pairs: pairs, json.dumps])
def test_history_comes_before_the_instruction(pack):
    earlier = pack([["Count to two", "One two"], ["And then?", "Three"]])
    row = parse({"instruction": "And the next?", "output": "Four.", "system": "Be terse.", "history": earlier})
    assert [turn["content"] for turn in row.messages] == [
        "Be terse.",
        *("Count to two", "One two", "And then?", "Three"),
        "And the next?",
    ]
    assert row.instruction == "And the next?"


def test_a_history_of_something_else_is_rejected_unless_the_column_is_none():
    row = {"instruction": "Why?", "output": "So.", "history": "a long one"}
    reason, detail = rejected(row)
    assert (reason, "set field_history: ''" in detail) == ("bad_type", True)
    assert parse(row, field_history="").messages == (ASK,)


@pytest.mark.parametrize("layout", ["messages", "prompt"])
def test_a_system_column_counts_where_the_turns_do_not_begin_with_one(layout):
    rest = {"messages": [ASK, ANSWER]} if layout == "messages" else {"prompt": [ASK], "completion": [ANSWER]}
    assert parse({"system": "Be brief.", **rest}).messages == ({"role": "system", "content": "Be brief."}, ASK)
    own = {"role": "system", "content": "own"}
    assert parse({"system": "Be brief.", "messages": [own, ASK, ANSWER]}).messages == (own, ASK)


def test_a_system_column_beside_a_prompt_of_text_has_no_place():
    reason, detail = rejected({"system": "Be brief.", "prompt": "Why?", "completion": "So."})
    assert reason == "unsupported_content"
    assert "set field_system: ''" in detail
    assert parse({"system": "x", "prompt": "Why?", "completion": "So."}, field_system="").text == "Why?"


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        ({}, {"type": "alpaca"}),
        (
            {"question": "Why?", "answer": "So."},
            {"type": "alpaca", "field_instruction": "question", "field_output": "answer"},
        ),
        ({"dialog": [ASK, ANSWER]}, {"field_messages": "dialog"}),
        ({"completion": "So.", "prompt": "Why?"}, {"type": "prompt_completion"}),
    ],
)
def test_the_answer_is_that_of_the_layout_that_was_read(other, settings):
    distractor = [{"role": "user", "content": "OTHER"}, {"role": "assistant", "content": "OTHER-ANSWER"}]
    row = parse({"instruction": "Why?", "output": "So.", **other, "messages": distractor}, **settings)
    assert row.question == "Why?"
    assert row.answer == ANSWER


def test_turns_of_a_completion_stay_in_it():
    call = {"role": "assistant", "tool_calls": [TOOL_CALL]}
    result = {"role": "tool", "content": "42"}
    row = parse({"prompt": [ASK], "completion": [call, result, ANSWER]})
    assert (row.messages, row.completion_start, row.answer) == ((ASK, call, result), 1, ANSWER)


@pytest.mark.skipif(not SHARED.exists(), reason="the inputs from the field are not here")
@pytest.mark.parametrize(
    "name", ["01-function-call", "02-role-names", "03-messages-human-gpt", "04-messages-from-value", "05-content-parts"]
)
def test_inputs_of_the_field_have_a_prompt_and_an_answer(name):
    for line in (SHARED / "field" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = parse(json.loads(line))
        assert not isinstance(row, Rejection), row.detail
        assert row.messages[0]["role"] == "user"
        assert row.answer is not None
