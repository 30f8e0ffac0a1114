"""Whole commands on a tiny model: killed, resumed, in two processes, and TRL's own command on a selection."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from tiny_models import tiny_tokenizer
from trl_runs import ADG, TRL, WORDS, asked, environment, finish, tiny

__all__ = ["tiny"]

pytestmark = pytest.mark.slow

ROWS = 160
BUDGET = 24


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A folder with a pool and a recipe for it."""
    folder = tmp_path_factory.mktemp("work")
    words = [f"{WORDS[number % len(WORDS)]} {number}" for number in range(ROWS)]
    lines = [{"id": word, "instruction": asked(word), "input": "", "output": f"All {word}!"} for word in words]
    (folder / "pool.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(folder / "recipe.yaml", tiny, adg={"datasets": ["pool.jsonl"], **SELECTION})
    return folder


SELECTION = {"budget": BUDGET, "num_samples": 3, "max_new_tokens": 24, "batch_tokens": 800}
TRAINER = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "use_peft": True,
    "lora_r": 4,
    "lora_target_modules": ["q_proj", "v_proj"],
    "dtype": "float32",
    "learning_rate": 0.01,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 2,
    "logging_steps": 1,
    "save_steps": 3,
    "disable_tqdm": True,
}


def write(path, model, **keys):
    path.write_text(yaml.safe_dump({"model_name_or_path": str(model), **TRAINER, **keys}))
    return path


def start(command, cwd):
    with (cwd / "log.txt").open("w") as log:
        return subprocess.Popen(command, cwd=cwd, env=environment(), stdout=log, stderr=log)


def kill_when(process, folder, happened):
    """Kill a command, and it alone, once something has happened."""
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def ids(out):
    return json.loads((out / "adg_selection.json").read_text())["ids"]


def row_tokens(word):
    """Return the tokens of a row as it is trained on: words differ in length, so sums tell which rows they were."""
    turns = [{"role": "user", "content": asked(word)}, {"role": "assistant", "content": f"All {word}!"}]
    return len(tiny_tokenizer().apply_chat_template(turns, return_dict=False))


@pytest.fixture(scope="module")
def whole(folder):
    """The output of `adg run` that nobody interrupted, and its summary."""
    done = finish([*ADG, "run", "recipe.yaml", "--out", "whole", "--json"], folder)
    assert done.returncode == 0, done.stderr
    return folder / "whole", json.loads(done.stdout.splitlines()[-1])


def test_adg_run_selects_then_trains_and_says_what_it_did(whole, tiny):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    out, summary = whole
    assert summary["rows"] == {"pool": ROWS, "chosen": BUDGET, "trained": BUDGET}
    assert summary["steps"] == BUDGET
    assert [step for step, _ in summary["losses"]] == list(range(1, BUDGET + 1))
    assert summary["tokens"] == 2 * sum(map(row_tokens, ids(out)))
    assert summary == json.loads((out / "_adg" / "adg_summary.json").read_text())
    selected = [
        json.loads(line)["id"] for line in (out / "_adg" / "selection" / "selected.jsonl").read_text().splitlines()
    ]
    assert set(ids(out)) == set(selected)
    adapter = load_file(out / "adapter_model.safetensors")
    assert all(adapter[name].abs().sum() > 0 for name in adapter if "lora_B" in name)  # these begin at zero
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), out)
    prompt = torch.arange(4, 12)[None]
    assert loaded.generate(input_ids=prompt, max_new_tokens=2, min_new_tokens=2).shape == (1, 10)


def test_of_what_adg_run_writes_only_the_ids_lie_where_push_to_hub_looks(whole, folder):
    out, _ = whole
    ours = {path.name for path in out.iterdir() if "adg" in path.name or "selection" in path.name}
    assert ours == {"_adg", "adg_selection.json"}
    for path in [*out.glob("*"), *out.glob("checkpoint-*/*")]:
        if path.is_file() and path.name != "training_args.bin":  # transformers' own
            assert str(folder).encode() not in path.read_bytes(), path


def test_a_finished_run_does_nothing_again(whole, folder):
    out, summary = whole
    before = (out / "adapter_model.safetensors").stat().st_mtime_ns
    done = finish([*ADG, "run", "recipe.yaml", "--out", "whole", "--json"], folder)
    assert "is finished already" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == summary
    assert (out / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_killed_while_selecting_and_while_training_it_goes_on_with_the_same_rows(whole, folder):
    out, command = folder / "killed", [*ADG, "run", "recipe.yaml", "--out", "killed"]
    kill_when(start(command, folder), folder, (out / "_adg" / "selection" / "prompts.json").exists)
    assert not (out / "adg_selection.json").exists()
    kill_when(start(command, folder), folder, (out / "checkpoint-6" / "adg_selection.json").exists)
    assert not (out / "_adg" / "adg_summary.json").exists()
    done = finish([*command, "--json"], folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert int(summary["resumed_from"].rpartition("-")[2]) >= 6
    assert sorted(ids(out)) == sorted(ids(whole[0]))
    assert summary["steps"] == whole[1]["steps"]
    for (step, loss), (same_step, expected) in zip(summary["losses"], whole[1]["losses"], strict=True):
        assert step == same_step
        assert loss == pytest.approx(expected, rel=1e-4)


def sft(folder, model, out, *flags, launcher=(*ADG, "sft"), **keys):
    data = {"dataset_name": "json_pool", "output_dir": out, "adg": {**SELECTION}}
    config = write(folder / f"{out}.yaml", model, **{**data, **keys})
    return finish([*launcher, "--config", str(config), *flags], folder)


@pytest.fixture(scope="module")
def one_process(folder, tiny):
    """The output of `adg sft` in one process."""
    (folder / "json_pool").mkdir()
    (folder / "json_pool" / "train.jsonl").write_text((folder / "pool.jsonl").read_text())
    done = sft(folder, tiny, "one")
    assert done.returncode == 0, done.stderr
    return folder / "one"


def test_adg_sft_resumes_with_the_rows_of_the_checkpoint(one_process, folder, tiny):
    (one_process / "checkpoint-24").rename(folder / "last")
    whole = json.loads((one_process / "_adg" / "adg_summary.json").read_text())
    assert whole["tokens"] == 2 * sum(map(row_tokens, ids(one_process)))  # which tells what was trained on
    done = sft(folder, tiny, "one", "--resume_from_checkpoint", "true", adg={**SELECTION, "budget": 3})
    assert done.returncode == 0, done.stderr
    resumed = json.loads((one_process / "_adg" / "adg_summary.json").read_text())
    assert resumed["resumed_from"].endswith("checkpoint-21")
    assert resumed["rows"] == whole["rows"] == {"pool": ROWS, "chosen": BUDGET, "trained": BUDGET}
    assert resumed["steps"] == whole["steps"] == BUDGET
    assert resumed["losses"] == whole["losses"]


def test_two_processes_share_the_sampling_and_choose_the_rows_of_one(one_process, folder, tiny):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port()]
    done = sft(folder, tiny, "two", launcher=[*launcher, "-m", "adg_plugin.adapters.trl.script"])
    assert done.returncode == 0, done.stderr
    assert ids(folder / "two") == ids(one_process)
    manifest = json.loads((folder / "two" / "_adg" / "selection" / "manifest.json").read_text())
    assert manifest["sampling"]["ranks"] == 2
    assert manifest["sampling"]["tokens"] == manifest["answer_tokens"]
    shares = manifest["sampling"]["tokens_per_rank"]
    assert len(shares) == 2
    assert max(shares) < 0.7 * sum(shares) == 0.7 * manifest["answer_tokens"]  # each sampled its share only
    assert not list((folder / "two" / "_adg" / "selection" / "ranks").iterdir())
    summary = json.loads((folder / "two" / "_adg" / "adg_summary.json").read_text())
    assert summary["steps"] == BUDGET // 2
    assert summary["rows"]["trained"] == BUDGET


def port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_an_error_in_one_process_ends_both_with_its_text(folder, one_process, tiny):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port()]
    adg = {**SELECTION, "max_prompt_tokens": 3}
    done = sft(folder, tiny, "none", launcher=[*launcher, "-m", "adg_plugin.adapters.trl.script"], adg=adg)
    assert done.returncode != 0
    assert "rank 0 failed while preparing the pool: DataError: none of the 160 rows can be sampled" in done.stderr
    assert not (folder / "none" / "_adg" / "adg_summary.json").exists()


def test_adg_run_evaluates_on_rows_of_any_layout(tiny, folder):
    held_out = {"dataset_name": "pool.jsonl", "dataset_test_split": "train", "eval_strategy": "epoch", "packing": True}
    adg = {"datasets": ["pool.jsonl"], **SELECTION, "max_new_tokens": 4}
    write(folder / "evaluated.yaml", tiny, adg=adg, max_length=256, padding_free=False, **held_out)
    done = finish([*ADG, "run", "evaluated.yaml", "--out", "evaluated", "--json"], folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("'eval_loss'") == 2  # after each epoch
    summary = json.loads(done.stdout.splitlines()[-1])
    sequences = summary["rows"]["sequences"]
    assert summary["rows"]["chosen"] == BUDGET > sequences
    assert summary["steps"] == 2 * -(-sequences // 2)


def test_the_literal_command_trains_on_a_finished_run_folder(whole, folder, tiny):
    out, _ = whole
    config = write(folder / "literal.yaml", tiny, dataset_name=str(out / "_adg" / "selection"), output_dir="literal")
    done = finish([*TRL, "sft", "--config", str(config)], folder)
    assert done.returncode == 0, done.stderr
    assert tokens_by_step(folder / "literal") == tokens_by_step(out)


def tokens_by_step(out):
    """Return what tells the rows of each step; not the loss, as TRL 1.9 draws the adapter before it sets the seed."""
    state = json.loads((out / f"checkpoint-{BUDGET}" / "trainer_state.json").read_text())
    assert state["global_step"] == state["max_steps"] == BUDGET
    return [entry["num_tokens"] for entry in state["log_history"] if "loss" in entry]


def test_the_literal_command_selects_when_it_opens_its_data(whole, folder, tiny):
    selection = folder / "selection.yaml"
    settings = {"model": str(tiny), "datasets": [str(folder / "pool.jsonl")], "dtype": "float32", **SELECTION}
    selection.write_text(yaml.safe_dump({**settings, "output_dir": str(folder / "routed")}))
    data = [{"path": "parquet", "data_files": f"adg://{selection}/train.parquet"}]
    config = write(folder / "route.yaml", tiny, datasets=data, output_dir="route")
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = finish([*TRL, "sft", "--config", str(config)], folder, **online)
    assert done.returncode == 0, done.stderr
    assert tokens_by_step(folder / "route") == tokens_by_step(whole[0])
