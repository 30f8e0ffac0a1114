"""Other settings on the answers of a finished run: against transcriptions, brute force, and selections of their own."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from sweep_runs import (
    BUDGET,
    CONFIG,
    ROWS,
    K,
    answer_lengths,
    drawn,
    lines,
    prompt_vectors,
    ranks,
    transcribed,
    tree,
    write,
)

from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.scoring.quota import choose
from adg_plugin.scoring.score import choose_rows
from adg_plugin.store import RunFolder
from adg_plugin.tools.sweep.choices import Scored, common_by_chance, rank_correlation
from adg_plugin.tools.sweep.sweep import sweep


@pytest.mark.parametrize(
    ("changes", "score", "k"),
    [
        ({"weight": 0}, lambda d, i: d, K),
        ({"weight": 1}, lambda d, i: i, K),
        ({"weight": 0.8}, lambda d, i: 0.2 * d + 0.8 * i, K),
        ({"score": "residual"}, lambda d, i: d * i, K),
        ({"score": "rank"}, lambda d, i: 0.6 * ranks(d) + 0.4 * ranks(i), K),
        ({"score": "zscore"}, lambda d, i: 0.6 * scipy.stats.zscore(d) + 0.4 * scipy.stats.zscore(i), K),
        ({"num_samples": 3}, lambda d, i: 0.6 * d + 0.4 * i, 3),
        ({"num_samples": 5}, lambda d, i: 0.6 * d + 0.4 * i, 5),
    ],
)
def test_scores_and_choice_are_those_of_the_definitions(folder, changes, score, k):
    ((key, value),) = changes.items()
    (found,) = lines(sweep(str(folder), {key: [value]})).values()
    whole, cut = (np.array([transcribed(gram, k) for gram in drawn()]).T for k in (K, k))
    own, other = 0.6 * whole[0] + 0.4 * whole[1], score(*cut)
    assert found.rank_correlation == pytest.approx(scipy.stats.spearmanr(own, other).statistic, abs=1e-4)
    for part, told in zip(cut, (found.correlation_dispersion, found.correlation_anisotropy), strict=True):
        assert told == pytest.approx(scipy.stats.spearmanr(part, other).statistic, abs=1e-4)

    bins = assign_bins(prompt_vectors(ROWS), 7, 3)
    quota = choose([f"r{n:04d}" for n in range(ROWS)], own, bins, BUDGET).quota  # tested elsewhere
    picked = []
    for scores in (own, other):
        chosen = set()
        for b in range(bins.max() + 1):
            rows = np.flatnonzero(bins == b)
            chosen |= set(rows[np.argsort(-scores[rows], kind="stable")][: quota[rows[0]]].tolist())
        picked.append(chosen)
    one, two = picked
    assert found.chosen == len(two) == BUDGET
    assert found.shared == pytest.approx(len(one & two) / BUDGET)
    assert found.jaccard == pytest.approx(len(one & two) / len(one | two))
    taken = sorted(two)
    assert found.mean_dispersion == pytest.approx(whole[0][taken].mean(), abs=1e-5)
    assert found.mean_anisotropy == pytest.approx(whole[1][taken].mean(), abs=1e-5)
    assert found.mean_answer_tokens == pytest.approx(np.mean([np.mean(answer_lengths(n)) for n in taken]))


def test_chance_is_what_random_choices_within_bins_share(folder):
    rng = np.random.default_rng(0)
    bins = [rng.integers(0, 3, 60), rng.integers(0, 5, 60)]
    ids = [f"{n:02d}" for n in range(60)]
    nothing, chosen = np.zeros(60), []
    for of in bins:
        chosen.append([choose(ids, rng.random(60), of, 20).chosen for _ in range(3000)])
    one, other = (Scored(nothing, nothing, nothing, of, many[0]) for of, many in zip(bins, chosen, strict=True))
    simulated = np.mean([(a & b).sum() for a, b in zip(*chosen, strict=True)])
    assert common_by_chance(one, other) == pytest.approx(simulated, abs=0.12)
    # With one set of bins, the figure is that of `adg stability`.
    assert common_by_chance(one, one) == pytest.approx(
        sum(chosen[0][0][bins[0] == b].sum() ** 2 / (bins[0] == b).sum() for b in range(3))
    )
    (of_bins,) = lines(sweep(str(folder), {"bins": [1]})).values()
    assert of_bins.shared_by_chance == pytest.approx(BUDGET / ROWS)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30))
def test_the_rank_correlation_is_spearman_s(pairs):
    one, other = np.array(pairs, float).T
    constant = np.ptp(one) == 0 or np.ptp(other) == 0
    expected = 0.0 if constant else scipy.stats.spearmanr(one, other).statistic
    assert rank_correlation(one, other) == pytest.approx(expected, abs=1e-9)


def test_the_run_s_own_values_change_nothing(folder):
    vary = {
        "weight": [0.4],
        "score": ["raw"],
        "num_samples": [K],
        "bins": [7],
        "budget": [BUDGET, BUDGET / ROWS],
        "subset": ["top"],
    }
    about = sweep(str(folder), vary)
    assert [line.own for line in about.lines] == [True] * 5 + [False, True]  # 0.2 is another way to say 40
    for line in about.lines:
        assert (line.found.rank_correlation, line.found.shared, line.found.jaccard) == pytest.approx((1, 1, 1))
        assert line.found == about.run
    assert about.run.chosen == BUDGET


def test_bins_are_those_of_a_selection_with_so_many(folder):
    about = lines(sweep(str(folder), {"bins": [1, 13, None]}))
    run = RunFolder.read(folder)
    table = run.scores()
    own = table["chosen"].to_numpy(zero_copy_only=False)
    for name, bins in (("bins=1", 1), ("bins=13", 13), ("bins=none", None)):
        other = choose_rows(run.geometry(), CONFIG.updated(bins=bins), ROWS)
        assert about[name].shared == pytest.approx((own & other.choice.chosen).sum() / BUDGET)
        taken = other.bins[other.choice.chosen]
        rates = np.bincount(taken, minlength=other.bins.max() + 1) / np.bincount(other.bins)
        own_bins = table["bin"].to_numpy()
        own_rates = np.bincount(own_bins[own], minlength=7) / np.bincount(own_bins)
        expected = np.sum(rates[other.bins] * own_rates[own_bins]) / BUDGET
        assert about[name].shared_by_chance == pytest.approx(expected)
    assert default_bins(ROWS) == 20  # so that bins=none is not the run's


def test_budgets_and_ends_of_the_bins(folder):
    about = lines(sweep(str(folder), {"budget": [10, 0.5, 500], "subset": ["bottom", "middle"]}))
    assert [about[name].chosen for name in ("budget=10", "budget=0.5", "budget=500")] == [10, 100, ROWS]
    assert about["budget=500"].shared == 1.0
    assert about["budget=500"].jaccard == BUDGET / ROWS
    assert about["budget=500"].shared_by_chance == pytest.approx(1.0)
    # Quotas of a smaller budget are smaller, so what they take is what a larger one takes.
    assert about["budget=10"].shared == 1.0
    assert about["budget=10"].jaccard == 10 / BUDGET
    assert about["subset=bottom"].shared == 0.0
    assert about["subset=bottom"].rank_correlation == pytest.approx(1.0)  # the scores are the same
    assert sweep(str(folder), {"budget": [500]}).notes == (
        "budget is 500, but only 200 rows can be chosen: all of them are",
    )


def test_several_keys_one_at_a_time_and_together(folder):
    vary = {"weight": [0, 1], "bins": [1, None]}
    assert list(lines(sweep(str(folder), vary))) == [
        "weight=0 (D alone)",
        "weight=1 (I alone)",
        "bins=1",
        "bins=none",
    ]
    together = lines(sweep(str(folder), vary, product=True))
    assert list(together) == [
        "weight=0 (D alone), bins=1",
        "weight=0 (D alone), bins=none",
        "weight=1 (I alone), bins=1",
        "weight=1 (I alone), bins=none",
    ]
    run = RunFolder.read(folder)
    other = choose_rows(run.geometry(), CONFIG.updated(weight=1, bins=1), ROWS).choice.chosen
    own = run.scores()["chosen"].to_numpy(zero_copy_only=False)
    assert together["weight=1 (I alone), bins=1"].shared == pytest.approx((own & other).sum() / BUDGET)


def test_what_is_varied_where_nobody_says(folder, tmp_path):
    about = sweep(str(folder))
    assert list(lines(about)) == [
        "weight=0 (D alone)",
        "weight=0.2",
        "weight=0.6",
        "weight=0.8",
        "weight=1 (I alone)",
        "score=rank",
        "score=zscore",
        "score=residual",
        "num_samples=3",
        "num_samples=4",
        "num_samples=5",
        "bins=1",
        "bins=none",
        "subset=middle",
        "subset=bottom",
    ]
    assert about.notes == (
        "num_samples: the first of each row's stored answers; a run with another num_samples draws others, so its "
        "choice shares less",
    )
    write(tmp_path / "run", drawn(60), CONFIG.updated(score="residual", budget=10))
    other = lines(sweep(str(tmp_path / "run")))
    assert "score=raw, weight=0 (D alone)" in other
    assert "score=residual" not in other
    assert sweep(str(tmp_path / "run"), {"weight": [0, 1]}).notes == (
        "score: residual has no weight: varying it changes nothing",
    )


def test_nothing_in_the_run_folder_changes(folder):
    before = tree(folder)
    sweep(str(folder))
    assert tree(folder) == before


def test_rows_of_fewer_answers_keep_them(tmp_path):
    grams = [gram[: 3 + n % 3, : 3 + n % 3] for n, gram in enumerate(drawn(60))]
    config = CONFIG.updated(num_samples=5, budget=15)
    write(tmp_path / "run", grams, config)
    found = lines(sweep(str(tmp_path / "run"), {"num_samples": [4]}))["num_samples=4"]
    own, other = (np.array([np.dot((0.6, 0.4), transcribed(gram, most)) for gram in grams]) for most in (5, 4))
    assert found.rank_correlation == pytest.approx(scipy.stats.spearmanr(own, other).statistic, abs=1e-4)
    assert found.rank_correlation < 1


def test_rows_that_have_answers_but_no_score_stay_out(tmp_path):
    config = CONFIG.updated(budget=15, filters={"drop_least_agreeing": 0.1})
    write(tmp_path / "run", drawn(60), config)
    kept = np.arange(60) % 9 != 0
    with RunFolder.open(tmp_path / "run") as run:
        geometry = run.geometry().without(~kept, ())
        scored = choose_rows(geometry, config, 60)
        run.write_scores(scored.table())
        run.write_selected(scored.chosen_ids())
        run.write_manifest({"config": config.model_dump(mode="json")})
    about = sweep(str(tmp_path / "run"), {"weight": [0.4, 1], "budget": [0.5]})
    assert about.rows == kept.sum()
    assert about.lines[0].found.shared == 1.0
    assert about.lines[0].found.rank_correlation == pytest.approx(1.0)
    assert about.lines[2].found.chosen == 30  # of the pool, the rejected included
    assert about.notes == ("the rows that filters on the sampled answers rejected stay rejected",)


def test_equal_answers_leave_no_order(tmp_path):
    write(tmp_path / "run", np.ones((30, K, K), np.float32), CONFIG.updated(budget=10))
    about = sweep(str(tmp_path / "run"), {"weight": [1], "num_samples": [3]})
    for line in about.lines:
        assert line.found.shared == 1.0  # by id
        assert line.found.rank_correlation == 0.0
    assert "NaN" not in json.dumps(about.summary())


# What is refused


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (
            {"wieght": [1]},
            "--vary: wieght is not a setting: did you mean `weight`?",
        ),
        (
            {"foo": [1]},
            "--vary: foo is not a setting: use weight, score, num_samples, bins, budget, subset, layers, pooling",
        ),
        (
            {"temperature": [1.0, 1.2]},
            "--vary: temperature cannot be varied without sampling again: use weight, score, num_samples, bins, "
            "budget, subset, layers, pooling, or select into another folder",
        ),
        ({"weight": [2]}, "--vary: weight is 2: use a number from 0 to 1"),
        ({"score": ["rnk"]}, "--vary: score is 'rnk': use 'raw', 'rank', 'zscore' or 'residual'; did you mean `rank`?"),
        (
            {"num_samples": [7]},
            "--vary: num_samples is 7: the run has 6 answers per row; use 3 to 6, or select again into another folder",
        ),
        (
            {"num_samples": [2], "bins": [0]},
            "--vary: 2 problems\n  - num_samples is 2: use a whole number from 3 to 64; two answers span a single "
            "direction\n  - bins is 0: use a whole number, 1 or more, or leave it out",
        ),
    ],
)
def test_what_cannot_be_varied_is_told(folder, vary, said):
    with pytest.raises(ConfigError) as caught:
        sweep(str(folder), vary)
    assert str(caught.value) == said


def test_a_part_of_the_rows_is_for_what_is_embedded(folder):
    with pytest.raises(ConfigError) as caught:
        sweep(str(folder), {"weight": [1]}, rows=20)
    assert str(caught.value) == "--rows is 20: only layers and pooling are embedded again; vary one of them"


def test_runs_that_cannot_be_embedded_again(folder):
    with pytest.raises(StoreError) as caught:
        sweep(str(folder), {"layers": [2]})
    assert str(caught.value) == (
        f"{folder} was made with a model in memory: layers and pooling need a run of `adg select`"
    )


def test_the_choice_of_another_method_has_no_answers_to_choose_from_again(tmp_path):
    write(tmp_path / "run", drawn(20), CONFIG.updated(budget=5))
    with RunFolder.open(tmp_path / "run") as held:
        held.write_manifest({"config": CONFIG.updated(budget=5, method="longest").model_dump(mode="json")})
    with pytest.raises(ConfigError) as caught:
        sweep(str(tmp_path / "run"))
    assert str(caught.value) == (
        "method is 'longest': `adg sweep` chooses anew from the answers that ADG draws; use method: adg"
    )


def test_a_run_without_a_result(tmp_path):
    write(tmp_path / "run", drawn(20), CONFIG.updated(budget=5))
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not complete yet: run adg select on it"):
        sweep(str(tmp_path / "run"))
