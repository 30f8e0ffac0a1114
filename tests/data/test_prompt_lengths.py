"""Prompts that are too long: rejected with their length, or cut at the end of the instruction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompt_rows import CHATML, LLAMA3, ask, built, byte_level, instruction_text, renderer, row_of, texts, with_template
from tiny_models import tiny_tokenizer

from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.cells import Reason
from adg_plugin.data.prompts import PromptLimit, PromptRenderer, Rendered
from adg_plugin.data.rows import Rejection
from adg_plugin.errors import ConfigError


def test_a_prompt_that_is_too_long_is_rejected_with_its_length():
    tokenizer = with_template(built("byte_level"), CHATML)
    row = ask("Give three tips for staying healthy.")
    length = len(renderer(tokenizer).render(row).token_ids)
    assert isinstance(renderer(tokenizer, limit=length).render(row), Rendered)
    rejection = renderer(tokenizer, limit=length - 1).render(row)
    assert rejection.reason == "prompt_too_long"
    assert rejection.detail == f"{length} tokens, max_prompt_tokens is {length - 1}: raise it, or set truncate: true"


@pytest.mark.parametrize("kind", ["byte_level", "metaspace", "slow"])
@pytest.mark.parametrize("template", ["chat", "alpaca", "raw"])
@given(words=st.lists(texts, min_size=1, max_size=12), limit=st.integers(2, 300))
def test_cutting_takes_the_end_of_the_instruction_and_leaves_the_template_whole(kind, template, words, limit):
    tokenizer = with_template(built(kind), LLAMA3)
    question = " ".join(words).strip()
    row = ask(question)
    whole = renderer(tokenizer, template).render(row)
    prompt = renderer(tokenizer, template, limit, truncate=True).render(row)
    if isinstance(whole, Rejection) or len(whole.token_ids) <= limit:
        assert isinstance(prompt, type(whole))
        assert not getattr(prompt, "truncated", False)
        return
    if isinstance(prompt, Rejection):
        assert prompt.reason in ("prompt_too_long", "no_instruction_tokens")
        return
    assert prompt.truncated
    assert len(prompt.token_ids) <= limit
    before, after = whole.text.rsplit(question, 1) if template != "chat" else whole.text.split(question.strip(), 1)
    kept = prompt.text.removeprefix(before).removesuffix(after)
    assert prompt.text == before + kept + after
    assert question.startswith(kept)
    assert kept
    assert len(kept) < len(question)
    if kind == "slow":
        assert instruction_text(tokenizer, prompt).strip() in (kept, kept[1:].strip())


def test_cutting_keeps_as_much_as_fits():
    tokenizer = with_template(built("byte_level"), CHATML)
    row = ask("Give three tips for staying healthy. " * 20)
    for limit in range(30, 60):
        prompt = renderer(tokenizer, limit=limit, truncate=True).render(row)
        assert limit - 2 <= len(prompt.token_ids) <= limit


def test_a_limit_below_the_template_rejects_the_row():
    tokenizer = with_template(built("byte_level"), CHATML)
    rejection = renderer(tokenizer, limit=5, truncate=True).render(ask("Give three tips for staying healthy."))
    assert rejection.reason == "prompt_too_long"
    assert "the template alone leaves no room" in rejection.detail


def test_cutting_an_alpaca_input_never_cuts_its_heading():
    tokenizer = built("slow")
    row = row_of({"instruction": "Count.", "input": "one two three four"})
    frame = len(renderer(tokenizer, "alpaca").render(row).text) - len("one two three four")
    for limit in range(frame - 20, frame + 18):
        prompt = renderer(tokenizer, "alpaca", limit, truncate=True).render(row)
        if limit <= frame:
            assert prompt.reason == "prompt_too_long"
        else:
            assert "### Instruction:\nCount.\n\n### Input:\none"[: limit - frame - 3] in prompt.text
            assert prompt.text.endswith("\n\n### Response:\n")
            assert len(prompt.token_ids) <= limit


def test_a_tokenizer_that_cuts_or_pads_by_itself_does_not():
    tokenizer = byte_level(model_max_length=8, padding_side="left", pad_token="</s>")
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.chat_template = CHATML
    row = ask("Give three tips for staying healthy.")
    expected = renderer(with_template(built("byte_level"), CHATML)).render(row).token_ids
    assert renderer(tokenizer).render(row).token_ids.tolist() == expected.tolist()


def test_a_prompt_that_leaves_an_answer_no_positions_is_too_long():
    config = ADGConfig(max_new_tokens=100, max_prompt_tokens=200)
    assert PromptLimit.of(config, None) == PromptLimit.of(config, 300)
    limit = PromptLimit.of(config, 130)
    assert limit.tokens == 30
    found = PromptRenderer(tiny_tokenizer(), "raw", limit).render(ask("x" * 40))
    assert (found.reason, found.detail) == (
        Reason.TOO_LONG,
        "40 tokens, the model has 130 positions, of which an answer may take 100: lower max_new_tokens, "
        "or set truncate: true",
    )
    assert len(PromptRenderer(tiny_tokenizer(), "raw", limit, truncate=True).render(ask("x" * 40)).token_ids) == 30
    with pytest.raises(ConfigError, match=r"^max_new_tokens is 100: the model has 100 positions, use fewer than that$"):
        PromptLimit.of(config, 100)
