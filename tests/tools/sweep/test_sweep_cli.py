"""`adg sweep` on the terminal, and what it makes of `--vary`."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from sweep_runs import invoke

from adg_plugin.errors import ConfigError
from adg_plugin.tools.sweep.cli import parse_vary, print_sweep
from adg_plugin.tools.sweep.sweep import sweep


def test_values_are_yaml_and_none_is_none():
    assert parse_vary(["weight=0, 0.2", "bins=1,none", "weight=1", "score=rank"]) == {
        "weight": [0, 0.2, 1],
        "bins": [1, None],
        "score": ["rank"],
    }


@pytest.mark.parametrize("text", ["weight", "=1", "weight=", "weight=0,,1"])
def test_texts_without_a_value_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_vary([text])
    assert str(caught.value) == f"--vary is {text!r}: write KEY=VALUE,VALUE, such as weight=0,0.4,1"


def test_the_command_s_json_is_the_sweep_s(folder, capsys):
    assert invoke(folder, "--vary", "weight=0,1", "--vary", "bins=1", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(sweep(str(folder), {"weight": [0, 1], "bins": [1]}).summary()))
    assert said["settings"]["weight"] == 0.4
    assert [one["name"] for one in said["variants"]] == ["weight=0 (D alone)", "weight=1 (I alone)", "bins=1"]
    assert said["embedded_again"] is None
    assert invoke(folder, "--vary", "weight=0,1", "--vary", "bins=1", "--json", "--product") == 0
    assert len(json.loads(capsys.readouterr().out)["variants"]) == 2


def test_the_command_s_table_fits_80_columns_and_says_what_the_json_says(folder, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert invoke(folder) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    about = sweep(str(folder))
    for line in about.lines:
        (shown,) = [text for text in out.splitlines() if text.startswith(f"{line.name} ")]
        found = line.found
        assert shown.split()[-9:] == [
            f"{found.rank_correlation:.2f}",
            f"{found.shared:.0%}",
            f"{found.jaccard:.0%}",
            f"{found.shared_by_chance:.0%}",
            f"{found.correlation_dispersion:.2f}",
            f"{found.correlation_anisotropy:.2f}",
            f"{found.mean_dispersion:.3f}",
            f"{found.mean_anisotropy:.3f}",
            f"{found.mean_answer_tokens:.0f}",
        ]
    assert "200 rows, 40 chosen" in out
    assert about.notes[0] in " ".join(out.split())


@pytest.mark.parametrize("width", [50, 80, 200])
def test_it_fits_the_terminal(folder, width):
    out = io.StringIO()
    vary = {"budget": [10, 40], "weight": [0, 1], "score": ["zscore"]}
    print_sweep(sweep(str(folder), vary, product=True), Console(file=out, width=width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    if width == 200:
        assert re.search(r"budget=10, weight=0 \(D alone\), score=zscore: 10 rows", out.getvalue())
