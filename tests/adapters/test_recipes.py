"""`adg recipes`: the list, a recipe, a copy of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adg_plugin.adapters import recipes
from adg_plugin.cli import app
from adg_plugin.errors import ConfigError

NAME = "trl/llama3.2-1b-lora"
RUNNER = CliRunner()


def copy(to: Path | str) -> Exception | None:
    """Return what `adg recipes cp` ends with."""
    return RUNNER.invoke(app, ["recipes", "cp", NAME, str(to)]).exception


def test_recipes_are_listed_shown_and_copied(tmp_path: Path):
    listed = RUNNER.invoke(app, ["recipes", "ls"])
    assert recipes.names()
    assert all(name in listed.stdout for name in recipes.names())
    assert RUNNER.invoke(app, ["recipes", "show", f"{NAME}.yaml"]).stdout == recipes.read(NAME)
    copied = RUNNER.invoke(app, ["recipes", "cp", NAME, str(tmp_path)])
    assert Path(copied.stdout.strip()).read_text() == recipes.read(NAME)
    again = copy(tmp_path)
    assert isinstance(again, ConfigError)
    assert str(again) == f"{tmp_path / 'llama3.2-1b-lora.yaml'} exists already: give another name"
    wrong = RUNNER.invoke(app, ["recipes", "show", "trl/cpu-dmo"])
    assert "did you mean `trl/cpu-demo`?" in str(wrong.exception)


@pytest.mark.parametrize("is_there", [True, False])
def test_a_copy_is_not_written_through_a_link(tmp_path: Path, is_there: bool):
    elsewhere, link = tmp_path / "precious.yaml", tmp_path / "llama3.2-1b-lora.yaml"
    if is_there:
        elsewhere.write_text("years: of work\n")
    link.symlink_to(elsewhere)
    for to in (link, tmp_path):
        assert str(copy(to)) == f"{link} exists already: give another name"
    assert elsewhere.exists() == is_there
    assert not is_there or elsewhere.read_text() == "years: of work\n"


def test_a_copy_that_cannot_be_written_says_why(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for to, why in (("no/such/mine.yaml", "No such file or directory"), ("file/mine.yaml", "Not a directory")):
        assert str(copy(tmp_path / to)) == f"{tmp_path / to} cannot be written ({why}): give another name"
    assert os.listdir(tmp_path) == ["file"]
