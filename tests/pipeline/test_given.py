"""`adg select --answers`: answers that somebody else generated, from their file to the choice."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import save_tiny_model
from tiny_runs import choose, parts, pool_rows, read_jsonl, write_jsonl

from adg_plugin import ADGConfig, select
from adg_plugin.cli import main
from adg_plugin.config.schema import load_config
from adg_plugin.engines.base import GivenAnswers
from adg_plugin.errors import ConfigError, DataError, StoreError
from adg_plugin.report.gather import gather
from adg_plugin.store import RunFolder
from adg_plugin.tools.score_answers import score_answers

pytestmark = pytest.mark.tiny

K = 5


def answered(row: dict[str, object], answers: list[str] | None = None, **changes: object) -> dict[str, object]:
    """Return a row as the authors' generation writes it: no input, answers stripped."""
    number = row["id"]
    answers = answers or [f"{number}", f"It is {number}.", "Nobody knows!", f"see {number} and more", "x" * 9]
    kept = {name: row[name] for name in ("id", "instruction", "output") if name in row}
    return {**kept, "generated_answers": answers, **changes}


def given(folder: Path, rows: list[dict[str, object]], name: str = "answers.jsonl") -> Path:
    return write_jsonl(folder / name, rows)


def run(pool, model: Path, folder: Path, answers: Path, **settings: object):
    return choose(pool, model, folder, **{"num_samples": K, "answers": str(answers), **settings})


def rejected(folder: Path) -> dict[str, tuple[str, str]]:
    return {row["id"]: (row["reason"], row["detail"]) for row in read_jsonl(folder / "rejected.jsonl")}


@pytest.mark.parametrize("pooling", ["answer", "reference"])
def test_dispersion_and_anisotropy_are_those_of_adg_score_and_the_budget_is_exact(model, tmp_path, pooling):
    pool = pool_rows(48)
    answers = given(tmp_path, [answered(row) for row in reversed(pool)])  # joined by id, not by position
    selection = run(pool, model, tmp_path / "run", answers, budget=12, pooling=pooling)
    config = ADGConfig(model=str(model), pooling=pooling)
    assert score_answers(config, answers, tmp_path / "scores.jsonl").scored == 48
    table = {row["id"]: row for row in pq.read_table(tmp_path / "run" / "scores.parquet").to_pylist()}
    scores = read_jsonl(tmp_path / "scores.jsonl")
    assert len(scores) == len(table) == 48
    for line in scores:
        ours = table[line["id"]]
        assert (ours["dispersion"], ours["anisotropy"]) == pytest.approx(
            (line["dispersion"], line["anisotropy"]), abs=1e-5
        )
    assert len(selection.ids) == 12
    assert selection.manifest["sampling"]["rows"] == 48
    assert not any(name in selection.manifest["recipe"] for name in ("temperature", "top_p", "max_new_tokens", "seed"))
    stored = {result.id: [a.text for a in result.answers] for result in RunFolder.read(tmp_path / "run").results()}
    assert stored == {row["id"]: row["generated_answers"] for row in read_jsonl(answers)}


def test_the_command_takes_answers_writes_a_report_and_explains(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    given(tmp_path, [answered(row) for row in pool_rows(12)])
    (tmp_path / "c.yaml").write_text(f"model: {model}\ndatasets: [pool.jsonl]\nbudget: 3\nbins: 1\n")
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["select", "c.yaml", "--answers", "answers.jsonl", "--out", "run"])
    assert capsys.readouterr().out.splitlines()[-1] == "run/selected.jsonl"
    assert len(read_jsonl(tmp_path / "run" / "selected.jsonl")) == 3
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["explain", "run", "row-3"])
    assert "It is row-3." in capsys.readouterr().out
    assert gather(tmp_path / "run").about["answers_cut_at_the_limit"] == 0
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["select", "c.yaml", "--answers", "none.jsonl", "--out", "run"])
    assert "error: none.jsonl: no such file or folder" in capsys.readouterr().err


def test_an_interrupted_run_goes_on_where_it_was(model, tmp_path, monkeypatch):
    pool = pool_rows(80)
    answers = given(tmp_path, [answered(row) for row in pool])

    def interrupted(self, prompts):
        for number, result in enumerate(taken(self, prompts)):
            if number == 70:
                raise KeyboardInterrupt
            yield result

    taken = GivenAnswers.run
    with monkeypatch.context() as patch:
        patch.setattr(GivenAnswers, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(pool, model, tmp_path / "run", answers)
    rest = run(pool, model, tmp_path / "run", answers)
    assert rest.manifest["sampling"]["rows"] == 16  # of 64 that are embedded together
    assert rest.ids == run(pool, model, tmp_path / "fresh", answers).ids


def test_a_changed_answer_embeds_its_row_alone_and_another_budget_none(model, tmp_path):
    pool = pool_rows(20)
    rows = [answered(row) for row in pool]
    run(pool, model, tmp_path / "run", given(tmp_path, rows))
    before = parts(tmp_path / "run")
    assert run(pool, model, tmp_path / "run", given(tmp_path, rows), budget=4).manifest["sampling"]["rows"] == 0
    assert parts(tmp_path / "run") == before
    # Settings of the sampling had no part, and K of five answers is K of five answers.
    changed = {"temperature": 0.7, "max_new_tokens": 99, "seed": 0, "num_samples": 7}
    assert run(pool, model, tmp_path / "run", given(tmp_path, rows), **changed).manifest["sampling"]["rows"] == 0
    rows[7]["generated_answers"] = ["all", "of", "it", "is", "new"]
    again = run(pool, model, tmp_path / "run", given(tmp_path, rows))
    assert again.manifest["sampling"]["rows"] == 1
    fresh = run(pool, model, tmp_path / "fresh", given(tmp_path, rows))
    assert again.ids == fresh.ids


def test_rows_that_do_not_meet_are_named_and_counted(model, tmp_path, caplog):
    pool = pool_rows(8)
    pool[2]["input"] = "In words."
    pool += [{"id": "blank", "instruction": " "}]
    rows = [answered(row) for row in pool]
    rows[3]["instruction"] = "Something else?"
    rows[4]["input"] = "which the pool has not"
    del rows[5]
    rows += [answered({"id": "stranger", "instruction": "Who?"}), answered({"id": 7, "instruction": "Me?"})]
    answers = given(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        selection = run(pool, model, tmp_path / "run", answers, budget=3)
    reasons = rejected(tmp_path / "run")
    assert reasons["row-3"] == ("other_prompt", f"{answers}:4 has its id, and asks something else")
    assert reasons["row-4"][0] == "other_prompt"
    assert reasons["row-5"] == ("no_given_answers", f"{answers} has no answers to it")
    assert reasons["blank"][0] == "only_white_space"
    assert selection.manifest["rows"]["rejected"] == {"other_prompt": 2, "no_given_answers": 1, "only_white_space": 1}
    told = [
        f"not in the pool: 2 rows of 10 in {answers}, such as id 'stranger' ({answers}:9)",
        f"matched by id and instruction: 1 row with an input, a system prompt or earlier turns that {answers} does not "
        "name",
    ]
    assert selection.manifest["warnings"][:2] == told
    assert [message for message in caplog.messages if message in told] == told
    again = run(pool, model, tmp_path / "run", answers, budget=2)  # nothing is read again
    assert again.manifest["warnings"][:2] == told


def test_nothing_left_is_an_error(model, tmp_path):
    answers = given(tmp_path, [answered(row) for row in pool_rows(5, start=50)])
    with pytest.raises(
        DataError,
        match=rf"^none of the 5 rows can be scored with the answers in {answers} \(no_given_answers 5\): see ",
    ):
        run(pool_rows(5), model, tmp_path / "run", answers)
    answers = given(tmp_path, [answered(row, ["one", "two", ""]) for row in pool_rows(5)])
    with pytest.raises(DataError, match=r"\(too_few_answers 5\): see "):
        run(pool_rows(5), model, tmp_path / "run", answers)
    assert not (tmp_path / "run" / "selected.jsonl").exists()
    with pytest.raises(DataError, match=rf"^none of the 5 rows of {answers} can be scored: see .*rejected.jsonl$"):
        score_answers(ADGConfig(model=str(model)), answers, tmp_path / "scores.jsonl")
    assert not (tmp_path / "scores.jsonl").exists()


def test_rows_without_ids_are_joined_by_what_they_ask(model, tmp_path):
    pool = [{key: value for key, value in row.items() if key != "id"} for row in pool_rows(9)]
    pool[0]["input"] = "first"  # the two ask the same words about two inputs, which the file does not name
    pool[1] |= {"instruction": pool[0]["instruction"], "input": "second"}
    pool[2] = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
                            {"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "42"}]}  # fmt: skip
    rows = [answered({"id": n, **row}) for n, row in enumerate(pool) if n not in (1, 2)]
    rows += [answered({"id": 1, **pool[1]}, ["other", "answers", "to", "it", "all"])]
    rows += [{"generated_answers": ["a", "b", "c"], "messages": pool[2]["messages"][:3]}]
    rows += [answered({"id": 99, **pool[3]}, ["another", "answer", "to", "the", "same"])]
    run(pool, model, tmp_path / "run", given(tmp_path, rows), budget=3)
    reasons = list(rejected(tmp_path / "run").values())
    assert [reason for reason, _ in reasons] == ["no_given_answers"] * 3
    assert reasons[0][1].endswith("has no answers to it")
    assert reasons[1][1].endswith("has no answers to it")
    assert reasons[2][1].endswith("answer it differently, and it has no id: give ids to both files")
    texts = {tuple(a.text for a in result.answers) for result in RunFolder.read(tmp_path / "run").results()}
    assert ("a", "b", "c") in texts
    assert len(texts) == 6


def test_one_line_without_an_id_is_not_given_to_rows_with_different_inputs(model, tmp_path):
    pool = [{"instruction": "Translate to French.", "input": word, "output": "x"} for word in ("dog", "house", "tree")]
    pool += [{"id": "named", **pool[0]}, {"instruction": "Translate to French.", "output": "x"}]
    others = pool_rows(3)
    line = {"instruction": "Translate to French.", "generated_answers": list("abcde")}
    answers = given(tmp_path, [line, *map(answered, others)])
    run([*pool, *others], model, tmp_path / "run", answers, budget=2)
    assert [reason for reason, _ in rejected(tmp_path / "run").values()] == ["no_given_answers"] * 4
    kept = list(RunFolder.read(tmp_path / "run").results())
    assert len(kept) == 4  # the one that has no input, and those that ask something else


def test_rules_of_answers_that_are_empty_too_many_or_too_few(model, tmp_path):
    pool = pool_rows(6)
    lists = [
        ["a", "", "b", " \n", "c"],
        ["a", "b", "c", "d", "e", "f", "g"],
        ["a", "b", "c"],
        ["a", "b"],
        ["a", "", "", "", ""],
        ["a", "b", "c", "d", "e"],
    ]
    answers = given(tmp_path, [answered(row, texts) for row, texts in zip(pool, lists, strict=True)])

    def stored(folder: Path) -> dict[str, list[str]]:
        return {result.id: [a.text for a in result.answers] for result in RunFolder.read(folder).results()}

    selection = run(pool, model, tmp_path / "answer", answers, budget=2)
    assert stored(tmp_path / "answer") == {
        "row-0": ["a", "b", "c"],
        "row-1": list("abcde"),
        "row-2": ["a", "b", "c"],
        "row-5": list("abcde"),
    }
    assert rejected(tmp_path / "answer") == {
        "row-3": ("too_few_answers", "2 of 2 answers are not empty, 3 are needed"),
        "row-4": ("too_few_answers", "1 of 5 answers are not empty, 3 are needed"),
    }
    assert selection.manifest["warnings"][:2] == [
        "cut to the first 5 answers (num_samples): 1 row",
        "left out: 2 empty answers of 1 row",
    ]
    selection = run(pool, model, tmp_path / "reference", answers, budget=2, pooling="reference")
    assert stored(tmp_path / "reference") == {
        "row-0": lists[0],
        "row-1": list("abcde"),
        "row-2": ["a", "b", "c", "", ""],
        "row-4": lists[4],
        "row-5": list("abcde"),
    }
    assert rejected(tmp_path / "reference") == {"row-3": ("too_few_answers", "2 answers are given, 3 are needed")}
    assert "filled up to 5 answers (num_samples) with empty ones: 1 row" in selection.manifest["warnings"]


def test_rules_of_length(model, tmp_path):
    long = {"id": "long", "instruction": "y" * 1024}
    pool = [*pool_rows(4), long, {"id": "just", "instruction": "z" * 1023}]
    answers = given(tmp_path, [answered(row) for row in pool])
    run(pool, model, tmp_path / "cut", answers, budget=2)
    assert {reason for reason, _ in rejected(tmp_path / "cut").values()} == {"prompt_too_long"}
    settings = {"budget": 2, "max_prompt_tokens": 2000, "pooling": "reference"}
    run(pool, model, tmp_path / "run", answers, **settings)
    reason, detail = rejected(tmp_path / "run")["long"]
    assert reason == "prompt_too_long"
    assert detail.startswith(
        "the instruction alone has 1024 tokens, and with pooling: reference 1024 of instruction and"
    )
    assert "just" not in rejected(tmp_path / "run")
    of_positions = save_tiny_model(tmp_path / "gpt2", "gpt2")
    rows = [answered(row) for row in pool_rows(4)]
    rows[2]["generated_answers"] = ["a" * 1100, "b", "c"]
    # Longer than max_new_tokens is no matter: that is a limit of sampling.
    run(pool_rows(4), of_positions, tmp_path / "positions", given(tmp_path, rows), budget=2, max_new_tokens=1)
    assert rejected(tmp_path / "positions")["row-2"][0] == "too_long"


def test_an_id_with_two_different_lists_is_an_error_and_a_repeated_line_is_none(model, tmp_path):
    rows = [answered(row) for row in pool_rows(4)]
    same = run(pool_rows(4), model, tmp_path / "run", given(tmp_path, [*rows, rows[1]]), budget=2)
    assert same.manifest["rows"]["scored"] == 4
    other = answered(pool_rows(4)[1], ["x", "y", "z"])
    answers = given(tmp_path, [*rows, other])
    with pytest.raises(
        DataError, match=rf"^{answers}:5: id 'row-1' asks or answers something else than in {answers}:2: "
    ):
        run(pool_rows(4), model, tmp_path / "run", answers)
    del rows[2]["generated_answers"]
    answers = given(tmp_path, rows)
    with pytest.raises(DataError, match=rf"^{answers}:3: generated_answers is missing: give a list of 3 texts or more"):
        run(pool_rows(4), model, tmp_path / "run", answers)


def test_answers_come_in_every_format_of_a_pool_and_under_its_column_names(model, tmp_path):
    pool = [{"uid": row["id"], "question": row["instruction"], "output": ""} for row in pool_rows(6)]
    rows = [{**row, "generated_answers": ["a", f"b {row['uid']}", "c"]} for row in pool]
    spec = {"path": "memory", "field_id": "uid", "field_instruction": "question"}
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "generated_answers": json.dumps(row["generated_answers"])} for row in rows)
    found = [
        run(pool, model, tmp_path / form, tmp_path / f"a.{form}", budget=2, datasets=[spec]).manifest["rows"]
        for form in ("json", "parquet", "csv")
    ]
    assert [rows["scored"] for rows in found] == [6, 6, 6]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"method": "random"},
            "method is 'random': answers is 'a.jsonl', and only ADG scores answers: use method: adg",
        ),
        ({"engine": "vllm"}, "answers is 'a.jsonl': they are only embedded, and engine is 'vllm': leave engine out"),
        ({"executor": "ray"}, "answers is 'a.jsonl': they are only embedded, and executor is 'ray': leave executor"),
    ],
)
def test_what_cannot_be_with_answers_is_said_with_both_keys(settings, said):
    with pytest.raises(ConfigError) as caught:
        ADGConfig.parse({"answers": "a.jsonl", **settings})
    assert said in str(caught.value)


def test_commands_that_sample_refuse_answers(model, tmp_path):
    from adg_plugin.adapters.axolotl.args import check_supported
    from adg_plugin.pipeline.in_memory import refuse_elsewhere
    from adg_plugin.pipeline.run import run_stage
    from adg_plugin.scoring.stability import stability
    from adg_plugin.tools.compare.compare import compare
    from adg_plugin.tools.estimate.measure import measure
    from adg_plugin.tools.stability import resample_rows

    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(12))
    answers = given(tmp_path, [answered(row) for row in pool_rows(12)])
    config = ADGConfig(model=str(model), datasets=[{"path": str(pool)}], answers=str(answers), budget=4)
    for asked in (
        lambda: compare(config, run_dir=tmp_path / "run"),
        lambda: measure(config, tmp_path / "run"),
        lambda: run_stage("sample", config, tmp_path / "run"),
        lambda: refuse_elsewhere(config),
        lambda: check_supported({"adg": {"answers": str(answers)}}),
    ):
        with pytest.raises(ConfigError, match=r"answers is '.*answers\.jsonl': "):
            asked()
    selection = select(model=model, config=config, output_dir=tmp_path / "run", show_progress=False)
    about = stability(str(selection.run_dir))
    with pytest.raises(
        StoreError, match=r"has the answers of .*: nothing here can sample others; leave --resample out$"
    ):
        resample_rows(str(selection.run_dir), 10, about)


def test_a_folder_of_sampled_answers_takes_given_ones_and_a_trainers_does_not(model, tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows(6))
    answers = given(tmp_path, [answered(row) for row in pool_rows(6)])
    choose(pool, model, tmp_path / "run", budget=2, num_samples=3)
    mixed = run(pool, model, tmp_path / "run", answers, budget=2)
    assert mixed.manifest["sampling"]["rows"] == 6
    assert mixed.ids == run(pool, model, tmp_path / "fresh", answers, budget=2).ids
    from adg_plugin.pipeline.run import run_selection
    from adg_plugin.pipeline.stage import Pool

    shutil.copytree(tmp_path / "run", tmp_path / "own")
    sampled = ADGConfig(model=str(model), datasets=[{"path": str(pool)}], budget=2)
    with pytest.raises(StoreError, match=r"was made with answers of a file \(now sampled\): go back to that"):
        run_selection(Pool.of(sampled), sampled, tmp_path / "own", own=True, show_progress=False)


def test_answers_can_be_set_everywhere(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("adg:\n  answers: a.jsonl\n")
    assert load_config(path).answers == "a.jsonl"
    assert load_config(path, ["answers=b.jsonl"]).answers == "b.jsonl"
    assert load_config(path, answers=Path("c.jsonl")).answers == "c.jsonl"


def test_stored_vectors_of_given_answers_are_unit_vectors(model, tmp_path):
    answers = given(tmp_path, [answered(row, ["a", "", "b", "a"]) for row in pool_rows(4)])
    run(pool_rows(4), model, tmp_path / "run", answers, budget=2, pooling="reference", keep_vectors=True)
    for result in RunFolder.read(tmp_path / "run").results():
        vectors = result.vectors.astype(np.float32)
        np.testing.assert_allclose(vectors @ vectors.T, result.gram, atol=2e-3)
        assert result.gram[0, 3] == pytest.approx(1, abs=1e-6)  # equal answers
