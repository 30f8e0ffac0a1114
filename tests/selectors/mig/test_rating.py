"""A quality scorer's grades in the run folder: the published prompt and rule, asked once, kept; MIG by them."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_tokenizer
from tiny_runs import BAD, choose, pool_rows, read_jsonl, save, spoil

from adg_plugin import select
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.data.rows import Rejection
from adg_plugin.engines.judges import causal_lm
from adg_plugin.engines.judges.causal_lm import Grades
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import DataError, ModelError, NumericalError, OutOfMemoryError
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.stage import Pool
from adg_plugin.selectors.mig.grader import Rater, quality_template, ratings_of
from adg_plugin.selectors.mig.prompted import question_row
from adg_plugin.store import RunFolder, keys

tiny = pytest.mark.tiny
ROOM = {"max_position_embeddings": 2048}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny", **ROOM)


@pytest.fixture
def asked(monkeypatch):
    """Ids of the rows of each batch that reaches a model, in order."""
    batches: list[list[str]] = []
    scored = Grades.answers

    def spied(self, batch):
        found = scored(self, batch)
        batches.append([question.id for question in batch])
        return found

    monkeypatch.setattr(Grades, "answers", spied)
    return batches


class Rating:
    """A run folder of a pool, and everything that `Rater.ask` wants."""

    def __init__(self, folder: Path, model: Path, rows, scorer: Path | None = None):
        self.folder, self.rows = folder, rows
        self.config = ADGConfig(model=str(model), quality_scorer=str(scorer or model), device="cpu", num_samples=3)

    def rate(self):
        source = Source.configured(self.config)
        recipe = keys.sampling_fingerprint(self.config, model=source.identity, eos_ids=source.eos_ids)
        with RunFolder.open(self.folder) as run:
            prepare(run, Pool.of(self.config, self.rows), self.config, source, recipe, own=False)
            return Rater.ask(run, self.config, show=False)

    def found(self):
        rows = [question_row(row["id"], row["instruction"], row["output"]) for row in self.rows]
        return {row.id: found for row, found in zip(rows, self.ratings(rows), strict=True)}

    def ratings(self, rows):
        return ratings_of(RunFolder.read(self.folder), self.config, rows)


def without_a_template():
    tokenizer = deepcopy(tiny_tokenizer())  # which all tests share
    tokenizer.chat_template = None
    return tokenizer


def test_a_model_without_a_chat_template_gets_the_prompt_of_deitas_scorers():
    tokenizer = without_a_template()
    shown = PromptRenderer(tokenizer, quality_template(tokenizer), None).render(question_row("a", "Why {x}?", "So."))
    assert shown.text == (
        "You are a helpful assistant. Please identify the quality score of the Response corresponding to the Question. "
        "\n #Question#:\nWhy {x}?\n#Response#:\nSo. \n##Quality: "
    )


@pytest.mark.parametrize("chat", [True, False])
def test_of_what_is_too_long_the_answers_end_goes_and_never_all_of_it(chat):
    tokenizer = tiny_tokenizer() if chat else without_a_template()
    whole = PromptRenderer(tokenizer, quality_template(tokenizer), None)
    length = len(whole.render(question_row("a", "Why?", "?")).token_ids) - 1
    limit = PromptLimit(length + 20, "the limit", "shorten it")
    renderer = PromptRenderer(tokenizer, quality_template(tokenizer), limit, truncate=True)
    shown = renderer.render(question_row("a", "Why?", "begin " + "word " * 30 + "end"))
    assert len(shown.token_ids) <= length + 20
    assert "Why?" in shown.text
    assert "begin word" in shown.text
    assert "end" not in shown.text.replace("_end", "").rpartition("Response")[2]
    after = "<|im_end|>\n<|im_start|>assistant\n" if chat else " \n##Quality: "
    assert shown.text.endswith(after)
    refused = renderer.render(question_row("a", "Why" + "?" * 40, "so"))
    assert isinstance(refused, Rejection)
    assert refused.reason == "prompt_too_long"


@tiny
def test_only_rows_without_a_quality_are_graded_and_only_once(model, tmp_path, asked):
    rows = pool_rows(10)
    rows[0]["quality"], rows[1]["quality"], rows[2]["output"] = 3, "bad", " "
    rating = Rating(tmp_path / "run", model, rows)
    stats = rating.rate()
    assert stats["rows"] == 7
    assert stats["tokens"] > 0
    assert sorted(chain(*asked)) == [f"row-{n}" for n in range(3, 10)]
    found = rating.found()
    assert all(1 < found[f"row-{n}"].score < 6 for n in range(3, 10))
    assert found["row-2"].reason == "no_answer"
    asked.clear()
    assert rating.rate()["rows"] == 0
    rating.rows[9]["output"] = "another"
    assert rating.found()["row-9"].reason == "not_measured"
    assert rating.rate()["rows"] == 1
    assert asked == [["row-9"]]


@tiny
def test_where_all_rows_have_a_quality_no_scorer_is_looked_for(model, tmp_path):
    settings = {"method": "mig", "quality_scorer": str(tmp_path / "nowhere"), "budget": 2}
    assert len(choose(pool_rows(4, labels=["a"], quality=1), model, tmp_path / "run", **settings).ids) == 2
    with pytest.raises(ModelError, match="nowhere"):
        choose(pool_rows(4, labels=["a"]), model, tmp_path / "other", **settings)


@tiny
def test_another_model_another_template_and_another_limit_grade_anew(model, tmp_path, monkeypatch):
    rating = Rating(tmp_path / "run", model, pool_rows(3))
    rating.rate()
    other = save(tmp_path / "other", lambda model: model.lm_head.weight.mul_(0.5), **ROOM)
    assert Rating(tmp_path / "run", model, pool_rows(3), other).rate()["rows"] == 3
    (other / "chat_template.jinja").unlink()
    assert Rating(tmp_path / "run", model, pool_rows(3), other).rate()["rows"] == 3
    monkeypatch.setattr("adg_plugin.selectors.mig.grader.Rater.max_prompt_tokens", 1000)
    assert rating.rate()["rows"] == 3
    monkeypatch.undo()
    assert rating.rate()["rows"] == 0


@tiny
def test_a_kill_keeps_what_was_written_and_the_rest_is_graded_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(causal_lm, "_GRADE_TOKENS", (1, 1))  # batches of one row
    whole = Rating(tmp_path / "whole", model, pool_rows(5))
    whole.rate()
    rating = Rating(tmp_path / "run", model, pool_rows(5))
    scored, calls = Grades.answers, []

    def killed(self, batch):
        calls.append(batch[0].id)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return scored(self, batch)

    monkeypatch.setattr(Grades, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        rating.rate()
    assert sum(found.score is not None for found in rating.found().values()) == 3
    assert rating.rate()["rows"] == 2
    assert rating.found() == whole.found()


@tiny
def test_rows_that_give_nan_or_have_no_memory_are_left_out_with_a_reason(model, tmp_path, monkeypatch):
    scorer = save(tmp_path / "spoilt", spoil, **ROOM)
    rows = pool_rows(8, labels=["a"])
    rows[1]["output"] = BAD
    scored = Grades.answers

    def short(self, batch):
        if "row-3" in [question.id for question in batch]:
            raise torch.OutOfMemoryError("no memory")
        return scored(self, batch)

    monkeypatch.setattr(Grades, "answers", short)
    settings = {"method": "mig", "quality_scorer": str(scorer), "budget": 4}
    chosen = choose(rows, model, tmp_path / "run", **settings)
    assert chosen.manifest["rows"]["rejected"] == {"non_finite_states": 1, "out_of_memory": 1}
    told = {line["id"]: line["detail"] for line in read_jsonl(chosen.run_dir / "rejected.jsonl")}
    assert "gave NaN or infinity: check the weights of quality_scorer" in told["row-1"]
    assert "the next run tries it again" in told["row-3"]
    monkeypatch.setattr(Grades, "answers", scored)
    again = choose(rows, model, tmp_path / "run", **settings)
    assert again.manifest["rows"]["rejected"] == {"non_finite_states": 1}
    assert again.manifest["sampling"]["rating"]["rows"] == 1


@tiny
def test_a_scorer_that_fails_on_most_rows_is_an_error(model, tmp_path, monkeypatch):
    broken = save(tmp_path / "broken", lambda model: model.model.norm.weight.fill_(float("nan")), **ROOM)
    with pytest.raises(NumericalError, match="6 of 6 rows gave NaN or infinity: check the weights of quality_scorer"):
        Rating(tmp_path / "run", model, pool_rows(6), broken).rate()
    monkeypatch.setattr(Grades, "answers", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(
        OutOfMemoryError, match="out of memory on 3 consecutive rows at batch size 1: free the device, or name"
    ):
        Rating(tmp_path / "other", model, pool_rows(6)).rate()


@tiny
def test_a_scorer_that_cannot_be_asked_is_named(model, tmp_path):
    short = save(tmp_path / "short", max_position_embeddings=128)
    with pytest.raises(ModelError, match=r"quality_scorer is '.*short': a question may take 128 tokens, and has"):
        Rater(ADGConfig(model=str(model), quality_scorer=str(short)))
    merging = save(tmp_path / "merging", **ROOM)
    backend = json.loads((merging / "tokenizer.json").read_text())
    backend["model"]["vocab"]["Ġ1"] = 300  # as in the vocabulary of gpt2
    backend["model"]["merges"] = [["Ġ", "1"]]
    (merging / "tokenizer.json").write_text(json.dumps(backend))
    (merging / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="after its prompt, '1' is no token of its own; name another model"):
        Rater(ADGConfig(model=str(model), quality_scorer=str(merging)))


@tiny
def test_the_report_counts_what_the_scorer_took(model, tmp_path):
    from adg_plugin.report.gather import gather

    chosen = choose(
        pool_rows(12, labels=["a"]), model, tmp_path / "run", method="mig", quality_scorer=str(model), budget=4
    )
    stats = chosen.manifest["sampling"]["rating"]
    about = gather(chosen.run_dir, gpu_hour_price=3600.0).about["summary"]
    assert stats["seconds"] > 0
    assert (about["sampled_rows"], about["sampled_tokens"]) == (12, stats["tokens"])
    assert [about["sampling_seconds"], about["cost"]] == pytest.approx([stats["seconds"]] * 2)


@tiny
def test_a_vocabulary_without_grades_is_refused(model, tmp_path):
    without = save(tmp_path / "without", **ROOM)
    backend = json.loads((without / "tokenizer.json").read_text())
    vocabulary = backend["model"]["vocab"]
    backend["model"]["vocab"] = {token: id for token, id in vocabulary.items() if token not in "123456"} | {"<?>": 300}
    backend["model"]["unk_token"] = "<?>"
    (without / "tokenizer.json").write_text(json.dumps(backend))
    with pytest.raises(ModelError, match="its vocabulary does not tell the grades 1, 2, 3, 4, 5, 6 apart"):
        Rater(ADGConfig(model=str(model), quality_scorer=str(without)))


@tiny
def test_what_cannot_go_well_is_told_before_any_model_is_asked(model, tmp_path, asked, monkeypatch):
    settings = {"method": "mig", "budget": 2}
    with pytest.raises(DataError, match="no row has labels in column 'labels': name the column"):
        choose(pool_rows(6), model, tmp_path / "run", quality_scorer=str(model), **settings)
    monkeypatch.setattr(
        "adg_plugin.selectors.mig.tagger.Tagger.ask", lambda *_, **__: pytest.fail("the tagger was asked")
    )
    with pytest.raises(ModelError, match="nowhere"):
        choose(pool_rows(6), model, tmp_path / "run", tagger=str(model), quality_scorer="nowhere", **settings)
    assert asked == []


@tiny
def test_mig_takes_the_grades_for_rows_without_a_quality_and_tells_of_two_scales(model, tmp_path):
    rows = pool_rows(12, labels=["same"])
    settings = {"method": "mig", "quality_scorer": str(model), "budget": 5}
    chosen = choose(rows, model, tmp_path / "run", **settings)
    rating = Rating(tmp_path / "run", model, rows)
    scores = {id: found.score for id, found in rating.found().items()}
    shares = float(np.median([found.share for found in rating.found().values()]))
    assert list(chosen.ids) == sorted(scores, key=scores.__getitem__, reverse=True)[:5]
    assert chosen.manifest["warnings"][0].startswith(
        f"quality_scorer {str(model)!r} expects a grade next with a probability of {shares:.1%} (median of 12 rows), so"
    )
    rows[7]["quality"] = 9
    rows[8]["output"] = ""
    chosen = choose(rows, model, tmp_path / "other", **settings)
    assert chosen.ids[0] == "row-7"
    assert any(
        sentence.startswith("1 of 11 rows have a quality in column 'quality', the others one of")
        for sentence in chosen.manifest["warnings"]
    )


@tiny
def test_compare_asks_scorer_and_backbone_once_and_tells_both_costs(model, tmp_path, asked):
    from tiny_runs import SETTINGS, write_jsonl

    from adg_plugin.tools.compare.compare import compare

    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    config = ADGConfig.parse(
        {**SETTINGS, "model": str(model), "datasets": [str(pool)], "budget": 4, "quality_scorer": str(model)}
    )
    methods = ["mig", "random", "adg"]
    found = compare(config, methods, tmp_path / "run", show_progress=False)
    cost = f"quality scorer {model} for quality"
    assert [one.asked for one in found.methods] == [("answers", cost), (), ("answers",)]
    assert [one.error for one in found.methods] == [None, None, None]
    assert found.costs_of(found.methods[0]) == [found.costs["answers"], found.costs[cost]]
    assert found.costs[cost].rows == 12
    assert sum(map(len, asked)) == 12
    again = compare(config, methods, tmp_path / "run", show_progress=False)
    assert again.costs[cost].rows == 12
    assert again.methods[0].ids == found.methods[0].ids
    assert sum(map(len, asked)) == 12


@tiny
def test_compare_asks_tagger_and_scorer_where_no_row_has_labels(model, tmp_path, asked, monkeypatch):
    from tiny_runs import SETTINGS, write_jsonl

    from adg_plugin.tools.compare.compare import compare

    monkeypatch.setattr("adg_plugin.selectors.mig.tagger.Tagger.max_prompt_tokens", ROOM["max_position_embeddings"])
    monkeypatch.setattr(
        causal_lm.GreedyAnswers, "answers", lambda _, batch: [({"answer": '["a", "b"]'}, 3)] * len(batch)
    )
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    own = {"quality_scorer": str(model), "tagger": str(model), "budget": 4}
    config = ADGConfig.parse({**SETTINGS, "model": str(model), "datasets": [str(pool)], **own})
    found = compare(config, ["mig"], tmp_path / "run", show_progress=False)
    assert found.methods[0].error is None
    assert {name: cost.rows for name, cost in found.costs.items()} == {
        f"tagger {model} for labels": 12,
        f"quality scorer {model} for quality": 12,
    }
    assert sum(map(len, asked)) == 12
    chosen = select(config=config.updated(method="mig"), output_dir=tmp_path / "alone")
    assert found.methods[0].ids == chosen.ids


@tiny
def test_a_row_without_words_needs_no_scorer(model, tmp_path):
    rows = pool_rows(7, labels=["same"], quality=3)
    call = {"function": {"name": "look", "arguments": "{}"}}
    turns = [{"role": "user", "content": "Look!"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows.append({"id": "call", "labels": ["same"], "messages": turns})
    template = tmp_path / "calls.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls or '' }}\n{% endfor %}")
    settings = {"method": "mig", "quality_scorer": "nowhere", "budget": 3, "template": str(template)}
    chosen = choose(rows, model, tmp_path / "run", **settings)
    assert len(chosen.ids) == 3
    assert chosen.manifest["rows"]["rejected"] == {"no_answer": 1}


@tiny
def test_a_selections_own_costs_are_told_apart_by_a_later_comparison(model, tmp_path, asked):
    from tiny_runs import SETTINGS, write_jsonl

    from adg_plugin.tools.compare.compare import compare

    rows = pool_rows(12, labels=["a"])
    rows[3]["quality"], rows[4]["quality"] = 2, 5
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    config = ADGConfig.parse(
        {**SETTINGS, "model": str(model), "datasets": [str(pool)], "budget": 4, "quality_scorer": str(model)}
    )
    chosen = select(config=config.updated(method="mig"), output_dir=tmp_path / "run")
    found = compare(config, ["mig"], tmp_path / "run", show_progress=False)
    cost = found.costs[f"quality scorer {model} for quality"]
    assert sum(map(len, asked)) == 10
    assert (cost.rows, cost.of, cost.seconds_now) == (10, 10, 0)
    assert cost.seconds == chosen.manifest["sampling"]["rating"]["seconds"]
    assert cost.is_whole(12)


@pytest.mark.model
def test_the_demo_model_grades_answers(demo_model, tmp_path):
    rows = [
        {"id": "right", "instruction": "What is the capital of France?", "output": "The capital of France is Paris."},
        {"id": "nonsense", "instruction": "What is the capital of France?", "output": "zzz qqq zzz 77 ;;; qqq"},
        {"id": "long", "instruction": "Count to ten thousand.", "output": " ".join(map(str, range(10000)))},
    ]
    rating = Rating(tmp_path / "run", demo_model, rows)
    rating.rate()
    scores = {id: found.score for id, found in rating.found().items()}
    assert all(1 <= score <= 6 for score in scores.values()), scores
    assert scores["right"] < scores["nonsense"]  # docs/method.md says so: this model is no scorer
    assert all(0 < found.share < 1 for found in rating.found().values()), rating.found()
