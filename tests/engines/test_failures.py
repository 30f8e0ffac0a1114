"""When a run is stopped: memory that is never enough, and numbers that are mostly not finite."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from adg_plugin.console import SamplingProgress
from adg_plugin.engines.failures import FailureGuard
from adg_plugin.errors import NumericalError, OutOfMemoryError, ServerError

NAN, NO_MEMORY, REFUSED = "non_finite_states", "out_of_memory", "refused_by_server"


@dataclass(frozen=True)
class Outcome:
    id: str
    reason: str | None
    num_tokens: int = 1


def stored(reasons, order=None, taken=None, **options):
    """Ids that are stored, in the order in which the rows end, and what is skipped."""
    guard = FailureGuard(memory="free it", numbers="check it", kept="All is kept", **options)
    outcomes = [Outcome(str(number), reason) for number, reason in enumerate(reasons)]
    list(guard.taking(outcomes[:taken]))
    stats = {}
    ended = outcomes if order is None else [outcomes[number] for number in order]
    progress = SamplingProgress(len(outcomes), show=False)
    ids = [outcome.id for outcome in guard.watched(ended, progress, stats)]
    assert progress.done == len(outcomes)
    return ids, stats.get("skipped", {})


@pytest.mark.parametrize("in_turn", [True, False])
def test_rows_without_memory_are_skipped_and_three_in_a_row_end_it(in_turn):
    reasons = [None, NO_MEMORY, NO_MEMORY, None]
    assert stored(reasons, in_turn=in_turn) == (["0", "3"], {"1": NO_MEMORY, "2": NO_MEMORY})
    with pytest.raises(OutOfMemoryError) as caught:
        stored([NO_MEMORY] * 4, in_turn=in_turn)
    assert str(caught.value) == "out of memory on 3 consecutive rows at batch size 1: free it. All is kept"


def test_only_where_rows_end_in_turn_do_a_few_among_many_mean_something():
    reasons = [None] * 4 + [REFUSED] * 3
    assert len(stored(reasons)[0]) == 4
    with pytest.raises(ServerError, match=r"^most rows were refused; the warnings say why\. All is kept$"):
        stored(reasons, in_turn=True)


def test_rows_that_never_reached_the_model_do_not_speak_for_it():
    reasons = [NO_MEMORY] * 3 + ["no_answer"] * 5
    with pytest.raises(OutOfMemoryError):
        stored(reasons, order=[3, 4, 5, 6, 7, 0, 1, 2], taken=3)
    reasons = [NAN, NAN, None] + ["no_answer"] * 5
    with pytest.raises(NumericalError, match=r"^2 of 3 rows gave NaN or infinity: check it$"):
        stored(reasons, taken=3)


def test_numbers_are_counted_in_the_order_in_which_rows_are_taken():
    reasons = [NAN, NAN, None, None] * 3
    first_the_bad = sorted(range(12), key=lambda number: reasons[number] is None)
    assert len(stored(reasons, first_the_bad, batch_rows=4)[0]) == 12
    with pytest.raises(NumericalError, match="3 of 4 rows gave NaN"):
        stored([None] * 4 + [NAN] * 3 + [None], batch_rows=4)
    assert len(stored([None] * 4 + [NAN] * 3, batch_rows=4)[0]) == 7  # too few to tell
