"""Axolotl's own commands, each a process of its own, on a tiny model."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from axolotl_runs import ADG, write_config
from tiny_runs import pool_rows, read_jsonl, write_jsonl

pytestmark = [
    pytest.mark.axolotl,
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # each command imports Axolotl anew
    pytest.mark.skipif(find_spec("axolotl") is None, reason="needs Axolotl: `make test` runs this in .venv-axolotl"),
]
QUIET = {"AXOLOTL_DO_NOT_TRACK": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def axolotl(*arguments, expect=0):
    """Run a command and return what it printed."""
    command = [sys.executable, "-m", "axolotl.cli.main", *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True)
    assert (done.returncode == 0) == (expect == 0), done.stdout + done.stderr
    return done.stdout, done.stderr + done.stdout


def test_adg_select_preprocess_and_train(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(40))
    block = {**ADG, "datasets": [{"path": str(pool), "type": "alpaca"}]}
    config = write_config(tmp_path, val_set_size=0.1, adg=block)

    stdout, _ = axolotl("adg-select", config)
    run_dir = Path(stdout.splitlines()[-1])
    rows = read_jsonl(run_dir / "selected.jsonl")
    assert len(rows) == 10

    _, log = axolotl("preprocess", config)
    assert "ADG keeps 10 of 36 training rows" in log
    assert "process of its own" not in log  # adg-select has done it

    _, log = axolotl("train", config, "--launcher", "python")
    assert log.count("ADG keeps 10 of 36 training rows") == 1
    assert "process of its own" not in log
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert (state["global_step"], state["max_steps"], state["num_train_epochs"]) == (5, 5, 1)
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4, 5]

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "backbone"), tmp_path / "out")
    assert any(weight.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)


def test_the_selection_runs_once_and_its_errors_stop_axolotl(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    block = {**ADG, "budget": 4, "datasets": [{"path": str(pool), "type": "alpaca"}]}
    config = write_config(tmp_path, adg={**block, "max_prompt_tokens": 1})
    _, log = axolotl("preprocess", config, expect=1)
    assert re.search(r"error: none of the 12 rows can be sampled", log)
    assert "Success! Preprocessed data path" not in log

    config = write_config(tmp_path, adg=block)
    _, log = axolotl("preprocess", config)
    assert log.count("ADG selects in a process of its own") == 1
    assert "ADG keeps 4 of 12 training rows" in log


def test_a_missing_plugin_stops_axolotl(tmp_path):
    block = {**ADG, "datasets": [{"path": "pool.jsonl", "type": "alpaca"}]}
    _, log = axolotl("train", write_config(tmp_path, plugins=None, adg=block), "--launcher", "python", expect=1)
    assert "either datasets or pretraining_dataset is required" in log
    assert not (tmp_path / "out").exists()


@pytest.mark.model
def test_adg_run_takes_the_recipe_for_a_cpu_from_the_demo_pool_to_an_adapter(tmp_path):
    from adg_plugin.adapters import recipes

    recipe = recipes.find("axolotl/cpu-demo")
    small = {"adg.max_new_tokens": 4, "adg.num_samples": 3, "budget": 24, "micro_batch_size": 4}
    small |= {"sequence_len": 256, "dataset_prepared_path": tmp_path / "prepared", "max_prompt_tokens": 120}
    overrides = [part for key, value in small.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-c", "from adg_plugin.cli import main; main()", "run", str(recipe), *overrides]
    command += ["--out", str(tmp_path / "out")]
    environment = {**os.environ, **QUIET, "PATH": "/usr/bin:/bin"}  # as from an environment that is not active
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out")
    assert log.count("ADG selects in a process of its own") == 1
    assert "ADG keeps 24 of " in log
    state = json.loads(next((tmp_path / "out").glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["global_step"] == state["max_steps"] == 6
    chosen = read_jsonl(tmp_path / "prepared" / "adg" / "selected.jsonl")
    assert len(chosen) == 24
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_adg_run_refuses_keys_that_axolotl_would_leave_out(tmp_path):
    block = {**ADG, "datasets": [{"path": "pool.jsonl", "type": "alpaca"}]}
    config = write_config(tmp_path, adg=block)
    command = [
        sys.executable,
        "-c",
        "from adg_plugin.cli import main; main()",
        "run",
        str(config),
        "--set",
        "lerning_rate=1",
    ]
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Axolotl has no setting lerning_rate: did you mean `learning_rate`?" in done.stderr
