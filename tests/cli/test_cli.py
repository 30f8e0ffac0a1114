"""The `adg` command: what goes where, how it ends, and that it can be stopped and go on."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from rich.console import Console
from tiny_runs import SETTINGS, break_altogether, choose, command, pool_rows, read_jsonl, save, scores, write_jsonl

from adg_plugin import __version__
from adg_plugin import console as progress
from adg_plugin.console import SamplingProgress, ticking
from adg_plugin.errors import StoreError
from adg_plugin.report.summary import print_summary
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny


@pytest.fixture
def config(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config in the current folder, with a pool of 20 rows."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(20))
    settings = {**SETTINGS, "model": str(model), "datasets": ["pool.jsonl"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    return Path("mine.yaml")


def test_the_result_is_on_stdout_and_everything_else_on_stderr(config, adg):
    code, out, err = adg("select", config)
    assert (code, out) == (0, f"{Path('runs/mine/selected.jsonl')}\n")
    assert "sampling: 20/20 rows, " in err
    assert "10 of 20 scored rows chosen from 2 bins; pool 20, rejected 0" in err
    assert "dispersion" in err
    assert len(read_jsonl(Path("runs/mine/selected.jsonl"))) == 10


def test_quiet_says_nothing(config, adg):
    code, out, err = adg("select", config, "--quiet")
    assert (code, out) == (0, f"{Path('runs/mine/selected.jsonl')}\n")
    assert "rows" not in err


def test_warnings_are_shown_also_when_quiet(config, adg, caplog):
    assert adg("select", config, "-q", "--set", "budget=21").code == 0
    assert "budget is 21, but only 20 rows can be chosen: all of them are" in caplog.text


def test_the_run_folder_is_named_by_out_then_output_dir_then_the_config(config, adg):
    assert adg("select", config, "--set", "output_dir=b").out == f"{Path('b/selected.jsonl')}\n"
    assert adg("select", config, "--set", "output_dir=b", "--out", "c").out == f"{Path('c/selected.jsonl')}\n"
    assert not Path("runs").exists()


def test_set_overrides_the_file(config, adg):
    assert adg("select", config, "--set", "budget=3", "--set", "adg.seed=4", "--set", "bins=1").code == 0
    used = json.loads(Path("runs/mine/config.json").read_text())["config"]
    assert (used["budget"], used["seed"], used["bins"]) == (3, 4, 1)
    assert len(read_jsonl(Path("runs/mine/selected.jsonl"))) == 3


def test_a_config_error_ends_with_2_and_one_line_per_problem(config, adg):
    code, out, err = adg("select", config, "--set", "budget=0", "--set", "budgt=3")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: mine.yaml: 2 problems",
        "  - budget is 0: use 1 or more rows, or a fraction of the pool (0.2)",
        "  - budgt is not a setting: did you mean `budget`?",
    ]
    assert not Path("runs").exists()


def test_other_errors_end_with_their_own_codes(config, adg, tmp_path):
    assert adg("select", "no.yaml") == (
        2, "", f"error: no.yaml: no such file: give the path of a YAML file (in {tmp_path})\n"
    )  # fmt: skip
    assert adg("select", config, "--set", "datasets=no.jsonl").code == 2
    assert adg("select", config, "--set", "model=no/such").code == 2
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    code, out, err = adg("select", config, "--out", folder)
    assert (code, out) == (3, "")
    assert err.startswith(f"error: {folder} exists and is not a run folder")
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    with RunFolder.open(tmp_path / "run"):
        code, out, err = adg("select", config, "--out", "run")
    assert code == 3
    assert f"error: run folder run is in use by process {os.getpid()} on host " in err


def test_nan_ends_with_4_and_a_hint_about_dtype(config, adg, tmp_path):
    broken = save(tmp_path / "broken", break_altogether)
    code, out, err = adg("select", config, "--set", f"model={broken}")
    assert (code, out) == (4, "")
    assert "error: 20 of 20 rows gave NaN or infinity: set dtype to bfloat16 or float32" in err
    assert not Path("runs/mine/manifest.json").exists()


def test_score_writes_a_file_and_names_it(config, adg, tmp_path):
    rows = [{**row, "id": n, "generated_answers": ["a", "bcd", f"{n}"]} for n, row in enumerate(pool_rows(3))]
    rows.append({**rows[0], "id": 9, "generated_answers": ["a"]})
    write_jsonl(tmp_path / "answers.jsonl", rows)
    code, out, err = adg("score", config, "--answers", "answers.jsonl", "--out", "scores.jsonl", "--set", "weight=1")
    assert (code, out) == (0, "scores.jsonl\n")
    assert "3 rows scored, 1 rejected: see scores.jsonl.rejected.jsonl\n" in err
    found = read_jsonl(Path("scores.jsonl"))
    assert [(row["id"], row["score"]) for row in found] == [(n, found[n]["anisotropy"]) for n in range(3)]
    code, out, err = adg("score", config, "--answers", "pool.jsonl", "--out", "scores.jsonl")
    assert (code, out) == (2, "")
    assert err == "error: pool.jsonl:1: generated_answers is missing: give a list of 3 texts or more per row\n"


def test_help_names_every_option(adg):
    code, out, _ = adg("--help")
    assert code == 0
    assert "select" in out
    assert "score" in out
    _, out, _ = adg("select", "--help")
    for word in ("CONFIG.yaml", "--set", "KEY=VALUE", "--out", "--quiet", "Re-run the same command to resume"):
        assert word in " ".join(out.split()), word
    _, out, _ = adg("score", "--help")
    for word in ("CONFIG.yaml", "--answers", "--out", "generated_answers", "--set"):
        assert word in out, word


def test_version(adg):
    assert adg("--version") == (0, f"adg-plugin {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["selct", "x.yaml"], "No such command 'selct'. Did you mean 'select'?"),
        (["select"], "Missing argument 'CONFIG.yaml'"),
        (["select", "x.yaml", "--nope"], "No such option: --nope"),
        (["score", "x.yaml", "--out", "y"], "Missing option '--answers'"),
        ([], "Usage: adg [OPTIONS] COMMAND"),
    ],
)
def test_a_wrong_command_line_ends_with_2(adg, arguments, said):
    ended = adg(*arguments)
    assert ended.code == 2
    assert said in ended.out + ended.err


def test_an_interrupted_command_ends_with_130_and_says_how_to_go_on(config, adg, monkeypatch):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adg_plugin.pipeline.run.run_selection", interrupted)
    code, out, err = adg("select", config)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: re-run the same command to resume"


def wait_for(true: Callable[[], object], process: object) -> None:
    for _ in range(15_000):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    pytest.fail("waited for five minutes")


# Stops itself when it has written a part of answers: on a loaded machine it might be through before a signal comes.
STOPS = """
import os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
from adg_plugin.cli import main
from adg_plugin.store.ledger import Ledger

flush, parts = Ledger.flush, []

def stopping(self):
    written = len(self.stock.parts)
    flush(self)
    if len(self.stock.parts) > written and not parts:
        parts.append(written)
        os.kill(os.getpid(), signal.SIGSTOP)

Ledger.flush = stopping
main()
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_is_stopped_by_either_signal_and_goes_on(config, adg, tmp_path):
    """Two real processes on one run folder, a third one turned away, and the result of an undisturbed run."""
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(900))
    done = 0
    for number in (signal.SIGTERM, signal.SIGINT):
        process = command("select", config, "--out", "run", code=STOPS)
        of = psutil.Process(process.pid)
        wait_for(lambda of=of: of.status() == psutil.STATUS_STOPPED, process)
        code, out, err = adg("select", config, "--out", "run")
        assert (code, out) == (3, "")
        assert f"error: run folder run is in use by process {process.pid} on host " in err
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (130, "")
        assert err.splitlines()[-1] == "interrupted: re-run the same command to resume"
        assert "Traceback" not in err
        with RunFolder.open("run") as run:
            assert run.damage == []
            assert done + 256 <= run.counts().completed < 900
            done = run.counts().completed
            assert run.manifest() is None
    code, out, err = adg("select", config, "--out", "run")
    assert (code, out) == (0, f"{Path('run/selected.jsonl')}\n")
    assert "sampling: 900/900 rows" in err
    assert json.loads(Path("run/manifest.json").read_text())["sampling"]["rows"] == 900 - done
    assert adg("select", config, "--out", "whole").code == 0
    assert Path("run/selected.jsonl").read_bytes() == Path("whole/selected.jsonl").read_bytes()
    resumed, whole = scores(Path("run")), scores(Path("whole"))
    assert resumed.keys() == whole.keys()
    np.testing.assert_allclose([resumed[i] for i in whole], list(whole.values()), atol=1e-5)


@pytest.mark.slow
def test_the_installed_command_writes_one_line_to_stdout(config):
    installed = shutil.which("adg", path=str(Path(sys.executable).parent))
    if installed is None:
        pytest.skip("the package is not installed")
    code = f"import os; os.execv({installed!r}, ['adg', 'select', 'mine.yaml', '--set', 'budget=21'])"
    process = command(code=code)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out == "runs/mine/selected.jsonl\n"
    assert "sampling: 20/20 rows" in err
    assert "\nWARNING: budget is 21, but only 20 rows can be chosen: all of them are\n" in err
    assert "\x1b" not in err  # colours and bars are for terminals
    assert "it/s" not in err


def test_the_summary_shows_both_ends_of_the_choice_word_for_word(model, tmp_path):
    rows = pool_rows(12)
    for row in rows:
        row["instruction"] = f"[bold]{row['id']}[/bold] [/] :smile:"
    choose([*rows, rows[0]], model, tmp_path / "run", budget=7, bins=1)
    told = io.StringIO()
    print_summary(tmp_path / "run", Console(file=told, width=200))
    lines = told.getvalue().splitlines()
    assert lines[0] == "7 of 12 scored rows chosen from 1 bins; pool 13, rejected 1 (duplicate 1)"
    ranked = sorted(scores(tmp_path / "run").items(), key=lambda item: (-item[1][0], item[0]))
    for chosen, ids in (("yes", ranked[:5]), ("no", ranked[-5:])):
        shown = [line for line in lines if line.startswith(chosen)]
        assert len(shown) == 5
        for line, (id_, (score, _)) in zip(shown, ids, strict=True):
            assert f"[bold]{id_}[/bold] [/] :smile:" in line
            assert f" {score:.3f} " in line


def test_a_summary_of_what_is_not_finished_says_so(tmp_path):
    with RunFolder.open(tmp_path / "run"):
        pass
    told = io.StringIO()
    print_summary(tmp_path / "run", Console(file=told, width=200))
    assert told.getvalue() == f"{tmp_path / 'run'} is not complete yet: run adg select on it\n"
    with pytest.raises(StoreError, match="there is no run folder"):
        print_summary(tmp_path / "no", Console(file=told))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_progress_in_a_log_is_a_line_now_and_then(clock, capsys):
    with SamplingProgress(100, 20) as told:
        for n in range(40):
            clock[0] += 1
            told.add(50, rejected=n % 10 == 0)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "sampling: 35/100 rows, 2 rejected, 50 tokens/s, 0:15 passed, 1:05 left"
    assert last == "sampling: 60/100 rows, 4 rejected, 50 tokens/s, 0:40 passed, 0:40 left"
    assert (told.seconds, told.tokens) == (40, 2000)


def test_progress_of_long_runs_counts_hours_and_can_be_silent(clock, capsys):
    with SamplingProgress(1000) as told:
        clock[0] += 3725
        told.add(1, rejected=False)
    assert capsys.readouterr().err.splitlines()[-1].endswith("1:02:05 passed, 1033:41:15 left")
    with SamplingProgress(3, show=False) as told:
        clock[0] += 60
        told.add(1, rejected=True)
    assert capsys.readouterr() == ("", "")


def test_ticking_passes_everything_on(clock, capsys):
    def rows():
        for n in range(40):
            clock[0] += 1
            yield n

    assert list(ticking(rows(), "scoring")) == list(range(40))
    assert capsys.readouterr().err.splitlines() == ["scoring: 15 rows, 0:15 passed", "scoring: 30 rows, 0:30 passed"]
