"""Filters on rows: what each decides over lengths, languages and agreement, and how a mistake in them is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filter_rows import IN_LANGUAGES, rejected, row
from hypothesis import given
from hypothesis import strategies as st

from adg_plugin import ADGConfig, load_config
from adg_plugin.config.groups import Filters
from adg_plugin.data.filters import RowFilters, least_agreeing, row_settings
from adg_plugin.data.text import count_words, known_languages, language_of, tokens
from adg_plugin.errors import ConfigError

# --- words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("What is this?", 3),
        ("don't  stop\n\tnow", 3),
        ("2 + 2 = 4 ...", 3),  # signs by themselves are no words
        ("☃ !!", 0),
        ("请总结这篇文章。", 7),
        ("東京は 3 月", 5),
        ("สวัสดี", 4),  # four letters; the marks above two of them are none
        ("안녕하세요 여러분", 2),  # Korean has spaces
        ("Übersetze 你好 bitte", 4),
        ("wörter_mit_strich und-mehr", 2),
    ],
)
def test_words_are_counted_with_and_without_spaces(text: str, count: int):
    assert count_words(text) == count


@given(st.lists(st.text(st.sampled_from("abcäöß019"), min_size=1), max_size=30), st.sampled_from([" ", "\n", "  \t "]))
def test_of_texts_with_spaces_the_count_is_that_of_a_split(words: list[str], space: str):
    assert count_words(space.join(words)) == len(words)


@given(st.text())
def test_a_text_has_words_exactly_if_it_has_letters_or_digits(text: str):
    assert (count_words(text) > 0) == any(c.isalnum() for c in text)
    assert count_words(text) <= len(text)


def test_signs_count_where_texts_are_compared_and_a_last_full_stop_does_not():
    assert tokens("What is 2 + 3?") == tokens("what  is 2 + 3") != tokens("What is 2 - 3?")


@pytest.mark.parametrize(
    ("filters", "reason", "detail"),
    [
        ({"min_words": 4}, "too_few_words", "3 words, filters.min_words is 4"),
        ({"max_words": 2}, "too_many_words", "3 words, filters.max_words is 2"),
        ({"min_answer_words": 2}, "too_few_answer_words", "1 word in the answer, filters.min_answer_words is 2"),
        ({"max_answer_words": 1, "min_words": 3}, None, None),
        ({"min_words": 3, "max_words": 3, "min_answer_words": 1, "max_answer_words": 1}, None, None),
    ],
)
def test_limits_of_words_hold_on_both_sides(filters: dict[str, int], reason: str, detail: str):
    found = rejected([row("Name", input="two colours", output="red")], **filters)
    assert found == ({} if reason is None else {"r": (reason, detail)})


def test_long_answers_and_missing_ones_are_told_apart():
    rows = [row("a", "long", output="x " * 9), row("b", "none"), row("c", "fits", output="one two")]
    assert rejected(rows, min_answer_words=1, max_answer_words=8) == {
        "long": ("too_many_answer_words", "9 words in the answer, filters.max_answer_words is 8"),
        "none": ("too_few_answer_words", "0 words in the answer, filters.min_answer_words is 1"),
    }


def test_of_several_turns_the_last_question_is_counted():
    turns = [("user", "one two three"), ("assistant", "x"), ("user", "four five"), ("assistant", "a b c")]
    talk = row(messages=[{"role": role, "content": text} for role, text in turns])
    assert rejected([talk], min_words=2, max_words=2, min_answer_words=3, max_answer_words=3) == {}


# --- languages


def test_languages_are_told_and_short_texts_are_not():
    assert {code: language_of(text) for code, text in IN_LANGUAGES.items()} == {code: code for code in IN_LANGUAGES}
    for text in ("", "Explain gravity", "Was ist das?", "12345 67890 !!! 12345 67890", "Who is Anatoly Kubatsky?"):
        assert language_of(text) is None
    assert language_of(IN_LANGUAGES["en"].upper() * 1000) == "en"
    assert set(IN_LANGUAGES) <= known_languages()


def test_other_languages_are_rejected_by_name_and_what_cannot_be_told_stays():
    rows = [row(text, code) for code, text in IN_LANGUAGES.items()] + [row("Qué?", "short")]
    found = rejected(rows, languages=["es", "en"])
    assert found.keys() == {"de", "fr", "zh", "ru"}
    assert found["de"] == ("other_language", "de, filters.languages is es, en")


def test_the_instruction_tells_the_language_and_the_input_only_where_it_is_too_short_to():
    assert language_of(f"Translate the text into English.\n\n{IN_LANGUAGES['de']}") == "de"
    rows = [
        row("Translate the text into English.", "translation", input=IN_LANGUAGES["de"]),
        row("Who is Anatoly Kubatsky?", "unsure", input=IN_LANGUAGES["de"]),  # 20 letters, an unsure detector
        row("Who's Anatoly Kubatsky?", "short", input=IN_LANGUAGES["de"]),
        row("Explain:", "short-and-wanted", input=IN_LANGUAGES["en"]),
        row(IN_LANGUAGES["de"], "german", input=IN_LANGUAGES["en"] * 9),
    ]
    assert language_of(rows[1].instruction) is None
    assert rejected(rows, languages=["en"]).keys() == {"short", "german"}


# --- agreement


@pytest.mark.parametrize(("part", "count"), [(0.29, 29), (0.57, 57), (0.295, 29), (0.001, 0)])
def test_the_part_that_agrees_least_is_counted_in_decimal_and_rounded_down(part: float, count: int):
    agreement = np.array([*np.linspace(1, -1, 100), np.nan])
    dropped = least_agreeing(agreement, Filters(drop_least_agreeing=part))
    assert list(np.flatnonzero(dropped)) == list(range(100 - count, 100))


def test_agreement_is_named_where_a_row_s_text_is_not_known_and_stages_nothing_again():
    filters = Filters(min_words=2, min_agreement=-0.5, drop_least_agreeing=0.1)
    assert row_settings(filters) == {"min_words": 2}
    assert RowFilters(filters).refusal("x:1") == (
        "adg.filters.min_words is 2, adg.filters.min_agreement is -0.5, adg.filters.drop_least_agreeing is 0.1, but "
        "what the instruction of x:1 is cannot be told: leave adg.filters out, or write the rows as alpaca or "
        "chat_template"
    )
    assert RowFilters(Filters(min_agreement=0)).refusal("x:1").startswith("adg.filters.min_agreement is 0.0, but ")


# --- settings


def problems(filters: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ADGConfig.parse({"filters": filters}, prefix="adg.")
    return caught.value.problems


WORDS = "use a whole number, 1 or more, or leave it out"
CLOSE = "use a number from 0.5 to 1, such as 0.8, or leave it out"


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"min_wrds": 3}, "adg.filters.min_wrds is not a setting: did you mean `min_words`?"),
        ({"budget": 3}, "adg.filters.budget is not a setting: known keys: drop_least_agreeing, languages, "),
        ({"min_words": 0}, f"adg.filters.min_words is 0: {WORDS}"),
        ({"min_answer_words": True}, f"adg.filters.min_answer_words is True: {WORDS}"),
        ({"min_words": 5, "max_words": 3}, "adg.filters.max_words is 3: use a whole number, min_words or more"),
        (
            {"min_answer_words": 5, "max_answer_words": 4},
            "adg.filters.max_answer_words is 4: use a whole number, min_answer_words or more",
        ),
        ({"near_duplicates": 0.4}, f"adg.filters.near_duplicates is 0.4: {CLOSE}"),
        ({"near_duplicates": 1.01}, f"adg.filters.near_duplicates is 1.01: {CLOSE}"),
        ({"near_duplicates": True}, f"adg.filters.near_duplicates is True: {CLOSE}"),
        ({"near_duplicates": float("nan")}, f"adg.filters.near_duplicates is nan: {CLOSE}"),
        ({"underspecified": "maybe"}, "adg.filters.underspecified is 'maybe': use true or false"),
        (
            {"languages": ["english"]},
            "adg.filters.languages is ['english']: use a list of ISO 639 codes, such as [en, es]",
        ),
        (
            {"languages": [False]},
            "adg.filters.languages is [False]: `no` without quotes is false in YAML: write 'no' for Norwegian",
        ),
        ([1], "adg.filters is [1]: use a mapping, such as {min_words: 3, underspecified: true}"),
    ],
)
def test_mistakes_are_named_with_their_whole_key(filters: Any, said: str):
    (problem,) = problems(filters)
    assert problem.startswith(said)


def test_every_filter_is_off_and_says_what_it_is():
    assert row_settings(ADGConfig().filters) == {}
    assert rejected([row("x"), row("x", "again")]) == {}
    assert ADGConfig.parse({"filters": None}) == ADGConfig()
    for name, field in Filters.model_fields.items():
        assert (field.description or "").endswith("."), name


def test_set_reaches_a_filter(tmp_path: Path):
    path = tmp_path / "c.yaml"
    path.write_text("budget: 3\nfilters: {max_words: 9}\n")
    changes = ["filters.min_words=3", "adg.filters.languages=[en, de]", "filters.near_duplicates=0.9"]
    filters = load_config(path, changes).filters
    assert filters == Filters(min_words=3, max_words=9, languages=["en", "de"], near_duplicates=0.9)
    config = ADGConfig(filters=filters)
    assert ADGConfig.parse(config.model_dump(mode="json")) == config


def test_one_language_may_stand_alone_and_an_unknown_one_is_named():
    assert Filters(languages="en").languages == ("en",)
    with pytest.raises(ConfigError) as caught:
        RowFilters(Filters(languages=["en", "xx"]))
    assert str(caught.value).startswith("filters.languages has 'xx', which cannot be told from others: ")
