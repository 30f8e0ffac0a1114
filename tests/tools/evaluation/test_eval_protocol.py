"""The paper's protocol: its benchmarks, their figures and averages, and how they are printed."""

from __future__ import annotations

import io
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from eval_answers import adg
from hypothesis import given
from hypothesis import strategies as st
from paths import TASKS
from rich.console import Console

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError, MissingExtraError, ModelError
from adg_plugin.tools.evaluation import Evaluation, TaskResult, evaluate, run
from adg_plugin.tools.evaluation.cli import print_evaluation
from adg_plugin.tools.evaluation.evaluated_model import Place
from adg_plugin.tools.evaluation.results import papers_averages
from adg_plugin.tools.evaluation.tasks import PAPER, averages, paper_task, wanted

SIX = ["bbh", "gsm8k", "mmlu", "truthfulqa_mc2", "mbpp", "humaneval"]


def test_the_preset_is_the_papers() -> None:
    shots = {task.name: task.shots for task in PAPER}
    assert shots == {"bbh": 3, "gsm8k": 8, "mmlu": 4, "truthfulqa_mc2": 0, "mbpp": 1, "humaneval": 0}
    assert {task.name for task in PAPER if task.runs_code} == {"mbpp", "humaneval"}


def test_averages_of_the_papers_own_figures() -> None:
    values = {"bbh": 0.40, "gsm8k": 0.50, "mmlu": 0.60, "truthfulqa_mc2": 0.52, "mbpp": 0.44, "humaneval": 0.30}
    found = {average.name: average.value for average in averages(values)}
    expected = {"reasoning": 0.45, "knowledge": 0.56, "code": 0.37, "overall": 0.46}
    assert found == pytest.approx(expected)


@given(st.dictionaries(st.sampled_from([*SIX, "other"]), st.floats(0, 1)))
def test_an_average_is_given_only_where_nothing_of_it_is_missing(values: dict[str, float]) -> None:
    found = averages(values)
    assert bool(found) == bool(set(values) & set(SIX))
    for average in found:
        parts = SIX if average.name == "overall" else [t.name for t in PAPER if t.area == average.name]
        assert list(average.missing) == [part for part in parts if part not in values]
        if average.missing:
            assert average.value is None
        else:
            assert average.value == pytest.approx(math.fsum(values[part] for part in parts) / len(parts))


def test_a_task_file_of_the_users_is_no_benchmark_of_the_paper() -> None:
    own = TaskResult("gsm8k", 8, "acc,none", 0.5, None, 4, 4, 1.0, {}, source="mine/gsm8k.yaml")
    real = TaskResult("bbh", 3, "acc,none", 0.25, None, 4, 4, 1.0, {})
    assert papers_averages([own]) == ()
    assert papers_averages([own, real])[0].missing == ("gsm8k",)


def test_only_the_six_have_a_protocol() -> None:
    assert [paper_task(name) is not None for name in (*SIX, "gsm8k_cot")] == [True] * 6 + [False]


def test_the_preset_leaves_out_what_runs_code_and_says_so() -> None:
    names, left_out = wanted("paper", allow_code=False)
    assert names == ["bbh", "gsm8k", "mmlu", "truthfulqa_mc2"]
    reason = "it runs code that the model wrote on this machine: --allow-code-execution permits that"
    assert left_out == {"mbpp": reason, "humaneval": reason}
    assert wanted("paper", allow_code=True) == (SIX, {})


def test_names_are_taken_once_from_text_or_list() -> None:
    assert wanted(" a, b ,a,", allow_code=False)[0] == ["a", "b"]
    assert wanted(["gsm8k", "paper"], allow_code=True)[0] == ["gsm8k", "bbh", *SIX[2:]]


def test_a_task_that_runs_code_is_refused_by_name() -> None:
    with pytest.raises(ConfigError) as caught:
        wanted("bbh,mbpp,humaneval", allow_code=False)
    fix = (
        "it runs code that the model wrote on this machine: --allow-code-execution permits that, or leave the task out"
    )
    assert caught.value.problems == [f"task mbpp: {fix}", f"task humaneval: {fix}"]


def test_no_task_is_an_error() -> None:
    with pytest.raises(ConfigError, match="tasks is empty: name tasks of lm-evaluation-harness, or paper"):
        wanted(" , ", allow_code=False)


def test_every_wrong_setting_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate("demo", limit=0, batch_size=0, seed=-1)
    assert caught.value.problems == [
        "limit is 0: use 1 or more, or none for all questions",
        "batch_size is 0: use 1 or more",
        "seed is -1: use 0 to 4294967295",
    ]


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingExtraError) as caught:
        evaluate("demo")
    assert str(caught.value) == "adg eval needs `lm_eval`: pip install 'adg-plugin[eval]'"


@pytest.mark.usefixtures("harness")
@pytest.mark.tiny
def test_a_task_file_stands_in_for_a_benchmark_of_the_paper(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(TASKS, tmp_path / "mine")
    about = yaml.safe_load((TASKS / "tiny_sums.yaml").read_text())
    about |= {"task": "gsm8k", "num_fewshot": 5}
    about["filter_list"][0]["name"] = "strict-match"
    (tmp_path / "mine/gsm8k.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(DataError) as caught:
        evaluate(str(saved), tasks="gsm8k", include=tmp_path / "mine")
    assert str(caught.value) == (
        "task gsm8k shows 8 worked examples before each question, and its data hold 3: add some, or set num_fewshot "
        "lower (of a benchmark of the paper, under another name)"
    )
    with (tmp_path / "mine/data/sums_shots.jsonl").open("a") as shots:
        shots.writelines(json.dumps({"a": a, "b": 1}) + "\n" for a in range(5))
    found = evaluate(str(saved), tasks="gsm8k,tiny_capitals", include=tmp_path / "mine")
    assert (found["gsm8k"].shots, found["gsm8k"].metric) == (8, "exact_match,strict-match")
    assert found.averages == ()  # they would not be the paper's
    assert found.model["dtype"] == "bfloat16"  # as in the paper; the checkpoint is in float32
    file = tmp_path / "mine/gsm8k.yaml"
    assert found["gsm8k"].source == str(file)
    assert found.notes == (
        f"gsm8k is from {file}, not the harness's benchmark: it is left out of the paper's averages",
    )
    about["filter_list"][0]["name"] = "first-number"
    file.write_text(yaml.safe_dump(about))
    with pytest.raises(DataError) as caught:
        evaluate(str(saved), tasks="gsm8k", include=tmp_path / "mine")
    assert str(caught.value) == (
        "task gsm8k has no exact_match,strict-match, the paper's figure of gsm8k, only exact_match,first-number: name "
        "metric and filter in its file so, or give it another name"
    )


@pytest.mark.usefixtures("harness")
@pytest.mark.tiny
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "bfloat16"),
        (["--tasks", "gsm8k,tiny_words"], "bfloat16"),
        (["--tasks", "tiny_words"], "auto"),
        (["--dtype", "float32"], "float32"),
        (["--dtype", "auto"], "auto"),
    ],
)
def test_the_papers_benchmarks_are_run_in_bfloat16_unless_a_dtype_is_given(
    options: list[str], expected: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(self: Place, config: ADGConfig) -> None:
        loaded.append(config.dtype)
        raise ModelError("far enough")

    monkeypatch.setattr(run, "load", lambda *_, **__: [])
    monkeypatch.setattr(Place, "load", load)
    monkeypatch.chdir(saved)
    assert adg("eval", str(saved), *options) == 2
    assert loaded == [expected]


@pytest.mark.usefixtures("harness")
@pytest.mark.slow
def test_the_harness_has_the_benchmarks_with_their_metrics_and_enough_examples() -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    for task in PAPER:
        entry = index[task.name]
        path = Path(entry["yaml_path"] if isinstance(entry, dict) else entry.yaml_path)
        about = declared(path)
        if "group" in about:  # of bbh, the file of the first task says what its parts have in common
            (metric,) = about["aggregate_metric_list"]
            assert metric["weight_by_size"]
            filters = metric.get("filter_list", "none")
            assert task.metric == f"{metric['metric']},{filters}"
        else:
            metrics = [str(m["metric"]).rpartition(".")[2] for m in about["metric_list"]]
            first = (about.get("filter_list") or [{"name": "none"}])[0]["name"]
            known = {"pass_at_k": "pass@1"}.get(metrics[0], metrics[0])  # one figure for each k
            assert task.metric == f"{known},{first}"
        assert bool(about.get("unsafe_code")) == task.runs_code
        assert task.shots == 0 or about.get("num_fewshot") != 0


def declared(path: Path) -> dict[str, Any]:
    """Return a task file with its templates, functions as their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(node)))
    about = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506  # a safe one with one tag more
    return declared(path.parent / about["include"]) | about if "include" in about else about


def evaluation() -> Evaluation:
    tasks = (
        TaskResult("gsm8k", 8, "exact_match,strict-match", 0.25, 0.0125, 1319, 1319, 9.0, {}, row_values=(1.0, 0.0)),
        TaskResult("mine", None, "acc,none", 0.5, None, 4, 2000, 1.0, {"acc,none": 0.5}),
    )
    return Evaluation(
        model={"name": "m"},
        tasks=tasks,
        averages=averages({"gsm8k": 0.25, "mmlu": 0.5, "truthfulqa_mc2": 0.6}),
        left_out={"mbpp": "it runs code"},
        notes=("a note",),
        settings={"limit": None},
        versions={},
        seconds=10.0,
    )


def test_the_table_fits_eighty_columns_and_says_what_is_missing() -> None:
    out = io.StringIO()
    print_evaluation(evaluation(), Console(file=out, width=80))
    assert [line.rstrip() for line in out.getvalue().splitlines()] == [
        "task   shots        rows   value   error  metric",
        "gsm8k      8       1,319  0.2500  0.0125  exact_match,strict-match",
        "mine       -  4 of 2,000  0.5000          acc",
        "reasoning: not given, bbh missing",
        "knowledge: 0.5500",
        "code: not given, mbpp, humaneval missing",
        "overall: not given, bbh, mbpp, humaneval missing",
        "mbpp left out: it runs code",
        "a note",
    ]


def test_a_result_is_found_by_its_task() -> None:
    assert evaluation()["mine"].value == 0.5
    with pytest.raises(KeyError):
        evaluation()["other"]
