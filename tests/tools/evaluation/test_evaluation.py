"""What `adg eval` does around the harness: names, averages, task files, places, the harness's words."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from adg_plugin.errors import ConfigError, DataError, MissingExtraError, ModelError
from adg_plugin.tools.evaluation import Evaluation, TaskResult, evaluate
from adg_plugin.tools.evaluation.cli import print_evaluation
from adg_plugin.tools.evaluation.evaluated_model import Place
from adg_plugin.tools.evaluation.protocol import PAPER, averages, paper_task
from adg_plugin.tools.evaluation.quiet import quietened
from adg_plugin.tools.evaluation.readings import read_results
from adg_plugin.tools.evaluation.results import papers_averages
from adg_plugin.tools.evaluation.task_files import declares_code, readable
from adg_plugin.tools.evaluation.tasks import LoadedTask, wanted

SIX = ["bbh", "gsm8k", "mmlu", "truthfulqa_mc2", "mbpp", "humaneval"]


# The protocol


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


# Task files


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


class Loader(yaml.SafeLoader):
    """Reads `!function x.y` as the text `!x.y`."""


Loader.add_constructor("!function", lambda loader, node: "!" + str(loader.construct_scalar(node)))


def read(path: Path) -> dict[str, object]:
    found = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506  # a safe one with one tag more
    assert isinstance(found, dict)
    return found


def test_data_files_are_found_beside_their_task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = tmp_path / "tasks"
    for name in ("sub/a.json", "sub/b-1.json", "sub/b-2.json"):
        write(tasks, name, "{}")
    write(
        tasks,
        "sub/one.yaml",
        "task: one\ndataset_path: json\ndoc_to_text: \"ä {{q}}\\n: '!'\"\nprocess_results: !function own.score\n"
        "dataset_kwargs:\n  field: examples\n  data_files:\n    test: a.json\n    shots: [b-1.json, 'b-*.json']\n"
        "    far: https://host/x.json\n",
    )
    write(tasks, "sub/own.py", "here = __file__\n")
    monkeypatch.chdir(tmp_path)
    with readable([Path("tasks")]) as (copy,):
        found = read(copy / "sub/one.yaml")
        assert (copy / "sub/own.py").read_text() == "here = __file__\n"
    assert not copy.exists()
    here = tasks / "sub"
    files = {
        "test": str(here / "a.json"),
        "shots": [str(here / "b-1.json"), str(here / "b-*.json")],
        "far": "https://host/x.json",
    }
    assert found == {
        "task": "one",
        "dataset_path": "json",
        "doc_to_text": "ä {{q}}\n: '!'",
        "process_results": "!own.score",
        "dataset_kwargs": {"field": "examples", "data_files": files},
    }


def test_templates_and_groups_are_followed(tmp_path: Path) -> None:
    tasks = tmp_path / "tasks"
    write(tmp_path, "outside/_base", "task: base")
    write(tasks, "x.json", "{}")
    write(tasks, "_t_yaml", "dataset_path: json\ndataset_kwargs: {data_files: x.json}")
    write(tasks, "a.yaml", "include: _t_yaml\ntask: a")
    write(tasks, "b.yaml", "include: ../outside/_base\ntask: b")
    write(
        tasks, "g.yaml", "group: g\ntask:\n- a\n- {task: c, dataset_path: json, dataset_kwargs: {data_files: x.json}}"
    )
    with readable([tasks]) as (copy,):
        assert read(copy / "_t_yaml")["dataset_kwargs"] == {"data_files": str(tasks / "x.json")}
        assert read(copy / "a.yaml")["include"] == "_t_yaml"
        assert read(copy / "b.yaml")["include"] == str(tmp_path / "outside/_base")
        group = read(copy / "g.yaml")["task"]
    assert group == [
        "a",
        {"task": "c", "dataset_path": "json", "dataset_kwargs": {"data_files": str(tasks / "x.json")}},
    ]


def test_a_repositorys_own_files_are_left_to_it(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "task: a\ndataset_path: org/set\ndataset_kwargs: {data_files: test.json}")
    with readable([tmp_path]) as (copy,):
        assert read(copy / "a.yaml")["dataset_kwargs"] == {"data_files": "test.json"}


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: a\ndataset_path: json\ndataset_kwargs: {data_files: none.json}")
    with pytest.raises(DataError) as caught, readable([tmp_path]):
        pass
    assert str(caught.value) == (
        f"task file {path}: data_files names 'none.json', and there is no {tmp_path / 'none.json'}: put the file "
        "there, or give its path from the task file's folder"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (False, "--include is '{}': no such folder; give one that holds task files (*.yaml)"),
        (True, "--include is '{}': no task file (*.yaml) is in it"),
    ],
)
def test_a_folder_without_tasks_is_refused(tmp_path: Path, make: bool, message: str) -> None:
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
    with pytest.raises(ConfigError) as caught, readable([folder]):
        pass
    assert caught.value.problems == [message.format(folder)]


def test_a_broken_task_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: [")
    with pytest.raises(DataError, match=f"^task file {path} cannot be read: while parsing"), readable([tmp_path]):
        pass


def test_code_is_declared_in_the_file_or_its_template(tmp_path: Path) -> None:
    write(tmp_path, "_t_yaml", "unsafe_code: true")
    assert declares_code(write(tmp_path, "a.yaml", "include: _t_yaml\nmetric: !function x.y"))
    assert not declares_code(write(tmp_path, "b.yaml", "include: _t_yaml\nunsafe_code: false"))
    assert not declares_code(write(tmp_path, "c.yaml", "task: c"))
    assert declares_code(write(tmp_path, "d.yaml", "include: [b.yaml, _t_yaml]\ntask: d"))
    for said in ("yes", "On", "'false'", "null", "1"):  # the harness takes all but a plain false for true
        assert declares_code(write(tmp_path, "e.yaml", f"unsafe_code: {said}")), said
    for said in ("no", "False", "off"):
        assert not declares_code(write(tmp_path, "f.yaml", f"unsafe_code: {said}")), said


def test_two_task_files_of_one_name_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path, "a/one.yaml", "task: mine")
    second = write(tmp_path, "b/sub/other.yaml", "group: mine\ntask: [x]")
    write(tmp_path, "b/_t_yaml", "task: mine")  # a template, no task
    with pytest.raises(ConfigError) as caught, readable([tmp_path / "a", tmp_path / "b"]):
        pass
    assert caught.value.problems == [f"task mine is in {first} and in {second}: rename one, or leave its folder out"]
    with readable([tmp_path / "a", tmp_path / "a"]), readable([tmp_path / "b", tmp_path / "b/sub"]):
        pass  # the same file twice


# Where the model is


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    write(tmp_path, "adapter_config.json", json.dumps({"base_model_name_or_path": "org/base"}))
    config = tmp_path / "adapter_config.json"
    assert Place.of(str(tmp_path)) == Place(str(tmp_path), "org/base", str(tmp_path), None, config)
    assert Place.of(str(tmp_path), "other").base == "other"


def test_an_adapters_revision_is_that_of_its_own_base(tmp_path: Path) -> None:
    write(tmp_path, "adapter_config.json", json.dumps({"base_model_name_or_path": "org/base", "revision": "v2"}))
    assert Place.of(str(tmp_path)).revision == "v2"
    assert Place.of(str(tmp_path), "org/base").revision == "v2"
    assert Place.of(str(tmp_path), "other").revision is None
    assert Place.of(str(tmp_path), revision="v3").revision == "v3"
    assert Place.of("demo", revision="v3").revision == "v3"


def test_an_adapter_without_a_base_and_a_base_without_an_adapter_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        Place.of(str(tmp_path), "other")
    assert (
        str(caught.value) == f"base is 'other', and '{tmp_path}' is no adapter (no adapter_config.json): leave base out"
    )
    write(tmp_path, "adapter_config.json", "{}")
    with pytest.raises(ModelError) as caught:
        Place.of(str(tmp_path))
    assert str(caught.value) == (
        f"adapter '{tmp_path}' does not name its base model (base_model_name_or_path): give it with --base"
    )


# The harness's words


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
    (found,) = read_results(LoadedTask("g", {}, leaves, None), raw_results(), 1.5)
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
    found = read_results(LoadedTask("bare", {}, leaves, None), raw_results(), 1.0)
    assert [(r.task, r.value, r.stderr, r.rows, r.shots, r.parts, r.asked) for r in found] == [
        ("a", 0.5, 0.25, 4, 2, {}, "bare"),
        ("b", 1.0, None, 1, 2, {}, "bare"),
    ]
    assert found[1].metrics == {"acc,none": 1.0}  # NaN is no figure


def test_the_metric_that_counts_is_the_protocols_else_the_first() -> None:
    for metric, value in (("acc_norm,none", 0.75), ("acc,loose", 1.0), (None, 0.5)):
        (found,) = read_results(LoadedTask("a", {}, {"a": Leaf(0)}, metric), raw_results(), 1.0)
        assert found.value == value
    assert found.metrics == {"acc,none": 0.5, "acc_norm,none": 0.75, "acc,loose": 1.0}


def test_a_benchmark_without_the_papers_figure_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        read_results(LoadedTask("a", {}, {"a": Leaf(0)}, "exact_match,strict"), raw_results(), 1.0)
    assert str(caught.value) == (
        "task a has no exact_match,strict, the paper's figure of a, only acc,none, acc_norm,none, acc,loose: name "
        "metric and filter in its file so, or give it another name"
    )


def test_a_task_file_of_the_users_is_no_benchmark_of_the_paper() -> None:
    own = TaskResult("gsm8k", 8, "acc,none", 0.5, None, 4, 4, 1.0, {}, source="mine/gsm8k.yaml")
    real = TaskResult("bbh", 3, "acc,none", 0.25, None, 4, 4, 1.0, {})
    assert papers_averages([own]) == ()
    assert papers_averages([own, real])[0].missing == ("gsm8k",)


def test_a_metric_of_the_whole_has_no_value_of_its_rows() -> None:
    (found,) = read_results(LoadedTask("a", {}, {"a": Leaf(0)}, "acc_norm,none"), raw_results(), 1.0)
    assert found.row_values == ()


def test_parts_with_other_counts_of_examples_have_no_count_in_common() -> None:
    assert LoadedTask("g", {}, {"a": Leaf(2), "b": Leaf(3)}, None).shots is None


# What is printed


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


def test_only_the_six_have_a_protocol() -> None:
    assert [paper_task(name) is not None for name in (*SIX, "gsm8k_cot")] == [True] * 6 + [False]
