"""Writes empty_answers.jsonl beside this file: `python tests/golden/write.py`, with the demo model in float32.

Rows as the authors' generation writes them, some of whose answers are empty, white space, missing or too many, with the
scores that the rules in docs/formats.md give them, by plain forward passes and nothing of the package.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adg_plugin.demo import model_path

OUT = Path(__file__).with_name("empty_answers.jsonl")
K = 5
WHOLE = [
    "It is water and ice.",
    "A prime number has exactly 2 divisors.",
    "Nobody knows.",
    "Yes: 20% of it!",
    "Il fait froid.",
]
ANSWERS = {
    "Name a prime.": WHOLE,
    "What is 6 times 7?": ["42", "", "It is 42.", "Forty-two, of course.", ""],
    "Write a haiku about the sea.": [*WHOLE[:3], "   ", "Blue waves roll ashore, silent."],
    "Say something short, please.": WHOLE[1:4],
    "Which colour has the sky, and why?": ["Blue.", "", *WHOLE[1:], "a sixth answer", "a seventh one"],
    "How cold is ice?": ["", "", "0 °C", "", ""],
}


@torch.no_grad()
def vector(ids, weights, layers):
    states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    mean = torch.stack([states[i][0] for i in layers]).mean(0).double()
    total = (mean * torch.tensor(weights, dtype=torch.float64)[:, None]).sum(0)
    return (total / total.norm()).numpy()


def tokens(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def released(instruction, answer):
    """The authors' released code: no template, three layers, weights by the token's text, 1,024 tokens."""
    ids = tokens(f"{instruction} {answer}")[:1024]
    texts = [tokenizer.decode([i]).strip() for i in ids]
    weights = [1.3 if re.search(r"[\d%℃°]", t) else 1.0 for t in texts]
    silent = r"[\s,.;:!?()\[\]{}\"'`~\-_/\\]*"
    return vector(ids, [0 if re.fullmatch(silent, t) else w for t, w in zip(texts, weights, strict=True)], (-4, -3, -2))


def paper(instruction, answer):
    """The paper: after the chat template, the mean over the answer's own tokens and the last four layers."""
    turns = [{"role": "user", "content": instruction}]
    prompt = tokens(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
    ids = prompt + tokens(answer)
    return vector(ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt)), (-4, -3, -2, -1))


def scores(vectors):
    v = np.array(vectors)
    spectrum = np.linalg.eigvalsh((v - v.mean(0)) @ (v - v.mean(0)).T)
    d, i = spectrum.sum() / len(v), 1 - spectrum[-1] / spectrum.sum()
    return {"D": d, "I": i, "score": 0.6 * d + 0.4 * i}


model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(model_path())
with OUT.open("w", encoding="utf-8") as file:
    for number, (instruction, answers) in enumerate(ANSWERS.items()):
        first = answers[:K]
        full = first + [""] * (K - len(first))
        there = [a for a in first if a.strip()]
        row = {"id": number, "instruction": instruction, "generated_answers": answers}
        row["reference"] = scores([released(instruction, a) for a in full])
        row["answer"] = scores([paper(instruction, a) for a in there]) if len(there) >= 3 else None
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
