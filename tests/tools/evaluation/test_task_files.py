"""The user's own task files: what is wrong with them, and their data, which lie beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adg_plugin.errors import ConfigError, DataError
from adg_plugin.tools.evaluation.loading import check_folders, data_beside, declares_code, load


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def fetched(harness: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, Any]]:
    """Return where the harness is sent for the data of a task in a file."""
    from lm_eval.api.task import ConfigurableTask

    sent: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        ConfigurableTask, "download", lambda task, kwargs=None, **_: sent.append((task.DATASET_PATH, kwargs))
    )

    def fetch(file: Path, kwargs: Any, dataset_path: str = "json") -> tuple[str, Any]:
        task = SimpleNamespace(config=SimpleNamespace(task="one"), DATASET_PATH=dataset_path)
        with data_beside({"one": file}.get, None):
            ConfigurableTask.download(task, kwargs)
        return sent[-1]

    return fetch


def test_data_files_are_found_beside_their_task_file(
    fetched: Callable[..., tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.json", "b-1.json", "b-2.json"):
        write(tmp_path, f"tasks/sub/{name}", "{}")
    write(tmp_path, "here.json", "{}")
    write(tmp_path, "tasks/sub/one.yaml", "task: one\nprocess_results: !function own.score\n")
    monkeypatch.chdir(tmp_path)
    files = {"test": "a.json", "shots": ["b-1.json", "b-*.json"], "far": "https://host/x.json", "here": "here.json"}
    place = tmp_path / "tasks/sub"
    assert fetched(Path("tasks/sub/one.yaml"), {"field": "examples", "data_files": files}) == (
        "json",
        {
            "field": "examples",
            "data_files": {
                "test": str(place / "a.json"),
                "shots": [str(place / "b-1.json"), str(place / "b-*.json")],
                "far": "https://host/x.json",
                "here": "here.json",  # the working directory is the harness's own place
            },
        },
    )


def test_a_data_set_may_be_a_folder_beside_its_task_file(fetched: Callable[..., Any], tmp_path: Path) -> None:
    file = write(tmp_path, "one.yaml", "task: one")
    write(tmp_path, "set/train.json", "{}")
    assert fetched(file, None, "set") == (str(tmp_path / "set"), {})


@pytest.mark.tiny
def test_templates_and_groups_are_followed(harness: None, tmp_path: Path) -> None:
    about = "dataset_path: json\noutput_type: generate_until\ntest_split: train\n"
    about += "doc_to_text: '{{q}}'\ndoc_to_target: '{{q}}'"
    metric = "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
    tasks = tmp_path / "tasks"
    for folder in ("outside", "tasks", "tasks/sub"):
        write(tmp_path, f"{folder}/x.json", json.dumps({"q": f"of {folder}"}))
    write(tmp_path, "outside/_base", f"{about}\n{metric}\ndataset_kwargs: {{data_files: x.json}}")
    write(tasks, "sub/_t_yaml", f"{about}\n{metric}")
    write(tasks, "sub/a.yaml", "include: _t_yaml\ntask: a\ndataset_kwargs: {data_files: x.json}")
    write(tasks, "b.yaml", "include: ../outside/_base\ntask: b")
    (tasks / "x.json").rename(tasks / "y.json")  # else it would be b's, which lies beside it
    inline = f"{{task: c, {about.replace(chr(10), ', ')}, {metric}, dataset_kwargs: {{data_files: y.json}}}}"
    write(tasks, "g.yaml", f"group: g\ntask:\n- a\n- {inline}")
    loaded = load(["g", "b"], [tasks], seed=0, allow_code=False)
    found = [leaf.eval_docs["q"] for task in loaded for _, leaf in sorted(task.leaves.items())]
    assert [list(questions) for questions in found] == [["of tasks/sub"], ["of tasks"], ["of outside"]]
    assert [task.source for task in loaded] == [str(tasks / "g.yaml"), str(tasks / "b.yaml")]


def test_a_repositorys_own_files_are_left_to_it(fetched: Callable[..., tuple[str, Any]], tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", "task: one")
    assert fetched(file, {"data_files": "test.json"}, "org/set") == ("org/set", {"data_files": "test.json"})


def test_a_missing_data_file_is_named(fetched: Callable[..., tuple[str, Any]], tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "task: one")
    with pytest.raises(DataError) as caught:
        fetched(path, {"data_files": "none.json"})
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
    with pytest.raises(ConfigError) as caught:
        check_folders([folder])
    assert caught.value.problems == [message.format(folder)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("task: [", "while parsing"),
        ("task: " + "[" * 9_999, "more than 50 levels deep: write it flatter"),
        ("task: &a [*a]", "`\\*a` stands within itself"),
        (r'task: "\UFFFFFFFF"', "Python int too large"),
    ],
)
def test_a_broken_task_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path, "a.yaml", text)
    with pytest.raises(DataError, match=f"^task file {path} cannot be read: {why}"):
        check_folders([tmp_path])


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
    with pytest.raises(ConfigError) as caught:
        check_folders([tmp_path / "a", tmp_path / "b"])
    assert caught.value.problems == [f"task mine is in {first} and in {second}: rename one, or leave its folder out"]
    check_folders([tmp_path / "a", tmp_path / "a"])  # the same file twice
    check_folders([tmp_path / "b", tmp_path / "b/sub"])
