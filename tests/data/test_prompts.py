"""Prompts: what of a row is shown, by which template, and in which order."""

import dataclasses
import json

import pytest
from hypothesis import given
from parsed_rows import rejected
from prompt_rows import (
    ASSISTANT,
    CHATML,
    GEMMA,
    LLAMA3,
    MISTRAL,
    SYSTEM,
    USER,
    ask,
    assert_span_is,
    built,
    instruction_text,
    questions,
    renderer,
    row_of,
    with_template,
)

from adg_plugin.data.prompts import Rendered
from adg_plugin.data.rows import Rejection
from adg_plugin.errors import ConfigError, ModelError

# -- what rows carry


def test_system_tools_and_template_arguments_are_honoured():
    tokenizer = with_template(built("byte_level"), LLAMA3)
    tools = [{"type": "function", "function": {"name": "now", "parameters": {}}}]
    kwargs = {"think": False}
    prompt = renderer(tokenizer).render(ask("What time is it?", SYSTEM, tools=tools, chat_template_kwargs=kwargs))
    messages = [SYSTEM, {"role": "user", "content": "What time is it?"}]
    expected = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_dict=False, **kwargs
    )
    assert prompt.token_ids.tolist() == expected
    assert json.dumps(tools) in prompt.text
    assert prompt.text.endswith("<no-think>")
    plain = renderer(tokenizer).render(ask("What time is it?", SYSTEM))
    assert "Tools:" not in plain.text


@pytest.mark.parametrize(
    "name", ["chat_template", "tokenize", "documents", "continue_final_message", "add_generation_prompt", "messages"]
)
def test_a_row_cannot_steer_how_the_template_is_applied(name):
    turns = {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {name: "x"}}
    reason, detail = rejected(turns)
    assert reason == "template_error"
    assert detail == f"chat_template_kwargs has {name}: not for a row to set, leave it out"


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (MISTRAL, [USER, USER], "roles must alternate user/assistant"),
        (GEMMA, [SYSTEM, USER], "System role not supported"),
        ("{{ messages[5].content }}{{ messages[0].content + 1 }}", [USER], ""),
    ],
)
def test_a_row_that_the_template_refuses_is_rejected_with_its_message(template, messages, message):
    tokenizer = with_template(built("byte_level"), template)
    rejection = renderer(tokenizer).render(row_of({"id": "r1", "messages": messages}))
    assert isinstance(rejection, Rejection)
    assert (rejection.id, rejection.reason, rejection.where) == ("r1", "template_error", "p.jsonl:1")
    assert rejection.detail.startswith(f"the chat template refuses the row: {message}")
    assert rejection.data["messages"] == messages


def test_half_a_character_is_rejected_and_its_neighbours_are_not():
    tokenizer = with_template(built("byte_level"), CHATML)
    half = ({"role": "user", "content": "half \ud83d"},)
    rows = [ask("a"), dataclasses.replace(ask("half"), messages=half, instruction="half \ud83d"), ask("b")]
    results = [prompt for _, prompt in renderer(tokenizer).render_many(rows)]
    assert [type(result) for result in results] == [Rendered, Rejection, Rendered]
    assert results[1].reason == "not_unicode"
    assert "half a character" in results[1].detail


def test_order_is_kept_over_many_batches():
    tokenizer = with_template(built("byte_level"), GEMMA)
    rows = [row_of({"id": n, "messages": [SYSTEM, USER] if n % 7 == 0 else [USER]}) for n in range(600)]
    results = [prompt for _, prompt in renderer(tokenizer).render_many(iter(rows))]
    assert [result.id for result in results] == [str(n) for n in range(600)]
    assert [isinstance(result, Rejection) for result in results] == [n % 7 == 0 for n in range(600)]


# -- text templates


def test_the_alpaca_prompt():
    tokenizer = with_template(built("metaspace"), None)
    prompt = renderer(tokenizer, "auto").render(row_of({"instruction": "Add.", "input": "2 and 3", "output": "5"}))
    assert prompt.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 and 3\n\n### Response:\n"
    )
    assert instruction_text(tokenizer, prompt).strip() == "Add.\n\n### Input:\n2 and 3"
    prompt = renderer(tokenizer, "alpaca").render(row_of({"instruction": "Add.", "input": "", "system": "Be brief."}))
    assert prompt.text == "Be brief.\n\n### Instruction:\nAdd.\n\n### Response:\n"
    prompt = renderer(tokenizer, "alpaca").render(ask("Add."))
    assert prompt.text == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )


def test_the_papers_alpaca_prompt_has_no_line_break_before_an_answer():
    tokenizer = built("byte_level")
    papers = renderer(tokenizer, "alpaca-paper")
    for row in ({"instruction": "Add.", "input": "2 and 3"}, {"instruction": "Add.", "system": "Be brief."}):
        usual, paper = renderer(tokenizer, "alpaca").render(row_of(row)), papers.render(row_of(row))
        assert paper.text + "\n" == usual.text
        assert paper.text.endswith("\n\n### Response:")
        assert paper.span == usual.span
    assert papers.render(ask("Why?", USER, ASSISTANT)).text.endswith(
        "tips.\n\n### Response:Sleep, eat, move.\n\n### Instruction:\nWhy?\n\n### Response:"
    )


def test_text_prompts_begin_as_the_tokenizer_begins_and_never_end_with_eos():
    row = row_of({"instruction": "Add.", "output": "5"})
    for kind, leading in (("metaspace", 1), ("slow", 0), ("byte_level", 0)):
        tokenizer = with_template(built(kind), None)
        prompt = renderer(tokenizer, "alpaca").render(row)
        whole = tokenizer(prompt.text)["input_ids"]
        without_eos = whole[: -1 if kind != "byte_level" else None]
        assert prompt.token_ids.tolist() == without_eos
        assert prompt.token_ids.tolist()[leading:] == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        assert instruction_text(tokenizer, prompt).strip() == "Add."


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "slow"])
@given(question=questions)
def test_spans_of_text_templates(kind, question):
    tokenizer = built(kind)
    prompt = renderer(tokenizer, "alpaca").render(row_of({"instruction": question, "output": ""}))
    assert_span_is(tokenizer, kind, prompt, question)


def test_alpaca_shows_earlier_turns_and_rejects_what_it_cannot_show():
    tokenizer = built("byte_level")
    prompt = renderer(tokenizer, "alpaca").render(ask("Why?", SYSTEM, USER, ASSISTANT))
    assert prompt.text == (
        "Be brief.\n\n### Instruction:\nGive three tips.\n\n### Response:\nSleep, eat, move.\n\n"
        "### Instruction:\nWhy?\n\n### Response:\n"
    )
    assert instruction_text(tokenizer, prompt) == "Why?"
    tool = {"role": "tool", "content": "42"}
    for row, detail in [
        (ask("Why?", USER), "needs user and assistant in turn: turn 2 is user"),
        (row_of({"messages": [USER, tool]}), "needs user and assistant in turn: turn 2 is tool"),
        (ask("Why?", tools=[{"name": "f"}]), "the alpaca template cannot show tools"),
        (row_of({"messages": [USER, ASSISTANT, ASSISTANT]}), "needs a user turn at the end"),
    ]:
        rejection = renderer(tokenizer, "alpaca").render(row)
        assert rejection.reason == "template_error"
        assert detail in rejection.detail


def test_raw_is_the_instruction_itself():
    tokenizer = built("metaspace")
    raw = renderer(tokenizer, "raw")
    assert raw.render(row_of({"instruction": "Add.", "input": "2 and 3"})).text == "Add.\n\n2 and 3"
    assert raw.render(row_of({"instruction": "Add.", "system": "Be brief."})).text == "Be brief.\n\nAdd."
    prompt = raw.render(row_of({"instruction": "Add."}))
    assert prompt.token_ids[0] == tokenizer.bos_token_id
    assert prompt.span == (1, len(prompt.token_ids))
    assert "the row has 3 turns" in raw.render(ask("Why?", USER, ASSISTANT)).detail


def test_the_first_position_is_never_in_the_span():
    tokenizer = built("byte_level")  # puts no BOS in front of raw text
    prompt = renderer(tokenizer, "raw").render(row_of({"instruction": "Add 2 and 3."}))
    assert prompt.span == (1, len(prompt.token_ids))
    rejection = renderer(tokenizer, "raw").render(row_of({"instruction": "a"}))
    assert rejection.reason == "no_instruction_tokens"


def test_raw_prompts_are_put_into_a_template_only_when_it_is_named(tmp_path):
    tokenizer = with_template(built("metaspace"), LLAMA3)
    row = row_of({"prompt": "Q: why?\nA:", "completion": " so"})
    for template in ("auto", "raw"):
        prompt = renderer(tokenizer, template).render(row)
        assert prompt.text == "Q: why?\nA:"
        assert prompt.token_ids.tolist() == tokenizer("Q: why?\nA:")["input_ids"][:-1]  # without EOS
    assert renderer(tokenizer, "chat").render(row).text.startswith("<s><|start|>user<|end|>\n\nQ: why?")
    assert renderer(tokenizer, "alpaca").render(row).text.endswith("### Instruction:\nQ: why?\nA:\n\n### Response:\n")
    assert renderer(tokenizer, "chatml").render(row).text.startswith("<|im_start|>user\nQ: why?")
    assert renderer(with_template(tokenizer, None), "auto").render(row).text == "Q: why?\nA:"


# -- choosing a template


def test_auto_takes_the_tokenizers_template_and_else_alpaca():
    tokenizer = with_template(built("byte_level"), CHATML)
    assert (
        renderer(tokenizer, "auto").render(ask("Hi")).text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "### Instruction:" in renderer(with_template(tokenizer, None), "auto").render(ask("Hi")).text


def test_chatml_is_built_in():
    own = renderer(with_template(built("byte_level"), CHATML), "chat").render(ask("Hi", SYSTEM, USER, ASSISTANT))
    built_in = renderer(with_template(built("byte_level"), LLAMA3), "chatml").render(ask("Hi", SYSTEM, USER, ASSISTANT))
    assert built_in.text == own.text


def test_chat_without_a_chat_template_says_what_to_set():
    tokenizer = with_template(built("byte_level"), None)
    tokenizer.name_or_path = "my/base-model"
    with pytest.raises(ModelError) as caught:
        renderer(tokenizer, "chat")
    assert str(caught.value) == (
        "template is chat, but the tokenizer of my/base-model has no chat template: "
        "set template to alpaca, chatml, raw, or the path of a .jinja file"
    )


def test_a_jinja_file(tmp_path):
    tokenizer = built("byte_level")
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}{% generation %}<{{ m.role }}>{{ m.content }}{% endgeneration %}{% endfor %}:"
    )
    prompt = renderer(tokenizer, str(path)).render(ask("Hi", SYSTEM))
    assert prompt.text == "<system>Be brief.<user>Hi:"
    assert instruction_text(tokenizer, prompt) == "Hi"
    path.write_text("{{ raise_exception('needs a system turn') if messages | length < 2 }}{{ messages[1].content }}")
    assert renderer(tokenizer, str(path)).render(ask("Hello there", SYSTEM)).text == "Hello there"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("llama3", "template is 'llama3': use auto, chat, alpaca, alpaca-paper, chatml, raw, or the path of a .jinja"),
        ("none.jinja", "template is 'none.jinja': cannot be read ("),
        ("BROKEN", ": not Jinja, line 2: "),
    ],
)
def test_a_template_that_is_not_there_or_broken(tmp_path, template, message):
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for m in messages %}\n{% endif %}")
    with pytest.raises(ConfigError) as caught:
        renderer(built("byte_level"), str(broken) if template == "BROKEN" else template)
    assert message in str(caught.value)


@pytest.mark.parametrize("named", [False, True])
def test_a_template_that_prints_the_date_gives_the_same_prompt_tomorrow(named):
    dated = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    own = {"default": dated, "tool_use": f"Tools: {dated}"} if named else dated
    tokenizer = with_template(built("byte_level"), own)
    assert renderer(tokenizer).render(ask("a")).text == "26 Jul 2024 a"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert renderer(tokenizer).render(ask("a", tools=tools)).text == f"{'Tools: ' if named else ''}26 Jul 2024 a"
