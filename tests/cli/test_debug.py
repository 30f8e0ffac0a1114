"""`--debug` shows the cause behind an error, `-q` says nothing, and a process without a usable stderr works as well."""

from __future__ import annotations

import os
import sys

import pytest
import yaml
from tiny_runs import SETTINGS, command, pool_rows, write_jsonl

from adg_plugin import cli, console
from adg_plugin.adapters import processes
from adg_plugin.errors import ConfigError


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A YAML that cannot be parsed: the error hides the parser's own, `from None`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(console.DEBUG, raising=False)
    path = tmp_path / "broken.yaml"
    path.write_text("model: [\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("arguments", [["--debug", "select", "broken.yaml"], ["select", "broken.yaml", "--debug"]])
def test_debug_shows_what_caused_an_error(broken, adg, arguments):
    plain = adg("select", "broken.yaml")
    assert plain.err.startswith("error: broken.yaml")
    shown = adg(*arguments)
    assert (shown.code, shown.out) == (plain.code, "")
    assert shown.err.endswith(plain.err)
    assert "Traceback (most recent call last)" in shown.err
    assert "ParserError" in shown.err
    assert console.DEBUG not in os.environ


@pytest.mark.parametrize(("value", "shows"), [("1", True), ("0", False), ("", False)])
def test_the_variable_does_the_same(broken, adg, monkeypatch, value, shows):
    monkeypatch.setenv(console.DEBUG, value)
    assert ("Traceback" in adg("select", "broken.yaml").err) is shows


@pytest.mark.parametrize(
    ("given", "left", "debugs"),
    [
        (["--debug", "sft", "--debug", "x"], ["sft", "--debug", "x"], True),  # the second is of TRL
        (["sft", "--debug", "x"], ["sft", "--debug", "x"], False),
        (["run", "a.yaml", "--", "--debug"], ["run", "a.yaml", "--", "--debug"], False),  # of Axolotl
        (["show", "sft", "--debug"], ["show", "sft"], True),
    ],
)
def test_what_is_passed_on_to_a_trainer_stays(monkeypatch, given, left, debugs):
    monkeypatch.delenv(console.DEBUG, raising=False)
    with cli._debugging(given) as words:
        assert words == left
        assert (console.DEBUG in os.environ) is debugs
    assert console.DEBUG not in os.environ


def test_a_cause_is_shown_without_what_drives_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv(console.DEBUG, "1")
    try:
        try:
            int("\x1b[31m")
        except ValueError as err:
            raise ConfigError(["a is b"]) from OSError(f"\x9b{err}\u202e")
    except ConfigError as err:
        console.print_error(err)
    shown = capsys.readouterr().err
    assert r"OSError: \u009b" in shown
    assert shown.endswith("error: a is b\n")
    assert not {"\x1b", "\x9b", "\u202e"} & set(shown)


def test_quiet_stages_print_their_result_only(model, tmp_path, adg, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(6))
    settings = {**SETTINGS, "model": str(model), "datasets": ["pool.jsonl"], "budget": 3}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings))
    for stage, quiet in (("sample", "-q"), ("embed", "--quiet")):
        code, out, err = adg(stage, "a.yaml", "--out", "run", quiet)
        assert (code, out) == (0, "run\n")
        assert "rows" not in err
    assert "6 rows: 6 complete, 0 to embed, 0 to sample" in adg("embed", "a.yaml", "--out", "run").err


class Notebook:
    """A stderr as notebooks have: it takes texts, and is no file."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


PRINTS = ["-c", "import sys; print('out'); print('\\u2603', file=sys.stderr, flush=True); sys.exit(3)"]


def test_a_stage_prints_on_a_stderr_without_a_descriptor(monkeypatch):
    stderr = Notebook()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    with pytest.raises(processes.StageError, match="the stage failed"):
        processes.run_stage("the stage", PRINTS)
    assert sorted(stderr.text.split()) == ["out", "☃"]
    console.say("still")
    console.message_console().print("here")
    with console.SamplingProgress(3) as progress:
        progress.add(1, rejected=False)
    assert "still\nhere\nsampling: 1/3 rows" in stderr.text


def test_a_process_without_stderr_prints_results_only(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert processes.run_on_stderr([sys.executable, *PRINTS]) == 3
    console.say("lost")
    console.print_error(ConfigError(["lost"]))
    assert not console.stderr_is_terminal()
    assert capsys.readouterr().out == ""


def test_the_command_works_without_stderr(tmp_path):
    code = "import sys; sys.stderr = None; from adg_plugin.cli import main; main()"
    process = command("show", tmp_path / "no", code=code)
    assert process.communicate(timeout=120)[0] == ""
    assert process.returncode == 3
