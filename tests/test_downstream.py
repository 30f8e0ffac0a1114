"""The downstream benchmark: its statistics, its questions, and a short real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
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


def test_published_choices_are_trained_on_and_those_of_another_pool_refused(tmp_path, monkeypatch):
    import downstream

    (tmp_path / "pool.jsonl").write_text("".join(json.dumps({"id": n, "output": "x"}) + "\n" for n in range(5)))
    line = {"seed": 0, "ids": ["1", "3"]}
    chosen = tmp_path / "choices.jsonl"
    chosen.write_text("".join(json.dumps({**line, "method": name}) + "\n" for name in ("random", "zip")))
    choices = downstream.read_choices(chosen, ["random"])
    assert choices == {("random", 0): {"1", "3"}}
    plan = downstream.plan_of(downstream.parsed(["--smoke"]), [])
    monkeypatch.setattr(downstream, "choose", lambda *given: [{"id": "anew"}])
    bench = downstream.Bench(tmp_path, plan, {}, None, 0, choices)
    assert [row["id"] for row in bench.chosen("random", 0)] == [1, 3]
    assert bench.chosen("zip", 0) == bench.chosen("random", 1) == [{"id": "anew"}]
    other = downstream.Bench(tmp_path, plan, {}, None, 0, {("random", 0): {"1", "9"}})
    with pytest.raises(SystemExit, match="row '9' of random is not in the pool: give the same --pool"):
        other.chosen("random", 0)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_short_run_trains_and_evaluates_every_method_and_goes_on_where_it_stopped(tmp_path):
    done = benchmark(tmp_path, "--smoke")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])["loss held_out"]
    methods = {"untrained", "random", "longest", "ifd", "zip", "adg-raw"}
    assert table.keys() == methods
    assert all(table[method]["seeds"] == 2 for method in methods - {"untrained"})
    # Two steps of training move the loss, and not far.
    assert all(0 < abs(table[method]["mean"] - table["untrained"]["mean"]) < 1 for method in methods - {"untrained"})
    before = (tmp_path / "results.jsonl").read_bytes()
    runs = [json.loads(line) for line in before.splitlines()]
    assert all(len(set(run["ids"])) == 8 for run in runs if run["method"] != "untrained")
    of_random = [set(run["ids"]) for run in runs if run["method"] == "random"]
    assert of_random[0] != of_random[1]

    whole = before.splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_bytes(b"".join(whole[:-1]))
    again = benchmark(tmp_path, "--smoke")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "results.jsonl").read_text().splitlines()[-1])["ids"] == runs[-1]["ids"]
    assert json.loads(again.stdout.splitlines()[-1])["loss held_out"].keys() == methods


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
