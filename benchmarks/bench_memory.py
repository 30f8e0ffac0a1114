"""Peak memory of `adg select` at two sizes of pool: it must not grow beyond ids and prompt vectors.

    python benchmarks/bench_memory.py
    python benchmarks/bench_memory.py --rows 1000 4000 16000

Each size is one run of the real command with the demo model and `max_new_tokens: 1`, in a process of its own; peak
memory is what the system counted for that process (ru_maxrss). Pools repeat the same rows, each time with another
number in front, so that a larger pool is longer but no different: ../shared/data/pool.jsonl, or the demo pool where
that is absent. About 0.1 s per row on two cores. Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED_POOL = ROOT.parent / "shared" / "data" / "pool.jsonl"
DEMO_POOL = ROOT / "adg_plugin" / "demo" / "pool.jsonl"
BASE_ROWS = 200  # repeated, so that all pools are alike
PROMPT_WIDTH = 576  # of the demo model; two bytes each


def main() -> None:
    """Measure each size and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000])
    sizes = sorted(parser.parse_args().rows)
    source = SHARED_POOL if SHARED_POOL.exists() else DEMO_POOL
    base = list(islice(_rows(source), BASE_ROWS))
    peaks, seconds, per_row = [], [], []
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as folder:
        for size in sizes:
            peak_bytes, took_s, row_s = measure(Path(folder) / str(size), base, size)
            print(f"{size} rows: {peak_bytes / 2**20:.0f} MiB, {took_s:.0f} s", file=sys.stderr)
            peaks.append(peak_bytes)
            seconds.append(round(took_s, 1))
            per_row.append(row_s)
    result = {
        "pool": source.name if source == DEMO_POOL else "shared",
        "rows": sizes,
        "peak_mib": [round(peak / 2**20, 1) for peak in peaks],
        "seconds": seconds,
        "sampling_ms_per_row": [round(1000 * row_s, 2) for row_s in per_row],
        "cost_ratio": round(per_row[-1] / per_row[0], 3),
        "bytes_per_row": round((peaks[-1] - peaks[0]) / max(1, sizes[-1] - sizes[0])),
        "prompt_vector_bytes": 2 * PROMPT_WIDTH,
    }
    print(json.dumps(result))


def _rows(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if isinstance(row.get("instruction"), str) and row["instruction"].strip():
                yield {"instruction": row["instruction"], "input": row.get("input") or ""}


def measure(folder: Path, base: list[dict[str, object]], size: int) -> tuple[int, float, float]:
    """Return peak bytes, seconds, and seconds of sampling per row of a selection of a tenth of `size` rows."""
    folder.mkdir()
    with (folder / "pool.jsonl").open("w", encoding="utf-8") as file:
        for number, row in zip(range(size), _repeated(base), strict=False):
            # As wide for every number: a longer prompt would be another workload.
            file.write(json.dumps({"id": f"{number:06d}", **row, "instruction": _numbered(number, row)}) + "\n")
    settings = {"model": "demo", "datasets": [str(folder / "pool.jsonl")], "budget": size // 10, "max_new_tokens": 1}
    (folder / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    run = folder / "run"
    arguments = [sys.executable, "-c", "from adg_plugin.cli import main; main()"]
    arguments += ["select", str(folder / "run.yaml"), "--out", str(run)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    process = os.spawnve(os.P_NOWAIT, sys.executable, arguments, environment)
    _, status, usage = os.wait4(process, 0)
    took_s = time.monotonic() - began
    assert os.waitstatus_to_exitcode(status) == 0, "adg select failed"
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["rows"]["selected"] == size // 10, manifest["rows"]
    assert manifest["sampling"]["rows"] == manifest["rows"]["pool"] - sum(manifest["rows"]["rejected"].values())
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    sampling = manifest["sampling"]
    return usage.ru_maxrss * unit_bytes, took_s, sampling["seconds"] / sampling["rows"]


def _repeated(base: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    return (base[number % len(base)] for number in count())


def _numbered(number: int, row: dict[str, object]) -> str:
    return f"({number:06d}) {row['instruction']}"


if __name__ == "__main__":
    main()
