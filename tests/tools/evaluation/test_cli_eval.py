"""`adg eval` as a command: what it prints, where it writes, what it passes on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from eval_answers import adg, right_choices, right_sums, with_adapter
from paths import TASKS
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("harness")


@pytest.mark.tiny
def test_the_command_prints_and_writes_what_the_model_answers(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert adg("eval", "base", "--tasks", "tiny_capitals,tiny_sums", "--include", str(TASKS), "--limit", "4") == 0
    out, err = capsys.readouterr()
    found = json.loads(Path("eval/base-limit-4.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(saved)
    capitals, sums = found["tasks"]
    assert capitals["value"] == np.mean(right_choices(model, tiny_tokenizer(), "capitals.json")[:4])
    assert sums["value"] == np.mean(right_sums(model, tiny_tokenizer(), 4))
    assert (capitals["shots"], sums["shots"]) == (0, 2)
    assert [(task["rows"], task["rows_in_task"]) for task in found["tasks"]] == [(4, 10), (4, 8)]
    assert (found["model"]["name"], found["model"]["dtype"], found["settings"]["limit"]) == ("base", "float32", 4)
    assert {"lm_eval", "transformers", "torch"} <= found["versions"].keys()
    lines = out.splitlines()
    assert lines[0].split() == ["task", "shots", "rows", "value", "error", "metric"]
    assert lines[-1] == "eval/base-limit-4.json"
    assert all(len(line) <= 80 for line in lines)
    assert "\r" not in err
    assert f"1/2 tiny_capitals: {capitals['value']:.4f}" in err.splitlines()


@pytest.mark.tiny
def test_an_adapters_results_go_to_its_run_folder(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["eval", "runs/demo/model", "--tasks", "tiny_capitals", "--include", str(TASKS), "--json", "-q"]
    monkeypatch.setattr("sys.argv", ["adg", *command])
    assert adg(*command) == 0
    out, err = capsys.readouterr()
    path = tmp_path / "runs/demo/selection/eval/demo-model.json"
    written = json.loads(path.read_text())
    printed = json.loads(out)
    assert written == printed | {"command": written["command"]}
    assert written["command"] == shlex.join(["adg", *command])
    assert printed["model"]["adapter"] == "runs/demo/model"
    assert printed["selection"] == {"run": str(path.parent.parent), "created": "then", "selected": "d1"}
    assert printed["model"]["base"] == str(tmp_path / "base")
    expected = right_choices(with_adapter(adapter, tmp_path / "base"), tiny_tokenizer(), "capitals.json")
    assert printed["tasks"][0]["value"] == np.mean(expected)
    assert "tiny_capitals" not in err


@pytest.mark.slow
def test_an_unknown_task_is_named_with_others_like_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert adg("eval", "none", "--tasks", "tiny_sumz", "--include", str(TASKS)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(
        "error: tasks names 'tiny_sumz', which is neither a task of lm-evaluation-harness nor of a file in --include: "
        "did you mean tiny_sums"
    )
