"""The run folder, its writer killed: what was said to be written is there, once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from store_rows import IDS, check, child, pending, result, run_child, stage, staged, write

from adg_plugin.store import RunFolder


def kill_at_work(path: Path, work: str, after_s: float, after_lines: int = 0) -> str:
    """Return what a writer had printed, line by line, when it was killed: so long after so many lines."""
    writer = child(str(path), work)
    assert writer.stdout.readline() == "ready\n"
    before = "".join(writer.stdout.readline() for _ in range(after_lines))
    time.sleep(after_s)
    writer.kill()
    out, err = writer.communicate()
    assert err == ""
    return before + out[: out.rfind("\n") + 1]


@pytest.mark.slow
@pytest.mark.alone
def test_kill_9_at_random_moments_loses_and_repeats_nothing(tmp_path: Path):
    ids = [f"row-{n:04d}" for n in range(3_000)]
    stage(tmp_path, ids)
    moments = random.Random(0)
    safe: set[str] = set()
    for _ in range(8):
        # Counted in lines, so that neither a fast machine nor a slow one is through or idle when the kill comes.
        out = kill_at_work(tmp_path, "append", moments.uniform(0, 0.01), after_lines=moments.randrange(10))
        safe.update(out.split())
        with RunFolder.open(tmp_path) as run:  # the lock went with its process
            assert run.damage == []
            assert not safe & set(pending(run))
            assert not list(tmp_path.rglob("*tmp*"))
    assert 100 < len(safe) < len(ids)  # killed at work, neither before nor after
    with RunFolder.open(tmp_path) as run:
        for id in pending(run):
            run.append(result(id))
    check(tmp_path, ids)


KILLED_BEFORE_EVERY_CHANGE = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow as pa
from adg_plugin.store import RunFolder
from store_rows import result, staged, to_table

def work(folder):
    with RunFolder.open(folder, rows_per_part=3) as run:
        for n in range(12, 18):
            run.append(result(f"row-{n:04d}"))
        run.compact()
        run.append(result("row-0018"))
        run.compact()
        run.stage_prompts([staged(f"row-{n:04d}") for n in range(20)], digest="new")
        run.write_scores(pa.table({"id": ["a"]}))
        run.write_selected(["row-0001"])
        run.write_manifest({})

def die_before(number):
    changes = 0
    def hook(event, args):
        nonlocal changes
        if event in ("os.rename", "os.remove") or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

to_table([result("the first conversion loads pandas")])
start, number = Path(sys.argv[1]), 0
while True:
    number += 1
    folder = start.with_name(f"killed-{number}")
    shutil.copytree(start, folder)
    pid = os.fork()
    if pid == 0:
        die_before(number)
        work(folder)
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
print(number)
"""


@pytest.mark.slow
def test_killed_before_each_single_change_of_a_file(tmp_path: Path):
    start = tmp_path / "start"
    stage(start, IDS[:20])
    for first in range(0, 12, 2):
        write(start, IDS[first : first + 2])
    moments = int(run_child(str(start), code=KILLED_BEFORE_EVERY_CHANGE))
    assert moments > 30
    complete = []
    for number in range(1, moments + 1):
        path = tmp_path / f"killed-{number}"
        complete.append(RunFolder.read(path).manifest() is not None)
        with RunFolder.open(path) as run:
            assert run.damage == [], number
            if run.staged_digest() is None:  # between the pool and its seal
                run.stage_prompts([staged(id) for id in IDS[:20]], digest="d")
            left = pending(run)
            assert not set(left) & set(IDS[:12]), number
            for id in left:
                run.append(result(id))
        assert sorted(p.name for p in path.rglob("*tmp")) == []
        check(path, IDS[:20])
    assert complete == sorted(complete)  # once the manifest is there, nothing is left to do
    assert complete.index(True) > moments - 6


@pytest.mark.slow
def test_kill_9_while_staging_leaves_a_whole_pool_or_none(tmp_path: Path):
    moments = random.Random(1)
    seen = set()
    for _ in range(6):
        kill_at_work(tmp_path, "stage", moments.uniform(0.01, 0.3))
        with RunFolder.open(tmp_path) as run:
            seen.add(run.staged_digest())
            if run.staged_digest() is not None:
                assert pending(run) == [f"{run.staged_digest()}-{n}" for n in range(300)]
    assert seen - {None}
