"""The figures are those of plain transformers, and a model in memory is left as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_answers import log_likelihood, right_choices, rows
from paths import TASKS
from tiny_models import VOCABULARY, save_tiny_model, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from adg_plugin.errors import ModelError
from adg_plugin.tools.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("harness")


@pytest.mark.tiny
def test_choices_are_those_of_plain_transformers(saved: Path) -> None:
    found = evaluate(str(saved), tasks=["tiny_words"], include=TASKS, batch_size=3)["tiny_words"]
    model = AutoModelForCausalLM.from_pretrained(saved)
    expected = {name: right_choices(model, tiny_tokenizer(), f"{name}.json") for name in ("capitals", "opposites")}
    assert sorted(found.parts) == ["tiny_capitals", "tiny_opposites"]
    for name, values in expected.items():
        assert found.parts[f"tiny_{name}"] == np.mean(values)
    assert sorted(found.row_values) == sorted(expected["capitals"] + expected["opposites"])
    assert found.value == pytest.approx(np.mean(found.row_values))  # weighted by size
    assert (found.rows, found.rows_in_task, found.shots) == (16, 16, 0)
    single = evaluate(str(saved), tasks="tiny_capitals", include=[TASKS])["tiny_capitals"]
    assert single.row_values == expected["capitals"]
    by_length = right_choices(model, tiny_tokenizer(), "capitals.json", by_length=True)
    assert single.metrics == {"acc,none": np.mean(single.row_values), "acc_norm,none": np.mean(by_length)}


@pytest.mark.tiny
def test_a_model_in_memory_is_left_as_it_was() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    evaluate(model, tokenizer=tokenizer, tasks=["tiny_capitals", "tiny_sums"], include=TASKS, limit=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert len(tokenizer) == VOCABULARY


@pytest.mark.tiny
def test_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(ModelError, match=r"tokenizer is missing: evaluate\(\) needs it with a model"):
        evaluate(tiny_model(), tasks="tiny_capitals", include=TASKS)


@pytest.mark.tiny
def test_the_chat_template_is_used_on_request(saved: Path) -> None:
    tokenizer, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(saved)
    found = evaluate(str(saved), tasks="tiny_capitals", include=TASKS, chat_template=True)
    expected = []
    for row in rows("capitals.json"):
        turns = [{"role": "user", "content": row["question"] + "\nAnswer:"}]
        context = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        scores = [log_likelihood(model, tokenizer, context, choice) for choice in row["choices"]]
        expected.append(float(int(np.argmax(scores)) == row["answer"]))
    assert found["tiny_capitals"].row_values == tuple(expected)
    assert found.settings["chat_template"] is True


@pytest.mark.tiny
def test_a_missing_chat_template_is_an_error(saved: Path) -> None:
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if file.endswith("json"):
            about = json.loads((saved / file).read_text())
            about.pop("chat_template", None)
            (saved / file).write_text(json.dumps(about))
        else:
            (saved / file).unlink(missing_ok=True)
    with pytest.raises(ModelError) as caught:
        evaluate(str(saved), tasks="tiny_capitals", include=TASKS, chat_template=True)
    assert str(caught.value) == f"model '{saved}' has no chat template: leave --chat-template out"


@pytest.mark.tiny
def test_prompts_that_the_model_cannot_take_are_mentioned(tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small", max_position_embeddings=24)
    found = evaluate(str(small), tasks="tiny_capitals", include=TASKS, limit=2)
    assert found.notes == (
        "at most 2 questions of each task (--limit): for trying out, not to be quoted",
        "some prompts with their worked examples were longer than the model can take, and were cut from the left",
    )
