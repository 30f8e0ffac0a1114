"""Prompts: token ids as training gives them, and a span that is the instruction and nothing else."""

import dataclasses
import functools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.data.layouts import Reason
from adg_plugin.data.prompts import PromptLimit, PromptRenderer, Rendered
from adg_plugin.data.rows import Rejection, parse_row, unique_rows
from adg_plugin.data.sources import Record, iter_records
from adg_plugin.errors import ConfigError, ModelError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}{% for m in messages %}"
    "{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
    "{% if think is defined and not think %}{{ '<no-think>' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if loop.last and system else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ m['content'].strip() + '<|end|>\n' }}{% endfor %}{{ '<|start|>model\n' }}"
)
TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA}
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>", "[INST]", "[/INST]"]
SENTENCES = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nAdd 2 and 3.\n\n### Response:\nThe sum of 2 and 3 is 5.",
    "Give three tips for staying healthy. Who wrote it, and why? In what year was the house built?",
    "¿Qué hora es? Où est la gare? 猫は寝ている。 user assistant system user assistant system",
]
USER = {"role": "user", "content": "Give three tips."}
ASSISTANT = {"role": "assistant", "content": "Sleep, eat, move."}
SYSTEM = {"role": "system", "content": "Be brief."}


def byte_level(**settings):
    """Return a byte-level BPE tokenizer, as of GPT-2, Llama 3 or Qwen, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", **settings)


def metaspace():
    """Return a tokenizer in the style of Llama 2: spaces belong to the next word, BOS in front, EOS behind."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("\n+|▁+[^▁\n]*|[^▁\n]+"), "isolated")
    fallback = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", *SPECIALS, *fallback], show_progress=False)
    backend.train_from_iterator((s.replace(" ", "▁") for s in SENTENCES * 3), trainer)
    bos, eos = backend.token_to_id("<s>"), backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", bos), ("</s>", eos)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece():
    """Return a tokenizer in the style of BERT: lower case, no white space, [CLS] in front and [SEP] behind."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = ["[UNK]", "[CLS]", "[SEP]", *SPECIALS]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(SENTENCES * 3, trainer)
    ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]")


def slow():
    """Return a tokenizer without offsets that ends every text with EOS: bytes, as ByT5 has them."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer(bos_token="<s>", extra_ids=0)


BUILDERS = {"byte_level": byte_level, "metaspace": metaspace, "wordpiece": wordpiece, "slow": slow}
built = functools.cache(lambda kind: BUILDERS[kind]())


def row_of(data, **settings):
    row = parse_row(Record(data, "p.jsonl:1", DatasetSpec.model_validate({"path": "p", **settings})))
    assert not isinstance(row, Rejection), row.detail
    return row


def ask(text, *before, **columns):
    return row_of({"messages": [*before, {"role": "user", "content": text}], **columns})


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def renderer(tokenizer, template="chat", limit=10_000, truncate=False):
    return PromptRenderer(tokenizer, template, PromptLimit.of(ADGConfig(max_prompt_tokens=limit)), truncate)


def instruction_text(tokenizer, prompt):
    start, end = prompt.span
    return tokenizer.decode(prompt.token_ids[start:end])


# Text without the tokenizers' own special tokens, whose pieces never start or end with what a template might swallow.
texts = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Cf", "Mn", "Me", "Mc"]) | st.sampled_from("  \n.,ae"),
    min_size=1,
    max_size=40,
).filter(lambda text: any(c.isprintable() and not c.isspace() for c in text))
tricky = st.sampled_from(
    ["user", "a", "assistant\n", " Tips ", "im", "system", "s", "[/INST", "|", "Be brief.", "\n\n.\n"]
)
questions = texts | tricky
histories = st.lists(st.tuples(questions, questions), max_size=2)


# -- token ids and spans


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


def assert_span_is(tokenizer, kind, prompt, question):
    """The span's tokens hold the question, and the tokens before and after hold none of it."""
    start, end = prompt.span
    assert 1 <= start < end <= len(prompt.token_ids)
    shown = instruction_text(tokenizer, prompt)
    core = question.strip()
    if kind == "slow":
        assert shown.strip() == core
    elif kind == "byte_level":
        assert core in shown
        assert len(shown.encode()) - len(core.encode()) <= 12  # at most what one token has in common with the template
        one_less = (
            tokenizer.decode(prompt.token_ids[start + 1 : end]),
            tokenizer.decode(prompt.token_ids[start : end - 1]),
        )
        assert all(core not in text or len(core) < len(shown) for text in one_less)
    else:
        assert core.replace(" ", "") in shown.replace(" ", "") or "�" in shown


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
    prompts = list(renderer(tokenizer).render_many(rows))
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


def test_template_arguments_that_clash_reject_the_row():
    tokenizer = with_template(built("byte_level"), LLAMA3)
    rejection = renderer(tokenizer).render(ask("Hi", chat_template_kwargs={"continue_final_message": True}))
    assert rejection.reason == "template_error"


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
    results = list(renderer(tokenizer).render_many(rows))
    assert [type(result) for result in results] == [Rendered, Rejection, Rendered]
    assert results[1].reason == "not_unicode"
    assert "half a character" in results[1].detail


def test_order_is_kept_over_many_batches():
    tokenizer = with_template(built("byte_level"), GEMMA)
    rows = [row_of({"id": n, "messages": [SYSTEM, USER] if n % 7 == 0 else [USER]}) for n in range(600)]
    results = list(renderer(tokenizer).render_many(iter(rows)))
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


# -- length


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


# -- the demo model's tokenizer


@pytest.mark.model
def test_the_demo_model_renders_the_demo_pool_as_its_tokenizer_does(demo_model):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    rows = list(unique_rows(iter_records([DatasetSpec(path="demo")])))
    prompts = list(PromptRenderer(tokenizer, "auto", None).render_many(rows))
    assert [prompt.id for prompt in prompts] == [row.id for row in rows]
    for row, prompt in zip(rows, prompts, strict=True):
        messages = list(row.messages)
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt.token_ids.tolist() == expected
        assert instruction_text(tokenizer, prompt).strip() == messages[-1]["content"].strip()


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


def test_a_template_that_prints_the_date_gives_the_same_prompt_tomorrow():
    dated = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer = with_template(built("byte_level"), dated)
    assert renderer(tokenizer).render(ask("a")).text == "26 Jul 2024 a"
