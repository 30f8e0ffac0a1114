"""The downstream benchmark: its statistics, its questions, and a short real run."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from downstream_table import compared  # noqa: E402


def lines(method: str, effect: float, seeds: int = 3, rows: int = 200) -> list[dict[str, object]]:
    """Return results whose rows differ a lot, whose seeds differ a little, and whose method adds `effect` per token."""
    draw = np.random.default_rng(5)
    difficulty, tokens = draw.uniform(1, 3, rows), draw.integers(5, 60, rows)
    found = []
    for seed in range(seeds):
        luck = np.random.default_rng([seed, *method.encode()]).normal(0, 0.002, rows)
        nats = (difficulty + luck + effect) * tokens
        found.append(
            {"method": method, "seed": seed, "loss": {"held_out": {"nats": nats.tolist(), "tokens": tokens.tolist()}}}
        )
    return found


def test_a_planted_difference_is_found_and_none_is_not():
    table = compared([*lines("random", 0), *lines("better", -0.02), *lines("same", 0)])["loss held_out"]
    better, same = table["better"], table["same"]
    assert better["difference"] == pytest.approx(-0.02, abs=0.002)
    for name in ("interval", "between_seeds"):
        assert better[name][1] < 0
        assert same[name][0] < 0 < same[name][1]
    assert same["detectable"] < 0.02
    assert "difference" not in table["random"]


def test_the_means_are_per_token_and_pairs_are_of_one_seed():
    results = [
        {"method": m, "seed": s, "loss": {"x": {"nats": n, "tokens": [1, 3]}}}
        for m, s, n in [("random", 0, [2, 6]), ("random", 1, [4, 8]), ("a", 1, [1, 3]), ("a", 7, [9, 9])]
    ]
    table = compared(results)["loss x"]
    assert table["random"]["mean"] == pytest.approx((8 / 4 + 12 / 4) / 2)
    assert table["a"]["seeds"] == 2
    assert (table["a"]["paired_seeds"], table["a"]["difference"]) == (1, pytest.approx(4 / 4 - 12 / 4))
    assert "between_seeds" not in table["a"]
    turned = compared(results, "a")["loss x"]
    assert turned["random"]["difference"] == -table["a"]["difference"]
    assert "difference" not in turned["a"]


def test_accuracies_are_compared_question_by_question():
    results = [
        {"method": m, "seed": s, "tasks": {"bbh": right}}
        for m, s, right in [("random", 0, [0, 1, 0, 1]), ("a", 0, [1, 1, 0, 1]), ("untrained", 0, [0, 0, 0, 1])]
    ]
    table = compared(results)["accuracy bbh"]
    assert (table["a"]["mean"], table["a"]["difference"], table["untrained"]["mean"]) == (0.75, 0.25, 0.25)


def benchmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "downstream.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


def test_questions_are_asked_with_their_own_choices_and_what_cannot_be_chosen_is_left_out(tmp_path):
    import yaml
    from downstream_tasks import gsm8k_rows, write_tasks

    (tmp_path / "bbh").mkdir()
    examples = [
        {"input": "Which?\nOptions:\n(A) one\n(B) two", "target": "(B)"},
        {"input": "Which?\nOptions:\n(A) one\n(B) two\n(C) three", "target": "(C)"},
        {"input": "Which?\nOptions:\n(A) one", "target": "(B)"},
        {"input": "beyond the limit (A)", "target": "(A)"},
    ]
    for name in ("date_understanding", "object_counting"):
        (tmp_path / "bbh" / f"{name}.json").write_text(json.dumps({"examples": examples}))
    assert write_tasks(tmp_path, tmp_path / "tasks", 3) == ["chosen_date_understanding"]
    written = json.loads((tmp_path / "tasks" / "date_understanding.json").read_text())["examples"]
    assert [(row["choices"], row["answer"]) for row in written] == [(["(A)", "(B)"], 1), (["(A)", "(B)", "(C)"], 2)]
    task = yaml.safe_load((tmp_path / "tasks" / "date_understanding.yaml").read_text())
    assert (task["output_type"], task["num_fewshot"]) == ("multiple_choice", 0)
    assert gsm8k_rows(tmp_path, 5) == []
    lines = [json.dumps({"question": f"q{n}", "answer": f"a{n}"}) for n in range(3)]
    (tmp_path / "gsm8k_test.jsonl").write_text("\n".join(lines))
    assert gsm8k_rows(tmp_path, 2) == [
        {"id": f"gsm8k-{n}", "instruction": f"q{n}", "output": f"a{n}"} for n in range(2)
    ]


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("1,000 + 200 = <<1000+200=1200>>1200 dollars.", 1),
        ("So it is $1,200.00.", 1),
        ("1,200 and then 3 more", 0),
        ("It is -1,200", 0),
        ("I cannot say.", 0),
    ],
)
def test_the_last_number_of_what_is_written_is_the_answer_to_gsm8k(tmp_path, monkeypatch, said, right):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from downstream_tasks import write_gsm8k
    from lm_eval.tasks import TaskManager

    lines = [json.dumps({"question": f"How many? {n}", "answer": "much\n#### 1,200"}) + "\n" for n in range(2)]
    (tmp_path / "gsm8k_test.jsonl").write_text("".join(lines))
    name = write_gsm8k(tmp_path, tmp_path / "tasks", 1)
    monkeypatch.chdir(tmp_path / "tasks")
    task = TaskManager(include_path=".", include_defaults=False).load_task_or_group(name)[name]
    task.build_all_requests(rank=0, world_size=1)
    (asked,) = task.instances
    assert asked.args[0] == "How many? 0"
    asked.resps = [said]
    task.apply_filters()
    assert task.process_results(asked.doc, [asked.filtered_resps["last-number"]]) == {"exact_match": right}


def bench_of(work: Path, questions_per_task: int = 0, choices: dict[tuple[str, int], set[str]] | None = None, **plan):
    """Return a bench of the smoke plan, changed as said, that asks questions where a number of them is given."""
    import downstream

    of = replace(downstream.plan_of(downstream.parsed(["--smoke"]), []), **plan)
    return downstream.Bench(work, of, {}, work if questions_per_task else None, questions_per_task, choices or {})


@pytest.fixture
def trainings(tmp_path, monkeypatch) -> list[list[str]]:
    """Return the ids of each training so far, by runs whose model is fake and which choose rows 0 and 1."""
    import downstream

    found: list[list[str]] = []

    def train(rows, training, seed, out):
        out.mkdir(parents=True, exist_ok=True)
        found.append(sorted(str(row["id"]) for row in rows))
        return 1.0

    rows = [{"id": n, "output": "x"} for n in range(5)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(downstream, "train", train)
    monkeypatch.setattr(downstream, "load", lambda *given: None)
    monkeypatch.setattr(downstream, "choose", lambda *given: rows[:2])
    monkeypatch.setattr(downstream, "ask", lambda *given: {"tasks": {"bbh": [1.0] * given[-1]}, "loss": {}})
    return found


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_published_choices_are_trained_on_and_those_of_another_pool_refused(tmp_path, trainings):
    import downstream

    line = {"seed": 0, "ids": ["1", "3"]}
    chosen = tmp_path / "choices.jsonl"
    chosen.write_text("".join(json.dumps({**line, "method": name}) + "\n" for name in ("random", "zip")))
    choices = downstream.read_choices(chosen, ["random"])
    assert choices == {("random", 0): {"1", "3"}}
    bench = bench_of(tmp_path, choices=choices)
    for run in [("random", 0), ("zip", 0), ("random", 1)]:
        bench.run(*run)
    assert trainings == [["1", "3"], ["0", "1"], ["0", "1"]]
    assert ["choosing_s" in line for line in read(tmp_path / "results.jsonl")] == [False, True, True]
    with pytest.raises(SystemExit, match="row '9' of random is not in the pool: give the same --pool"):
        bench_of(tmp_path, choices={("random", 7): {"1", "9"}}).run("random", 7)


def test_rows_that_were_given_and_such_that_were_chosen_anew_do_not_come_into_one_folder(tmp_path, trainings):
    given = {("random", 0): {"1", "3"}}
    bench_of(tmp_path, choices=given).run("random", 0)
    bench_of(tmp_path).run("zip", 0)
    results = tmp_path / "results.jsonl"
    bench_of(tmp_path, choices=given).refuse_other_rows([("random", 0), ("zip", 0), ("longest", 0)])
    bench_of(tmp_path, choices={("zip", 0): {"0", "1"}}).refuse_other_rows([("zip", 0)])
    bench_of(tmp_path).refuse_other_rows([("zip", 0)])
    with pytest.raises(SystemExit) as refused:
        bench_of(tmp_path).refuse_other_rows([("zip", 0), ("random", 0)])
    what = f"error: {results}: random, seed 0, was trained on"
    assert str(refused.value) == f"{what} rows of --choices: give that file again, or use another WORK"
    with pytest.raises(SystemExit) as refused:
        bench_of(tmp_path, choices={("random", 0): {"1", "2"}}).refuse_other_rows([("random", 0)])
    assert str(refused.value) == f"{what} other rows than those of --choices: use another WORK"


def test_answers_to_another_number_of_questions_are_not_this_runs(tmp_path, trainings):
    for number in (2, 4, 2, 4):
        bench_of(tmp_path, number).run("random", 0)
    assert trainings == [["0", "1"]]
    written = read(tmp_path / "questions.jsonl")
    assert [list(line) for line in written] == [["method", "seed", "plan", "questions_per_task", "tasks", "loss"]] * 2
    assert [line["questions_per_task"] for line in written] == [2, 4]
    bench_of(tmp_path, 2).run("zip", 0)
    for number in (2, 4):
        answers = [line["tasks"]["bbh"] for line in bench_of(tmp_path, number).everything() if "tasks" in line]
        assert {len(right) for right in answers} == {number}
        assert len(answers) == (2 if number == 2 else 1)


def test_the_published_answers_say_of_how_many_questions():
    published = read(BENCHMARKS / "results" / "downstream-questions.jsonl")
    assert {line["questions_per_task"] for line in published} == {20}
    assert {len(line["tasks"]["bbh"]) for line in published} == {5 * 20}


def test_an_adapter_of_another_plan_or_of_other_rows_is_not_evaluated(tmp_path, trainings, monkeypatch):
    import downstream

    bench_of(tmp_path).run("random", 0)
    bench_of(tmp_path, row_tokens=7).run("random", 0)  # the same rows
    assert trainings == [["0", "1"]] * 2
    monkeypatch.setattr(downstream, "choose", lambda *given: [{"id": 4}])
    bench_of(tmp_path, 2).run("random", 0)
    assert trainings[2:] == [["0", "1"]]  # those of the line that is there, whatever would be chosen now
    bench_of(tmp_path, 4).run("random", 0)
    assert len(trainings) == 3
    about = tmp_path / "adapters" / "random-0" / "plan.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"ids": ["0", "2"]}))
    bench_of(tmp_path, 6).run("random", 0)
    assert trainings[3:] == [["0", "1"]]
    assert len(read(tmp_path / "results.jsonl")) == 2


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--methods", "random,zipp"], "argument --methods: 'zipp' is not one of {}"),
        (["--choose", "zipp"], "argument --choose: 'zipp' is not one of {}"),
        (["--seeds", "0"], "argument --seeds: 0 is less than 1"),
        (["--questions-per-task", "0"], "argument --questions-per-task: 0 is less than 1"),
    ],
)
def test_a_wrong_name_or_number_is_refused_before_anything_runs(tmp_path, capsys, given, error):
    import downstream

    with pytest.raises(SystemExit):
        downstream.main([str(tmp_path / "work"), *given])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f": error: {error.format(', '.join(downstream.METHODS))}")
    assert not (tmp_path / "work").exists()


def test_a_short_run_asks_questions_only_where_their_folder_is_given():
    import downstream

    assert downstream.parsed(["--smoke"]).questions == ""
    assert downstream.parsed(["--smoke", "--questions", "of/mine"]).questions == "of/mine"
    assert downstream.parsed(["work"]).questions == "../shared/eval"
    assert downstream.parsed(["work", "--questions", ""]).questions == ""


def write_questions(folder: Path) -> None:
    """Write two questions of BIG-Bench-Hard's form, and two of GSM8K's."""
    (folder / "bbh").mkdir(parents=True)
    examples = [{"input": f"not {value} is", "target": str(not value)} for value in (True, False)]
    (folder / "bbh" / "boolean_expressions.json").write_text(json.dumps({"examples": examples}))
    sums = [{"question": f"What is {n} and 2?", "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}"} for n in (3, 40)]
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.benchmark
@pytest.mark.timeout(1800)
def test_a_short_run_trains_and_evaluates_every_method_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    import downstream

    work = tmp_path / "work"
    done = benchmark(work, "--smoke")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])["loss held_out"]
    assert table.keys() == {"untrained", *downstream.METHODS}
    assert_trained(table, downstream.METHODS)
    runs = read(work / "results.jsonl")
    assert all(len(set(run["ids"])) == 8 for run in runs if run["method"] != "untrained")

    last = runs[-1]
    lines = (work / "results.jsonl").read_bytes().splitlines(keepends=True)
    (work / "results.jsonl").write_bytes(b"".join(lines[:-1]))
    write_questions(tmp_path / "data")
    questions = ("--questions", tmp_path / "data", "--questions-per-task", "2")
    asked = benchmark(work, "--smoke", "--seeds", "2", "--methods", f"random,{last['method']}", *questions)
    assert asked.returncode == 0, asked.stderr
    results = {(run["method"], run["seed"]): run for run in read(work / "results.jsonl")}
    assert len(results) == len(runs) + 2
    assert results[last["method"], 0]["ids"] == last["ids"]
    assert results["random", 0]["ids"] != results["random", 1]["ids"]
    assert len(read(work / "questions.jsonl")) == 5  # two seeds of two methods, and the untrained model
    tables = json.loads(asked.stdout.splitlines()[-1])
    assert tables["loss held_out"]["random"]["seeds"] == 2
    for name in ("loss gsm8k", "accuracy bbh"):
        assert tables[name].keys() == {"untrained", "random", last["method"]}
    assert all(about["mean"] in (0, 0.25, 0.5, 0.75, 1) for about in tables["accuracy bbh"].values())
    assert_trained(tables["loss gsm8k"], ["random", last["method"]])


def assert_trained(table, methods):
    """Two steps of training move the loss, and not far."""
    moved = [abs(table[method]["mean"] - table["untrained"]["mean"]) for method in methods]
    assert 0 < min(moved) <= max(moved) < 1


@pytest.mark.tiny
def test_the_fused_adapter_is_pefts(tmp_path):
    import torch
    from downstream_runs import fuse
    from peft import LoraConfig, get_peft_model
    from tiny_models import VOCABULARY, tiny_model

    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zeros at first, which would hide everything
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(4, VOCABULARY, (2, 9))

    def gradients():
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.logsumexp(-1).sum().backward()
        return logits.detach(), {name: w.grad.clone() for name, w in model.named_parameters() if w.requires_grad}

    with model.disable_adapter(), torch.no_grad():
        plain = model(input_ids=ids).logits
    (want, want_gradients) = gradients()
    fuse(model)
    (found, found_gradients) = gradients()
    assert not torch.allclose(want, plain, atol=1e-3)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert found_gradients.keys() == want_gradients.keys()
    for name, gradient in want_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-3, atol=1e-5)
