"""What each setting decides: the choices of other settings on the stored answers of one finished run, as a table.

    adg select select.yaml --set num_samples=7 --out runs/seven
    OMP_NUM_THREADS=2 python benchmarks/bench_ablations.py runs/seven
    OMP_NUM_THREADS=2 python benchmarks/bench_ablations.py runs/seven --rows 300 --other runs/four-bit

Weights, forms of the score, K, bins and ends of the bins come from the stored Gram matrices; layers and pooling from
the stored answers, embedded again. `--other` compares with finished runs over the same pool, row by row: the same model
in 4-bit, or another model's choice. Beside what other draws share by themselves (`adg stability RUN_DIR`), a setting
that shares as much changes nothing. The table is Markdown on stdout, its last line JSON; progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import Pooling, ScoreForm, Subset
from adg_plugin.errors import ADGError
from adg_plugin.store import RunFolder
from adg_plugin.store.reader import finished
from adg_plugin.tools.sweep.choices import Scored, Similarity, chosen_rates, rank_correlation
from adg_plugin.tools.sweep.sweep import Sweep, sweep

_HEAD = ("r", "shared", "Jaccard", "chance", "r(s, D)", "r(s, I)", "D", "I", "tokens")
_OTHER_HEAD = ("rows in both", "r", "r of D", "r of I", "shared", "Jaccard", "chance")

_SHOWN = 60  # characters of an instruction


@dataclass(frozen=True)
class Other:
    """How another run's choice compares with the first's; correlations over the rows that both have scored."""

    run: str
    common_rows: int
    rank_correlation: float
    correlation_dispersion: float
    correlation_anisotropy: float
    shared: float
    jaccard: float
    shared_by_chance: float


def main() -> None:
    """Print the tables, and what they hold as JSON."""
    args = _arguments()
    began = time.monotonic()
    try:
        about, others = measure(args)
    except ADGError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    seconds = round(time.monotonic() - began, 1)
    result = {**about.summary(), "others": [vars(other) for other in others], "seconds": seconds}
    text = "\n".join(_markdown(args.run_dir, about, others))
    if args.out is not None:
        args.out.write_text(f"{text}\n\n```json\n{json.dumps(result)}\n```\n", encoding="utf-8")
    print(text)
    print(json.dumps(result))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument("--other", action="append", default=[], metavar="RUN_DIR", help="another run, same pool")
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 2, 4, 8], help="none: nothing is embedded again")
    parser.add_argument(
        "--pooling", nargs="*", choices=get_args(Pooling), default=["answer", "last_token", "skip_first", "surprisal"]
    )
    parser.add_argument("--rows", type=int, help="embed so many random rows, not all")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the tables there, too")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> tuple[Sweep, list[Other]]:
    """Return the sweep of the run and the comparisons with other runs."""
    run = RunFolder.read(args.run_dir)
    finished(run).refuse_other_methods("ablations compare choices of ADG; `adg compare` has the other methods")
    most = int(run.scores()["num_answers"].to_numpy().max())
    vary: dict[str, list[Any]] = {
        "weight": [0, 0.2, 0.4, 0.6, 0.8, 1],
        "score": list(get_args(ScoreForm)),
        "num_samples": list(range(3, most + 1, 2)),
        "bins": [1, None],
        "subset": list(get_args(Subset)),
        "layers": args.layers,
        "pooling": args.pooling,
    }
    others = [against(args.run_dir, other) for other in args.other]  # first: a wrong folder is told at once
    rows = args.rows if args.layers or args.pooling else None
    return sweep(args.run_dir, {key: values for key, values in vary.items() if values}, rows=rows), others


def against(run_dir: str, other_dir: str) -> Other:
    """Return how the choice of another finished run compares, by the ids of the rows.

    Raises:
        ADGError: one of them is no finished run.
        SystemExit: they share no scored row, or mean different rows by one id.
    """
    (one, ids), (other, other_ids) = (_made(folder) for folder in (run_dir, other_dir))
    common_ids, at, there = np.intersect1d(ids, other_ids, assume_unique=True, return_indices=True)
    if not len(at):
        sys.exit(f"error: {run_dir} and {other_dir} have no scored row in common: give two runs over one pool")
    _refuse_other_rows(run_dir, other_dir, set(common_ids.tolist()))
    rates = chosen_rates(one)[at], chosen_rates(other)[there]
    common = int((one.chosen[at] & other.chosen[there]).sum())
    chosen = int(one.chosen.sum()), int(other.chosen.sum())
    return Other(
        run=str(other_dir),
        common_rows=len(at),
        rank_correlation=rank_correlation(one.scores[at], other.scores[there]),
        correlation_dispersion=rank_correlation(one.dispersion[at], other.dispersion[there]),
        correlation_anisotropy=rank_correlation(one.anisotropy[at], other.anisotropy[there]),
        shared=common / min(chosen),
        jaccard=common / (sum(chosen) - common),
        shared_by_chance=float(np.sum(rates[0] * rates[1])) / min(chosen),
    )


def _refuse_other_rows(run_dir: str, other_dir: str, ids: set[str]) -> None:
    """Exit where one id stands for two instructions: a pool without ids of its own numbers its rows."""
    asked, also = (_instructions(folder, ids) for folder in (run_dir, other_dir))
    for id, instruction in asked.items():
        if also[id] != instruction:
            first, second = (repr(text[:_SHOWN]) for text in (instruction, also[id]))
            told = f"{first} in {run_dir} and {second} in {other_dir}"
            sys.exit(f"error: row {id!r} is {told}: give two runs over one pool")


def _instructions(run_dir: str, ids: set[str]) -> dict[str, str]:
    found = {}
    for table in RunFolder.read(run_dir).staged_columns(["id", "instruction"]):
        found |= {row["id"]: row["instruction"] for row in table.to_pylist() if row["id"] in ids}
    return found


def _made(run_dir: str) -> tuple[Scored, npt.NDArray[np.str_]]:
    run = RunFolder.read(run_dir)
    finished(run).refuse_other_methods("ablations compare choices of ADG; `adg compare` has the other methods")
    table = run.scores()
    dispersion, anisotropy, score, bins = (
        table[name].to_numpy() for name in ("dispersion", "anisotropy", "score", "bin")
    )
    chosen = table["chosen"].to_numpy(zero_copy_only=False)
    return Scored(dispersion, anisotropy, score, bins, chosen), table["id"].to_numpy().astype(str)


def _markdown(run_dir: str, about: Sweep, others: list[Other]) -> list[str]:
    own = ", ".join(f"{key} {'default' if value is None else value}" for key, value in about.settings.items())
    lines = [f"`{run_dir}`: {about.rows:,} rows, {about.run.chosen:,} chosen; {own}", ""]
    lines += [_row("setting", *_HEAD), _row(*["---"] * (len(_HEAD) + 1)), _row("the run", *_numbers(about.run))]
    lines += [_row(_named(line.name, line.own), *_numbers(line.found)) for line in about.lines]
    if about.part is not None:
        title = f"embedded again: {about.part.rows:,} rows, {about.part.chosen:,} chosen"
        lines += ["", title, "", _row("setting", *_HEAD), _row(*["---"] * (len(_HEAD) + 1))]
        lines += [_row("the run", *_numbers(about.part))]
        lines += [_row(_named(line.name, line.own), *_numbers(line.found)) for line in about.part_lines]
    if others:
        lines += ["", _row("other run", *_OTHER_HEAD), _row(*["---"] * (len(_OTHER_HEAD) + 1))]
        lines += [_row(f"`{other.run}`", *_other_numbers(other)) for other in others]
    return [*lines, "", *(f"- {note}" for note in about.notes)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _named(name: str, own: bool) -> str:
    return f"{name} (the run's)" if own else name


def _numbers(of: Similarity) -> tuple[str, ...]:
    ranks = of.correlation_dispersion, of.correlation_anisotropy
    return (
        f"{of.rank_correlation:.3f}",
        f"{of.shared:.1%}",
        f"{of.jaccard:.1%}",
        f"{of.shared_by_chance:.1%}",
        *(f"{value:.2f}" for value in ranks),
        f"{of.mean_dispersion:.4f}",
        f"{of.mean_anisotropy:.4f}",
        f"{of.mean_answer_tokens:.1f}",
    )


def _other_numbers(of: Other) -> tuple[str, ...]:
    ranks = of.rank_correlation, of.correlation_dispersion, of.correlation_anisotropy
    shares = of.shared, of.jaccard, of.shared_by_chance
    return f"{of.common_rows:,}", *(f"{value:.3f}" for value in ranks), *(f"{value:.1%}" for value in shares)


if __name__ == "__main__":
    main()
