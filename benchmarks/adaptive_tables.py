"""What `bench_adaptive.py` prints: calibration of early scores, Pareto fronts, and what any policy is limited by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from adaptive_policies import (
    Floats,
    Ints,
    Outcome,
    Policy,
    Pool,
    State,
    Task,
    calibrated_estimates,
    expected_parts,
    paths,
)

from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.stability import error_variances

Found = list[tuple[Policy, Outcome]]
AIM, SHARES = 0.95, (1 / 3, 0.4, 0.5)


def front(found: Sequence[tuple[Policy, Outcome]]) -> list[tuple[Policy, Outcome]]:
    """Return those that no cheaper one equals, by their share of tokens."""
    best: list[tuple[Policy, Outcome]] = []
    for policy, outcome in sorted(found, key=lambda one: (one[1].tokens, -one[1].overlap)):
        if not best or outcome.overlap > best[-1][1].overlap:
            best.append((policy, outcome))
    return best


def within(found: Sequence[tuple[Policy, Outcome]], tokens: float) -> float | None:
    """Return the highest overlap for at most this share of tokens; None if all cost more."""
    return max((outcome.overlap for _, outcome in found if outcome.tokens <= tokens), default=None)


def needed(found: Sequence[tuple[Policy, Outcome]], overlap: float = AIM) -> float:
    """Return the lowest share of tokens for this overlap; 1 is the full run."""
    return min((outcome.tokens for _, outcome in found if outcome.overlap >= overlap), default=1.0)


def calibration(pool: Pool, state: State, task: Task) -> dict[str, float]:
    """Return how well the scores of a stage foretell the full ones.

    `correlation` is of early and full scores within bins, `regressed` that of what the regression expects. In units of
    the full scores' deviation within bins: `error` is the deviation of full from early scores, `left` of the
    regression's residuals, `jackknife` the root mean square of the early scores' calibrated standard errors.
    """
    full, early = task.score(pool.parts(pool.full)), task.score(pool.parts(state))
    expected = task.score(expected_parts(pool, state, np.ones(len(full), np.bool_)))
    config = ADGConfig(score=task.form, weight=task.weight)
    variances = error_variances(calibrated_estimates(pool, state), task.bins, config)
    full, early, expected = (_less_mean(values, task.bins) for values in (full, early, expected))
    return {
        "tokens": float(pool.tokens(state).sum() / pool.tokens(pool.full).sum()),
        "correlation": float(np.corrcoef(full, early)[0, 1]),
        "regressed": float(np.corrcoef(full, expected)[0, 1]),
        "error": float((full - early).std() / full.std()),
        "left": float((full - expected).std() / full.std()),
        "jackknife": float(np.sqrt(variances.mean()) / full.std()),
    }


def _less_mean(values: Floats, bins: Ints) -> Floats:
    centred: Floats = values - (np.bincount(bins, values) / np.bincount(bins))[bins]
    return centred


def share_to_complete(correlation: float, rows: int, places: int, trials: int = 4000) -> float:
    """Return the share of a bin's rows, best early scores first, that hold 95 % of its best: for normal scores.

    Early and full score correlate so; a bin has so many rows and places. Early answers that take a share f of the
    tokens then lead to a share of at least f + (1 - f) times this.
    """
    rng = np.random.default_rng(0)
    full = rng.standard_normal((trials, rows))
    early = correlation * full + np.sqrt(1 - correlation**2) * rng.standard_normal(full.shape)
    best = np.argsort(-full, axis=1)[:, :places]
    rank = np.argsort(np.argsort(-early, axis=1), axis=1)
    ranks = np.sort(np.take_along_axis(rank, best, axis=1).ravel())
    return float((ranks[int(np.ceil(AIM * len(ranks))) - 1] + 1) / rows)


def print_calibration(pool: Pool, tasks: Sequence[Task], lengths: Sequence[int]) -> None:
    """Print, for every stage of any path, the means over `tasks` of what `calibration` returns."""
    form, bins = tasks[0].form, int(tasks[0].bins.max()) + 1
    print(f"### score: {form}, {bins} bins: early and full scores within bins\n")
    print("| answers x tokens | tokens | r | r regressed | error | left by regression | jackknife error |")
    print(f"|{' --- |' * 7}")
    for state in sorted({state for path in paths(pool.full, lengths) for state in path[:-1]}):
        found = [calibration(pool, state, task) for task in tasks]
        cells = [f"{np.mean([one[key] for one in found]):.3f}" for key in found[0]]
        print(f"| {state[0]} x {state[1]} | {' | '.join(cells)} |")
    print()


def print_task(pool: Pool, tasks: Sequence[Task], found: Found) -> dict[str, Any]:
    """Print the Pareto front of what needs no oracle, and the verdict; return the figures."""
    form, budget, bins = task_of(tasks[0])
    honest = [one for one in found if one[0].rule != "oracle"]
    print(f"#### score: {form}, {budget} rows of {len(pool.prompts)} in {bins} bins\n")
    print("| policy | knob | tokens | positions | overlap | gain |\n| --- | --- | --- | --- | --- | --- |")
    for one in front(honest):
        name, knob, *shares = row_of(one)
        print(f"| {name} | {knob} | {' | '.join(f'{share:.1%}' for share in shares)} |")
    about: dict[str, Any] = {"form": form, "budget": budget, "bins": bins}
    for which, some in (("policies", honest), ("oracle", [one for one in found if one[0].rule == "oracle"])):
        overlaps = {f"{share:.2f}": within(some, share) for share in SHARES}
        about[which] = {"overlap_within": overlaps, "tokens_for_0.95": needed(some)}
        told = ", ".join(f"{'none' if one is None else f'{one:.1%}'} for {share}" for share, one in overlaps.items())
        print(f"\n{which}: overlap {told} of the tokens; {AIM:.0%} need {needed(some):.1%}")
    print()
    no_choice = [float(pool.tokens(pool.full)[~one.open()].sum()) for one in tasks]
    about["tokens_of_bins_without_choice"] = float(np.mean(no_choice)) / float(pool.tokens(pool.full).sum())
    print(f"bins that give all of their rows or none have {about['tokens_of_bins_without_choice']:.1%} of the tokens\n")
    return about


def print_limits() -> None:
    """Print what share of the rows has to be completed, by the correlation of early and full scores."""
    cases = ((10, 1), (10, 2), (100, 8), (100, 20))
    print("### normal scores: rows to complete for 95 %, by the correlation of early and full scores\n")
    print(f"| r |{''.join(f' {places} of {rows} |' for rows, places in cases)}\n|{' --- |' * (len(cases) + 1)}")
    for correlation in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99):
        shares = [f"{share_to_complete(correlation, *case):.0%}" for case in cases]
        print(f"| {correlation} | {' | '.join(shares)} |")
    print()


def task_of(task: Task) -> tuple[str, int, int]:
    return task.form, task.budget, int(task.bins.max()) + 1


def row_of(one: tuple[Policy, Outcome]) -> tuple[Any, ...]:
    policy, outcome = one
    return policy.name, policy.knob, *(round(value, 4) for value in asdict(outcome).values())
