"""Rows per second of one process, two ranks, and Ray's workers, in turns in one run, on one machine.

    python benchmarks/bench_scaling.py [--rows 96] [--rounds 2]

Demo model in bfloat16, K=5, `--max-new-tokens` 32. All sides get one thread per process, so that two processes have
twice what one has; one process with both threads is there for comparison. What is timed is the sampling of a run
(`manifest.json`, sampling.seconds: loading the model counts for Ray, whose workers load it, and is given apart). The
last line is JSON; `ray_overhead_ms_per_row` is Ray with one worker against one process, the workers' loading left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import yaml

from adg_plugin.demo import pool_paths

SHARED_POOL = Path(__file__).parents[2] / "shared" / "data" / "pool.jsonl"


def timed(folder: Path, name: str, config: Path, *, ranks: int = 1, threads: int = 1, **settings: object) -> float:
    """Return the seconds that sampling took."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    flags = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run = folder / f"{name}-{time.monotonic_ns()}"
    command = [sys.executable, *launcher, "-m", "adg_plugin", "select", str(config), "--out", str(run), "-q", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(json.loads((run / "manifest.json").read_text())["sampling"]["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pool = SHARED_POOL if SHARED_POOL.exists() else pool_paths()[-1]
        lines = pool.read_text(encoding="utf-8").splitlines()

        def config(rows: int) -> Path:
            (folder / f"{rows}.jsonl").write_text("\n".join(lines[:rows]) + "\n")
            path = folder / f"{rows}.yaml"
            path.write_text(yaml.safe_dump({
                "model": "demo", "dtype": "bfloat16", "datasets": [str(folder / f"{rows}.jsonl")], "budget": 4,
                "max_new_tokens": args.max_new_tokens,
            }))  # fmt: skip
            return path

        many, few = config(args.rows), config(args.rows // 4)
        one_worker = {"executor": "ray", "ray_max_workers": 1, "ray_block_rows": args.rows}
        sides = {
            "one": lambda: timed(folder, "one", many),
            "one_both_threads": lambda: timed(folder, "both", many, threads=2),
            "two_ranks": lambda: timed(folder, "two", many, ranks=2),
            "ray_one_worker": lambda: timed(folder, "ray", many, **one_worker),
            "ray_one_worker_few": lambda: timed(folder, "ray-few", few, **one_worker),
            "one_few": lambda: timed(folder, "few", few),
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(args.rounds):
            for side, run in sides.items():
                seconds[side].append(run())
            print(f"round {turn + 1}: " + ", ".join(f"{side} {times[-1]:.1f} s" for side, times in seconds.items()))
        took = {side: median(times) for side, times in seconds.items()}
        fresh = args.rows - args.rows // 4
        slopes = {s: (took[s] - took[f"{s}_few"]) / fresh for s in ("one", "ray_one_worker")}
        report = {
            "rows": args.rows,
            "rows_per_s": {s: round(args.rows / t, 2) for s, t in took.items() if not s.endswith("_few")},
            "speed_up_of_two_ranks": round(took["one"] / took["two_ranks"], 2),
            "ray_start_s": round(took["ray_one_worker"] - took["one"], 1),
            "ray_overhead_ms_per_row": round(1000 * (slopes["ray_one_worker"] - slopes["one"]), 1),
            "ray_per_row_ratio": round(slopes["ray_one_worker"] / slopes["one"], 3),
        }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
