"""What the commands print on a real terminal of 80 columns: tmux holds it, and says what it shows."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from itertools import count

import pytest
from tiny_runs import ROOT, choose, pool_rows, save, write_jsonl

pytestmark = [pytest.mark.tiny, pytest.mark.alone]

SERVERS = count()
MARKUP = "[red]not a colour[/red] عربي 🌍 " + "long" * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if shutil.which("tmux") is None:
        pytest.skip("there is no tmux: `make env` as root installs it")
    folder = tmp_path_factory.mktemp("terminal")
    rows = [*pool_rows(60), {"id": "odd", "instruction": MARKUP, "output": "x"}]
    write_jsonl(folder / "pool.jsonl", rows)
    model = save(folder / "model")
    choose(rows, model, folder / "run", bins=4, budget=20)
    (folder / "select.yaml").write_text(
        f"model: {model}\ndatasets: [{folder}/pool.jsonl]\nnum_samples: 4\nmax_new_tokens: 6\nbudget: 10\n",
        encoding="utf-8",
    )
    return folder


def on_terminal(folder, *arguments):
    """Return the lines that a terminal of 80 columns shows once the command has ended."""
    # A server of its own each time: one that is being ended may still answer under its name.
    socket, done = f"adg-test-{os.getpid()}-{next(SERVERS)}", folder / "done"
    done.unlink(missing_ok=True)
    adg = [sys.executable, "-m", "adg_plugin", *arguments]
    line = f"cd {shlex.quote(str(folder))}; {shlex.join(adg)}; echo ended $? > done; sleep 60"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    tmux = ["tmux", "-u", "-L", socket, "-f", "/dev/null"]
    size = ["-x", "80", "-y", "200"]
    subprocess.run([*tmux, "new-session", "-d", "-s", "one", *size, line], env=environment, check=True)
    try:
        until = time.monotonic() + 300
        while not done.exists() and time.monotonic() < until:
            time.sleep(0.1)
        # -J joins what the terminal had to wrap, so a line that is too long shows.
        capture = [*tmux, "capture-pane", "-p", "-J", "-t", "one"]
        shown = subprocess.run(capture, capture_output=True, text=True, check=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)
    assert done.read_text().split() == ["ended", "0"], shown
    return [line.rstrip() for line in shown.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        (["show", "run", "--rows", "3"], ["20 of 61 scored rows chosen", "dispersion", "anisotropy"]),
        (["explain", "run", "odd"], ["[red]not a colour[/red]", "dispersion D", "rank in its bin"]),
        (["stability", "run"], ["another run with other draws would share about"]),
        (["estimate", "select.yaml", "--rows", "20", "--gpu-hour-price", "2"], ["still to do", "cost", "most of it"]),
        (["doctor", "select.yaml", "--no-self-test"], ["torch", "select.yaml"]),
        (["select", "select.yaml"], ["of 61 scored rows chosen", "selected.jsonl"]),
        (["--help"], ["report", "estimate", "stability", "doctor", "explain"]),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) else None,
)
def test_every_line_fits(folder, command, texts):
    lines = on_terminal(folder, *command)
    shown = " ".join(" ".join(lines).split())
    for text in texts:
        assert text in shown
    wide = [line for line in lines if len(line) > 80]
    assert not wide
