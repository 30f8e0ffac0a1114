"""Rows that a filter rejects are counted, explained and never sampled; a changed filter keeps what is sampled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filter_rows import IN_LANGUAGES
from tiny_runs import choose, parts, pool_rows, read_jsonl, write_jsonl

from adg_plugin import ADGConfig
from adg_plugin.config.groups import Filters
from adg_plugin.engines.models import loading
from adg_plugin.errors import DataError, MissingExtraError
from adg_plugin.pipeline.stage import Pool, stage_pool, staging_digest
from adg_plugin.store import RunFolder, keys


class Tokenizer:
    """What `staging_digest` looks at."""

    chat_template = None
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012

    def get_vocab(self) -> dict[str, int]:
        return {}

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [1]}


def test_a_changed_filter_stages_again_and_keeps_answers():
    def digests(**filters: Any) -> tuple[str, dict[str, Any]]:
        config = ADGConfig(filters=Filters(**filters))
        recipe = keys.sampling_fingerprint(config, model="m", eos_ids=(2,))
        return staging_digest(Pool((), "f"), config, Tokenizer(), recipe), recipe

    plain, recipe = digests()
    each: list[dict[str, Any]] = [
        *({name: 5} for name in ("min_words", "max_words", "min_answer_words", "max_answer_words")),
        *({"near_duplicates": value} for value in (0.8, 0.9)),
        {"languages": ["en"]},
    ]
    found = [digests(**filters) for filters in each]
    assert len({plain, *(digest for digest, _ in found)}) == 1 + len(each)
    assert all(other == recipe for _, other in found)
    assert digests(underspecified=True) == (plain, recipe)  # it looks at the answers


@pytest.fixture
def mixed() -> list[dict[str, Any]]:
    """Twelve rows that stay, and one for each filter."""
    odd = {
        "short": "Hi",
        "german": IN_LANGUAGES["de"],
        "twin": "  WRITE 11 lines about the sea, with 4 words each",
    }
    return [*pool_rows(12), *({"id": id, "instruction": text, "output": "x"} for id, text in odd.items())]


FILTERS = {"min_words": 3, "languages": ["en"], "near_duplicates": 0.8}


@pytest.mark.tiny
def test_rejected_rows_are_counted_explained_and_never_sampled(
    mixed: list[dict[str, Any]], model: Path, tmp_path: Path
):
    selection = choose(mixed, model, tmp_path / "run", filters=FILTERS)
    rows = selection.manifest["rows"]
    assert (rows["pool"], rows["scored"], selection.manifest["sampling"]["rows"]) == (15, 12, 12)
    assert rows["rejected"] == {"too_few_words": 1, "other_language": 1, "near_duplicate": 1}
    told = {line["id"]: line["detail"] for line in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert told == {
        "short": "1 word, filters.min_words is 3",
        "german": "de, filters.languages is en",
        "twin": "1 like 'row-11', filters.near_duplicates is 0.8",
    }
    assert {result.id for result in RunFolder.read(tmp_path / "run").results()} == {f"row-{n}" for n in range(12)}


@pytest.mark.tiny
def test_a_changed_filter_samples_only_what_it_lets_in(
    mixed: list[dict[str, Any]], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pool = write_jsonl(tmp_path / "pool.jsonl", mixed)
    run = tmp_path / "run"
    choose(pool, model, run, filters=FILTERS)
    wider = choose(pool, model, run, filters={**FILTERS, "min_words": None})
    assert (wider.manifest["sampling"]["rows"], wider.manifest["rows"]["scored"]) == (1, 13)
    stored = parts(run)

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_backbone", load)
    narrower = choose(pool, model, run, filters={**FILTERS, "max_words": 5})
    assert narrower.manifest["sampling"]["rows"] == 0
    assert set(narrower.ids) == {f"row-{n}" for n in range(0, 12, 2)}  # `What is {} times {}?`
    assert parts(run) == stored
    assert choose(pool, model, run, filters=FILTERS).manifest["rows"]["scored"] == 12


@pytest.mark.tiny
def test_where_every_row_is_rejected_the_error_says_why(model: Path, tmp_path: Path):
    with pytest.raises(DataError) as caught:
        choose(pool_rows(6), model, tmp_path / "run", filters={"min_words": 20})
    where = tmp_path / "run" / "rejected.jsonl"
    assert str(caught.value) == f"none of the 6 rows can be sampled (too_few_words 6): see {where}"


@pytest.mark.tiny
def test_a_row_without_a_prompt_does_not_stand_for_its_near_duplicates(model: Path, tmp_path: Path):
    words = " ".join(f"word{n}" for n in range(60))
    rows = [{"id": "long", "instruction": f"{words} {'x' * 300}"}, {"id": "fits", "instruction": words}]
    with RunFolder.open(tmp_path / "run") as run:
        config = ADGConfig(filters=Filters(near_duplicates=0.8), max_prompt_tokens=600)
        stage_pool(run, Pool.of(config, rows), config, tokenizer(), {})
        assert [(r.id, r.reason) for r in run.staged_rejections()] == [("long", "prompt_too_long")]
        assert run.counts().prompts == 1


def tokenizer() -> Any:
    from tiny_models import tiny_tokenizer

    return tiny_tokenizer()


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"near_duplicates": 0.8}, "filters.near_duplicates needs `datasketch`: pip install 'adg-plugin[filters]'"),
        ({"languages": ["en"]}, "telling languages needs `py3langid`: pip install 'adg-plugin[filters]'"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_sampled(
    filters: dict[str, Any], said: str, model: Path, tmp_path: Path, without_extras: None
):
    with pytest.raises(MissingExtraError) as caught:
        choose(pool_rows(6), model, tmp_path / "run", filters=filters)
    assert str(caught.value) == said
    assert not list((tmp_path / "run").glob("prompts*"))
    assert len(choose(pool_rows(6), model, tmp_path / "run", filters={"min_words": 3}).ids) == 6


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from adg_plugin.data import text

    text._detector.cache_clear()
    for name in ("datasketch", "py3langid"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    text._detector.cache_clear()


@pytest.mark.tiny
def test_filters_hold_for_a_pool_in_memory_that_is_trained_on(model: Path, tmp_path: Path):
    from datasets import Dataset

    from adg_plugin.pipeline.in_memory import select_dataset

    backbone = loading.load_backbone(ADGConfig(model=str(model)))
    config = {"budget": 1.0, "num_samples": 3, "max_new_tokens": 6, "filters": {"max_words": 5}}
    pool = Dataset.from_list(pool_rows(10))
    chosen = select_dataset(pool, backbone.model, backbone.tokenizer, config, output_dir=tmp_path, show_progress=False)
    assert chosen["id"] == [f"row-{n}" for n in range(0, 10, 2)]
