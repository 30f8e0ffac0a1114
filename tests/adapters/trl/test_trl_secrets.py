"""Tokens, keys, passwords and `env` of a recipe: the stages get them, and nothing writes or prints them."""

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from adg_plugin.adapters import selection_process
from adg_plugin.adapters.recipes import with_overrides
from adg_plugin.adapters.secrets import handed_over, public, shown, taken_over, unwritten
from adg_plugin.adapters.trl import run as recipe_run
from adg_plugin.adapters.trl.arguments import read_command
from adg_plugin.cli import app
from adg_plugin.errors import ConfigError, StoreError

RECIPE = {
    "model_name_or_path": "demo",
    "use_cpu": True,
    "bf16": False,
    "hub_token": "hf_sesame",
    "eos_token": "<|im_end|>",
    "model_init_kwargs": {"token": "hf_sesame", "use_cache": False},
    "env": {"ADG_TEST_KEY": "sesame"},
    "adg": {"datasets": ["demo"], "budget": 5},
}

SUMMARY = {
    "rows": {"pool": 9, "chosen": 5, "trained": 5},
    "losses": [[1, 2.0]],
    "steps": 1,
    "tokens": 7,
    "seconds": 1.0,
    "mean_loss": 2.0,
    "kind": "adapter",
    "model": "out",
    "run_folder": "out/selection",
}


@pytest.fixture
def stages(monkeypatch):
    """What the stages of `adg run` are started with, in the place of starting them."""
    started = []
    monkeypatch.setattr(recipe_run, "run_stage", lambda *stage: started.append(stage))
    monkeypatch.delenv("ADG_TEST_KEY", raising=False)
    return started


def plan(folder, *overrides, **keys):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **keys}))
    return recipe_run.make_plan(path, overrides, folder / "out")


def begin(plan, stages):
    """Run a plan as far as its training, and return the two stages."""
    stages.clear()
    with pytest.raises(AssertionError):  # there is no summary, as nothing trains
        recipe_run.run(plan)
    return stages


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_no_file_holds_a_secret_and_the_training_has_them_all(tmp_path, stages, monkeypatch):
    _, (_, command, hidden) = begin(plan(tmp_path), stages)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"_adg"}
    assert not [name for name, content in files(tmp_path / "out").items() if b"sesame" in content]
    assert not [word for word in command if "sesame" in word]

    config = command[command.index("--config") + 1]
    asked = read_command(["--config", config])
    assert (asked.training.hub_token, asked.training.model_init_kwargs) == (None, {"use_cache": False})
    for name, value in handed_over(hidden).items():
        assert "sesame" not in value
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ADG_TEST_KEY")
    asked = read_command(["--config", config])
    assert asked.training.hub_token == "hf_sesame"
    assert asked.training.model_init_kwargs == RECIPE["model_init_kwargs"]
    assert asked.training.eos_token == "<|im_end|>"
    assert os.environ["ADG_TEST_KEY"] == "sesame"


def test_a_changed_token_is_no_other_recipe_and_is_not_printed(tmp_path, stages):
    begin(plan(tmp_path), stages)
    new = {"hub_token": "hf_other", "env": {"ADG_TEST_KEY": "other"}, "model_init_kwargs": {"token": "hf_other"}}
    new["model_init_kwargs"]["use_cache"] = False
    _, (_, _, hidden) = begin(plan(tmp_path, **new), stages)
    assert hidden["hub_token"] == "hf_other"
    with pytest.raises(StoreError) as caught:
        recipe_run.run(plan(tmp_path, "learning_rate=0.5", **{**new, "eos_token": "</s>"}))
    assert "eos_token '<|im_end|>' (now '</s>')" in str(caught.value)
    assert "hf_" not in str(caught.value)
    shown = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--dry-run", "--out", str(tmp_path / "new")])
    assert "hf_" not in shown.output


def test_a_pool_behind_a_password_reaches_the_selection_and_no_file(tmp_path, stages, monkeypatch):
    url = "https://me:sesame@example.org/pool.jsonl?X-Amz-Signature=open"
    monkeypatch.setattr("adg_plugin.adapters.trl.plan.iter_records", one_row)
    asked = plan(tmp_path, adg={"datasets": [{"path": url}], "budget": 5})
    assert "pool       https://example.org/pool.jsonl?X-Amz-Signature=***" in asked.lines()
    (_, command, hidden), _ = begin(asked, stages)
    written = files(tmp_path / "out")
    assert not [name for name, content in written.items() if b"sesame" in content or b"=open" in content]

    for name, value in handed_over(hidden).items():
        monkeypatch.setenv(name, value)
    seen = []
    monkeypatch.setattr(selection_process, "run_selection", lambda pool, config, *_, **__: seen.append(config))
    selection_process._select(Path(command[2]), tmp_path / "run", [])
    assert seen[0].datasets[0].path == url


def one_row(specs):
    from adg_plugin.data.sources import Record

    yield Record({"instruction": "a", "output": "b"}, "pool:1", specs[0])


def test_what_version_0_2_wrote_is_taken_over_without_its_secrets(tmp_path, stages):
    out = tmp_path / "out"
    asked = plan(tmp_path)
    begin(asked, stages)
    older = json.loads((out / "_adg" / "adg_recipe.json").read_text())
    older |= {"hub_token": "hf_old", "adg.output_dir": str(out / "selection")}
    (out / "_adg" / "adg_recipe.json").unlink()
    (out / "adg_recipe.json").write_text(json.dumps(older))
    (out / "adg_training.yaml").write_text("hub_token: hf_old\n")
    (out / "adg_summary.json").write_text(json.dumps(SUMMARY))
    (out / "selection").mkdir()
    (out / "selection" / "config.json").write_text("{}")
    assert recipe_run.run(plan(tmp_path)) == SUMMARY
    assert plan(tmp_path).run_dir == out / "selection"
    assert {path.name for path in out.iterdir()} == {"_adg", "selection"}
    assert not [name for name, content in files(out).items() if b"hf_old" in content]


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("hub_token", "x", True),
        ("token", {"a": 1}, True),
        ("comet_api_key", "x", True),
        ("aws_access_key_id", "x", True),
        ("db_password", 1234, True),
        ("adg.eos_token", "x", False),
        ("pad_token", "x", False),
        ("hf_use_auth_token", True, False),
        ("max_tokens", 3, False),
        ("hub_token", None, False),
    ],
)
def test_names_tell_what_is_secret(name, value, is_secret):
    assert public({"a": [{name: value}]}) == {"a": [{} if is_secret else {name: value}]}
    assert unwritten({name: value, "other": 1}) == ({name: value} if is_secret else {})


def test_what_is_handed_over_is_taken_over_and_long_lists_fit(monkeypatch):
    urls = [
        f"https://b.s3.amazonaws.com/{n}.jsonl?X-Amz-Security-Token={'t' * 1500}&X-Amz-Signature={n:064x}"
        for n in range(500)
    ]
    settings = unwritten({"datasets": urls, "budget": 3})
    assert settings == {"datasets": urls}
    variables = handed_over(settings)
    assert all(len(value) < 100_000 for value in variables.values())
    assert taken_over() == {}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert taken_over() == settings


def test_arguments_are_shown_without_what_is_secret():
    asked = [
        "--num_processes",
        "2",
        "--aws_access_key_id",
        "AK",
        "--hub_token=hf_x",
        "--eos_token",
        "<e>",
        "https://u:p@h",
    ]
    assert shown(*asked) == ("--num_processes 2 --aws_access_key_id *** --hub_token=*** --eos_token <e> https://h")
    _, problems = with_overrides({}, ["hub_token=[hf_x", "hub_token.0=hf_x"], of_trainer={"hub_token"})
    assert problems[0] == "--set hub_token=***: its value cannot be read as YAML"
    assert "hf_x" not in str(ConfigError(problems))
