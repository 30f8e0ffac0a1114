"""The demo's recipe on the real demo model, made small: the loss on the chosen rows falls, and the adapter answers."""

import json

import pytest
import torch
from trl_runs import ADG, finish

from adg_plugin.adapters import recipes

pytestmark = [pytest.mark.model, pytest.mark.slow]

LENGTH = 160
SMALL = ["adg.budget=12", "adg.num_samples=3", "adg.max_new_tokens=8", "adg.datasets=[{path: pool.jsonl}]"]
SHORT = ["num_train_epochs=4", f"max_length={LENGTH}", "save_strategy='no'"]


@pytest.fixture(scope="module")
def trained(demo_model, tmp_path_factory):
    """The output folder of `adg run` on forty rows of the demo pool, and its summary."""
    from adg_plugin.demo import pool_paths

    folder = tmp_path_factory.mktemp("demo")
    pool = next(path for path in pool_paths() if path.name == "pool.jsonl")
    lines = pool.read_text(encoding="utf-8").splitlines()[::6]
    (folder / "pool.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sets = [part for setting in (*SMALL, *SHORT) for part in ("--set", setting)]
    done = finish([*ADG, "run", str(recipes.find("trl/cpu-demo")), "--out", "out", "--json", *sets], folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", json.loads(done.stdout.splitlines()[-1])


def loss_on(model, tokenizer, rows):
    """Mean loss per token of the answers, by hand: no trainer."""
    total = count = 0
    for row in rows:
        prompt = [{"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["input"])))}]
        answer = {"role": "assistant", "content": row["output"]}
        start = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])
        ids = tokenizer.apply_chat_template([*prompt, answer], return_dict=True)["input_ids"][:LENGTH]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")[start - 1 :]
        total, count = total + float(losses.sum()), count + len(losses)
    return total / count


def test_the_loss_on_the_chosen_rows_falls_and_the_adapter_answers_in_a_fresh_model(trained, demo_model):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, summary = trained
    rows = [json.loads(line) for line in (out / "_adg" / "selection" / "selected.jsonl").read_text().splitlines()]
    assert len(rows) == summary["rows"]["chosen"] == 12
    assert summary["rows"]["trained"] > 8  # some prompts alone fill max_length
    tokenizer = AutoTokenizer.from_pretrained(out)
    fresh = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32).eval()
    before = loss_on(fresh, tokenizer, rows)
    adapted = PeftModel.from_pretrained(fresh, out).eval()
    assert loss_on(adapted, tokenizer, rows) < 0.8 * before
    question = [{"role": "user", "content": "What is 17 times 24?"}]
    form = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    prompt = tokenizer.apply_chat_template(question, **form)
    ids = adapted.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(answer.split()) >= 1
    first, last = summary["losses"][0][1], summary["losses"][-1][1]
    assert last < first
