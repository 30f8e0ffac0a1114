"""Where `adg eval` keeps the results of a model, and which selection they are taken to belong to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.tools.evaluation.kept import label, results_path, run_folder_of, selection_of


def write(folder: Path, name: str, text: str = "{}") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def run_folder(folder: Path, selected: str = "d1") -> Path:
    write(folder, "config.json", json.dumps({"adg_run_folder": 1}))
    files = {"selected.jsonl": {"blake2b": selected, "bytes": 1}}
    write(folder, "manifest.json", json.dumps({"created": "2026-01-02T03:04:05+00:00", "files": files}))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_results_go_to_the_run_folder_that_the_model_was_trained_from(here: Path) -> None:
    run = run_folder(here / "runs/demo/selection")
    places = ("runs/demo", "runs/demo/model", "runs/demo/model/checkpoint-8", "runs/demo/checkpoint-8")
    for place in (*places, "runs/demo/selection/adapter"):
        write(here / place, "config.json")
    selection = Path("runs/demo/selection/eval")
    assert results_path("runs/demo") == selection / "demo.json"  # as `adg run` writes it
    assert results_path("runs/demo/checkpoint-8") == selection / "demo-checkpoint-8.json"
    assert results_path("runs/demo/model") == selection / "demo-model.json"
    assert results_path("runs/demo/model/checkpoint-8") == selection / "demo-model-checkpoint-8.json"
    assert results_path("runs/demo/selection/adapter") == selection / "selection-adapter.json"
    assert results_path(str(here / "runs/demo/model")) == run / "eval/demo-model.json"
    assert results_path("runs/demo/model", run=run, name="x") == run / "eval/x.json"
    assert results_path("org/some-model") == Path("eval/org-some-model.json")
    assert results_path("demo") == Path("eval/demo.json")


@pytest.mark.parametrize("run", ["runs/other", "other", "runs/selection", "selection"])
def test_a_run_that_only_lies_near_the_model_is_not_taken(here: Path, run: str) -> None:
    run_folder(here / run)
    write(here, "runs/mine/config.json")
    assert run_folder_of("runs/mine") is None
    assert results_path("runs/mine") == Path("eval/mine.json")


def test_a_run_that_is_not_finished_is_not_taken(here: Path) -> None:
    run_folder(here / "runs/demo/selection")
    write(here, "runs/demo/model/config.json")
    (here / "runs/demo/selection/manifest.json").unlink()
    assert run_folder_of("runs/demo/model") is None


def test_folders_that_are_not_ours_to_read_are_passed_over(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here, "home/me/model/config.json")
    asked = os.stat
    mine = str(here / "home/me")

    def refused(path: object, *args: object, **options: object) -> object:
        if str(path).startswith(str(here)) and not str(path).startswith(mine):
            raise PermissionError(13, "Permission denied", str(path))
        return asked(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", refused)
    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "listdir", refused)
    assert results_path("home/me/model") == Path("eval/me-model.json")
    monkeypatch.setattr(os, "stat", lambda *a, **o: (_ for _ in ()).throw(PermissionError(13, "no")))
    assert results_path("home/me/model") == Path("eval/home-me-model.json")


def test_a_try_out_has_a_name_of_its_own(here: Path) -> None:
    assert results_path("org/m", limit=4) == Path("eval/org-m-limit-4.json")
    assert results_path("org/m", limit=4, name="x") == Path("eval/x.json")


@pytest.mark.parametrize("name", ["x/y", "../config", "..", ".", "", ".hidden", "a\\b", "a\n"])
def test_a_name_is_one_plain_file_name(here: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        results_path("demo", name=name)
    assert str(caught.value) == f"--name is {name!r}: use one plain file name, such as {label(name)!r}"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "config.json")
    write(tmp_path, "manifest.json")
    with pytest.raises(StoreError) as caught:
        results_path("demo", run=tmp_path)
    assert str(caught.value) == (
        f"--run is '{tmp_path}': no run folder of a finished selection; give one, or leave --run out for ./eval"
    )


def test_the_selection_beside_the_results_is_named(here: Path) -> None:
    run = run_folder(here / "run", selected="abc")
    about = {"run": str(run), "created": "2026-01-02T03:04:05+00:00", "selected": "abc"}
    assert selection_of(Path("run/eval/m.json")) == about
    assert selection_of(Path("eval/m.json")) is None


@given(st.text(min_size=1, max_size=30))
def test_a_label_is_one_file_name(name: str) -> None:
    made = label(name)
    assert made
    assert Path(made).name == made
    assert made not in (".", "..")
    if "/" not in name:
        results_path("demo", name=made)  # and one that --name takes
