"""Prompts: token ids as training gives them, and a span that is the instruction and nothing else."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_rows import (
    ASSISTANT,
    CHATML,
    LLAMA3,
    SYSTEM,
    TEMPLATES,
    ask,
    assert_span_is,
    built,
    byte_level,
    histories,
    instruction_text,
    questions,
    renderer,
    row_of,
    with_template,
)

from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.prompts import PromptRenderer
from adg_plugin.data.rows import unique_rows
from adg_plugin.data.sources import iter_records


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "slow"])
@pytest.mark.parametrize("template", TEMPLATES)
@given(question=questions, history=histories, system=st.none() | questions)
def test_ids_are_those_of_apply_chat_template_and_the_span_is_the_instruction(
    kind, template, question, history, system
):
    tokenizer = with_template(built(kind), TEMPLATES[template])
    turns = [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    system = [] if system is None or template == "gemma" else [{"role": "system", "content": system}]
    messages = [*system, *turns, {"role": "user", "content": question}]
    prompt = renderer(tokenizer).render(row_of({"messages": messages}))
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert prompt.token_ids.tolist() == expected
    assert prompt.token_ids.dtype == np.int32
    assert_span_is(tokenizer, kind, prompt, question)


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_instruction_that_stands_elsewhere_too_is_found_in_its_own_place(template):
    tokenizer = with_template(built("byte_level"), TEMPLATES[template])
    for text in ("user", "assistant", "Give three tips.", "s", "INST"):
        history = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        row = ask(text, *history)
        prompt = renderer(tokenizer).render(row)
        before = tokenizer.decode(prompt.token_ids[: prompt.span[0]])
        after = tokenizer.decode(prompt.token_ids[prompt.span[1] :])
        assert instruction_text(tokenizer, prompt).strip() == text
        other = renderer(tokenizer).render(ask("Xyzzy", *history))
        assert before.rstrip() == tokenizer.decode(other.token_ids[: other.span[0]]).rstrip()
        assert after.lstrip() == tokenizer.decode(other.token_ids[other.span[1] :]).lstrip()


@pytest.mark.parametrize("template", ["chat", "alpaca", "raw"])
def test_a_tokenizer_that_drops_white_space_and_case(template):
    tokenizer = with_template(built("wordpiece"), CHATML)
    for text in ("  Où est la GARE?\n", "\u200bWho wrote it", "the House\u00ad"):
        prompt = renderer(tokenizer, template).render(row_of({"instruction": text, "input": ""}))
        own = prompt.token_ids[slice(*prompt.span)].tolist()
        assert own == tokenizer(text, add_special_tokens=False)["input_ids"]


@given(question=questions)
def test_special_tokens_that_swallow_the_space_beside_them_stay_outside(question):
    from tokenizers import AddedToken

    tokenizer = with_template(built_with_swallowing_tokens(AddedToken), CHATML)
    prompt = renderer(tokenizer).render(ask(question))
    start, end = prompt.span
    before = tokenizer.convert_ids_to_tokens(prompt.token_ids[:start].tolist())
    assert before[0] == "<|im_start|>"
    own = tokenizer.convert_ids_to_tokens(prompt.token_ids[start:end].tolist())
    assert not {"<|im_start|>", "<|im_end|>"} & set(own)
    assert question.strip() in tokenizer.decode(prompt.token_ids[start:end])


@functools.cache
def built_with_swallowing_tokens(added_token):
    tokenizer = byte_level()
    swallowing = [added_token(t, lstrip=True, rstrip=True, special=True) for t in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_tokens(swallowing, special_tokens=True)
    return tokenizer


def test_content_that_the_template_strips_is_not_taken_from_the_system_turn():
    tokenizer = with_template(built("byte_level"), LLAMA3)
    prompt = renderer(tokenizer).render(ask("Hi ", {"role": "system", "content": "Say Hi there."}))
    assert prompt.text[: prompt.text.index("user")].count("Hi") == 1
    assert tokenizer.decode(prompt.token_ids[prompt.span[0] :]) == "Hi<|eot|><|start|>assistant<|end|>\n\n"


def test_the_same_surroundings_are_rendered_once_and_give_the_same_spans(monkeypatch):
    tokenizer = with_template(built("byte_level"), LLAMA3)
    calls = []
    original = type(tokenizer).apply_chat_template
    monkeypatch.setattr(
        type(tokenizer), "apply_chat_template", lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
    )
    rows = [ask(f"Question {n} user") for n in range(50)]
    prompts = [prompt for _, prompt in renderer(tokenizer).render_many(rows)]
    assert len(calls) == 51
    assert [instruction_text(tokenizer, p) for p in prompts] == [f"Question {n} user" for n in range(50)]


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ("{% if 'QUIET' in m.content %}(quiet) {% endif %}", " ->", "(quiet) QUIET please ->"),
        ("{{ 'A ' if 'QUIET' in m.content else 'B ' }}", " ->", "A QUIET please ->"),
        ("", "{{ ' A' if 'QUIET' in m.content else ' B' }}", "QUIET please A"),
    ],
)
def test_a_template_that_looks_into_the_content(before, after, text):
    template = f"<s>{{% for m in messages %}}{before}{{{{ m.content }}}}{after}{{% endfor %}}"
    tokenizer = with_template(built("byte_level"), template)
    prompt = renderer(tokenizer).render(ask("QUIET please"))
    assert prompt.text == "<s>" + text
    assert instruction_text(tokenizer, prompt).strip() == "QUIET please"


def test_a_template_that_shows_the_question_twice_has_its_span_at_the_last():
    template = "<s>{% for m in messages %}Title: {{ m.content }}<|start|>{{ m.content }}{% endfor %}<|end|>"
    tokenizer = with_template(built("byte_level"), template)
    prompt = renderer(tokenizer).render(ask("Who wrote it?"))
    assert instruction_text(tokenizer, prompt) == "Who wrote it?"
    assert tokenizer.decode(prompt.token_ids[prompt.span[1] :]) == "<|end|>"


def test_the_question_is_the_users_also_where_tools_answer_after_it():
    tokenizer = with_template(built("byte_level"), CHATML)
    turns = [
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "2+2"},
    ]
    prompt = renderer(tokenizer).render(row_of({"messages": [*turns, ASSISTANT]}))
    assert instruction_text(tokenizer, prompt) == "2+2"
    assert tokenizer.decode(prompt.token_ids[: prompt.span[0]]) == "<|im_start|>user\n"


def test_a_template_that_changes_the_content():
    tokenizer = with_template(built("byte_level"), "{% for m in messages %}<s>{{ m.content | upper }}{% endfor %}</s>")
    prompt = renderer(tokenizer).render(ask("shout"))
    assert instruction_text(tokenizer, prompt) == "SHOUT"


def test_a_template_that_leaves_the_question_out():
    tokenizer = with_template(built("byte_level"), "<s>{{ messages[0].content }}</s>")
    rejection = renderer(tokenizer).render(ask("Where am I?", SYSTEM))
    assert (rejection.reason, rejection.detail) == (
        "template_error",
        "the last user turn cannot be found in what the chat template renders",
    )


def test_a_question_that_ends_in_a_character_of_many_tokens_is_whole():
    tokenizer = with_template(built("byte_level"), CHATML)
    prompt = renderer(tokenizer).render(ask("Draw 猫🐈"))
    assert instruction_text(tokenizer, prompt) == "Draw 猫🐈"


@pytest.mark.model
def test_the_demo_model_renders_the_demo_pool_as_its_tokenizer_does(demo_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    rows = list(unique_rows(iter_records([DatasetSpec(path="demo")])))
    prompts = [prompt for _, prompt in PromptRenderer(tokenizer, "auto", None).render_many(rows)]
    assert [prompt.id for prompt in prompts] == [row.id for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        messages = list(row.messages)
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt.token_ids.tolist() == expected
        assert instruction_text(tokenizer, prompt).strip() == messages[-1]["content"].strip()
