"""Labels and quality in the rows' columns: what is read, what is refused, what counts as absent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adg_plugin.selectors.mig.columns import column_of, has_labels, read_labels, read_quality

FIX = "use a list of texts or of whole numbers, or one text with commas between the labels"


@pytest.mark.parametrize(
    ("value", "labels"),
    [
        (None, ()),
        (math.nan, ()),
        ("", ()),
        (" , ;", ()),
        ([], ()),
        ([""], ()),
        ("[]", ()),
        ("Algebra", ("algebra",)),
        ("Algebra, linear equations;  POEM ,", ("algebra", "linear equations", "poem")),
        (["b", " A", "a", ""], ("b", "a")),
        (("one, two",), ("one, two",)),
        ('["Algebra", "geometry, plane"]', ("algebra", "geometry, plane")),
        ("['algebra', \"it's\"]", ("algebra", "it's")),
        ("[1, 2]", ("1", "2")),
        (7, ("7",)),
        (7.0, ("7",)),  # of a table in which other rows have none
        ([3, "a"], ("3", "a")),
    ],
)
def test_labels_are_read(value, labels):
    assert read_labels(value, "labels") == labels
    assert has_labels(value) == bool(labels)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.5"),
        (True, "True"),
        (math.inf, "inf"),
        (["a", None], "['a', None]"),
        ([["a"]], "[['a']]"),
        ({"a": 1}, "{'a': 1}"),
        ("[algebra, geometry", "'[algebra, geometry'"),
        ('{"a": 1}', "'{\"a\": 1}'"),
        ([None] * 90, repr([None] * 90)[:80] + "..."),
    ],
)
def test_other_labels_are_refused_with_column_value_and_fix_and_are_not_absent(value, shown):
    with pytest.raises(ValueError, match="column") as caught:
        read_labels(value, "topics")
    assert str(caught.value) == f"column 'topics' is {shown}: {FIX}"
    assert has_labels(value)


@pytest.mark.parametrize(
    ("value", "quality"),
    [
        (None, None),
        (math.nan, None),
        (" ", None),
        (0, 0.0),
        (3, 3.0),
        (4.5, 4.5),
        ("4.5", 4.5),
        (" 5 ", 5.0),
        (np.float32(0.5), 0.5),
    ],
)
def test_quality_is_read(value, quality):
    found = read_quality(value, "quality")
    assert found == quality
    assert found is None or isinstance(found, float)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("good", "'good'"),
        ("nan", "'nan'"),
        (math.inf, "inf"),
        (10**400, repr(10**400)[:80] + "..."),
        (-1, "-1"),
        (True, "True"),
        ([], "[]"),
    ],
)
def test_other_qualities_are_refused_with_column_value_and_fix(value, shown):
    with pytest.raises(ValueError, match="column") as caught:
        read_quality(value, "stars")
    assert str(caught.value) == f"column 'stars' is {shown}: use a number of 0 or more"


def test_a_column_of_a_staged_row():
    assert column_of('{"a": [1], "größe": "\\"b\\""}', "größe") == '"b"'
    assert column_of('{"a": [1]}', "a") == [1]
    assert column_of('{"a": "b"}', "b") is None
    assert column_of('{"a": 1}', "c") is None
