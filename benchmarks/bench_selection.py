"""Seconds and peak memory from a run folder's answers to the chosen rows, on synthetic answers.

    python benchmarks/bench_selection.py --rows 1000000 --width 576
    python benchmarks/bench_selection.py --rows 52000 --width 4096 --bins 1000

A child process writes a run folder in the temporary folder (TMPDIR; rows * width * 2 bytes and a little more), so that
its memory does not count. Its parts hold Gram matrices and prompt vectors but no answers: hashing and skipping those
comes on top in a real run. Prompt vectors are a mixture of Gaussians around a common direction, as real ones are.
Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from adg_plugin.scoring.bins import assign_bins
from adg_plugin.scoring.geometry import combine, parts
from adg_plugin.scoring.quota import choose, resolve_budget
from adg_plugin.store import Geometry, RunFolder, StagedRow
from adg_plugin.store.names import ANSWERS
from adg_plugin.store.parts import SCHEMA, write_part
from adg_plugin.store.records import Prompt

Vectors = npt.NDArray[np.float32]

ROWS_PER_PART = 2048  # what the store merges small parts to
NUM_ANSWERS = 5
ANSWER_WIDTH = 32
NUM_TOPICS = 2000
WEIGHT = 0.4


def main() -> None:
    """Measure, or write the run folder when called by itself for that."""
    args = _arguments()
    if args.write is not None:
        write_run_folder(args.write, args.rows, args.width, args.seed)
        return
    with tempfile.TemporaryDirectory(prefix="bench-selection-") as name:
        print(f"writing {args.rows} rows of width {args.width} to {name}", file=sys.stderr)
        size = ["--rows", str(args.rows), "--width", str(args.width), "--seed", str(args.seed)]
        subprocess.run([sys.executable, __file__, "--write", name, *size], check=True)
        print(json.dumps(measure(Path(name), args.bins, args.budget, args.seed)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--width", type=int, required=True, help="of the prompt vectors")
    parser.add_argument("--bins", type=int, help="default: as the package chooses")
    parser.add_argument("--budget", type=int, help="rows; default: a fifth, at most 10000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="only write the run folder")
    return parser.parse_args()


def measure(folder: Path, bins: int | None, budget: int | None, seed: int) -> dict[str, object]:
    """Return seconds per stage and the peak memory of this process, from the run folder to the choice."""
    stages: dict[str, float] = {}
    with _timed(stages, "verify"):
        reader = RunFolder.read(folder)
        assert not reader.damage
    with _timed(stages, "read"):
        pool = reader.geometry()
    with _timed(stages, "geometry"):
        scores = _scores(pool)
    with _timed(stages, "bins"):
        labels = assign_bins(pool.prompt_vectors, bins, seed)
    with _timed(stages, "selection"):
        wanted, _ = resolve_budget(min(10_000, len(pool) // 5) if budget is None else budget, len(pool), len(pool))
        choice = choose(pool.ids, scores, labels, wanted)
    assert choice.chosen.sum() == wanted
    return {
        "rows": len(pool),
        "width": pool.prompt_vectors.shape[1],
        "bins": int(labels.max()) + 1,
        "budget": wanted,
        "seconds": round(sum(stages.values()), 2),
        "peak_gib": round(_peak_gib(), 3),
        "stages": {name: round(seconds, 2) for name, seconds in stages.items()},
    }


def _scores(pool: Geometry) -> npt.NDArray[np.float64]:
    dispersion, anisotropy = np.empty(len(pool)), np.empty(len(pool))
    for group in pool.grams:
        of_group = parts(group.grams)
        dispersion[group.rows], anisotropy[group.rows] = of_group.dispersion, of_group.anisotropy
    return combine(dispersion, anisotropy, "raw", WEIGHT)


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    stages[name] = time.perf_counter() - start
    print(f"{name}: {stages[name]:.1f} s, peak {_peak_gib():.2f} GiB so far", file=sys.stderr)


def _peak_gib() -> float:
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes / 2**30


def write_run_folder(folder: Path, rows: int, width: int, seed: int) -> None:
    """Write a run folder whose pool is answered: `rows` prompts in an order that is not that of their ids."""
    rng = np.random.default_rng(seed)
    ids = [f"row-{number:08x}" for number in rng.permutation(rows)]
    with RunFolder.open(folder) as run:
        run.stage_prompts((_staged(name) for name in ids), digest="synthetic")
    topics = rng.standard_normal((NUM_TOPICS, width), dtype=np.float32)
    shares = rng.dirichlet(np.ones(NUM_TOPICS))
    for sequence, start in enumerate(range(0, rows, ROWS_PER_PART)):
        of_part = ids[start : start + ROWS_PER_PART]
        topic = rng.choice(NUM_TOPICS, len(of_part), p=shares)
        noise = rng.standard_normal((len(of_part), width), dtype=np.float32)
        vectors = _unit(3.0 + topics[topic] + noise)
        write_part(folder / ANSWERS, sequence, _table(of_part, _grams(rng, len(of_part)), vectors))


def _staged(name: str) -> StagedRow:
    prompt = Prompt(name, np.zeros(1, np.int32), (0, 1), _key(name))
    return StagedRow(prompt, text="", reference="", data="{}", where="synthetic")


def _key(name: str) -> bytes:
    return name.encode().ljust(16, b"-")


def _grams(rng: np.random.Generator, rows: int) -> Vectors:
    common = rng.standard_normal((rows, 1, ANSWER_WIDTH), dtype=np.float32)
    own = rng.standard_normal((rows, NUM_ANSWERS, ANSWER_WIDTH), dtype=np.float32)
    answers = _unit(common + rng.uniform(0.1, 1.0, (rows, 1, 1)).astype(np.float32) * own)
    return answers @ answers.transpose(0, 2, 1)


def _unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def _table(ids: list[str], grams: Vectors, vectors: Vectors) -> pa.Table:
    rows = len(ids)
    columns = {
        "id": pa.array(ids),
        "key": pa.array([_key(name) for name in ids], pa.binary(16)),
        "gram": _lists(grams.reshape(rows, -1)),
        "prompt_vector": _lists(vectors.astype(np.float16)),
        "num_tokens": pa.array(np.zeros(rows, np.int32)),
    }
    return pa.table({f.name: columns.get(f.name, pa.nulls(rows, f.type)) for f in SCHEMA}).cast(SCHEMA)


def _lists(values: npt.NDArray[np.floating]) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, values.ravel())


if __name__ == "__main__":
    main()
