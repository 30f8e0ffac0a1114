"""Several processes under torchrun: the same choice as one, whatever their number was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny_runs import ROOT, pool_rows, read_jsonl, save, scores, write_jsonl

from adg_plugin.store import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(400)]

ROWS = 1600


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    settings = {
        "model": str(save(folder / "model")),
        "datasets": [str(write_jsonl(folder / "pool.jsonl", pool_rows(ROWS)))],
        "budget": 40,
        "num_samples": 3,
        "max_new_tokens": 8,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(ranks, *arguments):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "adg_plugin", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=ROOT, start_new_session=True
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def alone(config):
    run = config.parent / "alone"
    finish(start(1, "select", config, "--out", run))
    return run


def test_two_ranks_then_three_after_a_kill_choose_what_one_does(config, alone, tmp_path):
    run = tmp_path / "run"
    process = start(2, "select", config, "--out", run)
    deadline = time.monotonic() + 120
    while not list((run / "ranks" / "1" / "answers").glob("part-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "manifest.json").exists()
    kept = sum(1 for p in run.rglob("part-*.parquet"))
    assert kept

    out = finish(start(3, "select", config, "--out", run))
    assert out.splitlines() == [str(run / "selected.jsonl")]  # one of the ranks speaks
    assert read_jsonl(run / "selected.jsonl") == read_jsonl(alone / "selected.jsonl")
    assert scores(run) == scores(alone)
    folder = RunFolder.read(run)
    found = list(folder.results())
    assert len(found) == len({r.id for r in found}) == ROWS
    assert not list((run / "ranks").glob("*"))
    assert folder.manifest()["sampling"]["rows"] < ROWS  # what the two had done was not done again
    assert folder.manifest()["sampling"]["ranks"] == 3


def test_what_one_rank_refuses_ends_all(config, tmp_path):
    process = start(2, "select", config, "--out", tmp_path / "run", "--set", "layers=99")
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert out == ""
    assert "error: layers is 99: the model has 5 layers, use at most that" in err


def test_ranks_do_not_meet_in_a_url(config, tmp_path):
    process = start(2, "select", config, "--out", f"file://{tmp_path}/run")
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "ranks meet in a folder that all of them see" in err
