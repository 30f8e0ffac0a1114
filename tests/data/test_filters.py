"""Rows that settings reject before they are sampled: what each filter decides, and that nothing of theirs is asked."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ROOT, choose, parts, pool_rows, read_jsonl, save, write_jsonl

from adg_plugin import ADGConfig, load_config
from adg_plugin.config.filters import Filters
from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.filters import RowFilters, row_settings
from adg_plugin.data.filters.agreement import least_agreeing
from adg_plugin.data.filters.near_duplicates import NearDuplicates, bands_and_rows, jaccard, shingles
from adg_plugin.data.filters.underspecified import missing_input
from adg_plugin.data.filters.words import count_words, tokens
from adg_plugin.data.languages import known_languages, language_of
from adg_plugin.data.rows import Row, parse_row
from adg_plugin.data.sources import Record
from adg_plugin.engines.models import loading
from adg_plugin.errors import ConfigError, DataError, MissingExtraError
from adg_plugin.pipeline.stage import Pool, stage_pool, staging_digest
from adg_plugin.store import RunFolder, keys

SPEC = DatasetSpec(path="memory")


def row(instruction: Any = "", id: str = "r", **columns: Any) -> Row:
    data = {"id": id, **({"instruction": instruction} if instruction else {}), **columns}
    parsed = parse_row(Record(data, f"memory:{id}", SPEC))
    assert isinstance(parsed, Row)
    return parsed


def rejected(rows: Iterable[Row], **filters: Any) -> dict[str, tuple[str, str]]:
    """Return reason and detail of the rejected rows by id."""
    checked = RowFilters(Filters(**filters))
    found = [checked.rejection(one) for one in rows]
    return {one.id: (one.reason.value, one.detail) for one in found if one is not None}


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


# --- near-duplicates


def close(share: float, size: int, number: int) -> tuple[Row, Row]:
    """Return two rows whose texts share about this part of their word triples."""
    shared = round(share * 2 * size / (1 + share))  # J = shared / (2 * size - shared)
    words = [f"w{number}x{n}" for n in range(size + 2)]
    other = [*words[: shared + 2], *(f"o{number}x{n}" for n in range(size - shared))]
    return row(" ".join(words), f"{number}-first"), row(" ".join(other), f"{number}-second")


def test_decisions_are_those_of_exact_jaccard_on_either_side_of_the_threshold():
    rng = random.Random(0)
    near = NearDuplicates(0.8)
    wrong = missed = closer = 0
    for number in range(600):
        first, second = close(rng.uniform(0.6, 1), rng.randrange(10, 120), number)
        exact = jaccard(shingles(first), shingles(second))
        assert near(first) is None
        verdict = near(second)
        wrong += verdict is not None and exact < 0.8
        missed += verdict is None and exact >= 0.8
        closer += verdict is None and exact >= 0.9
        if verdict is not None:
            assert verdict[1] == f"{exact:.3g} like '{number}-first', filters.near_duplicates is 0.8"
    assert (wrong, closer) == (0, 0)
    assert missed <= 6  # of about 300


@pytest.mark.parametrize("threshold", [0.5, 0.55, 0.7, 0.8, 0.95, 0.999, 1.0])
def test_the_index_overlooks_one_pair_in_fifty_at_the_threshold_at_most(threshold: float):
    bands, hashes = bands_and_rows(threshold)
    assert 2 <= bands <= 14
    assert (1 - threshold**hashes) ** bands <= 0.02


VARIANTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=14, unique=True)


@given(VARIANTS, st.randoms(use_true_random=False))
def test_in_any_order_the_first_of_each_group_stays_and_the_others_name_it(
    variants: list[tuple[int, int]], rng: random.Random
):
    rng.shuffle(variants)
    base = {group: " ".join(f"g{group}w{n}" for n in range(80)) for group in range(5)}
    rows = [row(f"{base[group]} {'more ' * extra}", f"{group}/{extra}") for group, extra in variants]
    first: dict[int, str] = {}
    for group, extra in variants:
        first.setdefault(group, f"{group}/{extra}")
    found = rejected(rows, near_duplicates=0.8)
    assert {one.id for one in rows} - found.keys() == set(first.values())
    for id, (reason, detail) in found.items():
        assert reason == "near_duplicate"
        assert f" like {first[int(id[0])]!r}, " in detail


def test_what_is_close_does_not_depend_on_the_order_of_hashes():
    code = """
from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.filters.near_duplicates import NearDuplicates
from adg_plugin.data.rows import parse_row
from adg_plugin.data.sources import Record
near = NearDuplicates(0.75)
for n in range(60):  # each text close to several others
    text = " ".join(f"w{m}" for m in range(n, n + 30))
    print(near(parse_row(Record({"id": str(n), "instruction": text}, f"x:{n}", DatasetSpec(path="x")))))
"""
    said = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1
    assert "near_duplicate" in said.pop()


def test_conversations_are_compared_by_all_their_turns_under_one_system_prompt():
    def talk(id: str, *texts: str, system: str = "", tools: Any = None) -> Row:
        turns = [{"role": "system", "content": system}] if system else []
        turns += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
        return row(id=id, messages=turns, **({"tools": tools} if tools else {}))

    cats, dogs = "Tell me a lot about cats and how they live", "Tell me a lot about dogs and what they eat"
    long = "You are a helpful assistant that answers at length and never lies to anybody " * 3
    rows = [
        talk("cats", cats, "They purr.", "Go on."),
        talk("dogs", dogs, "They bark.", "Go on."),  # the same last turn
        talk("again", cats, "They purr.", "Go on!  ", "another answer"),
        talk("long-cats", cats, "They purr.", "Go on.", system=long),  # asked otherwise
        talk("long-dogs", dogs, "They bark.", "Go on.", system=long),  # a long system prompt brings them no closer
        talk("long-again", dogs, "They bark.", "Go on.", "x", system=long),
        talk("tools", cats, "They purr.", "Go on.", tools=[{"name": "search"}]),
    ]
    assert {id: detail.split(",")[0] for id, (_, detail) in rejected(rows, near_duplicates=0.7).items()} == {
        "again": "0.929 like 'cats'",
        "long-again": "1 like 'long-dogs'",
    }


def test_texts_shorter_than_a_shingle_are_close_when_they_are_the_same():
    texts = ["Hi", "hi.", "Hello", "Hello you", "你好", "你好。", "???", "!!!"]
    rows = [row(text, str(n)) for n, text in enumerate(texts)]
    assert rejected(rows, near_duplicates=0.5).keys() == {"1", "5"}


def test_a_row_that_another_filter_rejects_is_nobodys_duplicate():
    text = " ".join(f"w{n}" for n in range(40))
    rows = [row(text, "no-answer"), row(text, "answered", output="yes"), row(text, "again", output="yes")]
    found = rejected(rows, near_duplicates=0.8, min_answer_words=1)
    assert found["again"][1].startswith("1 like 'answered'")
    assert found.keys() == {"no-answer", "again"}


# --- instructions without their input


@pytest.mark.parametrize(
    "text",
    [
        "Summarize the following text.",
        "Summarize the following text:",
        "Given the passage below, answer the question.",
        "Summarize this article:",
        "Please translate the following sentence into French.",
        "Rewrite the following sentence in the passive voice",
        "You are an editor. Improve the following paragraph in 50 words.",
        "Write a haiku that uses the following words:",
        "Which of the following is a mammal?",
        "Translate this into German.",
        "Categorize each of these as either liquids or solids.",
        "Given this paragraph about the Moon, who landed there first?",
        "Explain the code below.",
        "Traduce la siguiente frase al inglés.",
        "Résume le texte suivant en une phrase.",
        "Fasse den folgenden Text in zwei Sätzen zusammen.",
        "translate the following sentence to spanish",
        "Answer this question in one word.",
        "Explain the following paragraph in your own words",
        "Rewrite the following sentence to be more professional.",
        "Summarize the text below in no more than 50 words.",
        "In the paragraph below, what are the major sources of methane emissions?",
        "Given the passage, who won the war?",
    ],
)
def test_an_instruction_that_points_to_nothing_is_rejected(text: str):
    phrase = missing_input(text)
    assert phrase is not None
    assert rejected([row(text)], underspecified=True) == {
        "r": ("underspecified", f"{phrase!r} means an input that is not there, filters.underspecified is true")
    }
    assert rejected([row(text, input="The cat sat on the mat.")], underspecified=True) == {}
    assert missing_input(f"{text}\n\nThe cat sat on the mat.") is None
    assert missing_input(f"{text} The cat sat on the mat.") is None


@pytest.mark.parametrize(
    "text",
    [
        "Summarize the following text: The cat sat on the mat.",
        "Rewrite the following sentence in the passive voice. She ate the apple.",
        "Translate the following sentence into French I love you",
        "“I love you.” Translate the following sentence into French.",
        "Which of these is larger, a dog or a cat?",
        "Which of these words can be both a noun and a verb in English? treat, apple, watch",
        "Order these cars as fast or slow. A Dodge Viper, a Go-Kart",
        "Sort the following numbers 3 1 2",
        "Explain the following terms, entropy and enthalpy.",
        "Compare the following two films Alien and Blade Runner",
        "Solve the following equation x^2 = 4",
        "Fix the following code `print(1`",
        "Write a function that reverses the given string.",
        "Given a list of numbers, write a function that returns their sum.",
        "Write an article about dogs and make this article funny.",
        "Describe what happened the following day.",
        "Write a short story about this summer.",
        "I wrote a story about a dog. Summarize this story.",
        "What is the plot of the story?",
        "Explica el siguiente concepto: entropía",
        "Résume le texte suivant : Il était une fois",
        "Fasse den folgenden Text zusammen: Es war einmal",
        "translate this sentence to spanish good morning my friend",
        "Translate the following sentence into french i am going to the market",
        "Convert this sentence to past tense i eat an apple every day",
        "Answer this question in one word is water wet",
        "Explain this phrase to kill two birds with one stone",
        "Explain the following phrase, to kill two birds with one stone",
        "Discuss the following statement that money cannot buy happiness.",
        "Explain the following fact that the sky is blue",
        "Write a short story based on the following scenario in which two strangers meet on a train.",
        "Write code for the following problem with a function that reverses a linked list",
        "Continue this story about a dragon who was afraid of fire.",
        "Correct this sentence and explain he go to school",
        "Given the story about the tortoise and the hare, what is the moral?",
        "Given the available data on global warming, explain why sea levels rise.",
        "Given the available information, explain why the dinosaurs died out.",
        "Given this fact about the Moon that it is tidally locked, why do we see one side?",
        "Given this sentence, cats purr when they are happy",
        "How do I refer to the image below in LaTeX?",
        "How do I cite the below table?",
        "Explain the difference between the items below and above the line in accounting.",
        "Classify these as animals or plants dog rose oak",
        "Sort these words by length fig apple plum",
        "Sort these apples oranges by price",
        "Traduce la siguiente frase al inglés buenos días amigo mío",
        "Traduis la phrase suivante en anglais je vais au marché",
        "Übersetze den folgenden Satz ins Englische ich gehe nach Hause",
    ],
)
def test_an_instruction_that_holds_its_input_or_needs_none_stays(text: str):
    assert missing_input(text) is None


def test_what_is_pointed_to_may_stand_in_an_earlier_turn_a_system_prompt_or_a_tool():
    text = "Summarize this article."
    ask = {"role": "user", "content": text}
    before = [{"role": "user", "content": "An article ..."}, {"role": "assistant", "content": "Thanks."}]
    system = {"role": "system", "content": "Article: " + "word " * 60}
    rows = [
        row(id="alone", messages=[ask]),
        row(id="polite", messages=[{"role": "system", "content": "You are helpful."}, ask]),
        row(id="turn", messages=[*before, ask]),
        row(id="system", messages=[system, ask]),
        row(id="tool", messages=[ask], tools=[{"name": "open_article"}]),
        row(id="text", prompt=text, completion="x"),
    ]
    assert rejected(rows, underspecified=True).keys() == {"alone", "polite", "text"}


@pytest.mark.parametrize(
    ("system", "stays"),
    [
        ("", False),
        ("You are a helpful assistant.", False),
        ("You are a translator. Answer in one sentence.\n", False),
        ("Text: Ich liebe dich.", True),
        (
            "Article: The mayor of Ghent opened a new bridge over the Leie on Monday, after nine years of building.",
            True,
        ),
        ("You are a translator. The text is “Ich liebe dich”.", True),
        ("You are a translator.\nIch liebe dich.", True),
        ("You are a translator. Ich liebe dich.", True),
        ("The mayor of Ghent opened a new bridge.", True),
        ("You are a translator. " * 20, True),
    ],
)
def test_a_system_prompt_that_may_hold_the_input_keeps_the_row_and_a_plain_role_does_not(system: str, stays: bool):
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "Translate this text into English."}]
    assert (rejected([row(messages=turns)], underspecified=True) == {}) == stays


# --- languages

SAID = {
    "en": "Please explain how the tides are caused by the moon and the sun.",
    "es": "Explica por favor cómo la luna y el sol causan las mareas.",
    "de": "Bitte erkläre, wie der Mond und die Sonne die Gezeiten verursachen.",
    "fr": "Explique s'il te plaît comment la lune et le soleil causent les marées.",
    "zh": "请解释月亮和太阳是如何引起潮汐的，并举例说明这一现象对沿海城市的影响。",
    "ru": "Объясните, пожалуйста, как луна и солнце вызывают приливы.",
}


def test_languages_are_told_and_short_texts_are_not():
    assert {code: language_of(text) for code, text in SAID.items()} == {code: code for code in SAID}
    for text in ("", "Explain gravity", "Was ist das?", "12345 67890 !!! 12345 67890", "Who is Anatoly Kubatsky?"):
        assert language_of(text) is None
    assert language_of(SAID["en"].upper() * 1000) == "en"
    assert set(SAID) <= known_languages()


def test_other_languages_are_rejected_by_name_and_what_cannot_be_told_stays():
    rows = [row(text, code) for code, text in SAID.items()] + [row("Qué?", "short")]
    found = rejected(rows, languages=["es", "en"])
    assert found.keys() == {"de", "fr", "zh", "ru"}
    assert found["de"] == ("other_language", "de, filters.languages is es, en")


def test_the_instruction_tells_the_language_and_the_input_only_where_it_is_too_short_to():
    assert language_of(f"Translate the text into English.\n\n{SAID['de']}") == "de"
    rows = [
        row("Translate the text into English.", "translation", input=SAID["de"]),
        row("Who is Anatoly Kubatsky?", "unsure", input=SAID["de"]),  # 20 letters: enough, but the detector is unsure
        row("Who's Anatoly Kubatsky?", "short", input=SAID["de"]),
        row("Explain:", "short-and-wanted", input=SAID["en"]),
        row(SAID["de"], "german", input=SAID["en"] * 9),
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
        ({"budget": 3}, "adg.filters.budget is not a setting: known keys: min_words, max_words, "),
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


# --- in a run


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
        {"underspecified": True},
        {"languages": ["en"]},
    ]
    found = [digests(**filters) for filters in each]
    assert len({plain, *(digest for digest, _ in found)}) == 1 + len(each)
    assert all(other == recipe for _, other in found)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def mixed() -> list[dict[str, Any]]:
    """Twelve rows that stay, and one for each filter."""
    odd = {
        "short": "Hi",
        "missing": "Summarize the following text.",
        "german": SAID["de"],
        "twin": "  WRITE 11 lines about the sea, with 4 words each",
    }
    return [*pool_rows(12), *({"id": id, "instruction": text, "output": "x"} for id, text in odd.items())]


FILTERS = {"min_words": 3, "underspecified": True, "languages": ["en"], "near_duplicates": 0.8}


@pytest.mark.tiny
def test_rejected_rows_are_counted_explained_and_never_sampled(
    mixed: list[dict[str, Any]], model: Path, tmp_path: Path
):
    selection = choose(mixed, model, tmp_path / "run", filters=FILTERS)
    rows = selection.manifest["rows"]
    assert (rows["pool"], rows["scored"], selection.manifest["sampling"]["rows"]) == (16, 12, 12)
    assert rows["rejected"] == {"too_few_words": 1, "underspecified": 1, "other_language": 1, "near_duplicate": 1}
    told = {line["id"]: line["detail"] for line in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert told == {
        "short": "1 word, filters.min_words is 3",
        "missing": "'the following text' means an input that is not there, filters.underspecified is true",
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
    from adg_plugin.data import languages

    languages._detector.cache_clear()
    for name in ("datasketch", "py3langid"):
        monkeypatch.setitem(sys.modules, name, None)
    yield
    languages._detector.cache_clear()


@pytest.mark.tiny
def test_filters_hold_for_a_pool_in_memory_that_is_trained_on(model: Path, tmp_path: Path):
    from datasets import Dataset

    from adg_plugin.pipeline.in_memory import select_dataset

    backbone = loading.load_backbone(ADGConfig(model=str(model)))
    config = {"budget": 1.0, "num_samples": 3, "max_new_tokens": 6, "filters": {"max_words": 5}}
    pool = Dataset.from_list(pool_rows(10))
    chosen = select_dataset(pool, backbone.model, backbone.tokenizer, config, output_dir=tmp_path, show_progress=False)
    assert chosen["id"] == [f"row-{n}" for n in range(0, 10, 2)]
