"""What the harness returns and prints, as this package reads and passes it on."""

from __future__ import annotations

import logging
import sys

import pytest

from adg_plugin.errors import DataError
from adg_plugin.tools.evaluation import TaskResult
from adg_plugin.tools.evaluation.quiet import quietened
from adg_plugin.tools.evaluation.results import task_results
from adg_plugin.tools.evaluation.tasks import LoadedTask


class Leaf:
    """As much of a task as is read from it."""

    def __init__(self, shots: int) -> None:
        self.shots = shots

    def get_config(self, key: str) -> int:
        assert key == "num_fewshot"
        return self.shots


def raw_results() -> dict[str, object]:
    def samples(values: list[float]) -> list[dict[str, object]]:
        rows = [{"doc_id": n, "filter": "none", "acc": value} for n, value in enumerate(values)]
        return [{"doc_id": 0, "filter": "loose", "acc": 9.0}, *reversed(rows)]

    return {
        "results": {
            "a": {"alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.25, "acc_norm,none": 0.75, "acc,loose": 1.0},
            "b": {"alias": "b", "acc,none": 1.0, "acc_stderr,none": "N/A", "f1,none": float("nan")},
            "g": {"alias": "g", "acc,none": 0.6, "acc_stderr,none": 0.2},
            "bare": {"alias": "bare"},
        },
        "n-shot": {"a": 2, "b": 2},
        "n-samples": {"a": {"original": 9, "effective": 4}, "b": {"original": 1, "effective": 1}},
        "samples": {"a": samples([1.0, 0.0, 1.0, 0.0]), "b": samples([1.0])},
    }


def test_a_group_has_one_result_with_the_rows_of_its_tasks() -> None:
    leaves = {"a": Leaf(2), "b": Leaf(2)}
    (found,) = task_results(LoadedTask("g", {}, leaves, None), raw_results(), 1.5)
    assert found == TaskResult(
        task="g",
        shots=2,
        metric="acc,none",
        value=0.6,
        stderr=0.2,
        rows=5,
        rows_in_task=10,
        seconds=1.5,
        metrics={"acc,none": 0.6},
        parts={"a": 0.5, "b": 1.0},
        digest=found.digest,
        row_values=(1.0, 0.0, 1.0, 0.0, 1.0),
    )


def test_a_group_without_a_figure_of_its_own_gives_those_of_its_tasks() -> None:
    leaves = {"a": Leaf(2), "b": Leaf(2)}
    found = task_results(LoadedTask("bare", {}, leaves, None), raw_results(), 1.0)
    assert [(r.task, r.value, r.stderr, r.rows, r.shots, r.parts, r.asked) for r in found] == [
        ("a", 0.5, 0.25, 4, 2, {}, "bare"),
        ("b", 1.0, None, 1, 2, {}, "bare"),
    ]
    assert found[1].metrics == {"acc,none": 1.0}  # NaN is no figure


def test_the_metric_that_counts_is_the_protocols_else_the_first() -> None:
    for metric, value in (("acc_norm,none", 0.75), ("acc,loose", 1.0), (None, 0.5)):
        (found,) = task_results(LoadedTask("a", {}, {"a": Leaf(0)}, metric), raw_results(), 1.0)
        assert found.value == value
    assert found.metrics == {"acc,none": 0.5, "acc_norm,none": 0.75, "acc,loose": 1.0}


def test_a_benchmark_without_the_papers_figure_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        task_results(LoadedTask("a", {}, {"a": Leaf(0)}, "exact_match,strict"), raw_results(), 1.0)
    assert str(caught.value) == (
        "task a has no exact_match,strict, the paper's figure of a, only acc,none, acc_norm,none, acc,loose: name "
        "metric and filter in its file so, or give it another name"
    )


def test_a_metric_of_the_whole_has_no_value_of_its_rows() -> None:
    (found,) = task_results(LoadedTask("a", {}, {"a": Leaf(0)}, "acc_norm,none"), raw_results(), 1.0)
    assert found.row_values == ()


def test_parts_with_other_counts_of_examples_have_no_count_in_common() -> None:
    assert LoadedTask("g", {}, {"a": Leaf(2), "b": Leaf(3)}, None).shots is None


def test_bars_and_stdout_are_kept_away_and_remarks_are_passed_on(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    harness = logging.getLogger("lm_eval.models.huggingface")
    with quietened(show_bars=False) as remarks:
        print("from the harness")
        sys.stderr.write("\r 10%|#   ")
        sys.stderr.write("\r100%|####")
        sys.stderr.write("\n")
        print("kept", file=sys.stderr)
        for _ in range(2):
            harness.warning("something of note")
            harness.warning("Left truncation applied. Original sequence length was 9")
        harness.warning("Overwriting default num_fewshot of a from 5 to 8")
        harness.info("not of note")
    harness.warning("outside")
    assert capsys.readouterr() == ("", "from the harness\nkept\n")
    assert remarks.cut
    assert caplog.messages == ["lm-evaluation-harness: something of note", "outside"]
