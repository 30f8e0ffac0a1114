"""How near `adg estimate` comes to the time that the selection then takes.

    python benchmarks/bench_estimate.py
    python benchmarks/bench_estimate.py --config recipes/demo.yaml --rounds 3

Each round estimates, selects and estimates again, each time with the real commands in a run folder of its own, so that
a machine that gets slower or faster meanwhile shows as a difference of the two estimates. About five minutes a round on
two cores. Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Measure and print the ratios of estimated and real time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "recipes" / "demo.yaml")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    rounds = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory(prefix="bench-estimate-") as folder:
            rounds.append(measure(arguments.config, Path(folder)))
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    ratios = [one["ratio"] for one in rounds]
    result = {
        "config": arguments.config.name,
        "ratio": round(statistics.median(ratios), 3),
        "range": [min(ratios), max(ratios)],
        "inside_interval": sum(one["inside_interval"] for one in rounds),
        "rounds": rounds,
    }
    print(json.dumps(result))


def measure(config: Path, folder: Path) -> dict[str, object]:
    """Return estimated and real seconds of one selection."""
    before = estimated(config, folder / "before")
    command("select", str(config), "--out", str(folder / "real"), "--quiet")
    real = json.loads((folder / "real" / "manifest.json").read_text(encoding="utf-8"))["seconds"]
    after = estimated(config, folder / "after")
    total = (before["total_s"] + after["total_s"]) / 2
    low, high = min(before["low_s"], after["low_s"]), max(before["high_s"], after["high_s"])
    return {
        "estimated_s": round(total, 1),
        "of_both": [round(one["total_s"], 1) for one in (before, after)],
        "real_s": round(real, 1),
        "ratio": round(total / real, 3),
        "inside_interval": low <= real <= high,
    }


def estimated(config: Path, folder: Path) -> dict[str, float]:
    """Return what `adg estimate` says of an empty run folder."""
    return json.loads(command("estimate", str(config), "--out", str(folder), "--json", "--quiet"))


def command(*arguments: str) -> str:
    """Return what the `adg` command prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-m", "adg_plugin", *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return process.stdout


if __name__ == "__main__":
    main()
