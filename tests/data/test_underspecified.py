"""Rows whose sampled answers ask for an input that is not there: what asks, and who is rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_runs import choose, parts, pool_rows, read_jsonl, write_jsonl

from adg_plugin import ADGConfig
from adg_plugin.config.groups import Filters
from adg_plugin.data.filters import RowFilters, asked_for, row_settings, underspecified
from adg_plugin.engines.models import loading
from adg_plugin.errors import ConfigError, DataError


@pytest.mark.parametrize(
    "answer",
    [
        "Please provide the text you would like me to summarize.",
        "Sure! Could you please share the article?",
        "Can you please provide more context?",
        "Please paste your essay here and I will correct it.",
        "Of course, please provide the customer review that you want me to classify.",
        "I'd be happy to help you with that!\n\nPlease provide me with\nthe full text of the article.",
        "I'm sorry, but you did not include the passage.",
        "It looks like you haven’t provided the code.",
        "I'd be happy to help, but I don't see any text in your message.",
        "I can't see the image you are referring to.",
        "I don't have access to the document.",
        "I need the text to summarize it.",
        "I'd need the full article in order to do that.",
        "There is no article attached.",
        "No text was provided.",
    ],
)
def test_an_answer_that_asks_for_what_is_missing(answer: str):
    assert asked_for(answer) is not None
    assert asked_for(answer.upper()) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Photosynthesis is how plants make food.",
        "Please provide your order number so that we can help you.",
        "Dear Anna, could you please send the report by Friday?",
        "You can share the link with friends.",
        "You should include a table of contents in the essay.",
        "There is no data to support it.",
        "The passage says that no information was given.",
        "I cannot see the point of it.",
        "I need the money to buy a house.",
        "El texto no está: por favor, comparte el texto.",  # only English is known
        f"{'The mayor opened the bridge. ' * 12}Please provide the text.",  # far from the beginning
    ],
)
def test_an_answer_that_does_not_ask(answer: str):
    assert asked_for(answer) is None


def test_more_than_half_of_the_answers_have_to_ask():
    asks, says = "Please provide the text.", "The cat sat on the mat."
    rows = [("all", [asks] * 3), ("most", [says, asks, asks]), ("half", [asks, says] * 2), ("none", [says] * 3)]
    assert underspecified([*rows, ("rejected by the engine", [])]) == {
        "all": "3 of 3 sampled answers ask for an input that is not there ('Please provide the text'), "
        "filters.underspecified is true",
        "most": "2 of 3 sampled answers ask for an input that is not there ('Please provide the text'), "
        "filters.underspecified is true",
    }


def test_rows_are_not_looked_at_and_nothing_is_staged_again():
    filters = Filters(underspecified=True, min_words=2)
    assert row_settings(filters) == {"min_words": 2}
    assert RowFilters(filters).refusal("x:1").startswith("adg.filters.min_words is 2, but what ")  # Axolotl's tokens


def test_it_is_for_adg_alone_and_a_run_of_before_is_read():
    stored = {"method": "random", "filters": {"underspecified": True, "min_words": 2}}
    with pytest.raises(ConfigError, match="leave min_agreement, drop_least_agreeing and underspecified out"):
        ADGConfig.parse(stored)
    assert ADGConfig.of_run(stored).filters == Filters(min_words=2)
    assert ADGConfig.of_run({**stored, "method": "adg"}).filters.underspecified


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Return answers to a pool of eight rows; most of those to two of them ask for a text."""
    asks = "Could you share the text?"
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(pool_rows(8)):
        texts = [f"It is {number}.", f"{number}, I think.", "Nobody knows that."]
        asking = {2: [asks, asks, texts[0]], 5: [asks, asks, asks], 6: [asks, *texts[:2]]}
        rows.append({**row, "generated_answers": asking.get(number, texts)})
    return write_jsonl(tmp_path / "answers.jsonl", rows)


@pytest.mark.tiny
def test_a_finished_run_is_chosen_from_again_without_asking_the_model(
    model: Path, answers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run, settings = tmp_path / "run", {"answers": str(answers), "budget": 8}
    assert set(choose(pool_rows(8), model, run, **settings).ids) == {f"row-{n}" for n in range(8)}
    stored = parts(run)

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(loading, "load_backbone", load)
    found = choose(pool_rows(8), model, run, **settings, filters={"underspecified": True})
    assert set(found.ids) == {f"row-{n}" for n in (0, 1, 3, 4, 6, 7)}
    assert found.manifest["rows"]["rejected"] == {"underspecified": 2}
    assert found.manifest["rows"]["scored"] == 6
    details = {line["id"]: line["detail"].partition(" sampled")[0] for line in read_jsonl(run / "rejected.jsonl")}
    assert details == {"row-2": "2 of 3", "row-5": "3 of 3"}
    assert parts(run) == stored


@pytest.mark.tiny
def test_what_agrees_least_is_counted_among_the_rows_that_are_left(model: Path, answers: Path, tmp_path: Path):
    settings = {"answers": str(answers), "budget": 8}
    filters = {"underspecified": True, "drop_least_agreeing": 0.2}
    found = choose(pool_rows(8), model, tmp_path / "run", **settings, filters=filters)
    assert found.manifest["rows"]["rejected"] == {"underspecified": 2, "low_agreement": 1}  # a fifth of six


@pytest.mark.tiny
def test_where_every_row_is_rejected_the_error_says_why(model: Path, tmp_path: Path):
    rows = [{**row, "generated_answers": ["Please share the code."] * 3} for row in pool_rows(4)]
    file = write_jsonl(tmp_path / "answers.jsonl", rows)
    with pytest.raises(DataError, match=r"none of the 4 sampled rows can be scored \(underspecified 4\): see"):
        choose(pool_rows(4), model, tmp_path / "run", answers=str(file), filters={"underspecified": True})
