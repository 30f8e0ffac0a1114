"""What a row, a name or a server says cannot drive the terminal: every way out shows hidden characters as escapes."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
import rich.text
import yaml
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from rich.cells import cell_len
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from tiny_runs import SETTINGS, command, pool_rows, write_jsonl

from adg_plugin import console
from adg_plugin.errors import ConfigError, DataError, visible

# A title, a link, the clipboard, colours, an erased line, a CSI of C1, bidi overrides, what is unseen, markup.
HOSTILE = (
    "\x1b]0;owned\x07\x1b]8;;http://evil\x1b\\link\x1b]52;c;ZXZpbA==\x07\x1b[31mred\x1b[2K\rgone\x9b31m\x85"
    "\u202eabc\u202c\u2066x\u2069\u200b\u2060\ufeffpay\u200dpal\u2028\U000e0041\x08\x0b\x0c\x7f[bold]loud[/bold][link=http://evil]here[/link][/]"
)
NAME = "row\x1b[31m\u202e\x9b[bold]1"  # as a file may be called


def hidden(text: str) -> list[str]:
    """Return what of a text a terminal would obey or not show, by another rule than the package's own."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [c for c in text if unicodedata.category(c) in kinds and c not in "\n\t"]


def harmless(*texts: str) -> None:
    for text in texts:
        assert not hidden(text), ascii(text)


def test_what_drives_a_terminal_is_shown_as_an_escape():
    harmless(visible(HOSTILE))
    assert visible("a\x1b[31m\u202eb\x9b\r\U000e0041") == r"a\u001b[31m\u202eb\u009b\r\udb40\udc41"
    assert visible(visible(HOSTILE)) == visible(HOSTILE)


@pytest.mark.parametrize("text", ["one\ttwo\n three", "👨‍👩‍👧 🏳️‍🌈", "می‌خواهم", "שלום עולם", "क्‍ष", "naïve ☕ 漢字"])
def test_what_people_write_stays_as_it_is(text):
    assert visible(text) == text


@given(st.text(st.characters(codec=None)))
def test_a_json_text_means_the_same(text):
    shown = visible(json.dumps({text: [text]}, ensure_ascii=False))
    assert not [c for c in hidden(shown) if c not in "\xad\u200c\u200d" and unicodedata.category(c) != "Cf"]
    # A pair of lone halves is one character to JSON.
    meant = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert json.loads(shown) == {meant: [meant]}


def test_errors_are_visible_whoever_prints_them():
    for error in (DataError(f"{HOSTILE}: no such column"), ConfigError([HOSTILE, HOSTILE], source=HOSTILE)):
        harmless(str(error))


@pytest.mark.parametrize("of", [console.Terminal, Console])
def test_texts_are_visible_on_any_console_and_fit_it(of):
    out = io.StringIO()
    on = of(file=out, width=40)
    on.print(console.Text(HOSTILE))
    on.print(console.Text.assemble(("row ", "bold"), HOSTILE, (HOSTILE, "red")))
    on.print(Panel(console.Text(HOSTILE), title=console.Text(HOSTILE)))
    table = console.figure_table("a[red]", figures=["b"])
    table.add_row(console.Text(HOSTILE), console.Text("x").append(HOSTILE))
    on.print(table)
    harmless(out.getvalue())
    assert "[link=http://evil]" in "".join(out.getvalue().split())
    assert "a[red]" in out.getvalue()
    assert max(map(cell_len, out.getvalue().splitlines())) <= 40


def test_a_terminal_reads_no_markup_and_writes_nothing_hidden():
    out = io.StringIO()
    terminal = console.Terminal(file=out, width=60, force_terminal=True, color_system="truecolor")
    terminal.print(HOSTILE, f"{HOSTILE}:smile:")
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    terminal.print(table)
    terminal.print(rich.text.Text(HOSTILE))
    terminal.print(Panel(HOSTILE, title=rich.text.Text(HOSTILE)))
    shown = out.getvalue()
    own = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # styles of tables and panels
    harmless(own)
    assert "\x1b]" not in shown
    assert "[bold]loud[/bold]" in "".join(own.split())
    assert ":smile:" in own
    assert max(map(cell_len, own.splitlines())) <= 60


def test_what_is_logged_is_visible_on_lines_of_its_own():
    code = (
        "import logging, sys; from adg_plugin.console import set_up_logging; set_up_logging()\n"
        "logging.getLogger('any').warning('row %s', sys.argv[1])\n"
        "try: raise ValueError(sys.argv[1])\n"
        "except ValueError: logging.getLogger('any').exception('failed')"
    )
    out, err = command(f"{HOSTILE}\nERROR: all rows are lost", code=code).communicate(timeout=60)
    harmless(err)
    assert out == ""
    assert [line for line in err.splitlines() if re.match(r"[A-Z]+:", line)] == [
        f"WARNING: row {visible(HOSTILE)}",
        "ERROR: failed",
    ]


PRINTS = """
import logging, sys
from adg_plugin.console import *
set_up_logging()
logging.getLogger("any").warning("row %s", sys.argv[1])
with SamplingProgress(3) as progress:
    progress.add(3, rejected=False)
    say(sys.argv[1])
print_error(ValueError(sys.argv[1]))
print_result(sys.argv[1])
"""


def test_on_a_real_terminal_only_rich_drives_it():
    ours, theirs = os.openpty()
    process = command(HOSTILE, code=PRINTS, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which says that the other end is closed
        while part := os.read(ours, 65_536):
            shown += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "\x1b]" not in text
    assert "\x1b[2K" in text  # of the bar
    harmless(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text))
    assert text.count("owned") == 4


def test_an_exception_of_somebody_elses_is_visible():
    code = "import sys; from adg_plugin import cli; cli.app = lambda *a, **k: int(sys.argv[1]); cli.main(['show'])"
    process = command(HOSTILE, code=code)
    _, err = process.communicate(timeout=60)
    harmless(err)
    assert process.returncode == 1
    assert "ValueError: invalid literal for int()" in err


class OnTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_result_is_as_it_is_for_a_program_and_visible_on_a_terminal(monkeypatch, capsys):
    console.print_result(Path(NAME))
    assert capsys.readouterr().out == f"{NAME}\n"
    monkeypatch.setattr(sys, "stdout", OnTerminal())
    console.print_result(Path(NAME))
    assert sys.stdout.getvalue() == f"{visible(NAME)}\n"


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A folder of a hostile name with a hostile pool and its settings."""
    folder = tmp_path_factory.mktemp("hostile") / NAME
    folder.mkdir()
    rows = [{**row, "id": f"{row['id']}{HOSTILE}", "output": HOSTILE} for row in pool_rows(14)]
    for row in rows:
        row["instruction"] += f"{HOSTILE}\nsecond line"
    extra = [rows[0], {"id": HOSTILE, "instruction": " ", "output": "x"}]
    write_jsonl(folder / f"{NAME}.jsonl", [*rows, *extra])
    settings = {**SETTINGS, "model": str(model), "datasets": [str(folder / f"{NAME}.jsonl")], "bins": 2}
    (folder / "a.yaml").write_text(yaml.safe_dump(settings, allow_unicode=False), encoding="utf-8")
    return folder


COMMANDS = [
    ["select", "a.yaml", "--dry-run"],
    ["select", "a.yaml"],
    ["show", "run"],
    ["explain", "run", f"row-1{HOSTILE}"],
    ["explain", "run", f"row-1{HOSTILE}?"],
    ["explain", "run", HOSTILE],
    ["stability", "run"],
    ["stability", "run", "--json"],
    ["sweep", "run", "--vary", "weight=0,1"],
    ["compare", "a.yaml", "--methods", "random,longest"],
    ["compare", "a.yaml", "--methods", "random,longest", "--json"],
    ["doctor", "a.yaml", "--no-self-test"],
    ["doctor", "a.yaml", "--no-self-test", "--json"],
    ["export", "run", "--columns", f"{HOSTILE},id"],
    ["report", "run", "--json"],
    ["estimate", "a.yaml", "--rows", "4"],
    ["select", "a.yaml", "--set", f"datasets.0.type={HOSTILE}"],
    ["select", "a.yaml", "--set", f"field_messages={HOSTILE}"],
    ["select", f"{HOSTILE}.yaml"],
    ["show", HOSTILE],
    ["score", "a.yaml", "--answers", f"{NAME}.jsonl", "--out", "scores.jsonl"],
    ["recipes", "show", HOSTILE],
    ["run", f"{NAME}.yaml"],
]


def test_no_command_prints_what_is_hidden(folder, adg, monkeypatch, caplog):
    monkeypatch.chdir(folder)
    for arguments in COMMANDS:
        out = {"select": ["--out", "run"], "compare": ["--out", "run"], "estimate": ["--out", "measured"]}
        ended = adg(*arguments, *out.get(arguments[0], []))
        own = re.sub(r"\rLoading weights.*", "", ended.out + ended.err)  # a bar of transformers
        assert not hidden(own), (arguments, ascii(own))
        assert "[bold]" in own or "[/bold]" not in own
    harmless("".join(console._LogFormat("%(message)s").format(record) for record in caplog.records))


def test_panels_keep_line_breaks(folder, adg, monkeypatch):
    monkeypatch.chdir(folder)
    assert adg("select", "a.yaml", "--out", "run").code == 0
    shown = adg("explain", "run", f"row-1{HOSTILE}").out
    assert "│ second line " in shown
    assert "loud[/bold]" in "".join(shown.replace("│", "").split())


def test_one_module_prints_and_nothing_beside_it():
    """Texts of Rich, consoles, stderr and the format of logs: elsewhere they would not be visible."""
    found = []
    for path in sorted((ROOT / "adg_plugin").rglob("*.py")):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "") in ("rich.text", "rich.logging"):
                found.append(f"{path}:{node.lineno}: {node.module}")
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                to_stderr = name == "print" and any(word.arg == "file" for word in node.keywords)
                if to_stderr or name in ("Console", "logging.basicConfig", "click.echo", "typer.echo"):
                    found.append(f"{path}:{node.lineno}: {name}")
    assert found == []
