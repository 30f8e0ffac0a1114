"""The run folder on a full disk, behind a file, and with a large pool."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from store_rows import IDS, check, child, pending, result, run_child, stage, staged

from adg_plugin.errors import StoreError
from adg_plugin.store import RunFolder

LIMITED = """
import resource, sys
from adg_plugin.errors import StoreError
from adg_plugin.store import RunFolder
from store_rows import result
ids = sys.argv[2].split()
with RunFolder.open(sys.argv[1], rows_per_part=20) as run:
    for id in ids[:40]:
        run.append(result(id))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        for id in ids[40:]:
            run.append(result(id))
    except StoreError as err:
        print(err)
        raise
"""


def test_a_file_that_cannot_grow_is_an_error_and_nothing_before_is_lost(tmp_path: Path):
    stage(tmp_path, IDS[:60])
    writer = child(str(tmp_path), " ".join(IDS[:60]), code=LIMITED)
    out, err = writer.communicate(timeout=60)
    assert writer.returncode == 1
    assert out.startswith(f"cannot write {tmp_path}/answers/part-000002-")
    said = "File too large. Nothing written before is lost: free some space and run the same command again\n"
    assert out.endswith(said)
    assert "During handling" not in err  # leaving the folder tried again, and kept quiet about it
    with RunFolder.open(tmp_path) as run:
        assert pending(run) == IDS[40:60]
        assert not list(tmp_path.rglob("*adg-tmp"))


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


def append_all(run: RunFolder, ids: list[str]) -> None:
    for id in ids:
        run.append(result(id))


def test_a_full_disk_is_an_error_and_work_goes_on_when_there_is_space(small_disk: Path):
    path, filler = small_disk / "run", small_disk / "filler"
    stage(path, IDS)
    with RunFolder.open(path, rows_per_part=20) as run:
        for id in IDS[:100]:
            run.append(result(id))
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        said = r"cannot write .*/answers/part-000005.*: No space left on device\. Nothing written before is lost: free"
        with pytest.raises(StoreError, match=said):
            append_all(run, IDS[100:])
        for work in (
            lambda: run.stage_prompts([staged(id) for id in IDS[:50]], digest="new"),
            lambda: run.write_rejected([]) or run.write_config({"x": "y" * 5000}),
            lambda: run.write_selected(IDS[:50]),
        ):
            with pytest.raises(StoreError, match="No space left on device"):
                work()
        assert run.staged_digest() == "d"
        filler.unlink()
        for id in pending(run):
            run.append(result(id))
    check(path, IDS)


def test_a_path_through_a_file_is_an_error_that_names_it(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            StoreError, match=f"cannot write {path}: .*a part of the path is a file; give another --out"
        ):
            RunFolder.open(path)
    stage(tmp_path / "run", IDS[:5])
    shutil.rmtree(tmp_path / "run" / "answers")
    (tmp_path / "run" / "answers").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*run/answers: File exists"):
        RunFolder.open(tmp_path / "run")


FILL = """
import sys
import numpy as np, pyarrow as pa
from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.parts import SCHEMA, write_part
from adg_plugin.store.records import Prompt
from store_rows import key_of
path, rows, width = sys.argv[1], int(sys.argv[2]), 512
ids = [f"row-{n * 7919 % rows:07d}" for n in range(rows)]  # 7919 is prime: every row once, in no order

def lists(values, type):
    size = values.size // len(values)
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1) * size, pa.int32()), values.ravel(), type=type)

def staged(id):
    return StagedRow(Prompt(id, np.arange(200, dtype=np.int32), (1, 9), key_of(id)), id * 50, id * 50, "{}", id)

with RunFolder.open(path) as run:
    run.stage_prompts((staged(id) for id in ids), digest="d")
    print(peak_bytes())
    for start in range(0, rows, 1000):
        some = ids[start : start + 1000]
        vectors = np.zeros((len(some), width), np.float16)
        vectors[:, 0] = [int(id[4:]) % 1000 for id in some]
        columns = {
            "id": some,
            "key": [key_of(id) for id in some],
            "answers": [[]] * len(some),
            "gram": lists(np.zeros((len(some), 25), np.float32), SCHEMA.field("gram").type),
            "prompt_vector": lists(vectors, SCHEMA.field("prompt_vector").type),
            "vectors": pa.nulls(len(some), SCHEMA.field("vectors").type),
            "num_tokens": [7] * len(some),
            "agreement": [None] * len(some),
            "reason": pa.nulls(len(some), pa.string()),
        }
        write_part(run.path / "answers", start // 1000, pa.table(columns, schema=SCHEMA))
"""

USE = """
import sys
import numpy as np
from adg_plugin.store import RunFolder
with RunFolder.open(sys.argv[1]) as run:
    assert sum(len(window) for window in run.iter_windows(pending_only=False)) == run.counts().completed
    geometry = run.geometry()
    run.write_selected(list(geometry.ids[::-1]))
    assert (geometry.prompt_vectors[:, 0] == np.arange(len(geometry)) % 1000).all()
    print(peak_bytes())
"""

# Not ru_maxrss: a child inherits its parent's.
PEAK = """
def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
def test_memory_is_ids_and_matrices(tmp_path: Path):
    peaks = {}
    for rows in (5_000, 50_000):
        path = tmp_path / str(rows)
        staging = int(run_child(str(path), str(rows), code=PEAK + FILL))
        peaks[rows] = staging, int(run_child(str(path), code=PEAK + USE))
        shutil.rmtree(path)
    staging, using = (np.array(peaks[50_000]) - peaks[5_000]) / 45_000  # bytes per row
    matrices = 512 * 2 + 25 * 4
    assert staging < 200  # the prompts' texts alone are 2,000
    assert using < matrices + 800  # a second copy of the vectors would be 1,000 more
