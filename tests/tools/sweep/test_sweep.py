"""Other settings on the answers of a finished run: against transcriptions, brute force, and selections of their own."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import typer
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from rich.console import Console

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, ModelError, StoreError
from adg_plugin.scoring.bins import assign_bins, default_bins
from adg_plugin.scoring.quota import choose
from adg_plugin.scoring.score import choose_rows
from adg_plugin.store import RunFolder, StagedRow
from adg_plugin.store.records import Answer, Prompt, RowResult
from adg_plugin.tools.sweep import cli as cli_sweep
from adg_plugin.tools.sweep.choices import Scored, common_by_chance, rank_correlation
from adg_plugin.tools.sweep.cli import parse_vary, print_sweep
from adg_plugin.tools.sweep.sweep import sweep

ROWS, K, BUDGET = 200, 6, 40
CONFIG = ADGConfig(budget=BUDGET, bins=7, num_samples=K, seed=3)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def answer_lengths(row):
    return [1 + (row * 7 + k * 3) % 11 for k in range(K)]


def drawn(rows=ROWS):
    """Return (N, K, K) Gram matrices of rows that scatter differently, and differently by answer."""
    rng = np.random.default_rng(5)
    shape = np.exp(0.5 * rng.standard_normal((rows, 1, 12)))
    vectors = unit(2 * rng.standard_normal((rows, 1, 12)) + shape * rng.standard_normal((rows, K, 12)))
    return (vectors @ vectors.transpose(0, 2, 1)).astype(np.float32)


def prompt_vectors(rows):
    return unit(np.random.default_rng(6).standard_normal((rows, 8))).astype(np.float16)


def write(folder, grams, config=CONFIG, asked=lambda n: ""):
    """Write a finished run folder; the rows are staged in another order than that of their ids."""
    with RunFolder.open(folder) as run:
        order = np.random.default_rng(7).permutation(len(grams))
        prompts = [Prompt(f"r{n:04d}", np.arange(3, dtype=np.int32), (0, 2), bytes(16), asked(n)) for n in order]
        run.stage_prompts([StagedRow(p, "text", "", "{}", "here") for p in prompts], digest="d")
        vectors = prompt_vectors(len(grams))
        for n, prompt in zip(order, prompts, strict=True):
            lengths = answer_lengths(n)[: len(grams[n])]
            answers = tuple(Answer(np.arange(length, dtype=np.int32), "a", "eos") for length in lengths)
            run.append(RowResult(prompt.id, prompt.key, answers, grams[n], vectors[n]))
        scored = choose_rows(run.geometry(), config, len(grams))
        run.write_scores(scored.table())
        run.write_selected(scored.chosen_ids())
        run.write_manifest({"config": config.model_dump(mode="json")})
    return scored


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "run"
    write(path, drawn())
    return path


def lines(about):
    return {line.name: line.found for line in about.lines}


def transcribed(gram, k=None):
    """Return D and I of one row by their definition."""
    g = np.asarray(gram, np.float64)[:k, :k]
    j = np.eye(len(g)) - 1 / len(g)
    centred = j @ g @ j
    trace = np.trace(centred)
    return trace / len(g), 1 - np.linalg.eigvalsh(centred)[-1] / trace


def tree(path):
    return {file: hashlib.sha256(file.read_bytes()).digest() for file in sorted(path.rglob("*")) if file.is_file()}


# The figures


def ranks(values):
    return (scipy.stats.rankdata(values) - 1) / (len(values) - 1)


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
    assert about.notes == ("the rows that the filter on agreement rejected stay rejected",)


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


# The command


def invoke(*arguments):
    app = typer.Typer()
    cli_sweep.register(app)
    try:
        app([str(argument) for argument in arguments], prog_name="adg", standalone_mode=True)
    except SystemExit as ended:
        return ended.code
    return 0


def test_values_are_yaml_and_none_is_none():
    assert parse_vary(["weight=0, 0.2", "bins=1,none", "weight=1", "score=rank"]) == {
        "weight": [0, 0.2, 1],
        "bins": [1, None],
        "score": ["rank"],
    }


@pytest.mark.parametrize("text", ["weight", "=1", "weight=", "weight=0,,1"])
def test_texts_without_a_value_are_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_vary([text])
    assert str(caught.value) == f"--vary is {text!r}: write KEY=VALUE,VALUE, such as weight=0,0.4,1"


def test_the_command_s_json_is_the_sweep_s(folder, capsys):
    assert invoke(folder, "--vary", "weight=0,1", "--vary", "bins=1", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads(json.dumps(sweep(str(folder), {"weight": [0, 1], "bins": [1]}).summary()))
    assert said["settings"]["weight"] == 0.4
    assert [one["name"] for one in said["variants"]] == ["weight=0 (D alone)", "weight=1 (I alone)", "bins=1"]
    assert said["embedded_again"] is None
    assert invoke(folder, "--vary", "weight=0,1", "--vary", "bins=1", "--json", "--product") == 0
    assert len(json.loads(capsys.readouterr().out)["variants"]) == 2


def test_the_command_s_table_fits_80_columns_and_says_what_the_json_says(folder, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert invoke(folder) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    about = sweep(str(folder))
    for line in about.lines:
        (shown,) = [text for text in out.splitlines() if text.startswith(f"{line.name} ")]
        found = line.found
        assert shown.split()[-9:] == [
            f"{found.rank_correlation:.2f}",
            f"{found.shared:.0%}",
            f"{found.jaccard:.0%}",
            f"{found.shared_by_chance:.0%}",
            f"{found.correlation_dispersion:.2f}",
            f"{found.correlation_anisotropy:.2f}",
            f"{found.mean_dispersion:.3f}",
            f"{found.mean_anisotropy:.3f}",
            f"{found.mean_answer_tokens:.0f}",
        ]
    assert "200 rows, 40 chosen" in out
    assert about.notes[0] in " ".join(out.split())


@pytest.mark.parametrize("width", [50, 80, 200])
def test_it_fits_the_terminal(folder, width):
    out = io.StringIO()
    vary = {"budget": [10, 40], "weight": [0, 1], "score": ["zscore"]}
    print_sweep(sweep(str(folder), vary, product=True), Console(file=out, width=width))
    assert max(map(len, out.getvalue().splitlines())) <= width
    if width == 200:
        assert re.search(r"budget=10, weight=0 \(D alone\), score=zscore: 10 rows", out.getvalue())


# Answers embedded again


SETTINGS = {"budget": 10, "bins": 3, "num_samples": 4, "seed": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tiny_runs import choose as select
    from tiny_runs import pool_rows, save

    path = tmp_path_factory.mktemp("embedded")
    return select(pool_rows(40), save(path / "model"), path / "run", **SETTINGS)


def by_hand(reader, layers, pooling):
    """Return ids, Gram matrices and prompt vectors of the stored answers, from transformers' own hidden states."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reader.manifest()["config"]["model"], dtype=torch.float32).eval()
    prompts = {p.id: p for window in reader.iter_windows(pending_only=False) for p in window}
    found = {}
    for result in reader.results():
        prompt, vectors = prompts[result.id], []
        for answer in result.answers:
            ids = torch.tensor(np.concatenate([prompt.token_ids, answer.token_ids]))[None]
            with torch.no_grad():
                output = model(ids, output_hidden_states=True)
            states = torch.stack(output.hidden_states[-layers:]).mean(0)[0]
            tokens = states[len(prompt) :].numpy()
            weights = np.ones(len(tokens))
            if pooling == "last_token":
                weights = np.arange(len(tokens)) == len(tokens) - 1
            elif pooling == "skip_first" and len(tokens) > 1:
                weights[0] = 0
            elif pooling == "surprisal":
                logs = torch.log_softmax(output.logits[0, len(prompt) - 1 : -1], -1).numpy()
                weights = -logs[np.arange(len(tokens)), answer.token_ids]
            vectors.append(unit((weights[:, None] * tokens).sum(0)))
        at = states[slice(*prompt.span)].mean(0).numpy()  # the prompt's own states do not see the answer
        found[result.id] = np.array(vectors) @ np.array(vectors).T, unit(at)
    ids = sorted(found)
    return ids, np.stack([found[id][0] for id in ids]), np.stack([found[id][1] for id in ids])


@pytest.mark.tiny
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("pooling", ["answer", "last_token", "skip_first", "surprisal"])
def test_embedding_again_gives_the_vectors_of_the_definition(run, layers, pooling):
    from adg_plugin.store.finished import finished
    from adg_plugin.tools.sweep.vectors import embed_again

    reader = RunFolder.read(run.run_dir)
    ids, grams, prompts = by_hand(reader, layers, pooling)
    names = np.array(ids, dtype=object)
    kept, found, lost = embed_again(reader, finished(reader), names, [(layers, pooling)], show_progress=False)
    vectors = found[layers, pooling]
    assert kept.tolist() == ids
    assert not lost
    (group,) = vectors.grams
    np.testing.assert_allclose(group.grams, grams, atol=2e-5)
    np.testing.assert_allclose(vectors.prompts, prompts, atol=1e-3)  # float16
    if (layers, pooling) == (4, "answer"):  # the run's own
        (stored,) = reader.geometry().grams
        np.testing.assert_allclose(group.grams, stored.grams, atol=2e-5)


@pytest.mark.tiny
@pytest.mark.parametrize("changes", [{"layers": 1}, {"pooling": "last_token"}])
def test_the_choice_under_other_vectors_is_that_of_a_selection_with_them(run, changes):
    from adg_plugin.store import GramGroup
    from adg_plugin.store.finished import finished

    reader = RunFolder.read(run.run_dir)
    stored, config = reader.geometry(), finished(reader).updated(**changes)
    _, grams, prompts = by_hand(reader, config.layers, config.pooling)
    groups = (GramGroup(np.arange(len(grams)), grams.astype(np.float32)),)
    other = choose_rows(replace(stored, grams=groups, prompt_vectors=prompts.astype(np.float16)), config, 40)
    table = reader.scores()
    own, expected = table["chosen"].to_numpy(zero_copy_only=False), other.choice.chosen
    (line,) = sweep(str(run.run_dir), {key: [value] for key, value in changes.items()}, show_progress=False).part_lines
    assert line.found.shared == (own & expected).sum() / 10
    assert line.found.shared < 1
    spearman = scipy.stats.spearmanr(table["score"].to_numpy(), other.scores).statistic
    assert line.found.rank_correlation == pytest.approx(spearman, abs=1e-3)


@pytest.mark.tiny
def test_layers_and_pooling_change_the_choice_and_not_the_run_folder(run):
    before = tree(run.run_dir)
    about = sweep(str(run.run_dir), {"layers": [1, 4], "pooling": ["last_token"], "weight": [0]}, show_progress=False)
    assert tree(run.run_dir) == before
    assert [line.name for line in about.lines] == ["weight=0 (D alone)"]
    one, own, last = about.part_lines
    assert [line.name for line in about.part_lines] == ["layers=1", "layers=4", "pooling=last_token"]
    assert about.part == about.run  # all rows
    assert own.own
    assert own.found.shared == 1.0
    assert own.found.rank_correlation == pytest.approx(1.0, abs=1e-3)
    assert one.found.rank_correlation < 0.999
    assert last.found.rank_correlation < 0.999
    assert any("layers=4 and pooling=answer, the run's own" in note for note in about.notes)


@pytest.mark.tiny
def test_a_random_part_is_compared_with_the_run_s_settings_on_that_part(run):
    vary = {"layers": [4, 1], "num_samples": [3, 4]}
    about = sweep(str(run.run_dir), vary, product=True, rows=20, show_progress=False)
    assert not about.lines
    assert about.run.rows == 40
    own, *_ = (line for line in about.part_lines if line.own)
    assert (own.name, own.found.rows, own.found.chosen) == ("layers=4, num_samples=4", 20, 5)
    assert own.found.shared == 1.0
    assert own.found.shared_by_chance == about.part.shared_by_chance
    assert [line.name for line in about.part_lines][2] == "layers=1, num_samples=3"
    (told,) = [note for note in about.notes if "20 of 40" in note]
    assert told == "layers, pooling: 20 of 40 rows, compared among themselves: 5 chosen, with bins in proportion"
    again = sweep(str(run.run_dir), vary, product=True, rows=20, show_progress=False)
    assert again == about
    assert sweep(str(run.run_dir), {"layers": [1]}, rows=400, show_progress=False).part.rows == 40


@pytest.mark.tiny
def test_the_command_embeds_and_tells(run, capsys):
    assert invoke(run.run_dir, "--vary", "layers=1,4", "--rows", "20") == 0
    said = capsys.readouterr()
    assert "embedded again: 20 rows, 5 chosen" in said.out
    assert "layers=4 = run" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert "embedding: 40/40 rows" in said.err
    assert invoke(run.run_dir, "--vary", "pooling=answer,skip_first", "--json") == 0
    found = json.loads(capsys.readouterr().out)["embedded_again"]
    assert [one["changes"] for one in found["variants"]] == [{"pooling": "answer"}, {"pooling": "skip_first"}]
    assert found["run"]["rows"] == 40


@pytest.mark.tiny
def test_layers_that_the_model_has_not(run):
    with pytest.raises(ModelError, match="layers is 40: the model has 5 layers, use at most that"):
        sweep(str(run.run_dir), {"layers": [2, 40]}, show_progress=False)


@pytest.mark.tiny
def test_rows_that_cannot_be_embedded_again_are_counted_and_left_out(run, monkeypatch):
    from adg_plugin.engines.encode import shared_prompt as encoding

    (lost, *_) = sorted(RunFolder.read(run.run_dir).scores()["id"].to_pylist())
    made = encoding._row_result

    def failing(config, row, units, prompt_state):
        return made(config, row, units * (np.nan if row.id == lost else 1), prompt_state)

    monkeypatch.setattr(encoding, "_row_result", failing)
    about = sweep(str(run.run_dir), {"layers": [1]}, show_progress=False)
    assert about.part.rows == about.part_lines[0].found.rows == 39
    assert "1 of 40 rows could not be embedded again (non_finite_states 1) and are left out" in about.notes


@pytest.mark.tiny
def test_another_model_is_refused(run):
    from safetensors.torch import load_file, save_file

    (weights,) = (run.run_dir.parent / "model").glob("*.safetensors")
    kept = weights.read_bytes()
    try:
        save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
        with pytest.raises(
            StoreError, match=r"is not what it was \(model is '.*', was '.*'\): vectors would be another"
        ):
            sweep(str(run.run_dir), {"layers": [2]}, show_progress=False)
    finally:
        weights.write_bytes(kept)


# The benchmark


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "benchmarks" / "bench_ablations.py"
    spec = importlib.util.spec_from_file_location("bench_ablations", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_two_runs_are_compared_row_by_row(folder, tmp_path, bench):
    scored = write(tmp_path / "other", drawn(150)[::-1].copy(), CONFIG.updated(budget=30, bins=4, weight=1))
    found = bench.against(str(folder), str(tmp_path / "other"))
    table = RunFolder.read(folder).scores().to_pylist()
    one = {row["id"]: row for row in table}
    other = {row["id"]: row for row in scored.table().to_pylist()}
    both = sorted(one.keys() & other.keys())
    assert found.common_rows == len(both) == 150
    for name, told in (
        ("score", found.rank_correlation),
        ("dispersion", found.correlation_dispersion),
        ("anisotropy", found.correlation_anisotropy),
    ):
        expected = scipy.stats.spearmanr([one[id][name] for id in both], [other[id][name] for id in both]).statistic
        assert told == pytest.approx(expected)
    first, second = ({id for id, row in rows.items() if row["chosen"]} for rows in (one, other))
    assert found.shared == len(first & second) / 30
    assert found.jaccard == len(first & second) / len(first | second)

    def rate(rows, id):
        mates = [row["chosen"] for row in rows.values() if row["bin"] == rows[id]["bin"]]
        return sum(mates) / len(mates)

    assert found.shared_by_chance == pytest.approx(sum(rate(one, id) * rate(other, id) for id in both) / 30)
    itself = bench.against(str(folder), str(folder))
    assert (itself.shared, itself.jaccard, itself.rank_correlation) == pytest.approx((1, 1, 1))


def test_two_runs_over_other_rows_with_the_same_ids_are_refused(tmp_path, bench):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, drawn(50), CONFIG.updated(budget=30, bins=4), asked=str)
    write(other, drawn(40), CONFIG.updated(budget=30, bins=4), asked=lambda n: "another" * 20 if n == 7 else str(n))
    with pytest.raises(SystemExit) as ended:
        bench.against(str(one), str(other))
    shown = ("another" * 20)[:60]
    assert (
        str(ended.value) == f"error: row 'r0007' is '7' in {one} and '{shown}' in {other}: give two runs over one pool"
    )


@pytest.mark.tiny
def test_the_benchmark_prints_tables_and_json_last(run, bench, capsys, monkeypatch, tmp_path):
    asked = ["bench_ablations.py", str(run.run_dir), "--layers", "1", "4", "--pooling", "last_token"]
    monkeypatch.setattr(sys, "argv", [*asked, "--other", str(run.run_dir), "--out", str(tmp_path / "page.md")])
    before = tree(run.run_dir)
    bench.main()
    assert tree(run.run_dir) == before
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert [one["name"] for one in result["embedded_again"]["variants"]] == [
        "layers=1",
        "layers=4",
        "pooling=last_token",
    ]
    assert [one["name"] for one in result["variants"] if "num_samples" in one["changes"]] == ["num_samples=3"]
    assert result["others"][0]["shared"] == 1.0
    for name in ("| weight=0 (D alone) |", "| weight=0.4 (the run's) |", "| bins=1 |", f"| `{run.run_dir}` | 40 |"):
        assert name in out
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith(out.rpartition("{")[0].splitlines()[0])
    assert json.loads(page.splitlines()[-2]) == result
