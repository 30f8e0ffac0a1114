"""What a model answers to the questions of `tests/fixtures/eval_tasks`, by plain transformers."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import TASKS
from transformers import AutoModelForCausalLM

from adg_plugin.cli import main


def rows(name: str) -> list[dict[str, Any]]:
    text = (TASKS / "data" / name).read_text(encoding="utf-8")
    return json.loads(text)["examples"] if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


@torch.no_grad()
def log_likelihood(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Return log p(answer | context), one sequence at a time."""
    start = len(tokenizer.encode(context))
    ids = torch.tensor([tokenizer.encode(context + answer)])
    logits = model(ids).logits[0, start - 1 : -1].float().log_softmax(-1)
    return float(logits.gather(1, ids[0, start:, None]).sum())


def right_choices(model: Any, tokenizer: Any, name: str, *, by_length: bool = False) -> tuple[float, ...]:
    """Return 1 for each question whose right choice is the likeliest, else 0."""
    found = []
    for row in rows(name):
        context = row["question"] + "\nAnswer:"
        scores = [log_likelihood(model, tokenizer, context, " " + choice) for choice in row["choices"]]
        if by_length:
            scores = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        found.append(float(int(np.argmax(scores)) == row["answer"]))
    return tuple(found)


@torch.no_grad()
def right_sums(model: Any, tokenizer: Any, count: int) -> tuple[float, ...]:
    """Return 1 for each sum that greedy decoding after two examples answers with the right first number, else 0."""
    examples = "".join(
        f"What is {r['a']} + {r['b']}?\nAnswer: {r['a'] + r['b']}\n\n" for r in rows("sums_shots.jsonl")[:2]
    )
    found = []
    for row in rows("sums.jsonl")[:count]:
        prompt = tokenizer.encode(examples + f"What is {row['a']} + {row['b']}?\nAnswer:")
        ids = list(prompt)
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        number = re.search(r"\d+", tokenizer.decode(ids[len(prompt) :]).partition("\n")[0])
        found.append(float(number is not None and number.group() == str(row["a"] + row["b"])))
    return tuple(found)


def adg(*arguments: str) -> object:
    """Return the exit code of the command."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code


def with_adapter(adapter: Path, base: Path) -> Any:
    """Return the model with a LoRA adapter on it, by PEFT."""
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
