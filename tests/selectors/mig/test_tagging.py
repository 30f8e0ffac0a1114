"""A tagger's answers in the run folder: asked once, in batches, kept through crashes, never stale; MIG by them."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest
from tiny_models import tiny_tokenizer
from tiny_runs import choose, pool_rows, save

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.judges import causal_lm
from adg_plugin.engines.judges.causal_lm import GreedyAnswers
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import DataError, ModelError, OutOfMemoryError
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.stage import Pool
from adg_plugin.selectors.measure import stored_measure
from adg_plugin.selectors.mig.prompted import question_row
from adg_plugin.selectors.mig.tagger import Tagger, read_tags
from adg_plugin.store import RunFolder, keys

tiny = pytest.mark.tiny
ROOM = {"max_position_embeddings": 2048}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny", **ROOM)


@pytest.fixture(autouse=True)
def _questions_in_bytes(monkeypatch):
    """The tiny models' tokens are bytes: the question alone takes about a thousand."""
    monkeypatch.setattr("adg_plugin.selectors.mig.tagger.Tagger.max_prompt_tokens", 1400)


@pytest.fixture
def asked(monkeypatch):
    """Ids of the rows of each batch that reaches a model, in order."""
    batches: list[list[str]] = []
    answered = GreedyAnswers.answers

    def spied(self, batch):
        replies = answered(self, batch)
        batches.append([question.id for question in batch])
        return replies

    monkeypatch.setattr(GreedyAnswers, "answers", spied)
    return batches


@pytest.fixture
def by_instruction(monkeypatch):
    """A tagger that answers with a list of the row's own words, as far as `answers` says nothing else by id."""
    answers: dict[str, str] = {}

    def answer(self, question):
        request = self._tokenizer.decode(question.token_ids.tolist()).rpartition("Request:\n")[2]
        words = request.partition("<|im_end|>")[0].split()[:2]
        return {"answer": answers.get(question.id, json.dumps(words))}, 5

    monkeypatch.setattr(GreedyAnswers, "answers", lambda self, batch: [answer(self, one) for one in batch])
    return answers


class Tagging:
    """A run folder of a pool, and everything that `Tagger.ask` wants."""

    def __init__(self, folder: Path, model: Path, rows, tagger: Path | None = None, **settings):
        self.folder, self.rows = folder, rows
        self.config = ADGConfig(
            model=str(model), tagger=str(tagger or model), device="cpu", num_samples=3, max_new_tokens=6, **settings
        )

    def tag(self):
        source = Source.configured(self.config)
        recipe = keys.sampling_fingerprint(self.config, model=source.identity, eos_ids=source.eos_ids)
        with RunFolder.open(self.folder) as run:
            prepare(run, Pool.of(self.config, self.rows), self.config, source, recipe, own=False)
            return Tagger.ask(run, self.config, show=False)

    def answers(self):
        import pyarrow.parquet as pq

        tables = [pq.read_table(part).to_pylist() for part in self.parts()]
        return {row["id"]: row["answer"] for table in tables for row in table}

    def parts(self):
        return sorted((self.folder / "measures" / "tags").glob("*.parquet"))


@tiny
def test_only_rows_without_labels_are_asked_and_only_once(model, tmp_path, asked):
    rows = pool_rows(10, labels=[])
    rows[0]["labels"], rows[1]["labels"], rows[2]["labels"] = ["own"], 0.5, "a, b"
    tagging = Tagging(tmp_path / "run", model, rows)
    stats = tagging.tag()
    assert stats["rows"] == 7
    assert stats["tokens"] > 0
    assert sorted(chain(*asked)) == [f"row-{n}" for n in range(3, 10)]
    assert set(tagging.answers()) == {f"row-{n}" for n in range(3, 10)}
    asked.clear()
    assert tagging.tag()["rows"] == 0
    tagging.rows = tagging.rows[::-1]
    assert tagging.tag()["rows"] == 0
    tagging.rows[0]["instruction"] = "Say it anew."  # row-9
    assert tagging.tag()["rows"] == 1
    assert asked == [["row-9"]]


@tiny
def test_another_model_another_template_and_another_limit_are_asked_anew(model, tmp_path, monkeypatch, asked):
    tagging = Tagging(tmp_path / "run", model, pool_rows(3))
    tagging.tag()
    other = save(tmp_path / "other", lambda model: model.lm_head.weight.mul_(0.5), **ROOM)
    assert Tagging(tmp_path / "run", model, pool_rows(3), other).tag()["rows"] == 3
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("\n", " "))
    assert Tagging(tmp_path / "run", model, pool_rows(3), other).tag()["rows"] == 3
    monkeypatch.setattr("adg_plugin.selectors.mig.tagger.Tagger.new_tokens", 5)
    assert tagging.tag()["rows"] == 3
    monkeypatch.setattr("adg_plugin.selectors.mig.tagger.Tagger.new_tokens", 64)
    assert tagging.tag()["rows"] == 0


@tiny
def test_a_kill_loses_at_most_a_batch(model, tmp_path, monkeypatch):
    monkeypatch.setattr(causal_lm, "_GREEDY_TOKENS", (1, 1))  # batches of one row
    rows, whole = pool_rows(5), Tagging(tmp_path / "whole", model, pool_rows(5))
    whole.tag()
    tagging = Tagging(tmp_path / "run", model, rows)
    answered, calls = GreedyAnswers.answers, []

    def killed(self, batch):
        calls.append(batch[0].id)
        if len(calls) == 4:
            assert len(tagging.answers()) == 3  # on the disk before the next begins
            raise KeyboardInterrupt
        return answered(self, batch)

    monkeypatch.setattr(GreedyAnswers, "answers", killed)
    with pytest.raises(KeyboardInterrupt):
        tagging.tag()
    assert len(tagging.answers()) == 3
    assert tagging.tag()["rows"] == 2
    assert tagging.answers() == whole.answers()


@tiny
def test_a_damaged_part_is_told_and_its_rows_are_asked_again(model, tmp_path, caplog):
    tagging = Tagging(tmp_path / "run", model, pool_rows(4))
    tagging.tag()
    before = tagging.answers()
    (part,) = tagging.parts()
    part.write_bytes(part.read_bytes()[:-9])
    assert tagging.tag()["rows"] == 4
    assert "is damaged" in caplog.text
    assert tagging.answers() == before


@tiny
def test_rows_without_memory_are_not_stored_and_where_none_fits_it_ends(model, tmp_path, monkeypatch):
    tagging = Tagging(tmp_path / "run", model, pool_rows(4))
    answered = GreedyAnswers.answers

    def short(self, batch):
        if any(question.id in lacking for question in batch):
            raise MemoryError
        return answered(self, batch)

    monkeypatch.setattr(GreedyAnswers, "answers", short)
    lacking = {f"row-{n}" for n in range(4)}
    with pytest.raises(
        OutOfMemoryError, match="out of memory on 3 consecutive rows at batch size 1: free the device or name"
    ):
        tagging.tag()
    lacking = {"row-2"}
    assert tagging.tag()["skipped"] == {"row-2": "out_of_memory"}
    rows = [question_row(r["id"], r["instruction"]) for r in pool_rows(4)]
    found = stored_measure(RunFolder.read(tagging.folder), Tagger.measure, Tagger(tagging.config), rows)["answer"]
    assert found.is_null().to_pylist() == [False, False, True, False]
    lacking = set()
    assert tagging.tag()["rows"] == 1


@tiny
def test_a_request_that_is_too_long_loses_its_end(model, tmp_path):
    tagging = Tagging(tmp_path / "run", model, pool_rows(1))
    asked = Tagger(tagging.config)
    words = [question_row("b", "short"), question_row("a", "begin " + "word " * 400 + "end")]
    _, [question] = asked.inputs(words)
    assert (question.id, asked.cut) == ("a", 1)
    text = tiny_tokenizer().decode(question.token_ids.tolist())
    assert 1400 - 5 < len(question.token_ids) <= 1400
    assert "Request:\nbegin word" in text
    assert "end" not in text.rpartition("Request:")[2].replace("<|im_end|>", "")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


@tiny
def test_a_tagger_that_cannot_be_asked_is_named(model, tmp_path):
    plain = save(tmp_path / "plain", **ROOM)
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"tagger is '.*plain': its tokenizer has no chat template; name a chat model"):
        Tagging(tmp_path / "run", model, pool_rows(2), plain).tag()
    short = save(tmp_path / "short", max_position_embeddings=128)
    with pytest.raises(ModelError, match=r"tagger is '.*short': a question may take 64 tokens, and has"):
        Tagging(tmp_path / "run", model, pool_rows(2), short).tag()


@tiny
def test_mig_chooses_by_the_taggers_labels_and_reports_what_it_could_not_read(model, tmp_path, by_instruction, asked):
    rows = pool_rows(12, quality=1)  # "What is ..." and "Write 3 lines ..."
    rows[1]["labels"] = ["poetry"]
    by_instruction["row-3"] = "I cannot do that."
    settings = {"method": "mig", "tagger": str(model), "num_samples": 3}
    chosen = choose(rows, model, tmp_path / "run", budget=6, **settings)
    assert chosen.manifest["warnings"] == [
        f"tagger {str(model)!r} was given 11 rows: 1 of its answers hold no list of tags, and 0 rows got no answer",
        "11 of 12 rows have labels in column 'labels' or from the tagger: the rest come last by quality",
        "mig has no label vectors: labels with similar meaning are treated as unrelated",
    ]
    assert chosen.manifest["sampling"]["rows"] == 11
    assert "row-3" not in chosen.ids
    assert {"row-0", "row-1"} < set(chosen.ids)  # "what", "is" and "poetry" are labels of their own
    asked.clear()
    assert choose(rows, model, tmp_path / "run", budget=12, **settings).ids[-1] == "row-3"
    assert asked == []


@tiny
def test_a_tagger_whose_answers_say_nothing_is_an_error(model, tmp_path):
    with pytest.raises(DataError, match=r"tagger is '.*': none of 8 rows got tags \(8 of its answers hold no list"):
        choose(pool_rows(8), model, tmp_path / "run", method="mig", tagger=str(model))


@tiny
def test_compare_asks_the_tagger_once_and_tells_its_cost(model, tmp_path, by_instruction, asked):
    from tiny_runs import SETTINGS, write_jsonl

    from adg_plugin.tools.compare.compare import compare

    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12, topics=["a"]))
    config = ADGConfig.parse(
        {**SETTINGS, "model": str(model), "datasets": [str(pool)], "budget": 4, "tagger": str(model)}
    )
    methods = ["mig", "mig:field_labels=topics", "random"]
    found = compare(config, methods, tmp_path / "run", show_progress=False)
    cost = f"tagger {model} for labels"
    assert [one.asked for one in found.methods] == [(cost,), (), ()]
    assert [one.error for one in found.methods] == [None, None, None]
    assert found.costs[cost].rows == 12
    assert sum(map(len, asked)) == 12
    again = compare(config, methods, tmp_path / "run", show_progress=False)
    assert again.costs[cost].rows == 12
    assert again.methods[0].ids == found.methods[0].ids
    assert sum(map(len, asked)) == 12


@pytest.mark.model
def test_the_demo_model_tags_rows(demo_model, tmp_path):
    texts = (
        "A shop sells pens at 3 dollars each. How much do 12 pens cost?",
        "Write a Python function that reverses a list.",
        "Explain why the sky is blue.",
        "Tom has 45 apples and gives a third of them away. How many are left?",
        "Which of these programming languages is compiled: C, Python or Ruby?",
        "Write a story about a dragon who is afraid of fire.",
    )
    rows = [{"id": f"row-{n}", "instruction": text, "output": "x", "quality": 1} for n, text in enumerate(texts)]
    chosen = choose(rows, demo_model, tmp_path / "run", method="mig", tagger=str(demo_model), budget=3)
    tagger = Tagger(ADGConfig(tagger=str(demo_model), device="auto"))
    asked = [question_row(row["id"], row["instruction"]) for row in rows]
    answers = stored_measure(RunFolder.read(chosen.run_dir), Tagger.measure, tagger, asked)["answer"].to_pylist()
    found = [read_tags(answer) for answer in answers]
    assert sum(map(bool, found)) >= 4, found
    assert any("math" in tag for tag in found[0]), found[0]
    assert len(chosen.ids) == 3
