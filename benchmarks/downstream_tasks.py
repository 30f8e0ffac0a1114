"""Questions of the downstream benchmark: BIG-Bench-Hard by choice through `adg eval`, GSM8K by its answers' loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from downstream_runs import Training, answer_loss, read_rows, tokenizer_of

from adg_plugin.evaluation import evaluate

# What to choose among where the question itself does not list it. object_counting has no choices, so it is left out.
_CHOICES = {
    "boolean_expressions": ["True", "False"],
    "navigate": ["Yes", "No"],
    "sports_understanding": ["yes", "no"],
    "date_understanding": [f"({letter})" for letter in "ABCDEF"],
    "logical_deduction_three_objects": [f"({letter})" for letter in "ABC"],
}


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
