"""A run folder alone, with a comparison and evaluations, and with a comparison only; a browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from browser import browser
from report_sections import BUDGET, INJECTION, METHODS, ROWS, evaluation
from tiny_runs import SETTINGS, pool_rows, read_jsonl, save, write_jsonl

from adg_plugin import select
from adg_plugin.config.schema import ADGConfig
from adg_plugin.report.gather import gather
from adg_plugin.report.page import write_page
from adg_plugin.store import RunFolder
from adg_plugin.tools.compare.compare import compare
from adg_plugin.tools.evaluation.results import write_results


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """A run folder with nothing beside its selection."""
    folder = tmp_path_factory.mktemp("sections")
    kinds = [f"kind {n}" for n in range(15)]
    pool = [
        {**row, "output": "a b " * n, "source": "<i>first</i>" if n % 4 else "x"}
        | ({} if n in (5, 11, 39) else {"category": kinds[n % 15]})
        for n, row in enumerate(pool_rows(ROWS))
    ]
    model, files = save(folder / "model"), [str(write_jsonl(folder / "pool.jsonl", pool))]
    config = {**SETTINGS, "model": str(model), "datasets": files, "bins": 4, "budget": BUDGET}
    return select(config=config, output_dir=folder / "run", show_progress=False).run_dir


@pytest.fixture(scope="session")
def full(alone, tmp_path_factory):
    """The same with a comparison and two evaluations."""
    run = tmp_path_factory.mktemp("beside") / "run"
    shutil.copytree(alone, run)
    compare(ADGConfig.parse(RunFolder.read(run).manifest()["config"]), METHODS, run, show_progress=False)
    now = RunFolder.read(run).manifest()["files"]["selected.jsonl"]["blake2b"]
    write_results(run / "eval" / "one.json", evaluation("runs/one/model", selection={"selected": now}))
    earlier = {"value": 0.125, "limit": 4, "selection": {"selected": "earlier"}, "load_in_4bit": True}
    write_results(run / "eval" / "odd.json", evaluation(INJECTION, **earlier))
    return run


@pytest.fixture(scope="session")
def chromium():
    with browser() as launched:
        yield launched


@pytest.fixture(scope="session")
def report(full):
    write_page(gather(full), full / "report.html")
    return full / "report.html"


@pytest.fixture
def only_compared(full, tmp_path):
    """A run folder with a comparison and no selection."""
    config = ADGConfig.parse(RunFolder.read(full).manifest()["config"])
    pool = read_jsonl(Path(config.datasets[0].path))
    config = config.updated(datasets=[str(write_jsonl(tmp_path / "pool.jsonl", [*pool, pool[0], {"id": "bad"}]))])
    compare(config, METHODS, tmp_path / "run", show_progress=False)
    return tmp_path / "run"
