"""What choices share and are made of: by brute force, by hand, and by chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adg_plugin.report.facets import Facet, Facets
from adg_plugin.tools.compare.facts import add_files, facts_of, overlaps


@given(st.lists(st.sets(st.integers(0, 11)), min_size=1, max_size=6))
def test_overlaps_are_those_of_sets(choices):
    chosen = np.array([[row in choice for row in range(12)] for choice in choices])
    jaccard, shared = overlaps(chosen)
    for i, one in enumerate(choices):
        for j, other in enumerate(choices):
            assert jaccard[i, j] == (len(one & other) / len(one | other) if one | other else 1.0)
            assert shared[i, j] == (len(one & other) / len(one) if one else float(not other))


def facets(rows):
    lengths = np.arange(rows, dtype=np.int64)
    return Facets(lengths, 10 * lengths, {"source": Facet(np.array(["a", "b"] * (rows // 2), dtype=object))})


def test_facts_of_a_few_choices_by_hand():
    ids = [f"r{n}" for n in range(10)]
    choices = {"one": ["r0", "r2", "r4", "r6"], "two": ["r6", "r1", "r0", "r3"], "same": ["r6", "r4", "r2", "r0"]}
    bins = np.array([0, 0, 1, 1, 2, 2, 0, 0, -1, -1])
    eligible = {"one": ids, "two": ids[:8], "same": ids}
    found = facts_of(choices, eligible, ids, facets(10), bins)
    assert found.names == ("one", "two", "same")
    assert found.jaccard == [[1, 2 / 6, 1], [2 / 6, 1, 2 / 6], [1, 2 / 6, 1]]
    assert found.shared[0] == [1, 0.5, 1]
    assert found.by_chance["shared"][0] == pytest.approx([0.4, 0.4, 0.4])
    assert found.by_chance["shared"][1] == pytest.approx([0.4, 0.5, 0.4])  # 4 of 8 rows, of which 0.4 are in the other
    assert found.by_chance["jaccard"][1] == pytest.approx([0.4 / 1.6, 0.5 / 1.5, 0.4 / 1.6])
    assert found.chosen_by == {"all": 2, "none": 4}  # r0, r6; r5, r7, r8, r9
    assert found.alone == [0, 2, 0]
    assert found.bins == {
        "total": 3,
        "reached": [3, 2, 3],
        "largest_share": [0.5, 0.75, 0.5],
        "without_a_bin": [0, 0, 0],
        "pool": [4, 2, 2],
        "chosen": [[2, 1, 1], [3, 1, 0], [2, 1, 1]],
    }
    assert found.coverage == [
        {
            "kind": "source",
            "values": [
                {"value": "a", "pool": 5, "chosen": [4, 2, 4]},
                {"value": "b", "pool": 5, "chosen": [0, 2, 0]},
            ],
        }
    ]
    assert found.lengths[0]["prompt_tokens"] == {f"p{p}": np.percentile([0, 2, 4, 6], p) for p in (5, 50, 95)}
    assert found.lengths[1]["reference_words"]["p50"] == 20
    assert found.lengths_of_pool["prompt_tokens"]["p50"] == 4.5


@pytest.mark.parametrize("rows", [200, 80])
def test_chance_is_what_random_choices_share(rows):
    """One of each pair chooses 50 of 200 rows, the other as many of the first `rows`."""
    ids = [f"r{n:03d}" for n in range(200)]
    rng = np.random.default_rng(0)
    ranges = {str(n): 200 if n % 2 else rows for n in range(60)}
    choices = {name: [ids[row] for row in rng.permutation(of)[:50]] for name, of in ranges.items()}
    found = facts_of(choices, {name: ids[:of] for name, of in ranges.items()}, ids, facets(200), None)
    for name in ("shared", "jaccard"):
        real, chance = np.array(getattr(found, name)), np.array(found.by_chance[name])
        for one, other in ((0, 0), (0, 1), (1, 1)):
            pairs = [(i, j) for i in range(one, 60, 2) for j in range(other, 60, 2) if i != j]
            expected = [chance[pair] for pair in pairs]
            assert np.mean([real[pair] for pair in pairs]) == pytest.approx(expected[0], abs=0.015)
            assert expected == pytest.approx([expected[0]] * len(pairs))
    assert found.bins is None


def test_coverage_has_every_value_and_the_rows_without_one():
    of = facets(40)
    values = [f"v{n:02d}" for n in range(30)] + ["v29"] * 4 + [None] * 6
    of.kinds["source"] = Facet(np.array(values, dtype=object))
    ids = [f"r{n:02d}" for n in range(40)]
    choices = {"one": ids[:10], "two": ids[28:38]}
    (coverage,) = facts_of(choices, dict.fromkeys(choices, ids), ids, of, None).coverage
    names = [value["value"] for value in coverage["values"]]
    assert names == ["v29", *(f"v{n:02d}" for n in range(29)), None]
    assert sum(value["pool"] for value in coverage["values"]) == 40
    for at in range(2):
        assert sum(value["chosen"][at] for value in coverage["values"]) == 10
    assert coverage["values"][0] == {"value": "v29", "pool": 5, "chosen": [0, 5]}
    assert coverage["values"][-1] == {"value": None, "pool": 6, "chosen": [0, 4]}


def test_rows_without_a_bin_reach_none():
    ids = ["r0", "r1", "r2", "r3"]
    found = facts_of({"a": ["r0", "r1"], "b": []}, {"a": ids, "b": []}, ids, facets(4), np.array([-1, 0, 0, -1]))
    assert found.by_chance == {"shared": [[0.5, 0], [0, 0]], "jaccard": [[1 / 3, 0], [0, 0]]}
    assert found.bins == {
        "total": 1,
        "reached": [1, 0],
        "largest_share": [0.5, 0.0],
        "without_a_bin": [1, 0],
        "pool": [2],
        "chosen": [[1], [0]],
    }


def test_no_choice_at_all_has_facts_of_the_pool():
    found = facts_of({}, {}, ["r0", "r1", "r2", "r3"], facets(4), np.array([0, 0, 1, -1]))
    assert (found.names, found.jaccard, found.alone, found.lengths) == ((), [], [], [])
    assert found.chosen_by == {"all": 0, "none": 4}
    assert (found.bins["total"], found.bins["reached"]) == (2, [])
    assert [value["chosen"] for value in found.coverage[0]["values"]] == [[], []]


@pytest.mark.parametrize(
    ("where", "data_sets", "told"),
    [
        (["a:1", "a:2", "b:1", "b:2"], None, ["a", "a", "b", "b"]),
        (["s3://x/a:1", "s3://x/a:2", "s3://x/b:1", "s3://x/b:2"], None, ["s3://x/a", "s3://x/a", "s3://x/b"]),
        (["a:1", "a:2", "a:3", "a:4"], None, None),
        (["a:1", "b:1", "c:1", "d:1"], None, None),  # a file per row
        (["a:1", "a:2", "b:1", "b:2"], ["one", "one", "two", "two"], None),  # the data sets tell as much
    ],
)
def test_files_are_a_kind_where_they_tell_something(where, data_sets, told):
    of = facets(4)
    if data_sets is not None:
        of.kinds["data set"] = Facet(np.array(data_sets, dtype=object))
    add_files(of, where)
    assert ("file" in of.kinds) == (told is not None)
    if told is not None:
        assert of.kinds["file"].values.tolist()[: len(told)] == told
