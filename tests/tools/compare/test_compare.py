"""Methods compared: costs, and what a run folder keeps."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, MissingExtraError, ModelError, StoreError
from adg_plugin.tools.compare.plans import planned
from adg_plugin.tools.compare.runner import Cost, costs_before

# Costs


def test_costs_add_up_over_runs():
    first = Cost().with_now({"rows": 30, "seconds": 2.0, "tokens": 5, "embedding": {"rows": 30, "seconds": 1.5}})
    assert first == Cost(30, 3.5, 5, 3.5)
    again = first.with_now({"rows": 0})
    assert again == Cost(30, 3.5, 5, 0.0)
    assert again.is_whole(30)
    assert not again.is_whole(31)


# Run folders


ROWS = 30


@pytest.fixture
def settings(model, tmp_path):
    from tiny_runs import SETTINGS, pool_rows, write_jsonl

    rows = [{**row, "output": "a b " * n, "category": "cd"[n % 2]} for n, row in enumerate(pool_rows(ROWS))]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    return ADGConfig.parse({**SETTINGS, "model": str(model), "datasets": [str(tmp_path / "pool.jsonl")], "bins": 4})


def compared(settings, methods, folder):
    from adg_plugin.tools.compare.compare import compare

    return compare(settings, methods, folder, show_progress=False)


def result_files(folder: Path):
    names = ("config.json", "selected.jsonl", "scores.parquet", "rejected.jsonl", "manifest.json", "report.html")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}


@pytest.mark.tiny
@pytest.mark.parametrize("method", ["adg", "random"])
def test_a_choice_is_that_of_a_selection_by_the_method_and_an_earlier_one_stays(settings, tmp_path, method):
    from adg_plugin import select

    texts = ["adg", "adg:residual", "random", "longest", "zip", "ifd", "random:seed=1"]
    own = settings.updated(method=method)
    selection = select(config=own, output_dir=tmp_path / "run", show_progress=False)
    (tmp_path / "run" / "report.html").write_text("a page")
    before = result_files(tmp_path / "run")
    found = compared(settings, texts, tmp_path / "run")
    assert result_files(tmp_path / "run") == before
    assert len(before) == 6
    assert {one.name: one.error for one in found.methods} == dict.fromkeys(texts)
    by_name = {one.name: one for one in found.methods}
    assert by_name[method].ids == selection.ids
    for text in texts:
        plan = planned(settings, [text])[0]
        if plan.changes != {"seed": 1}:  # which would draw other answers
            other = select(config=plan.config, output_dir=tmp_path / "other", show_progress=False)
            assert by_name[text].ids == other.ids
            assert by_name[text].scored == other.manifest["rows"]["scored"]


def reader(path):
    from adg_plugin.store import RunFolder

    return RunFolder.read(path)


@pytest.mark.tiny
def test_facts_are_those_of_the_chosen_rows(settings, tmp_path):
    from adg_plugin.report.compared import read_comparison
    from adg_plugin.scoring.bins import assign_bins

    texts = ["adg", "adg:raw", "random", "longest"]
    found = compared(settings, texts, tmp_path / "run")
    facts, choices = found.facts, [set(one.ids) for one in found.methods]
    assert found.budget == 10
    assert found.rows == {"pool": ROWS, "candidates": ROWS}
    assert all(len(choice) == 10 for choice in choices)
    for i, one in enumerate(choices):
        for j, other in enumerate(choices):
            assert facts.jaccard[i][j] == pytest.approx(len(one & other) / len(one | other))
    assert facts.jaccard[0][1] == 1.0  # the config's own form, by two names
    everyone = set.intersection(*choices)
    assert facts.chosen_by == {"all": len(everyone), "none": ROWS - len(set.union(*choices))}
    (coverage,) = facts.coverage
    assert coverage["kind"] == "category"
    for value in coverage["values"]:
        kind = {f"row-{n}" for n in range(ROWS) if "cd"[n % 2] == value["value"]}
        assert value["pool"] == len(kind)
        assert value["chosen"] == [len(kind & choice) for choice in choices]
    geometry = reader(tmp_path / "run").geometry()
    bins = dict(zip(geometry.ids, assign_bins(geometry.prompt_vectors, 4, 0), strict=True))
    assert facts.bins["reached"] == [len({bins[id] for id in choice}) for choice in choices]
    words = sorted(2 * int(id.removeprefix("row-")) for id in choices[3])
    assert facts.lengths[3]["reference_words"]["p50"] == np.median(words)
    assert words == [2 * n for n in range(ROWS - 10, ROWS)]
    stored = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert stored == json.loads(json.dumps(found.summary()))
    assert read_comparison(reader(tmp_path / "run")) == stored
    stored["pool_digest"] = "another"
    (tmp_path / "run" / "compare.json").write_text(json.dumps(stored))
    assert read_comparison(reader(tmp_path / "run")) is None


@pytest.mark.tiny
def test_what_is_there_is_not_asked_for_again(settings, tmp_path, monkeypatch):
    from adg_plugin.engines.models import loading

    loaded = []
    load = loading.load_backbone
    monkeypatch.setattr(loading, "load_backbone", lambda *given: loaded.append(given) or load(*given))
    compared(settings, ["random", "longest", "zip"], tmp_path / "run")
    assert not loaded  # none of them asks a model
    first = compared(settings, ["adg", "ifd", "adg:rank"], tmp_path / "run")
    assert len(loaded) == 2
    again = compared(settings, ["ifd", "adg:rank", "adg:weight=1", "random"], tmp_path / "run")
    assert len(loaded) == 2
    by_name = {one.name: one for one in again.methods}
    assert [by_name[one.name].ids for one in first.methods[1:]] == [one.ids for one in first.methods[1:]]
    for name in ("answers", "ifd"):
        assert again.costs[name] == replace(first.costs[name], seconds_now=0.0, of=ROWS)
        assert again.costs[name].seconds > 0
    assert again.costs_of(by_name["random"]) == []


def test_what_mig_drew_counts_as_answers():
    class Run:
        path = Path("run")
        sampling: ClassVar = {"rows": 30, "seconds": 2.0, "tokens": 5}

        def manifest(self):
            return {"recipe": {"a": 1}, "config": {"method": "mig"}, "sampling": self.sampling}

        def staged_digest(self):
            return "digest"

    assert costs_before(Run(), {"a": 1}) == {"answers": Cost(30, 2.0, 5)}
    assert costs_before(Run(), {"a": 2}) == {}


@pytest.mark.tiny
def test_a_comparison_whose_costs_cannot_be_read_is_named(settings, tmp_path):
    compared(settings, ["random"], tmp_path / "run")
    path = tmp_path / "run" / "compare.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "costs": {"answers": {"rows": 1}}}))
    with pytest.raises(StoreError) as caught:
        compared(settings, ["random"], tmp_path / "run")
    assert str(caught.value) == f"{path} has no costs that can be read (KeyError('seconds')): delete it"


@pytest.mark.tiny
def test_the_cost_of_an_earlier_selection_counts(settings, tmp_path):
    from adg_plugin import select

    manifest = select(config=settings, output_dir=tmp_path / "run", show_progress=False).manifest
    found = compared(settings, ["adg"], tmp_path / "run")
    assert found.costs["answers"] == Cost(ROWS, manifest["sampling"]["seconds"], manifest["sampling"]["tokens"], 0.0)


TO_DATE = (
    "run `adg select` with these settings to bring the folder up to date (it keeps the answers), or give another --out"
)


@pytest.mark.tiny
def test_a_pool_that_only_looks_changed_is_compared_beside_the_selection(settings, tmp_path, monkeypatch):
    from adg_plugin import select
    from adg_plugin.pipeline import stage as pool

    select(config=settings, output_dir=tmp_path / "run", show_progress=False)
    before = result_files(tmp_path / "run")
    os.utime(tmp_path / "pool.jsonl", (1, 1))
    assert [one.error for one in compared(settings, ["random", "adg"], tmp_path / "run").methods] == [None, None]
    monkeypatch.setattr(pool, "__version__", "99")
    assert len(compared(settings, ["random"], tmp_path / "run").methods[0].ids) == 10
    assert result_files(tmp_path / "run") == before


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[2:], "2 rows are gone, 'row-0' first"),
        (lambda rows: [*rows, {**rows[0], "id": "more", "instruction": "Say more."}], "1 row is new, 'more'"),
        (lambda rows: [*rows[:7], {**rows[7], "output": "another"}, *rows[8:]], "1 row is changed, 'row-7'"),
        (lambda rows: [*rows, rows[3]], "other rows are rejected, 'row-3' (duplicate) first"),
    ],
)
def test_rows_that_differ_from_those_of_the_selection_are_named(settings, tmp_path, change, said):
    from tiny_runs import read_jsonl, write_jsonl

    from adg_plugin import select

    select(config=settings, output_dir=tmp_path / "run", show_progress=False)
    before = result_files(tmp_path / "run")
    write_jsonl(tmp_path / "pool.jsonl", change(read_jsonl(tmp_path / "pool.jsonl")))
    with pytest.raises(StoreError) as caught:
        compared(settings, ["random"], tmp_path / "run")
    assert str(caught.value) == f"run folder {tmp_path / 'run'} holds a selection from another pool: {said}: {TO_DATE}"
    assert result_files(tmp_path / "run") == before
    select(config=settings, output_dir=tmp_path / "run", show_progress=False)  # as it says
    assert compared(settings, ["random"], tmp_path / "run").methods[0].error is None


@pytest.mark.tiny
def test_bins_are_found_once_for_all_methods(settings, tmp_path, monkeypatch):
    from adg_plugin.tools.compare import runner as compare_runner

    asked = []
    assign = compare_runner.assign_bins
    monkeypatch.setattr(compare_runner, "assign_bins", lambda *given: asked.append(given[1:]) or assign(*given))
    found = compared(settings, ["adg", "adg:rank", "adg:weight=1", "adg:bins=none", "adg:bins=3"], tmp_path / "run")
    assert asked == [(4, 0), (None, 0)]  # 30 rows make 3 bins
    assert not found.failed


@pytest.mark.tiny
def test_an_earlier_selection_of_other_settings_is_not_undone(settings, tmp_path):
    from adg_plugin import select

    select(config=settings, output_dir=tmp_path / "run", show_progress=False)
    before = result_files(tmp_path / "run")
    with pytest.raises(StoreError) as caught:
        compared(settings.updated(filters={"min_words": 8}), ["random"], tmp_path / "run")
    assert str(caught.value) == (
        f"run folder {tmp_path / 'run'} holds a selection from another pool: 15 rows are gone, 'row-0' (now rejected: "
        f"too_few_words) first; filters.min_words None (now 8): {TO_DATE}"
    )
    with pytest.raises(StoreError) as caught:
        compared(settings.updated(num_samples=4), ["random"], tmp_path / "run")
    assert str(caught.value) == (
        f"run folder {tmp_path / 'run'} was made with num_samples 3 (now 4): go back to that, give another folder, or "
        "delete this one"
    )
    assert result_files(tmp_path / "run") == before
    assert not (tmp_path / "run" / "compare.json").exists()


@pytest.mark.tiny
def test_a_method_that_fails_leaves_the_others(settings, tmp_path):
    from tiny_runs import break_altogether, save

    broken = save(tmp_path / "broken", break_altogether)
    found = compared(settings.updated(model=str(broken)), ["random", "adg", "adg:rank", "zip"], tmp_path / "run")
    assert [one.name for one in found.failed] == ["adg", "adg:rank"]
    assert {one.error for one in found.failed} == {
        "30 of 30 rows gave NaN or infinity: set dtype to bfloat16 or float32 (float16 overflows in many models), or "
        "check the model's weights"
    }
    assert found.facts.names == ("random", "zip")
    assert len(found.facts.jaccard) == 2
    summary = found.summary()
    assert [one["error"] is None for one in summary["methods"]] == [True, False, False, True]
    assert "NaN" not in json.dumps(summary["jaccard"])


@pytest.mark.tiny
def test_a_method_without_a_row_to_choose_says_why(model, tmp_path):
    from tiny_runs import SETTINGS, pool_rows, write_jsonl

    write_jsonl(tmp_path / "pool.jsonl", [{**row, "output": ""} for row in pool_rows(12)])
    pool = [str(tmp_path / "pool.jsonl")]
    settings = ADGConfig.parse({**SETTINGS, "model": str(model), "datasets": pool, "budget": 5})
    found = compared(settings, ["longest", "random", "adg"], tmp_path / "run")
    assert {one.error for one in found.failed} == {"none of the 12 rows can be chosen (no_answer 12)"}
    assert [len(one.ids) for one in found.methods] == [0, 0, 5]  # ADG draws its own answers


@pytest.mark.tiny
def test_where_every_method_fails_the_comparison_still_says_so(model, tmp_path):
    from tiny_runs import SETTINGS, pool_rows, write_jsonl

    from adg_plugin import select

    write_jsonl(tmp_path / "pool.jsonl", [{**row, "output": ""} for row in pool_rows(12)])
    pool = [str(tmp_path / "pool.jsonl")]
    settings = ADGConfig.parse({**SETTINGS, "model": str(model), "datasets": pool, "budget": 5})
    select(config=settings, output_dir=tmp_path / "run", show_progress=False)  # so that there are bins
    found = compared(settings, ["longest"], tmp_path / "run")
    assert [one.error for one in found.failed] == ["none of the 12 rows can be chosen (no_answer 12)"]
    stored = json.loads((tmp_path / "run" / "compare.json").read_text())
    assert (stored["names"], stored["jaccard"], stored["bins"]["reached"]) == ([], [], [])
    assert stored["chosen_by"] == {"all": 0, "none": 12}


@pytest.mark.tiny
def test_rows_without_an_answer_that_adg_alone_may_choose_are_told(settings, tmp_path, caplog):
    from tiny_runs import pool_rows, write_jsonl

    rows = [{**row, **({"output": ""} if n % 2 else {})} for n, row in enumerate(pool_rows(12))]
    write_jsonl(tmp_path / "half.jsonl", rows)
    config = settings.updated(datasets=[str(tmp_path / "half.jsonl")], budget=8)
    found = compared(config, ["adg", "random"], tmp_path / "half")
    silent = {str(row["id"]) for row in rows if not row["output"]}
    adg, random = found.methods
    count = len(silent.intersection(adg.ids))
    assert count >= 2  # six rows have an answer
    assert f"adg: {count} of its 8 rows have no answer of their own in words, which other methods" in caplog.text
    assert adg.warnings[-1] in caplog.text
    assert not any("no answer of their own" in sentence for sentence in random.warnings)
    assert (random.scored, len(random.ids)) == (6, 6)
    assert found.facts.by_chance["jaccard"][0][1] == pytest.approx(4 / 10)  # 8 of 12, of which 4 among 6 of 6
    assert found.facts.by_chance["jaccard"][1][1] == 1


@pytest.mark.tiny
def test_mig_takes_labels_or_answers(settings, tmp_path):
    from tiny_runs import pool_rows, write_jsonl

    labelled = [{**row, "tags": ["x", "y", "z"][: 1 + n % 3]} for n, row in enumerate(pool_rows(12))]
    write_jsonl(tmp_path / "labelled.jsonl", labelled)
    config = settings.updated(datasets=[str(tmp_path / "labelled.jsonl")], budget=4, field_labels="tags")
    found = compared(config, ["mig"], tmp_path / "labels")
    assert (found.methods[0].asked, found.costs, found.facts.bins) == ((), {}, None)
    found = compared(config, ["mig", "mig:field_labels=nothing"], tmp_path / "labels")
    assert [one.asked for one in found.methods] == [(), ("answers",)]
    assert found.methods[1].warnings[0].startswith("no row has labels in column 'nothing', so bins of the prompts")
    assert found.facts.bins["total"] == 4


@pytest.mark.tiny
def test_what_a_method_lacks_is_told_before_anything_is_written(settings, tmp_path):
    import importlib.util

    if importlib.util.find_spec("style_ranker") is None:
        with pytest.raises(MissingExtraError) as missing:
            compared(settings, ["adg", "scar"], tmp_path / "run")
        assert str(missing.value) == "method: scar needs `style_ranker`: pip install 'adg-plugin[scar]'"
    with pytest.raises(ModelError, match="no-such-model"):
        compared(settings, ["adg", f"superfiltering:small_model={tmp_path / 'no-such-model'}"], tmp_path / "run")
    with pytest.raises(ConfigError, match="budget_per_dataset is set: only Axolotl"):
        compared(ADGConfig(budget_per_dataset=[1]), ["adg"], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.tiny
def test_superfiltering_has_a_cost_for_each_small_model(settings, model, tmp_path):
    from tiny_runs import save

    other = save(tmp_path / "small", lambda model: model.lm_head.weight.mul_(0.5))
    texts = [f"superfiltering:small_model={of}" for of in (model, other)]
    found = compared(settings, texts, tmp_path / "run")
    # A random model may find no prompt helpful; what it was asked is counted all the same.
    assert {cost.rows for cost in found.costs.values()} == {ROWS}
    assert list(found.costs) == [f"superfiltering {of}" for of in (model, other)]
