"""The expected overlap against that of real independent draws, the errors against their spread."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from stability_runs import BUDGET, IDS, ROWS, WIDTH, drawn, printed, prompt_vectors, write

from adg_plugin.cli import main
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import StoreError
from adg_plugin.scoring.bins import assign_bins
from adg_plugin.scoring.geometry import combine, parts
from adg_plugin.scoring.jackknife import calibrated, fit, jackknife, score_variances, simulate
from adg_plugin.scoring.quota import choose
from adg_plugin.scoring.stability import stability, stability_of
from adg_plugin.store import GramGroup, RunFolder


def of_pool(grams):
    return calibrated([GramGroup(np.arange(len(grams)), grams)]).of_pool


def leave_out(gram, out):
    return np.delete(np.delete(gram, out, 0), out, 1)[None]


# The errors


def test_the_jackknife_of_one_row_by_hand():
    grams = drawn(3, 5, 0.5, rows=4)
    found = jackknife(grams)
    for row, gram in enumerate(grams):
        left = [parts(leave_out(gram, out)) for out in range(5)]
        d = np.array([p.dispersion[0] for p in left])
        i = np.array([p.anisotropy[0] for p in left])
        assert found.var_dispersion[row] == pytest.approx(4 / 5 * np.sum((d - d.mean()) ** 2))
        assert found.var_anisotropy[row] == pytest.approx(4 / 5 * np.sum((i - i.mean()) ** 2))
        assert found.covariance[row] == pytest.approx(4 / 5 * np.sum((d - d.mean()) * (i - i.mean())))


def test_of_many_answers_one_of_ten_groups_is_left_out():
    (gram,) = drawn(3, 20, 0.5, rows=1)
    left = np.array([parts(leave_out(gram, [2 * n, 2 * n + 1])).dispersion[0] for n in range(10)])
    assert jackknife(gram[None]).var_dispersion[0] == pytest.approx(9 / 10 * np.sum((left - left.mean()) ** 2))


def test_blocks_change_nothing(monkeypatch):
    grams = drawn(3, 4, 0.5, rows=50)
    whole = jackknife(grams)
    monkeypatch.setattr("adg_plugin.scoring.jackknife._BLOCK_ROWS", 7)
    np.testing.assert_array_equal(jackknife(grams).var_anisotropy, whole.var_anisotropy)


@pytest.mark.parametrize("samples", [3, 4, 5, 8])
def test_calibrated_variances_are_those_of_other_draws(samples):
    found = of_pool(drawn(10, samples, 0.3))
    again = [parts(drawn(seed, samples, 0.3)) for seed in range(100, 140)]
    d, i = np.array([p.dispersion for p in again]), np.array([p.anisotropy for p in again])
    assert found.var_dispersion.mean() == pytest.approx(d.var(axis=0, ddof=1).mean(), rel=0.2)
    assert found.var_anisotropy.mean() == pytest.approx(i.var(axis=0, ddof=1).mean(), rel=0.2)
    raw = jackknife(drawn(10, samples, 0.3)).var_anisotropy.mean()
    assert raw == 0 if samples == 3 else raw > 1.25 * found.var_anisotropy.mean()  # why they are calibrated


def test_the_simulated_answers_are_like_the_pool_s():
    grams = drawn(10, 5, 0.3)
    pool, (like_it, _) = parts(grams), simulate(fit(grams), 5)
    assert like_it.dispersion.mean() == pytest.approx(pool.dispersion.mean(), rel=0.03)
    assert like_it.anisotropy.mean() == pytest.approx(pool.anisotropy.mean(), abs=0.01)


def test_answers_that_lie_far_from_the_others_are_noticed():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((ROWS, 1, WIDTH)) * 5
    x = rng.standard_normal((ROWS, 5, WIDTH))
    far = x / np.sqrt(rng.chisquare(3, (ROWS, 5, 1)) / 3)
    unit = [v / np.linalg.norm(v, axis=2, keepdims=True) for v in (vectors + x, vectors + far)]
    near_tail, far_tail = (fit(v @ v.transpose(0, 2, 1)).tail for v in unit)
    assert near_tail < 0.2 < far_tail


@pytest.mark.parametrize("form", ["raw", "rank", "zscore", "residual"])
def test_the_variance_of_a_score_is_that_of_other_draws(form):
    found = of_pool(drawn(10, 5, 0.3))
    again = []
    for seed in range(100, 140):
        p = parts(drawn(seed, 5, 0.3))
        again.append(combine(p.dispersion, p.anisotropy, form, 0.4))
    real = np.var(again, axis=0, ddof=1).mean()
    assert score_variances(found, form, 0.4).mean() == pytest.approx(real, rel=0.25)


# The choice


@cache
def estimates(seed, difference):
    grams = drawn(seed, 5, difference)
    return calibrated([GramGroup(np.arange(ROWS), grams)])


@pytest.mark.parametrize("form", ["raw", "rank", "residual"])
@pytest.mark.parametrize("difference", [0.0, 0.2, 0.6])
def test_the_expected_overlap_is_that_of_other_runs(form, difference):
    config = ADGConfig(budget=BUDGET, bins=6, score=form)
    bins = assign_bins(prompt_vectors(ROWS), 6, 0)
    choices = {seed: again(drawn(seed, 5, difference), IDS, bins, config) for seed in range(12)}
    expected, real = [], []
    for seed in range(3):
        mine = choices[seed]
        about = stability_of(estimates(seed, difference), IDS, bins, mine, config)
        mean, low, high = about.overlap
        expected.append(mean)
        real += [(mine & other).sum() / BUDGET for number, other in choices.items() if number != seed]
        assert low <= mean <= high
        assert about.chance == pytest.approx(0.2, abs=0.01)
        # A row's chance to be chosen again sums to the budget, and the chosen ones' to the overlap.
        assert about.again.sum() == pytest.approx(BUDGET)
        assert about.again[mine].sum() / BUDGET == pytest.approx(mean)
    assert np.mean(expected) == pytest.approx(np.mean(real), abs=0.1)  # these spectra are flatter than any simulated
    assert difference > 0 or np.mean(expected) < 0.28


def again(grams, ids, bins, config):
    found = parts(grams)
    return choose(ids, combine(found.dispersion, found.anisotropy, config.score, config.weight), bins, BUDGET).chosen


def test_more_answers_are_expected_to_help_as_they_do(tmp_path):
    config = ADGConfig(budget=BUDGET, bins=6, score="residual")
    write(tmp_path / "run", drawn(10, 5, 0.3), config)
    about = stability(str(tmp_path / "run"))
    assert list(about.overlap_with) == [8, 10]
    assert about.overlap[0] < about.overlap_with[8] < about.overlap_with[10]
    bins = assign_bins(prompt_vectors(ROWS), 6, 0)
    runs = [again(drawn(seed, 10, 0.3), about.ids, bins, config) for seed in range(8)]
    real = np.mean([(one & two).sum() / BUDGET for one, two in pairwise(runs)])
    assert about.overlap_with[10] == pytest.approx(real, abs=0.09)


def test_rows_near_the_cut_are_those_within_one_error_of_the_other_fate(tmp_path):
    write(tmp_path / "run", drawn(10, 5, 0.6), ADGConfig(budget=BUDGET, bins=3))
    about = stability(str(tmp_path / "run"))
    bins = RunFolder.read(tmp_path / "run").scores()["bin"].to_numpy()
    for row in range(ROWS):
        others = about.scores[(bins == bins[row]) & (about.chosen != about.chosen[row])]
        assert about.near[row] == (np.abs(others - about.scores[row]).min(initial=np.inf) <= about.errors[row])
    assert 0 < about.near.sum() < ROWS
    otherwise = np.where(about.chosen, 1 - about.again, about.again)[about.doubtful()]
    assert (np.diff(otherwise) <= 0).all()
    assert len(otherwise) == about.near.sum()


def test_rows_of_fewer_answers_are_less_certain(tmp_path):
    five = list(drawn(10, 5, 0.2))
    mixed = [gram[:3, :3] if row % 3 == 0 else gram[:4, :4] if row % 3 == 1 else gram for row, gram in enumerate(five)]
    write(tmp_path / "run", mixed, ADGConfig(budget=BUDGET, bins=6, score="residual"))
    about = stability(str(tmp_path / "run"))
    errors = [np.sqrt(np.mean(about.errors[rest::3] ** 2)) for rest in range(3)]
    assert errors[0] > 0
    assert np.isfinite(errors).all()
    pool = calibrated(RunFolder.read(tmp_path / "run").geometry().grams).of_pool
    by_k = [pool.var_anisotropy[rest::3].mean() for rest in range(3)]
    assert by_k[0] > by_k[1] > by_k[2]  # three answers, four, five
    assert about.notes == (
        "167 of 500 rows have three answers: their error of anisotropy is that of simulated answers, whatever theirs "
        "are, and the shared part may be overstated",
    )


def test_rows_that_have_answers_but_no_score_do_not_count(tmp_path):
    write(tmp_path / "run", drawn(10, 5, 0.5, 60), ADGConfig(budget=15, bins=3))
    before = stability(str(tmp_path / "run"))
    with RunFolder.open(tmp_path / "run") as run:
        table = run.scores()
        kept = np.ones(60, dtype=bool)
        kept[np.flatnonzero(~before.chosen)[:7]] = False
        manifest = run.manifest()
        run.write_scores(table.filter(kept))
        run.write_manifest({"config": manifest["config"]})
    about = stability(str(tmp_path / "run"))
    assert about.ids.tolist() == before.ids[kept].tolist()
    np.testing.assert_allclose(about.scores, table["score"].to_numpy()[kept])


def test_it_is_the_same_every_time(tmp_path):
    write(tmp_path / "run", drawn(10, 5, 0.5), ADGConfig(budget=BUDGET, bins=6))
    one, two = (stability(str(tmp_path / "run")).summary() for _ in range(2))
    assert json.loads(json.dumps(one)) == two


@pytest.mark.parametrize("form", ["raw", "rank", "zscore", "residual"])
def test_equal_answers_leave_nothing_to_luck(tmp_path, form):
    write(tmp_path / "run", np.ones((30, 5, 5), np.float32), ADGConfig(budget=10, bins=3, score=form))
    about = stability(str(tmp_path / "run"))
    assert not about.errors.any()
    assert about.overlap == (1.0, 1.0, 1.0)
    assert about.tied
    assert not about.near.any()
    assert about.notes == ("all scores are equal: the choice is by id",)
    said = printed(about)
    assert said.startswith("another run with other draws would share about 100%")
    assert said.endswith("all scores are equal: the choice is by id")
    for nonsense in ("luck", "correlate", "standard error", "doubtful"):
        assert nonsense not in said


def test_equal_rows_of_some_bins_are_told(tmp_path):
    grams = drawn(10, 5, 0.5, 60)
    write(tmp_path / "run", grams, ADGConfig(budget=15, bins=3))
    bins = RunFolder.read(tmp_path / "run").scores()["bin"].to_numpy()
    grams[bins == 1] = grams[bins == 1][0]
    write(tmp_path / "other", grams, ADGConfig(budget=15, bins=3))
    about = stability(str(tmp_path / "other"))
    assert about.notes == ("all scores are equal in 1 of 3 bins with a cut: the choice there is by id",)
    assert "is the rows, the rest is sampling noise" in printed(about)


def test_bins_without_a_row_change_nothing():
    bins = assign_bins(prompt_vectors(ROWS), 6, 0)
    config = ADGConfig(budget=BUDGET, bins=6)
    mine = again(drawn(10, 5, 0.2), IDS, bins, config)
    one, other = (stability_of(estimates(10, 0.2), IDS, of, mine, config).summary() for of in (bins, 3 * bins + 2))
    assert one == other
    assert "NaN" not in json.dumps(other)


def test_a_filter_on_the_answers_is_noted():
    bins = assign_bins(prompt_vectors(ROWS), 6, 0)
    on_answers = {"drop_least_agreeing": 0.1}, {"min_agreement": 0.1}, {"underspecified": True}
    for filters, noted in (*((one, 1) for one in on_answers), ({"min_words": 2}, 0)):
        config = ADGConfig(budget=BUDGET, bins=6, filters=filters)
        mine = again(drawn(10, 5, 0.2), IDS, bins, config)
        notes = stability_of(estimates(10, 0.2), IDS, bins, mine, config).notes
        assert len([note for note in notes if note.startswith("the filters on agreement and under")]) == noted


def test_prompt_vectors_are_not_read(tmp_path):
    write(tmp_path / "run", drawn(10, 5, 0.5, 20), ADGConfig(budget=5, bins=2))
    run = RunFolder.read(tmp_path / "run")
    with_them, without = run.geometry(), run.geometry(vectors=False)
    assert (with_them.prompt_vectors.shape, without.prompt_vectors.shape) == ((20, 16), (20, 0))
    np.testing.assert_array_equal(with_them.grams[0].grams, without.grams[0].grams)
    np.testing.assert_array_equal(with_them.answer_tokens, without.answer_tokens)
    with RunFolder.open(tmp_path / "run") as held:
        assert held.geometry(vectors=False).prompt_vectors.shape == (20, 0)


@pytest.mark.parametrize("harm", ["removed", "all removed", "damaged"])
def test_lost_answers_are_told(tmp_path, harm, capsys):
    write(tmp_path / "run", drawn(10, 5, 0.5, 300), ADGConfig(budget=5, bins=2))
    parts = sorted(path for path in (tmp_path / "run" / "answers").iterdir() if path.is_file())
    assert len(parts) > 1
    if harm == "damaged":
        parts[0].write_bytes(parts[0].read_bytes()[:-50])
    for part in parts[: {"removed": 1, "all removed": None, "damaged": 0}[harm]]:
        part.unlink()
    with pytest.raises(SystemExit) as ended:
        main(["stability", str(tmp_path / "run")])
    assert ended.value.code == 3
    said = f"error: {tmp_path}/run lost answers since it was finished: run adg select on it again"
    assert capsys.readouterr().err.splitlines()[-1] == said


@pytest.mark.parametrize(("rows", "bins"), [(1, 1), (2, 1), (8, 8)])
def test_pools_of_a_few_rows(tmp_path, rows, bins):
    write(tmp_path / "run", drawn(10, 5, 0.5, rows), ADGConfig(budget=rows, bins=bins))
    about = stability(str(tmp_path / "run"))
    assert about.overlap[0] == about.chance == 1.0
    assert not about.near.any()
    assert not about.notes
    assert ("differ within their bins" in printed(about)) == (rows > bins)


def test_a_run_without_a_result(tmp_path):
    write(tmp_path / "run", drawn(10, 5, 0.5, 20), ADGConfig(budget=5, bins=2))
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="is not complete yet: run adg select on it"):
        stability(str(tmp_path / "run"))
