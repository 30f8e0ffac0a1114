"""A finished run over made-up answers, and one of a tiny model."""

from __future__ import annotations

import pytest
from sweep_runs import SETTINGS, drawn, write


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "run"
    write(path, drawn())
    return path


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    from tiny_runs import choose as select
    from tiny_runs import pool_rows, save

    path = tmp_path_factory.mktemp("embedded")
    return select(pool_rows(40), save(path / "model"), path / "run", **SETTINGS)
