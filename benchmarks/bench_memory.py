"""Peak memory and time of `adg select` as the pool grows.

    python benchmarks/bench_memory.py [--rows 1000 4000] [--max-new-tokens 1]

Each size runs in a process of its own, on rows of the shared pool (of the demo pool, varied by a number in front, where
that is absent). The last line is JSON: peak resident memory, seconds, and seconds of sampling per row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import cycle, islice
from pathlib import Path

from adg_plugin.config import DatasetSpec
from adg_plugin.demo import model_path, pool_paths
from adg_plugin.sources import iter_records

SHARED_POOL = Path(__file__).parents[2] / "shared" / "data" / "pool.jsonl"

CHILD = """
import json, resource, sys
import adg_plugin
pool, folder, tokens = sys.argv[1:]
config = {"budget": 0.1, "max_new_tokens": int(tokens)}
run = adg_plugin.select(pool, model="demo", config=config, output_dir=folder, show_progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
sampling = run.manifest["sampling"]
print(json.dumps({"peak_gib": round(peak, 3), "seconds": round(run.manifest["seconds"], 1),
                  "sampling_s_per_row": round(sampling["seconds"] / sampling["rows"], 5)}))
"""


def write_pool(path: Path, rows: int) -> None:
    shared = SHARED_POOL.exists()
    source = SHARED_POOL if shared else pool_paths()[-1]
    records = [r.data for r in iter_records([DatasetSpec(path=str(source))])]
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(islice(cycle(records), rows)):
            if number >= len(records) or not shared:
                row = {**row, "id": f"row-{number}", "instruction": f"({number}) {row['instruction']}"}
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--max-new-tokens", type=int, default=1)
    args = parser.parse_args()
    model_path()  # converted before anything is measured
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in args.rows:
            pool = Path(folder) / f"{rows}.jsonl"
            write_pool(pool, rows)
            command = [sys.executable, "-c", CHILD, str(pool), str(Path(folder) / str(rows)), str(args.max_new_tokens)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            report[rows] = json.loads(done.stdout.splitlines()[-1])
            print(rows, report[rows])
    print(json.dumps(report))


if __name__ == "__main__":
    main()
