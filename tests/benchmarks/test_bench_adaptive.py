"""The simulation of adaptive sampling: bounds, costs, and that what is not drawn decides nothing."""

import importlib
import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

FOLDER = ROOT / "benchmarks"
NAMES = ("adaptive_policies", "adaptive_tables", "bench_adaptive")


@pytest.fixture(scope="module", autouse=True)
def modules():
    before = list(sys.path)
    sys.path.insert(0, str(FOLDER))
    import adaptive_policies
    import adaptive_tables

    yield adaptive_policies, adaptive_tables
    sys.path[:] = before
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def policies(modules):
    return modules[0]


@pytest.fixture(scope="module")
def tables(modules):
    return modules[1]


def drawn_pool(policies, rows=160, answers=5, seed=0, drift=0.5):
    """Rows whose answers move as they grow: Grams after 4, 8 and 16 tokens."""
    rng = np.random.default_rng(seed)
    size = np.exp(0.5 * rng.standard_normal((rows, 1, 1)))
    x, grams = np.zeros((rows, answers, 12)), {}
    for tokens in (4, 8, 16):
        x = x + drift * 0.3 * size * rng.standard_normal(x.shape)
        vectors = x + np.eye(12)[0]
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        grams[tokens] = (vectors @ vectors.transpose(0, 2, 1)).astype(np.float32)
    return policies.Pool(grams, rng.integers(1, 17, (rows, answers)), rng.integers(5, 40, rows))


@pytest.fixture(scope="module")
def pool(policies):
    return drawn_pool(policies)


def task_of(policies, form="raw", budget=32, rows=160, bins=8):
    labels = np.unique(np.random.default_rng(1).integers(0, bins, rows), return_inverse=True)[1]
    return policies.Task(form, 0.4, budget, labels)


@st.composite
def intervals(draw):
    rows = draw(st.integers(1, 12))
    ends = np.array(draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=rows, max_size=rows)))
    bins = np.unique(draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)), return_inverse=True)[1]
    places = np.array([draw(st.integers(0, 4)) for _ in range(bins.max() + 1)])
    low = ends[:, 0].astype(float)
    return low, low + ends[:, 1], bins, places


@given(intervals())
def test_a_row_is_decided_where_no_values_in_the_intervals_could_decide_otherwise(policies, case):
    low, high, bins, places = case
    into, out = policies.decide(low, high, bins, places)
    for row in range(len(low)):
        mates = [mate for mate in np.flatnonzero(bins == bins[row]) if mate != row]
        may_be_above = sum(high[mate] >= low[row] for mate in mates)
        must_be_above = sum(low[mate] > high[row] for mate in mates)
        assert into[row] == (places[bins[row]] > may_be_above)
        assert out[row] == (places[bins[row]] <= must_be_above)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=20))
def test_ranks_within_bins_are_those_of_sorting(policies, rows):
    bins = np.unique([bin_ for bin_, _ in rows], return_inverse=True)[1]
    scores = np.array([float(score) for _, score in rows])
    expected = [
        sorted(np.flatnonzero(bins == bins[row]), key=lambda mate: (-scores[mate], mate)).index(row)
        for row in range(len(rows))
    ]
    assert policies.rank_in_bin(scores, bins).tolist() == expected


def test_tokens_are_those_of_the_first_answers_up_to_the_limit(policies):
    lengths = np.array([[3, 9, 2], [10, 1, 7]])
    pool = policies.Pool({4: np.ones((2, 3, 3)), 10: np.ones((2, 3, 3))}, lengths, np.array([5, 6]))
    assert pool.full == (3, 10)
    assert pool.tokens((3, 10)).tolist() == [14, 18]
    assert pool.tokens((2, 4)).tolist() == [3 + 4, 4 + 1]


@pytest.mark.parametrize("form", ["raw", "rank", "residual"])
@pytest.mark.parametrize("rule", ["jackknife", "pilot", "keep", "oracle"])
def test_bounds_without_end_find_the_full_choice_for_all_tokens(policies, pool, form, rule):
    for path in (((5, 4), pool.full), ((3, 4), (4, 8), pool.full)):
        found = policies.simulate(pool, policies.Policy(path, rule, 1e9, False), task_of(policies, form))
        assert (found.overlap, found.gain, found.tokens) == pytest.approx((1, 1, 1))


def test_the_first_stage_alone_is_the_choice_by_early_scores(policies, pool):
    task = task_of(policies, "residual")
    policy = policies.Policy(((3, 8), pool.full), "early", 0.0, False)
    gram = pool.grams[8][:, :3, :3].astype(float)
    centring = np.eye(3) - 1 / 3
    spectrum = np.linalg.eigvalsh(centring @ gram @ centring)
    early = (spectrum.sum(1) - spectrum[:, -1]) / 3  # D I: the dispersion outside the main direction
    quota = task.quota()
    wanted = [
        row
        for bin_ in range(len(quota))
        for row in sorted(np.flatnonzero(task.bins == bin_), key=lambda row: -early[row])[: quota[bin_]]
    ]
    played = policies.play(pool, policy, task)
    assert sorted(np.flatnonzero(played.chosen)) == sorted(wanted)
    assert played.tokens.tolist() == np.minimum(pool.lengths[:, :3], 8).sum(1).tolist()
    assert played.prefill.tolist() == pool.prompts.tolist()


def test_keeping_so_many_rows_costs_their_missing_tokens_and_another_prefill(policies, pool):
    task = task_of(policies, budget=16)
    played = policies.play(pool, policies.Policy(((5, 4), pool.full), "keep", 2.0, False), task)
    best = policies.rank_in_bin(task.score(pool.parts((5, 4))), task.bins)
    completed = best < 2 * task.quota()[task.bins]
    early = np.minimum(pool.lengths, 4).sum(1)
    assert played.tokens.tolist() == np.where(completed, pool.lengths.sum(1), early).tolist()
    assert played.prefill.tolist() == (pool.prompts * (1 + completed) + early * completed).tolist()
    assert not (played.chosen & ~completed).any()
    assert played.chosen.sum() == 16


def test_several_stages_keep_twice_as_many_before_the_last(policies, pool):
    task = task_of(policies, budget=16)
    played = policies.play(pool, policies.Policy(((5, 4), (5, 8), pool.full), "keep", 1.0, False), task)
    first = policies.rank_in_bin(task.score(pool.parts((5, 4))), task.bins) < 2 * task.quota()[task.bins]
    second = policies.rank_in_bin(np.where(first, task.score(pool.parts((5, 8))), -np.inf), task.bins)
    last = first & (second < task.quota()[task.bins])
    sampled = [np.minimum(pool.lengths, longest).sum(1) for longest in (4, 8, 16)]
    assert played.tokens.tolist() == np.where(last, sampled[2], np.where(first, sampled[1], sampled[0])).tolist()
    assert played.chosen.tolist() == last.tolist()


def test_rows_of_bins_without_a_choice_are_not_drawn_unless_ranks_need_them(policies, pool):
    bins = np.r_[np.zeros(1, int), np.ones(159, int)]  # one row of 160, budget 1: its bin has no place
    for form, cost in (("raw", 0), ("residual", 0), ("rank", np.minimum(pool.lengths[0], 4).sum())):
        task = policies.Task(form, 0.4, 1, bins)
        played = policies.play(pool, policies.Policy(((5, 4), pool.full), "keep", 2.0, False), task)
        assert played.tokens[0] == cost
        assert played.chosen.sum() == 1


@pytest.mark.parametrize(
    ("rule", "knob", "form", "mixed"),
    [
        ("jackknife", 0.5, "raw", True),
        *itertools.product(["keep"], [1.5], ["raw", "rank", "residual"], [False, True]),
        *itertools.product(["pilot"], [0.5], ["raw", "rank", "residual"], [False, True]),
    ],
)
def test_answers_that_were_not_drawn_decide_nothing(policies, pool, form, rule, knob, mixed):
    task = task_of(policies, form)
    paths = [((5, 4), pool.full), ((3, 16), pool.full)]
    if rule != "jackknife":  # its widths are calibrated as if all rows had reached the stage
        paths.append(((3, 4), (4, 8), pool.full))
    for path in paths:
        policy = policies.Policy(path, rule, knob, mixed)
        before = policies.play(pool, policy, task, seed=3)
        stopped = before.tokens < pool.tokens(pool.full)
        assert 20 < stopped.sum() < 160
        others = drawn_pool(policies, seed=9)
        grams = {tokens: gram.copy() for tokens, gram in pool.grams.items()}
        for state in path[1:]:
            unseen = before.tokens < pool.tokens(state)
            if rule == "pilot":
                unseen &= before.tokens < pool.tokens(pool.full)
            answers = path[path.index(state) - 1][0] if state[1] == path[0][1] else 0  # of these, all are there
            changed = others.grams[state[1]][unseen].copy()
            changed[:, :answers, :answers] = grams[state[1]][unseen, :answers, :answers]
            grams[state[1]][unseen] = changed
        after = policies.play(replace(pool, grams=grams), policy, task, seed=3)
        assert (after.tokens == before.tokens).all()
        assert (after.chosen == before.chosen).all()


def test_an_oracle_does_look(policies, pool):
    task, policy = task_of(policies), policies.Policy(((5, 4), pool.full), "oracle", 0.5, False)
    before = policies.play(pool, policy, task)
    grams = {**pool.grams, 16: drawn_pool(policies, seed=9).grams[16]}
    assert (policies.play(replace(pool, grams=grams), policy, task).tokens != before.tokens).any()


def test_every_path_grows_and_ends_with_everything(policies):
    for path in policies.paths((5, 48), (6, 12, 24)):
        assert path[-1] == (5, 48)
        for one, other in itertools.pairwise(path):
            assert all(a <= b for a, b in zip(one, other, strict=True))
            assert one != other
    assert ((3, 6), (3, 12), (4, 24), (5, 48)) in policies.paths((5, 48), (6, 12, 24))
    fewer = [((3, 48), (5, 48)), ((4, 48), (5, 48)), ((3, 48), (4, 48), (5, 48))]
    assert policies.paths((5, 48), ()) == fewer
    assert policies.paths((3, 48), (6,)) == [((3, 6), (3, 48))]


def test_the_front_holds_what_nothing_cheaper_equals(policies, tables):
    costs = [(0.5, 0.9), (0.3, 0.4), (0.4, 0.4), (0.6, 0.8), (0.3, 0.5), (0.7, 0.95), (0.9, 1.0)]
    found = [(None, policies.Outcome(tokens, 0, overlap, 0)) for tokens, overlap in costs]
    assert [(o.tokens, o.overlap) for _, o in tables.front(found)] == [(0.3, 0.5), (0.5, 0.9), (0.7, 0.95), (0.9, 1.0)]
    assert tables.within(found, 0.5) == 0.9
    assert tables.within(found, 0.2) is None
    assert tables.needed(found) == 0.7
    assert tables.needed(found[:3]) == 1.0


def test_without_correlation_nearly_all_rows_have_to_be_completed_and_with_it_the_places_alone(tables):
    assert tables.share_to_complete(0.0, 100, 8) == pytest.approx(0.95, abs=0.02)
    assert tables.share_to_complete(0.99999, 100, 8) == pytest.approx(0.08, abs=0.011)
    shares = [tables.share_to_complete(correlation, 10, 1) for correlation in (0.3, 0.6, 0.9, 0.99)]
    assert shares == sorted(shares, reverse=True)


def test_calibration_of_rows_that_do_not_change_is_perfect(policies, tables, pool):
    still = replace(pool, grams={**pool.grams, 8: pool.grams[16]}, lengths=np.minimum(pool.lengths, 8))
    found = tables.calibration(still, (5, 8), task_of(policies))
    assert found["tokens"] == 1
    assert (found["correlation"], found["regressed"]) == pytest.approx((1, 1))
    assert (found["error"], found["left"]) == pytest.approx((0, 0), abs=1e-6)
    assert found["jackknife"] > 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tiny_runs import choose, pool_rows, save

    path = tmp_path_factory.mktemp("adaptive")
    return choose(pool_rows(60), save(path / "model"), path / "run", num_samples=4, max_new_tokens=8, bins=6)


@pytest.mark.tiny
def test_answers_are_cut_off_and_embedded_once_and_the_last_line_is_json(run, modules, capsys, monkeypatch, tmp_path):
    from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.store import RunFolder
    from adg_plugin.store.reader import finished
    from adg_plugin.tools.sweep.choices import stored_answers

    bench = importlib.import_module("bench_adaptive")
    asked = ["bench_adaptive.py", str(run.run_dir), "--cache", str(tmp_path), "--tokens", "2", "5", "--forms", "raw"]
    asked += ["--seeds", "1", "--budgets", "0.2", "--rows-per-bin", "10"]
    for rows, embedded in ((40, True), (60, True), (60, False)):
        monkeypatch.setattr(sys, "argv", [*asked, "--rows", str(rows), "--front", "--out", str(tmp_path / "best.csv")])
        bench.main()
        out, err = capsys.readouterr()
        told = json.loads(out.splitlines()[-1], parse_constant=pytest.fail)
        assert told["rows"] == rows
        assert (f"{rows} of {rows} rows embedded" in err) == embedded
    assert "embedded" not in err
    lines = (tmp_path / "best.csv").read_text().splitlines()[1:]
    are_oracles = [", oracle," in line for line in lines]
    assert are_oracles == sorted(are_oracles)
    for oracle in (False, True):
        overlaps = [float(line.split(",")[-2]) for line in lines if (", oracle," in line) == oracle]
        assert len(overlaps) > 2
        assert overlaps == sorted(overlaps)
    (task,) = told["tasks"]
    assert (task["form"], task["budget"], task["bins"]) == ("raw", 12, 6)
    assert 0 < task["policies"]["tokens_for_0.95"] <= 1

    args = bench.argparse.Namespace(run_dir=str(run.run_dir), cache=tmp_path, tokens=[2, 5], rows=None)
    pool, prompts, config = bench.read_pool(args)
    reader = RunFolder.read(run.run_dir)
    geometry = reader.geometry()
    assert config == finished(reader)
    np.testing.assert_array_equal(prompts, geometry.prompt_vectors)
    np.testing.assert_array_equal(pool.grams[8], geometry.grams[-1].grams)
    encoder = SharedPromptEncoder(Source.configured(config).load().model, config)
    stored = {row.id: row for row in stored_answers(reader, geometry.ids)}
    for short in (2, 5):
        cut = [
            replace(row, answers=tuple(replace(a, token_ids=a.token_ids[:short]) for a in row.answers))
            for row in stored.values()
        ]
        found = {result.id: result.gram for result in encoder.run(cut)}
        expected = np.stack([found[str(id)] for id in geometry.ids])
        np.testing.assert_allclose(pool.grams[short], expected, atol=1e-5)
    assert pool.lengths.tolist() == [[len(a.token_ids) for a in stored[str(id)].answers] for id in geometry.ids]
    assert pool.prompts.tolist() == [len(stored[str(id)].prompt) for id in geometry.ids]


@pytest.mark.tiny
def test_answers_cannot_be_cut_off_where_they_end(run, modules, monkeypatch, tmp_path):
    bench = importlib.import_module("bench_adaptive")
    monkeypatch.setattr(sys, "argv", ["bench_adaptive.py", str(run.run_dir), "--cache", str(tmp_path), "--tokens", "8"])
    with pytest.raises(SystemExit, match=r"error: --tokens 8: the run's answers have up to 8; give fewer, and at leas"):
        bench.main()
