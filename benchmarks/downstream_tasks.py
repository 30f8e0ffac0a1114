"""Questions of the downstream benchmark: BIG-Bench-Hard by choice through `adg eval`, GSM8K by its answers' loss.

GSM8K to be solved in writing, for a model that can:

    python benchmarks/downstream_tasks.py DATA TASKS --questions 100     DATA holds gsm8k_test.jsonl
    adg eval MODEL --include TASKS --tasks solved_gsm8k --chat-template
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from downstream_runs import Training, answer_loss, read_rows, tokenizer_of

from adg_plugin.tools.evaluation import evaluate

# What to choose among where the question itself does not list it. object_counting has no choices, so it is left out.
_CHOICES = {
    "boolean_expressions": ["True", "False"],
    "navigate": ["Yes", "No"],
    "sports_understanding": ["yes", "no"],
    "date_understanding": [f"({letter})" for letter in "ABCDEF"],
    "logical_deduction_three_objects": [f"({letter})" for letter in "ABC"],
}
_A_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"


def write_tasks(data: Path, folder: Path, questions: int) -> list[str]:
    """Write task files with the first `questions` of each BBH task in `data`, and return the tasks' names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, choices in _CHOICES.items():
        path = data / "bbh" / f"{name}.json"
        if not path.is_file():
            continue
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"][:questions]
        listed = [[choice for choice in choices if choice[0] != "(" or choice in e["input"]] for e in examples]
        rows = [
            {"question": e["input"], "choices": among, "answer": among.index(e["target"])}
            for e, among in zip(examples, listed, strict=True)
            if e["target"] in among
        ]
        (folder / f"{name}.json").write_text(json.dumps({"examples": rows}), encoding="utf-8")
        task = {
            "task": f"chosen_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": f"{name}.json", "field": "examples"},
            "output_type": "multiple_choice",
            "test_split": "train",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "num_fewshot": 0,
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        names.append(f"chosen_{name}")
    return names


def gsm8k_rows(data: Path, questions: int) -> list[dict[str, Any]]:
    """Return the first questions of GSM8K's test part as rows with their worked answers."""
    path = data / "gsm8k_test.jsonl"
    found = read_rows(path)[:questions] if path.is_file() else []
    return [
        {"id": f"gsm8k-{n}", "instruction": row["question"], "output": row["answer"]} for n, row in enumerate(found)
    ]


def write_gsm8k(data: Path, folder: Path, questions: int) -> str:
    """Write a task in which GSM8K's first questions are to be solved in writing, and return its name.

    Right is an answer whose last number is the reference's. `ask` leaves it out: a small model solves next to none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = read_rows(data / "gsm8k_test.jsonl")[:questions]
    examples = [{"question": row["question"], "answer": _number(row["answer"])} for row in rows]
    (folder / "gsm8k.json").write_text(json.dumps({"examples": examples}), encoding="utf-8")
    task = {
        "task": "solved_gsm8k",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": "gsm8k.json", "field": "examples"},
        "output_type": "generate_until",
        "test_split": "train",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 256},
        "filter_list": [
            {
                "name": "last-number",
                "filter": [
                    {"function": "regex", "regex_pattern": _A_NUMBER, "group_select": -1},
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "regexes_to_ignore": [",", r"\.0*$"],
            }
        ],
        "metadata": {"version": 1.0},
    }
    (folder / "gsm8k.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return "solved_gsm8k"


def _number(worked: str) -> str:
    return worked.rsplit("####", 1)[1].strip().replace(",", "")


def ask(model: Any, settings: Training, data: Path, folder: Path, questions: int) -> dict[str, Any]:
    """Return what each question of each task gave, 1 for right, and the loss of GSM8K's answers.

    Questions are put as chat turns: the model has a chat template, and so had its training.
    """
    result: dict[str, Any] = {"tasks": {}, "loss": {}}
    names: Sequence[str] = write_tasks(data, folder, questions)
    if names:
        tokenizer = tokenizer_of(settings.model)
        found = evaluate(model, tokenizer=tokenizer, tasks=names, include=folder, chat_template=True, batch_size=16)
        result["tasks"] = {"bbh": [value for name in names for value in found[name].row_values]}
    if rows := gsm8k_rows(data, 2 * questions):
        loss = answer_loss(model, rows, settings)
        result["loss"]["gsm8k"] = {"nats": [round(value, 3) for value in loss.nats], "tokens": loss.tokens}
    return result


def main() -> None:
    """Write the task of GSM8K."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("tasks", type=Path, metavar="TASKS")
    parser.add_argument("--questions", type=int, default=100)
    args = parser.parse_args()
    print(write_gsm8k(args.data, args.tasks, args.questions))


if __name__ == "__main__":
    main()
