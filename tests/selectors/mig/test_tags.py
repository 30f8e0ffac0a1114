"""What is asked of a tagger, and how leniently its answers are read without guessing."""

from __future__ import annotations

import json

import pytest

from adg_plugin.selectors.mig.tagger import conversation, read_tags


@pytest.mark.parametrize(
    ("answer", "tags"),
    [
        ('["math", "word problem"]', ("math", "word problem")),
        ('["math", " math ", "C++", "数学"]', ("math", "C++", "数学")),
        ('Here are the tags:\n```json\n["math",\n "geometry"]\n```\nAnything else?', ("math", "geometry")),
        ('{"tags": ["math"], "n": [1]}', ("math",)),
        ("['math', \"Ohm's law\"]", ("math", "Ohm's law")),
        ('[{"tag": "math", "explanation": "a sum"}, {"tag": "money"}]', ("math", "money")),
        ('[1] and [2, 3] are no tags, ["math"] is one', ("math",)),
        ('[["math", "money"]]', ("math", "money")),
        ('<think>["no"], or rather</think>["yes"]', ("yes",)),
        ('["math", "' + "x" * 61 + '", "17"]', ("math",)),
    ],
)
def test_a_whole_list_is_found_wherever_it_stands(answer, tags):
    assert read_tags(answer) == tags


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "math, geometry",
        "1. math\n2. geometry",
        '["math", "geo',
        '["nuts", "nuts", "nuts"',
        "[math, geometry]",
        '["math", 3]',
        '[{"label": "math"}]',
        "[]",
        "[...]",
        '["...", "?"]',
        "[" * 3000,
    ],
)
def test_what_is_no_whole_list_of_texts_is_not_guessed_at(answer):
    assert read_tags(answer) == ()


def test_the_question_ends_with_the_rows_own_words_and_its_examples_are_answers_that_can_be_read():
    *examples, last = conversation("What is 2 + 2?")
    assert last["role"] == "user"
    assert last["content"].endswith("\n\nRequest:\nWhat is 2 + 2?")
    assert [turn["role"] for turn in examples] == ["user", "assistant"] * (len(examples) // 2)
    for turn in examples[1::2]:
        assert list(read_tags(turn["content"])) == json.loads(turn["content"])
