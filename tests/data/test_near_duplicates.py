"""Near-duplicates: decisions are those of exact Jaccard similarity, and the first row of the pool stays."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import pytest
from filter_rows import rejected, row
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ROOT

from adg_plugin.data.near_duplicates import NearDuplicates, bands_and_rows, jaccard, shingles
from adg_plugin.data.rows import Row


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
from adg_plugin.data.near_duplicates import NearDuplicates
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
