"""The overlap that `adg stability` predicts from one run, beside that of independent redraws, on synthetic answers.

    OMP_NUM_THREADS=1 python benchmarks/bench_stability.py
    OMP_NUM_THREADS=1 python benchmarks/bench_stability.py --rows 4000 --samples 5

Each row has a mean answer, a size and a spectrum of its own; `regime` says by how much rows differ, and what their
answers are like. From `--runs` draws of all answers, the real overlap is that of every pair of choices; the prediction
is made from each of the first three draws by itself and averaged. Bins are the same in all. `at 2K` compares what K
answers predict of two runs with 2K answers with such runs. Progress goes to stderr; the last line on stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import get_args

import numpy as np
import numpy.typing as npt

from adg_plugin.config.groups import ScoreForm
from adg_plugin.config.schema import ADGConfig
from adg_plugin.scoring.geometry import Parts, combine, parts
from adg_plugin.scoring.jackknife import calibrated
from adg_plugin.scoring.quota import choose
from adg_plugin.scoring.stability import stability_of
from adg_plugin.store import GramGroup

Floats = npt.NDArray[np.float64]
WIDTH, ROWS_PER_BIN, PREDICTED_RUNS = 48, 40, 3


@dataclass(frozen=True)
class Regime:
    """How rows differ and how their answers scatter.

    Attributes:
        difference: standard deviation of the logarithms of each row's size and of its spectrum's decay.
        decay: of the mean row's spectrum, j^-decay.
        bins: standard deviation of the logarithm of each bin's size.
        degrees: of freedom of Student's t for each answer's distance; 0: Gaussian.
        modes: answers come from two modes, the second with a probability of the row's own.
    """

    difference: float
    decay: float = 1.0
    bins: float = 0.0
    degrees: int = 0
    modes: bool = False


REGIMES = {
    "noise": Regime(0.0),
    "mostly noise": Regime(0.1),
    "half": Regime(0.25),
    "mostly real": Regime(0.8),
    "bins differ": Regime(0.25, bins=0.5),
    "few directions": Regime(0.3, decay=2.0),
    "heavy tails": Regime(0.3, degrees=3),
    "heavy, real": Regime(0.8, degrees=3),
    "two modes": Regime(0.3, modes=True),
}


class Pool:
    """Rows whose answers can be drawn again and again."""

    def __init__(self, regime: Regime, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.bins = np.unique(rng.integers(0, max(1, rows // ROWS_PER_BIN), rows), return_inverse=True)[1]
        self.regime = regime

        def differing(mean: float) -> Floats:
            return mean * np.exp(regime.difference * rng.standard_normal((rows, 1)))

        scales = np.arange(1, WIDTH + 1) ** (-differing(regime.decay) / 2)
        size = differing(0.25) * np.exp(regime.bins * rng.standard_normal((self.bins.max() + 1, 1)))[self.bins]
        self.scales = (scales / np.linalg.norm(scales, axis=1, keepdims=True) * size)[:, None]
        self.mean, other = (_unit(rng.standard_normal((rows, 1, WIDTH))) for _ in range(2))
        self.other = other * differing(0.5)[:, None]
        self.share = rng.random((rows, 1, 1))

    def draw(self, answers: int, seed: int) -> npt.NDArray[np.float32]:
        """Return (N, K, K) Gram matrices of fresh answers."""
        rng = np.random.default_rng([answers, seed])
        shape = (len(self.mean), answers, WIDTH)
        x = self.scales * rng.standard_normal(shape)
        if self.regime.degrees:
            x /= np.sqrt(rng.chisquare(self.regime.degrees, (*shape[:2], 1)) / self.regime.degrees)
        if self.regime.modes:
            x += self.other * (rng.random((*shape[:2], 1)) < self.share)
        vectors = _unit(self.mean + x)
        grams: npt.NDArray[np.float32] = (vectors @ vectors.transpose(0, 2, 1)).astype(np.float32)
        return grams


def _unit(vectors: Floats) -> Floats:
    scaled: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def main() -> None:
    """Print the table, and what it comes to as JSON."""
    args = _arguments()
    print(f"{'regime':15} K form       reliab.  real  predicted     2K: real  predicted")
    lines = []
    for name in args.regimes:
        pool = Pool(REGIMES[name], args.rows, seed=1)
        for answers in args.samples:
            began = time.monotonic()
            for line in compare(pool, answers, args):
                lines.append({"regime": name, "samples": answers, **line})
                print(_line(lines[-1]))
            print(f"{name}, K={answers}: {time.monotonic() - began:.1f} s", file=sys.stderr)
    errors = np.array([line["predicted"] - line["real"] for line in lines])
    more = np.array([line["predicted_2k"] - line["real_2k"] for line in lines])
    print(
        json.dumps(
            {
                "rows": args.rows,
                "cases": len(lines),
                "error": {"mean": _round(errors.mean()), "rms": _round(np.sqrt(np.square(errors).mean()))},
                "largest_error": _round(np.abs(errors).max()),
                "within_0.07": int(np.sum(np.abs(errors) <= 0.07)),
                "error_2k": {"mean": _round(more.mean()), "rms": _round(np.sqrt(np.square(more).mean()))},
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--samples", type=int, nargs="+", default=[3, 4, 5, 8], metavar="K")
    parser.add_argument("--forms", nargs="+", choices=get_args(ScoreForm), default=list(get_args(ScoreForm)))
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--runs", type=int, default=12)
    return parser.parse_args()


def compare(pool: Pool, answers: int, args: argparse.Namespace) -> list[dict[str, float | str]]:
    """Return, for each form of the score, real and predicted overlap."""
    rows = len(pool.mean)
    ids = np.array([f"{row:08}" for row in range(rows)], dtype=object)
    budget = rows // 5
    grams = [pool.draw(answers, seed) for seed in range(args.runs)]
    runs = [parts(gram) for gram in grams]
    doubled = [parts(pool.draw(2 * answers, seed)) for seed in range(args.runs)]
    estimates = [calibrated([GramGroup(np.arange(rows), gram)]) for gram in grams[:PREDICTED_RUNS]]
    found: list[dict[str, float | str]] = []
    for form in args.forms:
        config = ADGConfig(budget=budget, score=form)

        def choice(run: Parts, config: ADGConfig = config) -> npt.NDArray[np.bool_]:
            scores = combine(run.dispersion, run.anisotropy, config.score, config.weight)
            return choose(ids, scores, pool.bins, budget).chosen

        about = [
            stability_of(estimate, ids, pool.bins, choice(run), config)
            for estimate, run in zip(estimates, runs[:PREDICTED_RUNS], strict=True)
        ]
        found.append(
            {
                "form": form,
                "reliability": _round(np.mean([a.reliability for a in about])),
                "real": _overlap(runs, choice),
                "predicted": _round(np.mean([a.overlap[0] for a in about])),
                "real_2k": _overlap(doubled, choice),
                "predicted_2k": _round(np.mean([a.overlap_with[2 * answers] for a in about])),
            }
        )
    return found


def _overlap(runs: list[Parts], choice: Callable[[Parts], npt.NDArray[np.bool_]]) -> float:
    chosen = [choice(run) for run in runs]
    return _round(np.mean([(one & other).sum() / one.sum() for one, other in combinations(chosen, 2)]))


def _line(line: dict[str, float | str]) -> str:
    real, predicted, real_2k, predicted_2k = (
        float(line[name]) for name in ("real", "predicted", "real_2k", "predicted_2k")
    )
    return (
        f"{line['regime']:15} {line['samples']} {line['form']:10} {line['reliability']:7.2f} {real:6.2f} "
        f"{predicted:6.2f} "
        f"({predicted - real:+.2f})  {real_2k:10.2f} {predicted_2k:6.2f} ({predicted_2k - real_2k:+.2f})"
    )


def _round(value: float | np.floating) -> float:
    return round(float(value), 3)


if __name__ == "__main__":
    main()
