"""A finished selection by a tiny model, for the tests of the pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_runs import (
    choose,
    pool_rows,
    save,
    spoil,
    write_jsonl,
)

from adg_plugin.engines.models import loading


@pytest.fixture(scope="session")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "spoilt", spoil)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch):
    """A function after whose call no model can be loaded."""

    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("the model was loaded")

    return lambda: monkeypatch.setattr(loading, "load_backbone", load)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> tuple[Path, Path]:
    """Pool and run folder of a selection; copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    pool = write_jsonl(folder / "pool.jsonl", pool_rows(40))
    choose(pool, model, folder / "run")
    return pool, folder / "run"


@pytest.fixture
def run(finished: tuple[Path, Path], tmp_path: Path) -> Path:
    shutil.copytree(finished[1], tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def pool(finished: tuple[Path, Path]) -> Path:
    return finished[0]
