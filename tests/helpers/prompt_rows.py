"""Tokenizers of four kinds, chat templates and rows, for the tests of prompts."""

import functools

from hypothesis import strategies as st

from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.data.rows import Rejection, parse_row
from adg_plugin.data.sources import Record

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
