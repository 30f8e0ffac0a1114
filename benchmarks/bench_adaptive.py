"""Whether few, short answers first and more only where it matters finds the same rows for fewer tokens: simulated.

    adg select select.yaml --out runs/full
    OMP_NUM_THREADS=1 python benchmarks/bench_adaptive.py runs/full --cache /tmp/adaptive
    OMP_NUM_THREADS=1 python benchmarks/bench_adaptive.py runs/full --cache /tmp/adaptive --rows 300 --out policies.csv
    OMP_NUM_THREADS=1 python benchmarks/bench_adaptive.py runs/full --cache /tmp/adaptive --tokens     fewer answers

Every row begins with some of its stored answers, cut off after some tokens (embedded again, and kept in the cache).
Then a rule says which rows could still be chosen, and only these go on to the next stage, up to all that is stored: an
answer's random numbers do not depend on when it is drawn, so going on costs the missing tokens only. Overlap is the
share of the full run's choice, in the same bins, that is found so. The rules, with a knob z or x:

    early      the first stage decides
    jackknife  rows go on that the early score +- z calibrated standard errors leaves undecided (as in adg stability)
    pilot      5 % of the rows, 30 or more, are completed first; full is regressed on early there; +- z deviations
    keep       the best x rows for each place of the bin go on; of several stages, twice as many at each before the last
    oracle     as `pilot`, but regressed on all rows, for nothing: no policy, but what such a bound could reach

Rows that never got all answers are not chosen (`completed`), or are by what a regression on the completed rows expects
of them (`mixed`). Figures are means over several k-means seeds; the best of many policies on one set of answers
flatters the policies. Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))

from adaptive_policies import Outcome, Policy, Pool, Task, policies, simulate
from adaptive_tables import Found, front, print_calibration, print_limits, print_task, row_of, task_of

from adg_plugin.config.groups import ScoreForm
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ADGError
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.store import RunFolder
from adg_plugin.store.reader import finished

_CHUNK = 25  # rows between two saves


def main() -> None:
    """Print calibration, Pareto fronts and verdict, and what they come to as JSON."""
    args = _arguments()
    began = time.monotonic()
    try:
        pool, prompts, config = read_pool(args)
    except ADGError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(err.exit_code)
    rows, sampled = len(pool.prompts), int(pool.tokens(pool.full).sum())
    print(f"{rows:,} rows, {sampled:,} sampled tokens in {pool.full[0]} answers of up to {pool.full[1]}, ", end="")
    print(f"{int(pool.prompts.sum()):,} tokens of prompts\n")
    lines = []
    with (args.out or Path("/dev/null")).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("form", "budget", "bins", "policy", "knob", "tokens", "positions", "overlap", "gain"))
        for per_bin, form in itertools.product(args.rows_per_bin, args.forms):
            bins = [assign_bins(prompts, max(1, rows // per_bin), seed) for seed in range(args.seeds)]
            print_calibration(pool, [Task(form, config.weight, 1, one) for one in bins], args.tokens)
            for fraction in args.budgets:
                tasks = [Task(form, config.weight, round(fraction * rows), one) for one in bins]
                found = measure(pool, tasks, args.tokens)
                shown = fronts(found) if args.front else found
                table.writerows((*task_of(tasks[0]), *row_of(one)) for one in shown)
                lines.append(print_task(pool, tasks, found))
                print(f"{form}, {fraction:.0%}, {time.monotonic() - began:.0f} s", file=sys.stderr)
    print_limits()
    result = {"rows": rows, "sampled_tokens": sampled, "state": pool.full, "seeds": args.seeds, "tasks": lines}
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))


def fronts(found: Found) -> Found:
    """Return the Pareto front of the policies, then that of the oracles."""
    return [pair for oracle in (False, True) for pair in front([one for one in found if _is_oracle(one[0]) == oracle])]


def _is_oracle(policy: Policy) -> bool:
    return policy.rule == "oracle"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument(
        "--cache", type=Path, required=True, metavar="DIR", help="Gram matrices of cut answers go there"
    )
    parser.add_argument("--tokens", type=int, nargs="*", default=[6, 12, 18, 24], metavar="T", help="of early answers")
    parser.add_argument("--rows", type=int, help="so many random rows, not all")
    parser.add_argument("--forms", nargs="+", choices=get_args(ScoreForm), default=["raw", "rank", "residual"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.08, 0.2], help="fractions of the rows")
    parser.add_argument("--rows-per-bin", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--seeds", type=int, default=5, help="of k-means")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write every policy there")
    parser.add_argument(
        "--front", action="store_true", help="into --out, only what no cheaper one equals; oracles last"
    )
    return parser.parse_args()


def read_pool(args: argparse.Namespace) -> tuple[Pool, npt.NDArray[np.float16], ADGConfig]:
    """Return the rows that have all answers, by ascending id, their prompt vectors (N, H) and the run's settings."""
    from adg_plugin.tools.sweep.choices import stored_answers

    run = RunFolder.read(args.run_dir)
    config, geometry = finished(run), run.geometry()
    longest = config.max_new_tokens
    if wrong := [short for short in args.tokens if not 0 < short < longest]:
        sys.exit(f"error: --tokens {wrong[0]}: the run's answers have up to {longest}; give fewer, and at least 1")
    if config.pooling != "answer" and args.tokens:
        sys.exit(f"error: the run's pooling is {config.pooling}: answers are cut off for `answer` only; --tokens alone")
    group = max(geometry.grams, key=lambda one: one.grams.shape[1])
    # Random rows, the first of them the same however many are asked for: the cache is added to.
    order = np.random.default_rng(0).permutation(len(group.rows))[: args.rows]
    stored = {row.id: row for row in stored_answers(run, geometry.ids[group.rows[order]])}
    rows = [stored[str(id)] for id in geometry.ids[group.rows[order]]]
    cut_off = _cut_off(config, rows, args.tokens, args.cache, run.manifest() or {})
    ascending = np.argsort(order)
    pool = Pool(
        {**{short: grams[ascending] for short, grams in cut_off.items()}, longest: group.grams[np.sort(order)]},
        np.array([[len(tokens) for tokens in row.continuations] for row in rows])[ascending],
        np.array([len(row.prompt) for row in rows])[ascending],
    )
    return pool, geometry.prompt_vectors[group.rows[np.sort(order)]], config


def _cut_off(
    config: ADGConfig, rows: Sequence[Any], lengths: Sequence[int], folder: Path, manifest: dict[str, Any]
) -> dict[int, npt.NDArray[np.float32]]:
    """Return the Gram matrices (N, K, K) of answers cut off after so many tokens, by that number.

    One forward pass over a row serves all lengths, because no token sees a later one.
    """
    if not lengths:
        return {}
    made_of = json.dumps([manifest.get("recipe"), lengths, [row.id for row in rows[:_CHUNK]]], sort_keys=True)
    path = folder / f"grams-{hashlib.blake2b(made_of.encode(), digest_size=8).hexdigest()}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    found = list(np.load(path)) if path.exists() else []
    began, encoder = time.monotonic(), None
    for start in range(len(found), len(rows), _CHUNK):
        encoder = encoder or _encoder(config, manifest)
        found += [_cut_grams(encoder, row, lengths) for row in rows[start : start + _CHUNK]]
        np.save(path, np.stack(found))
        print(f"{len(found)} of {len(rows)} rows embedded, {time.monotonic() - began:.0f} s", file=sys.stderr)
    grams = np.stack(found[: len(rows)], axis=1)
    return dict(zip(lengths, grams, strict=True))


def _encoder(config: ADGConfig, manifest: dict[str, Any]) -> Any:
    from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
    from adg_plugin.engines.models.loading import Source

    source = Source.configured(config)
    if source.identity != manifest["recipe"]["model"]:
        sys.exit(f"error: model is {config.model}, which is not what answered: put that model back")
    return SharedPromptEncoder(source.load().model, config)


def _cut_grams(encoder: Any, row: Any, lengths: Sequence[int]) -> npt.NDArray[np.float32]:
    """Return the Gram matrices of a row (T, K, K), T = len(lengths)."""
    import torch

    from adg_plugin.engines.forward.hidden_states import unit
    from adg_plugin.engines.forward.results import gram_matrix

    row = replace(row, answers=tuple(replace(a, token_ids=a.token_ids[: max(lengths)]) for a in row.answers))
    with torch.no_grad():
        states = encoder._states([row])[0][len(row.prompt) :].float()
    answers = states.split([len(tokens) for tokens in row.continuations])
    grams = []
    for short in lengths:
        texts = [tokens[:short].tobytes() for tokens in row.continuations]
        first = [texts.index(text) for text in texts]  # equal answers have one vector
        gram = gram_matrix(unit(torch.stack([answer[:short].mean(0) for answer in answers])))
        grams.append(gram[np.ix_(first, first)])
    return np.stack(grams)


def measure(pool: Pool, tasks: Sequence[Task], lengths: Sequence[int]) -> Found:
    """Return every policy with the mean of its outcomes over `tasks`, which differ in their bins."""
    found = []
    for policy in policies(pool.full, lengths):
        outcomes = [asdict(simulate(pool, policy, task, seed)) for seed, task in enumerate(tasks)]
        found.append((policy, Outcome(**{key: float(np.mean([one[key] for one in outcomes])) for key in outcomes[0]})))
    return sorted(found, key=lambda one: one[1].tokens)


if __name__ == "__main__":
    main()
