"""Every command line in README.md and docs/ is run, page by page in its order, on a tiny model and a small pool.

`CHANGES` says what is put in the place of what cannot be here (a bucket, eight processes, an 8B model), `CLAIMED` which
test runs what this environment cannot, `OTHERS` what no test can run. A command that none of them covers and that does
not run as it stands fails, so a new one in the docs comes with its rule.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from paths import HELPERS
from tiny_runs import ROOT, pool_rows, write_jsonl

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PROGRAMS = {"accelerate", "adg", "axolotl", "export", "make", "pip", "python", "ray", "srun", "torchrun", "trl", "vllm"}
SHELLS = {"", "bash", "console", "sh", "shell"}

TINY = "--set adg.num_samples=3 --set adg.max_new_tokens=4 --set adg.bins=1"
TRAINED = (
    "--set model_name_or_path=$MODEL --set dtype=float32 --set bf16=false --set use_cpu=true --set report_to=none "
    "--set max_steps=2 --set save_steps=1 --set max_length=128 --set per_device_train_batch_size=2"
)
CHANGES = (  # in turn, all that are found
    (r"^\.venv\S*/bin/", ""),  # the environment that runs this
    (r"^RAY_ADDRESS=\S+ ", ""),  # the cluster that is there already
    (r"\bs3://bucket/", "file://$FOLDER/bucket/"),
    (r" /shared/run\b", " shared/run"),
    (r"--nproc-per-node 8\b", "--nproc-per-node 2"),
    (r"--num_processes 4\b", "--num_processes 1"),  # test_trl_processes.py has two
    (r"\bbudget=(?:5000|20)\b", "budget=4"),
    (r"--adg_budget 5000\b", "--adg_budget 4"),
    (r"\bROW_ID\b|\bcode-018\b", "row-3"),
    (r"^(adg select demo\.yaml)", r"\1 --set model=$MODEL --set datasets=[pool.jsonl] --set max_new_tokens=4"),
    (r"^(adg run \S+)", rf"\1 {TRAINED} {TINY} --set adg.datasets=[pool.jsonl] --set adg.budget=4"),
    (r"^(adg sft )", r"\1--adg_num_samples 3 --adg_max_new_tokens 4 --adg_bins 1 "),
    (
        r"^adg eval (?:runs/\S+|demo)(?: --tasks \S+)?(?: --include \S+)?",
        rf"adg eval $MODEL --tasks tiny_capitals --include {ROOT}/tests/fixtures/eval_tasks",
    ),
    (r"small_model=demo\b", "small_model=$MODEL"),
    (r"^(adg doctor \S+\.yaml)$", r"\1 --no-self-test"),  # once is enough
)
CLAIMED = (  # what another environment runs: the test, and what stands in it
    (r"axolotl preprocess \S+", "adapters/axolotl/test_axolotl_commands.py", 'axolotl("preprocess", config)'),
    (r"axolotl train \S+( --launcher python)?", "adapters/axolotl/test_axolotl_commands.py", 'axolotl("train", config'),
    (r"adg run config\.yaml( .*)?", "adapters/axolotl/test_axolotl_commands.py", '"run", str(recipe)'),
    (r"(?:adg|pip) .*votes.*", "selectors/test_third_party.py", 'line.startswith("    adg ")'),
    (r"vllm serve .*", "helpers/vllm_runs.py", '"vllm.entrypoints.openai.api_server"'),
    (r"adg select .*engine=vllm", "engines/vllm/test_vllm_inprocess.py", 'adg("select", config'),
    (r"adg select .*engine=vllm-server .*", "engines/vllm/test_vllm_server.py", 'adg("select", config'),
    (r"ADG_SERVER_API_KEY=\$KEY adg select .*", "engines/vllm/test_vllm_server.py", 'adg("select", config'),
)
# What trains, evaluates or starts processes is run on the first page that has it; nothing on a page needs its result.
ONCE = re.compile(r"(adg (run|sft|eval|doctor)|trl|torchrun) .*|.* --executor ray.*")
OTHERS = (
    r"export RAY_ADDRESS=auto",  # tests/engines/ray/test_ray.py joins a cluster of two machines without it
    r"srun .* ray start .*",  # needs SLURM
)


@dataclass(frozen=True)
class Command:
    page: str
    line: int
    text: str  # as it stands there, without its comment

    @property
    def program(self) -> str:
        """The first word that is neither a variable nor a folder."""
        return re.sub(r"^(?:\w+=\S+ +)*(?:\S*/bin/)?", "", self.text).partition(" ")[0]


def commands(page: Path) -> list[Command]:
    """Return the commands in the indented and fenced shell blocks of a page."""
    found, fence, pending = [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if mark := re.match(r"\s*```(\w*)", line):
            fence = None if fence is not None else mark[1]
        elif fence in SHELLS if fence is not None else line.startswith("    "):
            text = pending + re.sub(r"(?:^| )#.*", "", line.strip().removeprefix("$ ")).rstrip()
            pending = text[:-1] if text.endswith("\\") else ""
            parts = [] if pending else re.split(r" && ", text.removesuffix(" &"))
            of_line = [Command(page.name, number, part.strip()) for part in parts]
            found += [c for c in of_line if c.program in PROGRAMS or (fence and c.text)]
    return found


DONE: set[str] = set()  # as they were run, on any page so far
ALL = {page: found for page in PAGES if (found := commands(page))}


def test_the_rules_are_all_needed():
    texts = [command.text for found in ALL.values() for command in found]
    assert len(texts) > 50
    changed = list(texts)
    for pattern, to in CHANGES:
        assert any(re.search(pattern, text) for text in changed), f"no command has {pattern}"
        changed = [re.sub(pattern, to, text) for text in changed]
    for pattern in (*(claim[0] for claim in CLAIMED), *OTHERS):
        assert any(re.fullmatch(pattern, text) for text in texts), f"no command is {pattern}"


@pytest.mark.parametrize(("pattern", "file", "text"), CLAIMED)
def test_what_is_run_elsewhere_is_run_there(pattern, file, text):
    assert text in (ROOT / "tests" / file).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    rows = pool_rows(12)
    write_jsonl(tmp_path / "pool.jsonl", rows)
    write_jsonl(tmp_path / "answers.jsonl", [{**row, "generated_answers": ["a", "bcd", "e f"]} for row in rows])
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "train.jsonl", rows)
    of_selection = {"datasets": ["pool.jsonl"], "budget": 4, "num_samples": 3, "max_new_tokens": 4}
    of_trainer = {
        "model_name_or_path": str(model), "dataset_name": "rows", "output_dir": "runs/sft", "use_cpu": True,
        "bf16": False, "report_to": "none", "use_peft": True, "lora_target_modules": "all-linear", "max_steps": 2,
        "save_steps": 1, "max_length": 128,
    }  # fmt: skip
    for name, content in {
        "sft.yaml": of_trainer,
        "recipe.yaml": {**of_trainer, "adg": {"datasets": ["pool.jsonl"]}},
        **{name: {"model": str(model), **of_selection} for name in ("select.yaml", "config.yaml", "selection.yaml")},
    }.items():
        (tmp_path / name).write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What commands would start in processes of their own runs in this one: importing TRL anew takes its time.

    The processes themselves are those of test_trl_processes.py.
    """
    from accelerate.commands import launch

    from adg_plugin.adapters import processes as stages
    from adg_plugin.adapters.trl import run as recipe_run

    def simple_launcher(arguments: object) -> None:
        command, environment = launch.prepare_simple_launcher_cmd_env(arguments)
        python(command[1:], environment)

    monkeypatch.setattr(launch, "simple_launcher", simple_launcher)
    for module in (stages, recipe_run):
        monkeypatch.setattr(module, "run_stage", lambda name, arguments, unwritten=None: python(arguments))
    monkeypatch.setenv("ADG_RUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before, variables = signal.getsignal(signal.SIGTERM), dict(os.environ)
    yield
    signal.signal(signal.SIGTERM, before)
    os.environ.clear()  # launchers and trainers leave theirs
    os.environ.update(variables)


def python(arguments: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run `python ARGUMENTS` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (environment or {}).items():
            patch.setenv(name, value)
        patch.delenv("ADG_PARENT_LOCK", raising=False)  # a stage waits for the end of the process that holds it
        if arguments[0] == "-m":
            patch.setattr(sys, "argv", list(arguments[1:]))
            importlib.import_module(arguments[1]).main()
        else:
            patch.setattr(sys, "argv", list(arguments))
            patch.syspath_prepend(Path(arguments[0]).parent)
            runpy.run_path(arguments[0], run_name="__main__")


def adg(arguments: list[str]) -> None:
    from adg_plugin import cli

    if "ray" in arguments:
        adg_with_ray(arguments)
        return
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert not ended.value.code, f"exit code {ended.value.code}"


def adg_with_ray(arguments: list[str]) -> None:
    """Run the command on a small cluster, in a process of its own: Ray Data remembers the first cluster of a process.

    Ray's own defaults would take all of a machine.
    """
    start = "ray.init(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False, log_to_driver=False)"
    code = f"import ray; {start}; from adg_plugin.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HELPERS)])}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, timeout=150)


def trl(arguments: list[str]) -> None:
    from trl.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trl", *arguments])
        main()


def torchrun(arguments: list[str]) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", *arguments]
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True, timeout=150)


def pip(arguments: list[str]) -> None:
    """Every extra is one of pyproject.toml, every other requirement is one that the Makefile installs, too."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert arguments[0] == "install"
    for word in arguments[1:]:
        if own := re.fullmatch(r"(?:adg-plugin|\.)(?:\[([\w,]+)\])?", word):
            assert set((own[1] or "").split(",")) - {""} <= set(extras), f"{word}: extras are {', '.join(extras)}"
        elif word not in ("--no-deps", "-e"):
            assert word in (ROOT / "Makefile").read_text(encoding="utf-8"), f"the Makefile does not install {word}"


def make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=" if is_variable else rf"^{name}:.*##"
        assert re.search(pattern, makefile, re.M), f"the Makefile has no {name}"


def benchmark(arguments: list[str]) -> None:
    python([str(ROOT / arguments[0]), *arguments[1:]])


RUNS: dict[str, Callable[[list[str]], None]] = {
    "adg": adg, "trl": trl, "torchrun": torchrun, "pip": pip, "make": make, "python": benchmark,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_every_command_of_the_page_runs(page, folder, model, here, capfd, monkeypatch):
    for command in ALL[page]:
        if any(re.fullmatch(rule, command.text) for rule in (*OTHERS, *(claim[0] for claim in CLAIMED))):
            continue
        text = command.text
        for pattern, to in CHANGES:
            text = re.sub(pattern, to, text)
        monkeypatch.setenv("MODEL", str(model))
        monkeypatch.setenv("FOLDER", str(folder))
        if ONCE.fullmatch(text) and text in DONE:
            continue
        DONE.add(text)
        where = f"{command.page}:{command.line}: {command.text}"
        if "runs/select" in text and not (folder / "runs/select").exists():
            adg(["select", "select.yaml", "--quiet"])  # the page speaks of a run that is there
        assert command.program in RUNS, f"{where}: give it a rule in {Path(__file__).name}"
        capfd.readouterr()
        try:
            RUNS[command.program](shlex.split(os.path.expandvars(text))[1:])
        except BaseException as err:
            out, said = capfd.readouterr()
            raise AssertionError(f"{where}\nrun as: {text}\n{err}\n{out}{said}") from err
        check_result(command, capfd.readouterr().out)


def check_result(command: Command, out: str) -> None:
    """The last line on stdout is the path of the result wherever a command makes one, or JSON if asked for."""
    last = out.splitlines()[-1] if out.strip() else "NOTHING"
    if " --json" in command.text:
        json.loads(last if command.text.startswith("adg run") else out)  # trainers, which have no process here, print
    elif re.match(
        r"adg (?:select|sample|embed|score|run|sft|recipes cp|report|export)\b(?!.* --dry-run)", command.text
    ):
        assert Path(last.removeprefix("file://")).exists(), f"{command.text}: there is no {last}"
    elif command.program == "adg":
        assert out.strip(), f"{command.text} says nothing"
