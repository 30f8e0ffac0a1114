"""`adg select`, killed over and over: what comes out at last is what an undisturbed run gives."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from tiny_runs import command, pool_rows, read_jsonl, save, scores, write_jsonl

from adg_plugin.store import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.alone]

# Imports once, then forks a child for each line of its input: "RUN_FOLDER SECONDS", killed after so many seconds.
NURSERY = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
import transformers.models.llama.modeling_llama
from adg_plugin.pipeline import run as pipeline
from adg_plugin.cli import main
# All that a run imports when it comes to it: imported in each child, it would take longer than the run.
import adg_plugin.engines.models.loading, adg_plugin.engines.one_pass.engine
import adg_plugin.pipeline.sample, adg_plugin.report.summary, adg_plugin.selectors.adg

class Eager(pipeline.RunFolder):  # writes a part every few rows: a tiny run has no twenty seconds
    @classmethod
    def open(cls, path, **options):
        return super().open(path, **{"rows_per_part": 7, "flush_s": 0.03, **options})

pipeline.RunFolder = Eager
print("ready", flush=True)
for line in sys.stdin:
    run, seconds = line.split()
    began, pid = time.monotonic(), os.fork()
    if pid == 0:
        os.dup2(os.open(run + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        try:
            main(["select", sys.argv[1], "--out", run])
        finally:
            sys.stdout.flush()
            os._exit(sys.exc_info()[1].code if isinstance(sys.exc_info()[1], SystemExit) else 1)
    while time.monotonic() - began < float(seconds):
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            break
        time.sleep(0.001)
    else:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print("killed", flush=True)
        continue
    print("ended", time.monotonic() - began, flush=True)
"""


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory):
    """A function that runs `adg select` into a folder, kills it after so many seconds, and says whether it had to."""
    folder = tmp_path_factory.mktemp("killed")
    pool = write_jsonl(folder / "pool.jsonl", pool_rows(120))
    config = folder / "run.yaml"
    model = save(folder / "model")
    config.write_text(
        f"model: {model}\ndatasets: [{pool}]\nbudget: 30\nnum_samples: 3\nmax_new_tokens: 16\nbatch_tokens: 1500\n"
    )
    process = command(config, code=NURSERY, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"

    def run(to: Path, seconds: float) -> str:
        process.stdin.write(f"{to} {seconds}\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    yield run
    process.stdin.close()
    process.wait()


def test_kill_9_at_twenty_random_moments_changes_nothing(nursery, tmp_path: Path):
    whole = tmp_path / "undisturbed"
    ended = nursery(whole, 300)
    assert ended.startswith("ended"), (tmp_path / "undisturbed.log").read_text()
    takes_s = float(ended.split()[1])
    expected = [row["id"] for row in read_jsonl(whole / "selected.jsonl")]

    moments, kills, progress = random.Random(7), 0, set()
    for number in range(30):
        run = tmp_path / f"run-{number}"
        while nursery(run, moments.uniform(0.02, takes_s / 2)) == "killed":
            kills += 1
            assert kills < 200, "no run comes to its end"
            if run.exists() and (run / "prompts.json").exists():
                with RunFolder.open(run) as folder:  # the lock went with its process
                    assert folder.damage == []
                    progress.add(folder.counts().completed)
        log = (tmp_path / f"run-{number}.log").read_text()
        assert log.rstrip().endswith(str(run / "selected.jsonl")), log
        assert [row["id"] for row in read_jsonl(run / "selected.jsonl")] == expected
        assert scores(run) == scores(whole)
        if kills >= 24 and number >= 1:
            break
    assert kills >= 20
    assert len(progress & set(range(1, 120))) >= 5  # most died between the first row and the last
