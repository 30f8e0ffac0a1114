"""A model's likeliest answers in words: token by token, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from judging import findings, questions
from tiny_models import tiny_model, tiny_tokenizer

from adg_plugin.engines.judges.causal_lm import GreedyAnswers

pytestmark = pytest.mark.tiny
EOS = 2


def run(model, rows, **options):
    model = GreedyAnswers(model, tiny_tokenizer(), [EOS], max_new_tokens=12, **options)
    return findings(model, rows)


def test_each_answer_is_the_likeliest_one_token_by_token_whatever_else_is_in_the_batch():
    rows = questions([5, 40, 17, 3, 40, 29])
    model = tiny_model(dtype=torch.float64)
    together = run(model, rows)
    assert together == run(model, rows[::-1]) == run(model, rows, batch_tokens=1)
    for row in rows:
        ids, found = row.token_ids.tolist(), []
        while len(found) < 12:
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax())
            if token == EOS:
                break
            found.append(token)
        assert together[row.id].values["answer"] == tiny_tokenizer().decode(found, skip_special_tokens=True)
        assert together[row.id].num_tokens == len(found)


def test_the_models_own_generation_config_plays_no_part_and_is_put_back():
    model = tiny_model(dtype=torch.float64)
    expected = run(model, questions([9, 9]))
    own = model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.max_new_tokens = True, 3.0, 5.0, 2
    assert run(model, questions([9, 9])) == expected
    assert model.generation_config is own
    assert own.max_new_tokens == 2


def test_without_memory_for_a_batch_the_halves_are_tried_and_a_row_alone_is_named(monkeypatch):
    model, sizes = tiny_model(dtype=torch.float64), []
    expected = run(model, questions([20] * 8))
    answered = GreedyAnswers.answers

    def short(self, batch):
        sizes.append(len(batch))
        if len(batch) > 2 or "q3" in [question.id for question in batch]:
            raise torch.OutOfMemoryError("no memory")
        return answered(self, batch)

    monkeypatch.setattr(GreedyAnswers, "answers", short)
    found = run(model, questions([20] * 8))
    assert sizes[:3] == [8, 4, 2]
    assert found.pop("q3").reason == "out_of_memory"
    assert found == {id: reply for id, reply in expected.items() if id != "q3"}
