"""Whose folder it is: run folders, other people's folders, and one writer at a time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from store_rows import IDS, child, pending, stage, write

from adg_plugin.errors import StoreError
from adg_plugin.store import RunFolder


def test_the_config_comes_back(tmp_path: Path):
    with RunFolder.open(tmp_path / "deep" / "er") as run:
        assert run.read_config() == {}
        run.write_config({"model": "é", "budget": 0.2})
    assert RunFolder.read(tmp_path / "deep" / "er").read_config() == {"model": "é", "budget": 0.2}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("thesis.tex", "", "exists and is not a run folder"),
        ("config.json", '{"model_type": "llama"}', "exists and is not a run folder"),
        ("config.json", "[]", "config.json holds a JSON list, not an object"),
        ("config.json", "{", "config.json is not JSON"),
        ("config.json", '{"adg_run_folder": 2}', "is a run folder of version 2, not 1"),
        ("prompts.parquet", "my own", "exists and is not a run folder"),
    ],
)
def test_a_folder_that_is_something_else_is_refused_and_left_alone(tmp_path: Path, name: str, text: str, said: str):
    (tmp_path / name).write_text(text)
    for opening in (RunFolder.open, RunFolder.read):
        with pytest.raises(StoreError, match=said) as caught:
            opening(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "give another --out" in str(caught.value)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, text)]


def test_a_missing_folder_is_not_made_for_reading(tmp_path: Path):
    for opening in (RunFolder.read, lambda path: RunFolder.open(path, create=False)):
        with pytest.raises(StoreError, match=r"there is no run folder .*nowhere: give the folder of an earlier run"):
            opening(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


HOLD = """
import sys, time
from adg_plugin.store import RunFolder
with RunFolder.open(sys.argv[1]):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_the_second_process_is_told_who_has_the_folder(tmp_path: Path):
    stage(tmp_path, IDS[:9])
    write(tmp_path, IDS[:9])
    with child(str(tmp_path), "60", code=HOLD) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(StoreError) as caught:
            RunFolder.open(tmp_path)
        who = rf"process {first.pid} on host \S+ since 20\S+"
        said = rf"run folder {tmp_path} is in use by {who}: wait for it, or give another --out"
        assert re.fullmatch(said, str(caught.value))
        assert len(list(RunFolder.read(tmp_path).results())) == 9
        first.kill()
    with RunFolder.open(tmp_path, wait_s=10) as run:  # the lock went with its process
        with pytest.raises(StoreError, match="in use"):
            RunFolder.open(tmp_path)
        assert pending(run) == []
    with RunFolder.open(tmp_path):
        run.close()  # a second time: it must not take the lock from its new holder
        with pytest.raises(StoreError, match="in use by process"):
            RunFolder.open(tmp_path)


def test_waiting_for_the_folder(tmp_path: Path):
    with child(str(tmp_path), "0.5", code=HOLD) as first:
        assert first.stdout.readline() == "held\n"
        RunFolder.open(tmp_path, wait_s=30).close()
