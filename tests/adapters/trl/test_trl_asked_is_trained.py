"""What is trained is what was asked: rows of every layout, through TRL's own preparation, token by token."""

from __future__ import annotations

import copy
import json

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from paths import SHARED
from tiny_models import tiny_model, tiny_tokenizer
from tiny_runs import pool_rows, write_jsonl
from trl import SFTTrainer
from trl_runs import SELECTION, record, sft_config, tiny

from adg_plugin import ADGSelectionCallback, ADGSFTTrainer, select
from adg_plugin.adapters.trl.choice import PoolForm
from adg_plugin.data.prompts import PromptRenderer, Rendered
from adg_plugin.data.rows import Row, unique_rows
from adg_plugin.data.sources import iter_memory
from adg_plugin.errors import DataError
from adg_plugin.pipeline.training_rows import TRAINING_FILE

__all__ = ["tiny"]

pytestmark = pytest.mark.tiny

SHOWS_ALL = (  # tools, calls, results and a keyword, as templates of the field do; a null would show
    "{% if tools %}{{ 'Tools: ' + (tools | tojson) + '\n' }}{% endif %}{% if date_string is defined %}"
    "{{ 'Today: ' ~ date_string ~ '\n' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if 'content' in m %}{{ m['content'] }}{% endif %}{% for c in m.tool_calls or [] %}{{ '<call>' }}"
    "{{ c.function.arguments | tojson }}{{ c.function.name }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template=SHOWS_ALL):
    changed = copy.deepcopy(tiny_tokenizer())
    changed.chat_template = template
    return changed


@pytest.fixture(scope="module")
def prepare(tmp_path_factory):
    """TRL's own preparation of rows, as a function from a data set to the decoded prompt-less rows."""
    rows = Dataset.from_list([{"prompt": "a", "completion": "b"}])
    args = sft_config(tmp_path_factory.mktemp("out"), max_length=None)
    trainer = SFTTrainer(model=tiny_model(), args=args, train_dataset=rows, processing_class=tokenizer())
    return lambda dataset: trainer._prepare_dataset(dataset, trainer.processing_class, args, False, None, "train")


words = st.text("abc Ã¤?\n", min_size=1, max_size=8).filter(str.strip)
user_names = st.sampled_from(["user", "human", "User", "prompter"])
assistant_names = st.sampled_from(["assistant", "gpt", "bing", "Assistant", "model"])
arguments = st.dictionaries(st.sampled_from("abcd"), st.one_of(st.none(), words, st.integers(0, 9)), max_size=2)
extras = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.lists(st.fixed_dictionaries({"name": words, "parameters": arguments}), min_size=1, max_size=1),
        "chat_template_kwargs": st.fixed_dictionaries({}, optional={"date_string": words, "other": words}),
    },
)


@st.composite
def content(draw, text):
    return draw(st.sampled_from([text, [{"type": "text", "text": text}]]))


@st.composite
def conversations(draw):
    """Turns in role/content or from/value, with odd names, parts, calls and nulls, that end with an answer."""
    role, value = draw(st.sampled_from([("role", "content"), ("from", "value")]))
    turns = []
    for _ in range(draw(st.integers(1, 2))):
        turns.append({role: draw(user_names), value: draw(content(draw(words)))})
        if draw(st.booleans()):
            call = {"type": "function", "function": {"name": "f", "arguments": draw(arguments)}}
            turns.append({role: draw(assistant_names), value: draw(st.sampled_from([None, ""])), "tool_calls": [call]})
            turns.append({role: draw(st.sampled_from(["tool", "observation"])), value: draw(words)})
        turns.append({role: draw(assistant_names), value: draw(content(draw(words)))})
    if draw(st.booleans()):
        turns[-1] = {role: "function_call", value: json.dumps({"name": "g", "arguments": draw(arguments)})}
    return turns


def layouts():
    turns = conversations()
    return st.one_of(
        st.fixed_dictionaries({"messages": turns}),
        st.fixed_dictionaries({"conversations": turns}),
        st.fixed_dictionaries({"instruction": words, "output": words}, optional={"input": words, "system": words}),
        turns.map(lambda t: {"prompt": t[:1], "completion": t[1:]}),
    ).flatmap(lambda row: extras.map(lambda extra: {**row, **extra}))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(layouts(), min_size=1, max_size=5))
def test_the_sampled_prompt_is_the_beginning_of_what_is_trained(prepare, rows):
    pool = [{"id": f"r{n}", **row} for n, row in enumerate(rows)]
    parsed = [row for row in unique_rows(iter_memory(pool)) if isinstance(row, Row)]
    asked = {
        p.id: p for _, p in PromptRenderer(tokenizer(), "auto", None).render_many(parsed) if isinstance(p, Rendered)
    }
    chosen = [row for row in parsed if row.id in asked and row.answer]
    assume(chosen)
    data = [row.data for row in chosen]
    table = PoolForm(data, "auto").rows(data, tokenizer())
    for row, trained in zip(chosen, prepare(table), strict=True):
        prompt = asked[row.id].token_ids.tolist()
        assert trained["input_ids"][: len(prompt)] == prompt
        rest = tiny_tokenizer().decode(trained["input_ids"][len(prompt) :])
        assert rest.startswith(row.reference)
        for call in row.answer.get("tool_calls", []):
            assert json.loads(rest.partition("<call>")[2].rpartition("}")[0] + "}") == call["function"]["arguments"]
        assert ("Today: None" in rest or "null" in rest) <= ("null" in json.dumps(row.data))


FIELD = SHARED / "field"
ENTRIES = [
    ("03-messages-human-gpt", {}),
    ("04-messages-from-value", {}),
    ("05-content-parts", {}),
    ("06-other-answer", {"type": "alpaca"}),
    ("06b-other-answer", {"type": "alpaca", "field_instruction": "question", "field_output": "answer"}),
    ("06c-other-conversation", {"field_messages": "dialog"}),
    ("07-tool-arguments", {}),
    ("01-function-call", {}),
    ("25-template-kwargs", {}),
]


@pytest.mark.skipif(not FIELD.exists(), reason="the inputs from the field are not here")
@pytest.mark.parametrize(("name", "entry"), ENTRIES, ids=[name for name, _ in ENTRIES])
def test_the_table_of_a_run_trains_on_what_the_field_means(name, entry, prepare, tmp_path):
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tokenizer().save_pretrained(model)
    run = tmp_path / "run"
    pool = [{"path": str(FIELD / f"{name}.jsonl"), **entry}]
    select(model=str(model), config={**SELECTION.model_dump(exclude_unset=True), "datasets": pool}, output_dir=run)
    table = Dataset.from_parquet(str(run / TRAINING_FILE), cache_dir=str(tmp_path / "cache"))
    assert len(table) > 2
    shown = [tiny_tokenizer().decode(row["input_ids"]) for row in prepare(table)]
    for text in shown:
        assert "OTHER" not in text
        assert "null" not in text
        assert "None" not in text
        assert "human" not in text
        assert "<|im_start|>user\n" in text
        assert "<|im_start|>assistant\n" in text
    if name.startswith("06"):
        assert all("GOOD-ANSWER" in text for text in shown)
    if name == "25-template-kwargs":
        assert sum("Today: 1 Jan 2025" in text for text in shown) == 2
    if name == "07-tool-arguments":
        assert any('<call>{"city": "Lima"}weather' in text for text in shown)


def odd_roles(layout="messages"):
    role, value = ("role", "content") if layout == "messages" else ("from", "value")
    turns = [[{role: "human", value: f"Spell {n}."}, {role: "gpt", value: f"So {n}."}] for n in range(8)]
    return Dataset.from_list([{"id": f"m{n}", layout: found} for n, found in enumerate(turns)])


@pytest.mark.parametrize("make", [ADGSFTTrainer, SFTTrainer])
@pytest.mark.parametrize("layout", ["messages", "conversations"])
def test_trainers_are_fed_the_roles_that_were_asked(make, layout, tiny, tmp_path):
    rows = odd_roles(layout)
    own = {"selection_config": SELECTION} if make is ADGSFTTrainer else {}
    trainer = make(model=str(tiny), args=sft_config(tmp_path), train_dataset=rows, **own)
    if make is SFTTrainer:
        ADGSelectionCallback(trainer, train_dataset=rows, config=SELECTION)
    seen = record(trainer)
    trainer.train()
    assert len(seen) == 2 * SELECTION.budget
    assert all("<|im_start|>user\nSpell" in text and "<|im_start|>assistant\nSo" in text for text in seen)


def test_what_the_trainer_cannot_prepare_is_refused_before_sampling(tiny, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("text")

    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", broken)
    with pytest.raises(
        DataError, match="SFTTrainer cannot prepare a row of train_dataset: KeyError: 'text'; nothing was"
    ):
        ADGSFTTrainer(model=str(tiny), args=sft_config(tmp_path), train_dataset=odd_roles(), selection_config=SELECTION)


OPENS_A_THOUGHT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>' }}{% endif %}"
)


def test_a_template_that_opens_a_thought_is_warned_of_once_with_a_count(tmp_path, caplog):
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tokenizer(OPENS_A_THOUGHT).save_pretrained(model)
    caplog.set_level("WARNING", logger="adg_plugin")
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(8))
    config = {**SELECTION.model_dump(exclude_unset=True), "datasets": [str(pool)]}
    select(model=str(model), config=config, output_dir=tmp_path / "run")
    (warning,) = [r.message for r in caplog.records if "another prompt than was sampled" in r.message]
    assert warning.startswith("6 of 6 chosen rows are trained on another prompt than was sampled")


@pytest.mark.parametrize("columns", [{"text": "so"}, {"input_ids": [1, 2]}])
@pytest.mark.parametrize("streamed", [False, True])
def test_what_trl_evaluates_by_itself_is_passed_on(columns, streamed, tiny, tmp_path):
    held_out = Dataset.from_list([columns] * 3)
    held_out = held_out.to_iterable_dataset() if streamed else held_out
    args = sft_config(tmp_path, eval_strategy="steps", eval_steps=1, max_steps=1)
    trainer = ADGSFTTrainer(
        model=str(tiny), args=args, train_dataset=odd_roles(), eval_dataset=held_out, selection_config=SELECTION
    )
    trainer.train()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
