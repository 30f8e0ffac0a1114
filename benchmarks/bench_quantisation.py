"""How far a 4-bit backbone's scores and choice agree with those in bfloat16.

    python benchmarks/bench_quantisation.py [--rows 96] [--max-new-tokens 48]

The demo model on the first rows of a pool, in bfloat16, again in bfloat16 under another seed (what sampling alone
changes), and in nf4. The last line is JSON: rank correlation of dispersion, anisotropy and score, and the share of the
best quarter that both choose.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

import adg_plugin
from adg_plugin.config.schema import DatasetSpec
from adg_plugin.data.sources import iter_records
from adg_plugin.demo import pool_paths
from adg_plugin.store import RunFolder

SHARED_POOL = Path(__file__).parents[2] / "shared" / "data" / "pool.jsonl"
VARIANTS = {
    "bfloat16": {"dtype": "bfloat16"},
    "other_seed": {"dtype": "bfloat16", "seed": 1},
    "nf4": {"load_in_4bit": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args()
    pool = SHARED_POOL if SHARED_POOL.exists() else pool_paths()[-1]
    rows = [r.data for r in islice(iter_records([DatasetSpec(path=str(pool))]), args.rows)]
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in VARIANTS.items():
            config = {"model": "demo", "budget": 0.25, "max_new_tokens": args.max_new_tokens, **settings}
            run = adg_plugin.select(rows, config=config, output_dir=Path(folder) / name)
            tables[name] = RunFolder.read(run.run_dir).scores().to_pydict()
    report: dict[str, object] = {"rows": args.rows, "max_new_tokens": args.max_new_tokens}
    base = tables["bfloat16"]
    for name in ("other_seed", "nf4"):
        other = tables[name]
        _, left, right = np.intersect1d(base["id"], other["id"], return_indices=True)
        both = {part: (np.array(base[part])[left], np.array(other[part])[right]) for part in base if part != "id"}
        chosen = [set(np.array(t["id"])[np.array(t["chosen"])]) for t in (base, other)]
        report[name] = {
            **{p: round(float(spearmanr(*both[p]).statistic), 3) for p in ("dispersion", "anisotropy", "score")},
            "overlap": round(len(chosen[0] & chosen[1]) / len(chosen[0]), 3),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
