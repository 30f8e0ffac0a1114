"""Results of the downstream benchmark -> means, deviations and paired intervals against random, or another method.

python benchmarks/downstream_table.py benchmarks/results/downstream*.jsonl
python benchmarks/downstream_table.py benchmarks/results/downstream*.jsonl --against adg-raw
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student

Floats = npt.NDArray[np.float64]
REFERENCE = "random"
UNTRAINED = "untrained"
_DRAWS = 10_000
_POWER = 0.8


def compared(results: Sequence[dict[str, Any]], reference: str = REFERENCE) -> dict[str, Any]:
    """Return, for each measure and method: mean and deviation over seeds, and the difference from the reference.

    `difference` has a 95 % interval of a bootstrap that draws seeds and evaluation rows again, the same of both.
    `between_seeds` is the interval of the paired differences of the seeds alone (Student's t), which also covers what
    few seeds cannot show; `detectable` is the difference that it would find with a power of 80 %.
    """
    table: dict[str, Any] = {}
    for measure, of in _measures(results).items():
        rows = {}
        for method, seeds in of.items():
            values = np.array([_mean(each) for each in seeds.values()])
            about = {"seeds": len(values), "mean": values.mean(), "sd": values.std(ddof=1) if len(values) > 1 else None}
            common = sorted(set(seeds) & set(of.get(reference, {})))
            if method not in (reference, UNTRAINED) and common:
                pairs = [(seeds[seed], of[reference][seed]) for seed in common]
                about |= _difference(pairs)
            rows[method] = {key: _rounded(value) for key, value in about.items()}
        table[measure] = rows
    return table


def _measures(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[int, Floats]]]:
    """Return (2, N) numerators and denominators of each evaluation row, by measure, method and seed."""
    found: dict[str, dict[str, dict[int, Floats]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        for name, loss in result.get("loss", {}).items():
            found[f"loss {name}"][result["method"]][result["seed"]] = np.array([loss["nats"], loss["tokens"]], float)
        for name, right in result.get("tasks", {}).items():
            values = np.array([right, np.ones(len(right))], float)
            found[f"accuracy {name}"][result["method"]][result["seed"]] = values
    return found


def _mean(rows: Floats) -> float:
    return float(rows[0].sum() / rows[1].sum())


def _difference(pairs: Sequence[tuple[Floats, Floats]]) -> dict[str, Any]:
    each = np.array([_mean(one) - _mean(other) for one, other in pairs])
    found: dict[str, Any] = {"difference": each.mean(), "paired_seeds": len(each)}
    rng = np.random.default_rng(0)
    ours, theirs = (np.stack([pair[side] for pair in pairs]) for side in (0, 1))  # (S, 2, N)
    seeds = rng.integers(0, len(pairs), (_DRAWS, len(pairs)))
    drawn = np.empty(_DRAWS)
    rows = ours.shape[2]
    for draw in range(_DRAWS):
        counts = np.bincount(rng.integers(0, rows, rows), minlength=rows)
        sums = [(of[seeds[draw]] @ counts) for of in (ours, theirs)]  # (S, 2) each
        drawn[draw] = (sums[0][:, 0] / sums[0][:, 1] - sums[1][:, 0] / sums[1][:, 1]).mean()
    found["interval"] = [float(value) for value in np.percentile(drawn, (2.5, 97.5))]
    if len(each) > 1:
        freedom, error = len(each) - 1, each.std(ddof=1) / np.sqrt(len(each))
        reach = student.ppf(0.975, freedom)
        found["between_seeds"] = [float(each.mean() - reach * error), float(each.mean() + reach * error)]
        found["detectable"] = float((reach + student.ppf(_POWER, freedom)) * error)
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(float(value), 4) if isinstance(value, float | np.floating) else value


def print_table(table: dict[str, Any], reference: str = REFERENCE) -> None:
    """Print the table as Markdown on stdout."""
    for measure, rows in table.items():
        lower = measure.startswith("loss")
        print(f"\n### {measure} ({'lower' if lower else 'higher'} is better)\n")
        intervals = f"difference from {reference} | bootstrap 95 % | between seeds 95 % | detectable"
        print(f"| method | seeds | mean | sd | {intervals} |")
        print("|---|---|---|---|---|---|---|---|")
        for method, about in sorted(rows.items(), key=lambda row: row[1]["mean"] if lower else -row[1]["mean"]):
            cells = [method, str(about["seeds"]), f"{about['mean']:.4f}", _cell(about.get("sd"))]
            cells += [_cell(about.get(name), "+.4f") for name in ("difference", "interval", "between_seeds")]
            print(f"| {' | '.join([*cells, _cell(about.get('detectable'))])} |")


def _cell(value: Any, form: str = ".4f") -> str:
    if value is None:
        return ""
    return " to ".join(format(one, form) for one in value) if isinstance(value, list) else format(value, form)


def main() -> None:
    """Print the table of files of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--against", default=REFERENCE, metavar="METHOD", help="what the others are compared with")
    args = parser.parse_args()
    lines = [json.loads(line) for file in args.files for line in file.read_text(encoding="utf-8").splitlines()]
    if args.against not in {line["method"] for line in lines}:
        parser.error(f"--against is {args.against!r}: use one of {', '.join(sorted({x['method'] for x in lines}))}")
    print_table(compared(lines, args.against), args.against)


if __name__ == "__main__":
    main()
