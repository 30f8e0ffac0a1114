"""`adg select --dry-run`: the plan, and every refusal of the command itself with its text and code; nothing is done."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_runs import SETTINGS, pool_rows, write_jsonl

from adg_plugin.engines.models import loading
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny


@pytest.fixture
def config(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config in the current folder, with a pool of 20 rows and one that is rejected."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", [*pool_rows(20), {"id": "empty", "instruction": ""}])
    settings = {**SETTINGS, "model": str(model), "datasets": ["pool.jsonl"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    return Path("mine.yaml")


def test_it_prints_the_plan_loads_no_model_and_writes_nothing(config, model, adg, monkeypatch):
    monkeypatch.setattr(loading, "load_backbone", lambda *_, **__: pytest.fail("a model was loaded"))
    code, out, _ = adg("select", config, "--dry-run", "--set", "budget=5")
    assert code == 0
    assert out.splitlines() == [
        "pool       pool.jsonl",
        f"selection  5 rows, sampled from {model}: 3 answers per row, at most 6 tokens each",
        "rows       20 to choose from, 1 rejected (no_instruction 1)",
        "run folder runs/mine",
    ]
    assert sorted(path.name for path in Path().iterdir()) == ["mine.yaml", "pool.jsonl"]


def test_after_a_selection_it_counts_the_answers_that_are_there(config, adg):
    assert adg("select", config, "-q").code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    assert "rows       20 to choose from, 1 rejected (no_instruction 1); 20 have answers already" in (
        adg("select", config, "--dry-run", "--set", "budget=5").out
    )
    out = adg("select", config, "--dry-run", "--set", "seed=5").out
    assert "have answers already" not in out
    assert "was made with seed 0 (now 5): its answers are kept, and not used" in out
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before


@pytest.mark.parametrize(
    "settings",
    [
        ["budget=0", "budgt=3"],
        ["datasets=[]"],
        ["datasets=no.jsonl"],
        ["model=no/such"],
        ["budget_per_dataset=[3]"],
        ["top_k=100000"],
        ["eos_token=not one token"],
        ["template=no.jinja"],
        ["filters.languages=[tlh]"],
        ["filters.min_words=500"],
        ["device=cuda:99"],
        ["method=ifd", "device=cuda:99"],
        ["method=mig", "label_vectors=no.npz"],
    ],
    ids=" ".join,
)
def test_it_ends_as_the_command_would(config, adg, settings):
    overrides = [part for setting in settings for part in ("--set", setting)]
    planned = adg("select", config, "--dry-run", *overrides)
    assert not Path("runs").exists()
    done = adg("select", config, *overrides)
    assert planned.code == done.code != 0
    said = [line for line in done.err.splitlines() if not line.startswith("scoring: 0/")]  # progress
    assert (planned.out, planned.err.splitlines()) == (done.out, said)


def test_a_run_folder_that_cannot_be_had_is_refused_as_by_the_command(config, adg, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    with RunFolder.open(tmp_path / "run"):
        for out in ("precious", "run", "file/run"):
            planned, done = adg("select", config, "--dry-run", "--out", out), adg("select", config, "--out", out)
            assert planned.code == done.code == 3
            assert planned.err == done.err
    assert adg("select", config, "--dry-run", "--out", "run").code == 0


def test_a_url_is_checked_as_far_as_its_form(config, adg):
    assert "run folder memory://bucket/run" in adg("select", config, "--dry-run", "--out", "memory://bucket/run").out
    code, _, err = adg("select", config, "--dry-run", "--out", "s3://me:secret@bucket/run")
    assert (code, err) == (
        2,
        "error: --out is a URL with a password in it: leave that to the driver's own configuration\n",
    )


def test_answers_that_are_given_are_read(config, adg):
    rows = [{**row, "generated_answers": ["a", "bcd", str(n)]} for n, row in enumerate(pool_rows(5))]
    write_jsonl(Path("answers.jsonl"), rows)
    out = adg("select", config, "--dry-run", "--answers", "answers.jsonl").out
    assert "by the answers in answers.jsonl, embedded by" in out
    assert "rows       5 to choose from" in out
    missing = adg("select", config, "--dry-run", "--answers", "no.jsonl")
    assert missing.code == 2
    assert missing.err == adg("select", config, "--answers", "no.jsonl").err
