"""What is refused before any model is loaded: data sets that are not here, and code that the model writes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from eval_answers import adg
from paths import TASKS

from adg_plugin.errors import ConfigError, DataError
from adg_plugin.tools.evaluation import evaluate

RUNS_CODE = "it runs code that the model wrote on this machine: --allow-code-execution permits that"

pytestmark = pytest.mark.usefixtures("harness")


def no_model(tmp_path: Path) -> str:
    """A model that is looked at only after the tasks: loading it would be another error."""
    return str(tmp_path / "none")


@pytest.mark.slow
def test_data_sets_that_are_not_here_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        evaluate(no_model(tmp_path), tasks="truthfulqa_mc2,gsm8k")
    first, second, fix = str(caught.value).splitlines()
    assert first.startswith("task truthfulqa_mc2 cannot be loaded (Couldn't reach 'truthfulqa/truthful_qa' on the Hub")
    assert second.startswith("task gsm8k cannot be loaded (Couldn't reach 'openai/gsm8k' on the Hub")
    assert fix == (
        "its data set is fetched once, with a network and without HF_HUB_OFFLINE; on a machine without one, --include "
        "DIR takes task files of your own, and one of the same name goes before the harness's"
    )


def test_code_is_run_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adg("eval", no_model(tmp_path), "--tasks", "tiny_code", "--include", str(TASKS)) == 2
    assert capsys.readouterr() == ("", f"error: task tiny_code: {RUNS_CODE}, or leave the task out\n")


def code_task(folder: Path, name: str, **keys: Any) -> Path:
    """Write a task like tiny_code that declares nothing but `keys`."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(TASKS / "data", folder / "data", dirs_exist_ok=True)
    shutil.copy(TASKS / "tiny_code.py", folder)
    text = (TASKS / "tiny_code.yaml").read_text().replace("task: tiny_code", f"task: {name}")
    lines = [line for line in text.splitlines() if not line.startswith("unsafe_code")]
    (folder / f"{name}.yaml").write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]))
    return folder


@pytest.mark.tiny
def test_the_environment_permits_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    with pytest.raises(ConfigError, match=f"^task tiny_code: {RUNS_CODE}"):
        evaluate(str(saved), tasks="tiny_code", include=TASKS)
    mine = code_task(tmp_path / "mine", "silent")
    assert evaluate(str(saved), tasks="silent", include=mine, limit=2)["silent"].value == 0
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "1"


@pytest.mark.parametrize("how", ["yes", "a word", "a list of templates", "a group", "in a group", "undeclared"])
def test_code_that_is_declared_in_any_way_is_refused(tmp_path: Path, how: str) -> None:
    mine, name = tmp_path / "mine", "mine"
    if how == "yes":
        code_task(mine, name, unsafe_code="yes")
    elif how == "a word":
        code_task(mine, name, unsafe_code="'no'")  # the harness takes it for true
    elif how == "a list of templates":
        code_task(mine, name, include="[_a_yaml, _b_yaml]")
        (mine / "_a_yaml").write_text("num_fewshot: 0")
        (mine / "_b_yaml").write_text("unsafe_code: true")
    elif how == "a group":
        code_task(mine, "leaf", unsafe_code="true")
        (mine / "group.yaml").write_text("group: mine\ntask: [leaf]")
    elif how == "in a group":
        code_task(mine, "leaf")
        (mine / "group.yaml").write_text("group: mine\ntask:\n- {task: leaf, unsafe_code: true}")
    else:
        name = "prompt_robustness_math_algebra"  # gives the model's text to sympy's parse_expr, which is eval
        code_task(mine, name)
    with pytest.raises(ConfigError) as caught:
        evaluate(no_model(tmp_path), tasks=name, include=mine)
    assert caught.value.problems == [f"task {name}: {RUNS_CODE}, or leave the task out"]


@pytest.mark.tiny
def test_on_request_the_metric_may_run_it_and_not_after(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    found = evaluate(str(saved), tasks="tiny_code", include=TASKS, limit=2, allow_code_execution=True)
    assert found["tiny_code"].value == 1
    assert found.settings["code_execution"] is True
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "0"
