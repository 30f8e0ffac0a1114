"""What all judges share: windows of rows, batches that halve, rows without a result."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from judging import findings, judge

from adg_plugin.engines.judges.judge import Batches, judged

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Number:
    id: str
    inputs: tuple[float, ...]


def model(most=24, too_much=10, **options):
    """A model that squares numbers, with no memory for batches whose sum is more."""

    def answers(batch):
        if sum(batch) > too_much:  # NaN is not
            raise MemoryError
        return [
            ({f"square of {number}": float(number * number)}, 1 if number != number else number) for number in batch
        ]

    return SimpleNamespace(
        batches=Batches(most, lambda number: 1 if number != number else number, CPU, **options), answers=answers
    )


def rows(*inputs):
    return [Number(f"r{n}", some) for n, some in enumerate(inputs)]


def test_batches_halve_where_memory_is_short_and_name_the_item_that_does_not_fit():
    tried: list[list[int]] = []

    def work(batch):
        tried.append(list(batch))
        if sum(batch) > 10:
            raise MemoryError
        return [item * item for item in batch]

    items = [(f"of {item}", item) for item in (2, 11, 3, 5, 4, 1)]
    assert list(Batches(24, lambda item: item, CPU).run(items, work)) == [
        (("of 11",), None),
        (("of 5", "of 4"), [25, 16]),
        (("of 3", "of 2", "of 1"), [9, 4, 1]),
    ]
    assert tried[:3] == [[11, 5], [11], [5, 4]]

    def broken(batch):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(Batches(4, lambda item: item, CPU).run([("one", 1)], broken))


def test_batches_by_number_hold_so_many_items_whatever_their_width():
    items = [(None, item) for item in (5, 90, 40, 1, 3)]
    found = Batches(2, lambda item: item, CPU, by_number=True).run(items, list)
    assert [batch for _, batch in found] == [[90, 40], [5, 3], [1]]


def test_a_row_has_the_answers_to_all_of_its_inputs_or_a_reason():
    found = findings(model(), rows((3, 1), (11, 2), (float("nan"),), (2,)), lambda row: row.inputs)
    assert found["r0"].values == {"square of 3": 9, "square of 1": 1}
    assert (found["r0"].num_tokens, found["r0"].reason) == (3, None)
    assert [(found[id].values, found[id].num_tokens) for id in ("r1", "r2")] == [({}, 0)] * 2
    assert [found[id].reason for id in ("r1", "r2", "r3")] == ["out_of_memory", "non_finite_states", None]


def test_a_row_with_nothing_to_ask_never_reaches_the_model():
    reached = []
    asking = judge(model(), lambda row: row.inputs or "no_answer")
    found = [one for some in judged(asking, rows((), (2,), ()), reached.append) for one in some]
    assert [(one.id, one.reason) for one in found] == [("r0", "no_answer"), ("r2", "no_answer"), ("r1", None)]
    assert reached == ["r1"]


def test_rows_are_taken_as_they_are_needed():
    taken = []

    def pool():
        for row in rows(*[(3,)] * 257):
            taken.append(row.id)
            yield row

    results = judged(judge(model(most=1), lambda row: row.inputs), pool())
    next(results)
    assert len(taken) == 256
    assert len(list(results)) == 256
