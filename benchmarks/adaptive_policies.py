"""Policies that draw few, short answers first and more where it matters; `bench_adaptive.py` explains the rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import ScoreForm
from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.geometry import combine, parts
from adg_plugin.scoring.jackknife import Calibrated, calibrated
from adg_plugin.scoring.quota import allocate
from adg_plugin.scoring.stability import error_variances
from adg_plugin.store import GramGroup

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer]
State = tuple[int, int]  # answers, tokens at most of each

RULES = {
    "early": (0.0,),
    "jackknife": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "pilot": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
    "keep": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0),
    "oracle": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
}
PILOT = 0.05  # of the rows
FEWEST_FITTED = 30


@dataclass(frozen=True, eq=False)
class Pool:
    """N rows with K answers each.

    Attributes:
        grams: (N, K, K) each, by the number of tokens after which answers are cut off; the largest cuts none off.
        lengths: (N, K) tokens of the answers.
        prompts: (N,) tokens.
    """

    grams: dict[int, npt.NDArray[np.float32]]
    lengths: Ints
    prompts: Ints

    @property
    def full(self) -> State:
        return self.lengths.shape[1], max(self.grams)

    def tokens(self, state: State) -> Ints:
        """Return the sampled tokens (N,) of rows in this state."""
        answers, longest = state
        found: Ints = np.minimum(self.lengths[:, :answers], longest).sum(axis=1)
        return found

    def parts(self, state: State) -> Floats:
        """Return dispersion and anisotropy, (2, N)."""
        return _parts(self, state)

    def features(self, state: State) -> Floats:
        """Return what is regressed on, (N, 4)."""
        dispersion, anisotropy = self.parts(state)
        ended = (self.lengths[:, : state[0]] < state[1]).mean(axis=1)
        return np.stack((np.ones_like(dispersion), dispersion, anisotropy, ended), axis=1)


@cache
def _parts(pool: Pool, state: State) -> Floats:
    found = parts(pool.grams[state[1]][:, : state[0], : state[0]])
    return np.stack((found.dispersion, found.anisotropy))


@cache
def calibrated_estimates(pool: Pool, state: State) -> Calibrated:
    grams = pool.grams[state[1]][:, : state[0], : state[0]]
    return calibrated([GramGroup(np.arange(len(grams)), np.ascontiguousarray(grams))])


@dataclass(frozen=True)
class Task:
    """What is to be chosen; `bins` (N,) are numbered from 0."""

    form: ScoreForm
    weight: float
    budget: int
    bins: Ints

    def score(self, found: Floats) -> Floats:
        return combine(*found, self.form, self.weight)

    def best(self, scores: Floats) -> Bools:
        """Return the choice (N,): the quota of each bin by score, earlier rows first among equals."""
        return rank_in_bin(scores, self.bins) < self.quota()[self.bins]

    def quota(self) -> Ints:
        """Return the places of each bin, (B,)."""
        return allocate(np.bincount(self.bins), self.budget)

    def open(self) -> Bools:
        """Return which rows are in a bin that has a choice to make, (N,): some of its rows have a place, some not."""
        quota = self.quota()
        return ((quota > 0) & (quota < np.bincount(self.bins)))[self.bins]


@dataclass(frozen=True)
class Policy:
    """Stages, the last of them everything; the rule between them; how wide it is; and how the end is decided."""

    path: tuple[State, ...]
    rule: str
    knob: float
    mixed: bool

    @property
    def name(self) -> str:
        stages = " > ".join(f"{answers}x{longest}" for answers, longest in self.path)
        return f"{stages}, {self.rule}, {'mixed' if self.mixed else 'completed'}"


@dataclass(frozen=True)
class Outcome:
    """What a policy costs and finds; tokens and positions as shares of the full run's.

    Attributes:
        tokens: sampled.
        positions: sampled, and prefilled: the prompt, and at each continuation the prompt and the answers again.
        overlap: with the full run's choice.
        gain: mean full score of the choice, from a random choice of the same quotas (0) to the full run's (1).
    """

    tokens: float
    positions: float
    overlap: float
    gain: float


@dataclass(frozen=True)
class Played:
    """What became of each row, (N,) each: whether it is chosen, tokens sampled and prefilled."""

    chosen: Bools
    tokens: Ints
    prefill: Ints


def rank_in_bin(scores: Floats, bins: Ints) -> Ints:
    """Return the rank of each row in its bin, (N,), 0 for the highest score."""
    order = np.lexsort((-scores, bins))
    sizes = np.bincount(bins)
    rank = np.empty(len(bins), np.int64)
    rank[order] = np.arange(len(bins)) - (np.cumsum(sizes) - sizes)[bins[order]]
    return rank


def decide(low: Floats, high: Floats, bins: Ints, places: Ints) -> tuple[Bools, Bools]:
    """Return which rows are surely among the best `places` (B,) of their bin, and which surely are not, (N,) each.

    Scores are within [low, high]. A row is in if too few others can be above it, out if enough are certain to be.
    """

    def nth(values: Floats, n: Ints, beyond: float) -> Floats:  # the n-th highest (from 0) of each bin
        found = np.full(len(places), beyond)
        at = rank_in_bin(values, bins) == n[bins]
        found[bins[at]] = values[at]
        return found[bins]

    none = places[bins] <= 0
    out = none | (high < nth(low, places - 1, -np.inf))
    return ~none & (low > nth(high, places, -np.inf)), out


def simulate(pool: Pool, policy: Policy, task: Task, seed: int = 0) -> Outcome:
    """Return what a policy costs and finds; `seed` chooses the pilot's rows."""
    played = play(pool, policy, task, seed)
    scores = task.score(pool.parts(pool.full))
    wanted = task.best(scores)
    by_chance = np.bincount(task.bins, scores) / np.bincount(task.bins)
    luck = float(by_chance[task.bins][wanted].mean())
    sampled, tokens = pool.tokens(pool.full).sum(), played.tokens.sum()
    return Outcome(
        tokens=float(tokens / sampled),
        positions=float((tokens + played.prefill.sum()) / (sampled + pool.prompts.sum())),
        overlap=float((played.chosen & wanted).sum() / wanted.sum()),
        gain=float((scores[played.chosen].mean() - luck) / (scores[wanted].mean() - luck)),
    )


@dataclass(slots=True)
class _Board:
    """What is known of each row so far."""

    chosen: Bools  # (N,) surely
    undecided: Bools  # (N,)
    known: Bools  # (N,) all answers are there
    latest: Floats  # (2, N) parts of the answers that are there
    guess: Floats  # (2, N) what is expected of the full parts


def play(pool: Pool, policy: Policy, task: Task, seed: int = 0) -> Played:
    """Return what becomes of each row.

    Answers that are not drawn decide nothing, but for `oracle`, and but for the widths of `jackknife` from the second
    stage on, which are calibrated as if all rows had reached it.
    """
    first, undecided = policy.path[0], task.open()  # of the others, the bin decides
    # Ranks need a value of every row; the other forms compare rows of one bin, and those without a choice need nothing.
    drawn = undecided if task.form in ("raw", "residual") else np.ones(len(task.bins), np.bool_)
    tokens, prefill = np.where(drawn, pool.tokens(first), 0), np.where(drawn, pool.prompts, 0)
    known = np.zeros(len(task.bins), np.bool_)
    if policy.rule == "pilot":
        rows = min(len(known), max(FEWEST_FITTED, round(PILOT * len(known))))
        known[np.random.default_rng(seed).choice(len(known), rows, replace=False)] = True
        tokens[known], prefill[known] = pool.tokens(pool.full)[known], pool.prompts[known]
    latest = np.where(known, pool.parts(pool.full), pool.parts(first))
    board = _Board((task.quota() > 0)[task.bins] & ~undecided, undecided, known, latest, latest.copy())
    for stage, following in itertools.pairwise(policy.path):
        into, out = _judge(pool, policy, task, stage, board)
        board.chosen |= into
        board.undecided &= ~(into | out)
        go_on = board.undecided & ~board.known
        prefill += np.where(go_on, pool.prompts + pool.tokens(stage), 0)
        tokens[go_on] = pool.tokens(following)[go_on]
        board.latest[:, go_on] = pool.parts(following)[:, go_on]
        if following == pool.full:
            board.known |= go_on
    return Played(_final(pool, policy, task, board), tokens, prefill)


def _judge(pool: Pool, policy: Policy, task: Task, stage: State, board: _Board) -> tuple[Bools, Bools]:
    """Return which undecided rows are taken as in and as out, (N,) each; the board's guesses are brought up to date."""
    known, undecided = board.known, board.undecided
    left = task.quota() - np.bincount(task.bins, board.chosen, task.bins.max() + 1).astype(int)
    scores, width = task.score(board.latest), np.zeros(len(known))
    if policy.rule == "keep":
        later = len(policy.path) - 2 - policy.path.index(stage)  # twice as many at each stage before the last
        best = rank_in_bin(np.where(undecided, scores, -np.inf), task.bins)
        return np.zeros_like(known), undecided & (best >= np.ceil(2**later * policy.knob * left)[task.bins])
    if policy.rule == "jackknife":
        config = ADGConfig(score=task.form, weight=task.weight)
        width = policy.knob * np.sqrt(error_variances(calibrated_estimates(pool, stage), task.bins, config))
    elif policy.rule in ("pilot", "oracle"):
        of = known if policy.rule == "pilot" else np.ones_like(known)
        expected = expected_parts(pool, stage, of)
        board.guess[:, undecided & ~known] = expected[:, undecided & ~known]
        board.guess[:, known] = board.latest[:, known]
        scores = task.score(board.guess)
        unaware, aware = (np.where(of, found, board.guess) for found in (expected, pool.parts(pool.full)))
        width = np.where(known, 0.0, policy.knob * (task.score(aware) - task.score(unaware))[of].std())
    low, high = (np.where(undecided, scores + sign * width, -np.inf) for sign in (-1, 1))
    into, out = decide(low, high, task.bins, left)
    return into & undecided, out & undecided


def expected_parts(pool: Pool, stage: State, known: Bools) -> Floats:
    """Return the full parts (2, N) that a regression on the rows with all answers expects of those in `stage`."""
    features = pool.features(stage)
    fitted: Floats = features @ np.linalg.lstsq(features[known], pool.parts(pool.full)[:, known].T, rcond=None)[0]
    return fitted.T


def _final(pool: Pool, policy: Policy, task: Task, board: _Board) -> Bools:
    """Return the choice (N,): rows that are in already, then the best that are known, or also the others' guesses."""
    found, able, chosen = board.latest, board.undecided, board.chosen
    if board.known.sum() >= FEWEST_FITTED:
        # Of rows that stopped at different stages, the first says the same of all.
        found = np.where(board.known, found, expected_parts(pool, policy.path[0], board.known))
        if policy.mixed:  # what was taken as in has to hold against what is known by now
            able = chosen = np.zeros_like(chosen)
    order = task.score(found)
    order = (order - order.min()) / (np.ptp(order) or 1.0)
    return task.best(order + 4.0 * chosen + 2.0 * able)


def paths(full: State, lengths: Sequence[int]) -> list[tuple[State, ...]]:
    """Return what is tried: fewer answers first, shorter ones, both, and in several steps; each ends with `full`."""
    answers, longest = full
    found = [((fewer, longest), full) for fewer in range(3, answers)]
    found.append((*((fewer, longest) for fewer in range(3, answers)), full))
    for short in lengths:
        found += [((answers, short), full), ((3, short), full)]
    growing = np.linspace(3, answers, len(lengths) + 1).astype(int).tolist()
    found.append(tuple((answers, short) for short in (*lengths, longest)))
    found.append(tuple(zip(growing, (*lengths, longest), strict=True)))
    return [path for path in dict.fromkeys(found) if len(set(path)) == len(path) > 1 and path[-1] == full]


def policies(full: State, lengths: Sequence[int]) -> Iterator[Policy]:
    """Yield every policy that is tried."""
    for path, (rule, knobs) in itertools.product(paths(full, lengths), RULES.items()):
        if rule == "early" and len(path) > 2:
            continue  # the first stage decides: the same as with two
        for knob, mixed in itertools.product(knobs, (False, True)):
            if not (rule == "early" and mixed):
                yield Policy(path, rule, knob, mixed)
