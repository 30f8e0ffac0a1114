"""Rows and results whose contents follow from their id, and child processes that write them."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from paths import HELPERS, ROOT

from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.parts import to_table
from adg_plugin.store.records import Answer, Prompt, RowResult

WIDTH = 8
IDS = [f"row-{n:04d}" for n in range(900)]


def key_of(id: str, settings: str = "") -> bytes:
    return hashlib.blake2b((id + settings).encode(), digest_size=16).digest()


def stream(id: str) -> np.random.Generator:
    return np.random.default_rng(list(id.encode()))


def staged(id: str, *, settings: str = "", data: str = '{"instruction": "do it"}', text: str = "rendered") -> StagedRow:
    tokens = stream(id).integers(0, 50_000, size=3 + len(id)).astype(np.int32)
    return StagedRow(Prompt(id, tokens, (1, len(tokens) - 1), key_of(id, settings)), text, "reference", data, f"f:{id}")


def result(id: str, *, settings: str = "", num_answers: int = 3, reason: str | None = None) -> RowResult:
    random = stream(id + settings)
    answers = tuple(
        Answer(
            random.integers(0, 50_000, size=k + 1).astype(np.int32), f"answer {k} of {id} é", "eos" if k else "length"
        )
        for k in range(num_answers)
    )
    if reason is not None:
        return RowResult(id, key_of(id, settings), (), None, None, reason)
    vectors = random.standard_normal((num_answers, WIDTH)).astype(np.float16)
    gram = (vectors.astype(np.float32) @ vectors.T.astype(np.float32)).astype(np.float32)
    prompt_vector = random.standard_normal(WIDTH).astype(np.float16)
    return RowResult(id, key_of(id, settings), answers, gram, prompt_vector, None, vectors)


def assert_same(got: RowResult, want: RowResult) -> None:
    assert (got.id, got.key, got.reason, got.num_tokens) == (want.id, want.key, want.reason, want.num_tokens)
    assert [(a.text, a.finish_reason) for a in got.answers] == [(a.text, a.finish_reason) for a in want.answers]
    for a, b in zip(got.answers, want.answers, strict=True):
        assert a.token_ids.dtype == np.int32
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
    for name in ("gram", "prompt_vector", "vectors"):
        a, b = getattr(got, name), getattr(want, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            np.testing.assert_array_equal(a, b)


def stage(path: Path, ids: list[str]) -> None:
    with RunFolder.open(path) as run:
        run.stage_prompts([staged(id) for id in ids], digest="d")


def write(path: Path, ids: list[str], rows_per_part: int = 5) -> list[Path]:
    """Write results and return the parts, oldest first."""
    with RunFolder.open(path, rows_per_part=rows_per_part) as run:
        for id in ids:
            run.append(result(id))
    return parts(path)


def parts(path: Path) -> list[Path]:
    return sorted((path / "answers").glob("part-*.parquet"))


def pending(run: RunFolder) -> list[str]:
    return [prompt.id for window in run.iter_windows() for prompt in window]


def check(path: Path, ids: list[str]) -> None:
    """Every row is there once, with its own contents, also in the matrices."""
    run = RunFolder.read(path)
    assert run.damage == []
    got = list(run.results())
    assert sorted(r.id for r in got) == sorted(ids)
    for row in got:
        assert_same(row, result(row.id))
    geometry = run.geometry()
    assert list(geometry.ids) == sorted(ids)
    np.testing.assert_array_equal(geometry.prompt_vectors, [result(id).prompt_vector for id in sorted(ids)])
    np.testing.assert_array_equal(geometry.grams[0].grams, [result(id).gram for id in sorted(ids)])


def child(*arguments: str, code: str | None = None) -> subprocess.Popen[str]:
    """Start this file, or `code`, in a process of its own."""
    command = [sys.executable, "-c", code] if code is not None else [sys.executable, __file__]
    path = os.pathsep.join([str(ROOT), str(HELPERS)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *arguments], stdout=pipe, stderr=pipe, text=True, env=environment)


def run_child(*arguments: str, code: str | None = None) -> str:
    process = child(*arguments, code=code)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def append_slowly(folder: str) -> None:
    """Work like a selection that never ends: small parts, merged often; print the ids that are safe."""
    with RunFolder.open(folder, rows_per_part=50) as run:
        since_merge = 0
        for window in run.iter_windows():
            for start in range(0, len(window), 3):
                few = window[start : start + 3]
                for prompt in few:
                    run.append(result(prompt.id))
                run.flush()
                print(*(prompt.id for prompt in few), flush=True)
                since_merge += 1
                if since_merge == 5:
                    run.compact()
                    since_merge = 0


def stage_forever(folder: str) -> None:
    """Stage one pool after another; each names itself in its ids."""
    with RunFolder.open(folder) as run:
        for pool in itertools.count():
            run.stage_prompts((staged(f"{pool}-{n}") for n in range(300)), digest=str(pool))


if __name__ == "__main__":
    to_table([result("the first conversion loads pandas")])
    print("ready", flush=True)
    {"append": append_slowly, "stage": stage_forever}[sys.argv[2]](sys.argv[1])
