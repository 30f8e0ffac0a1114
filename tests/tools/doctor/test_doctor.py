"""`adg doctor`: what is well is shown as well, what is broken with its way out, and nothing is passed over."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import yaml
from doctor_checks import bad, found, written
from rich.console import Console
from tiny_runs import command

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError
from adg_plugin.pipeline import run as pipeline
from adg_plugin.tools.doctor import inputs, machine, packages
from adg_plugin.tools.doctor.checks import Check, guarded
from adg_plugin.tools.doctor.cli import print_section, print_verdict, print_versions


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
    (check,) = found(machine.check_devices(), "accelerator")
    assert (check.status, check.fix) == ("warning", "unset CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (check,) = found(machine.check_devices(), "accelerator")
    assert check.message.startswith("torch is built for CUDA 12.9 and sees no GPU")
    monkeypatch.setattr(torch.version, "cuda", None)
    (check,) = found(machine.check_devices(), "accelerator")
    assert check.status == "note"


def test_memory_disk_and_network_are_told(tmp_path, monkeypatch):
    checks = list(machine.check_devices())
    assert " cores, " in found(checks, "CPU")[0].message
    assert "HF_HUB_OFFLINE=1" in found(checks, "network")[0].message
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    assert not found(machine.check_devices(), "network")
    (check,) = machine.check_disk(tmp_path / "not" / "there" / "yet")
    assert check.status in ("ok", "warning")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    (check,) = machine.check_disk(tmp_path)
    assert (check.status, check.message) == ("warning", f"0.0 GiB free for {tmp_path}")


@pytest.mark.tiny
def test_the_self_test_runs_twice_and_leaves_nothing(monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    state = torch.random.get_rng_state()
    (check,) = machine.check_by_selecting()
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
    sections = {"packages": list(packages.check_extras()), "configuration": [long]}
    every = [check for checks in sections.values() for check in checks]
    out = io.StringIO()
    console = Console(file=out, width=width)
    print_versions(packages.versions(), console)
    for title, checks in sections.items():
        print_section(title, checks, console)
    print_verdict(every, console)
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= width
    squeezed = "".join(text.split())
    for check in every:
        for part in (check.message, check.fix):
            assert "".join(part.split()) in squeezed
    assert text.splitlines()[-1].startswith("1 check failed")


def test_help_says_what_it_does(adg):
    code, out = adg("--help")
    assert code == 0
    for word in ("CONFIG.yaml", "--no-self-test", "--json", "recipe of TRL"):
        assert word in " ".join(out.split()), word
