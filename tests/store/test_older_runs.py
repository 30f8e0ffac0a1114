"""Run folders that older versions wrote with `tiny_runs.choose`, four rows to a part: they are read, and resumed.

Version 0.1 knew a model by samples of its weights, which a change can miss: its answers are kept, and not used.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from paths import FIXTURES
from tiny_runs import choose, parts, read_jsonl, save, scores
from typer.testing import CliRunner

from adg_plugin.cli import app

pytestmark = pytest.mark.tiny


@pytest.fixture(params=["run-0.1", "run-0.2"])
def any_version(request):
    return request.param


@pytest.fixture
def older(request, tmp_path, monkeypatch):
    """A working folder with the model, the pool and both run folders as they were then."""
    name = request.getfixturevalue("any_version") if "any_version" in request.fixturenames else "run-0.2"
    shutil.copytree(FIXTURES / name, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    save(Path("model"))
    return tmp_path


def chosen(run: str) -> list[str]:
    return [row["id"] for row in read_jsonl(Path(run) / "selected.jsonl")]


def test_a_finished_run_is_read(any_version, older):
    run = CliRunner()
    for arguments in (["show", "finished"], ["explain", "finished", "row-3"], ["report", "finished"]):
        done = run.invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert Path("finished/report.html").stat().st_size > 10_000


def test_a_finished_run_is_chosen_from_again_without_sampling(older):
    before, were = parts(Path("finished")), scores(Path("finished"))
    assert len(before) == 4
    choose("pool.jsonl", Path("model"), Path("finished"), budget=9)
    assert parts(Path("finished")) == before
    assert {id: score for id, (score, _) in scores(Path("finished")).items()} == {id: s for id, (s, _) in were.items()}
    assert len(chosen("finished")) == 9


def test_answers_of_a_model_known_by_samples_are_kept_and_not_used(tmp_path, monkeypatch, caplog):
    shutil.copytree(FIXTURES / "run-0.1", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    save(Path("model"))
    before = parts(Path("finished"))
    found = choose("pool.jsonl", Path("model"), Path("finished"), budget=6)
    assert found.manifest["sampling"]["rows"] == 16
    assert before.items() <= parts(Path("finished")).items()
    assert any("its answers are kept, and not used now" in record.message for record in caplog.records)


def test_an_interrupted_run_samples_what_is_missing(older):
    before = parts(Path("interrupted"))
    assert len(before) == 2
    choose("pool.jsonl", Path("model"), Path("interrupted"), budget=6)
    assert before.items() <= parts(Path("interrupted")).items()
    assert chosen("interrupted") == chosen("finished")


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({"method": "ifd"}, ("row-8", "row-9")),
        ({"method": "superfiltering", "small_model": "model"}, ("row-13", "row-10")),
        ({"method": "mig", "field_labels": "instruction", "quality_scorer": "model"}, ("row-9", "row-7")),
    ],
)
def test_what_side_models_found_is_not_asked_again(older, settings, ids):
    found = choose("pool.jsonl", Path("model"), Path("finished"), budget=2, **settings)
    stats = found.manifest["sampling"]
    assert stats.get("rating", stats) == {"rows": 0, "total": 16, **({} if "rating" in stats else {"cut": 0})}
    assert found.ids == ids
