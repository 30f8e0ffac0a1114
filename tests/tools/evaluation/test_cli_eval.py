"""`adg eval` with the real harness, offline: local tasks, models, adapters, and figures found by other means."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from paths import TASKS
from tiny_models import VOCABULARY, save_tiny_model, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from adg_plugin.cli import main
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError, DataError, ModelError
from adg_plugin.tools.evaluation import evaluate, run
from adg_plugin.tools.evaluation.evaluated_model import Place
from adg_plugin.tools.evaluation.protocol import PAPER

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: extra eval")

RUNS_CODE = "it runs code that the model wrote on this machine: --allow-code-execution permits that"


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


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, saved: Path) -> Path:
    """A LoRA adapter that changes what the tiny model says, beside a finished run folder."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(5)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "init_lora_weights": False}
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(saved), peft.LoraConfig(task_type="CAUSAL_LM", **options)
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.3)
    folder = tmp_path / "runs/demo/model"
    model.save_pretrained(folder)
    run = tmp_path / "runs/demo/selection"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"adg_run_folder": 1}))
    (run / "manifest.json").write_text(json.dumps({"created": "then", "files": {"selected.jsonl": {"blake2b": "d1"}}}))
    return folder


def with_adapter(adapter: Path, base: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()


# The command


@pytest.mark.model
@pytest.mark.slow
def test_the_demo_model_answers_local_tasks(
    demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--tasks", "tiny_capitals,tiny_sums", "--include", str(TASKS), "--limit", "4"]
    # In bfloat16 two digits tie in one of the sums, and the cache decides.
    assert adg("eval", "demo", *options, "--dtype", "float32") == 0
    out, err = capsys.readouterr()
    found = json.loads(Path("eval/demo-limit-4.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(demo_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo_model)
    capitals, sums = found["tasks"]
    assert capitals["value"] == np.mean(right_choices(model, tokenizer, "capitals.json")[:4])
    assert sums["value"] == np.mean(right_sums(model, tokenizer, 4))
    assert (capitals["shots"], sums["shots"]) == (0, 2)
    assert [(task["rows"], task["rows_in_task"]) for task in found["tasks"]] == [(4, 10), (4, 8)]
    assert (found["model"]["name"], found["model"]["dtype"], found["settings"]["limit"]) == ("demo", "float32", 4)
    assert {"lm_eval", "transformers", "torch"} <= found["versions"].keys()
    lines = out.splitlines()
    assert lines[0].split() == ["task", "shots", "rows", "value", "error", "metric"]
    assert lines[-1] == "eval/demo-limit-4.json"
    assert all(len(line) <= 80 for line in lines)
    assert "\r" not in err
    assert f"1/2 tiny_capitals: {capitals['value']:.4f}" in err.splitlines()


@pytest.mark.tiny
def test_an_adapters_results_go_to_its_run_folder(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adg("eval", "runs/demo/model", "--tasks", "tiny_capitals", "--include", str(TASKS), "--json", "-q") == 0
    out, err = capsys.readouterr()
    path = tmp_path / "runs/demo/selection/eval/demo-model.json"
    written = json.loads(path.read_text())
    printed = json.loads(out)
    assert written == printed | {"command": written["command"]}
    assert written["command"].startswith("adg ")
    assert printed["model"]["adapter"] == "runs/demo/model"
    assert printed["selection"] == {"run": str(path.parent.parent), "created": "then", "selected": "d1"}
    assert printed["model"]["base"] == str(tmp_path / "base")
    expected = right_choices(with_adapter(adapter, tmp_path / "base"), tiny_tokenizer(), "capitals.json")
    assert printed["tasks"][0]["value"] == np.mean(expected)
    assert "tiny_capitals" not in err


# The figures


@pytest.mark.tiny
def test_choices_are_those_of_plain_transformers(saved: Path) -> None:
    found = evaluate(str(saved), tasks=["tiny_words"], include=TASKS, batch_size=3)["tiny_words"]
    model = AutoModelForCausalLM.from_pretrained(saved)
    expected = {name: right_choices(model, tiny_tokenizer(), f"{name}.json") for name in ("capitals", "opposites")}
    assert sorted(found.parts) == ["tiny_capitals", "tiny_opposites"]
    for name, values in expected.items():
        assert found.parts[f"tiny_{name}"] == np.mean(values)
    assert sorted(found.row_values) == sorted(expected["capitals"] + expected["opposites"])
    assert found.value == pytest.approx(np.mean(found.row_values))  # weighted by size
    assert (found.rows, found.rows_in_task, found.shots) == (16, 16, 0)
    single = evaluate(str(saved), tasks="tiny_capitals", include=[TASKS])["tiny_capitals"]
    assert single.row_values == expected["capitals"]
    by_length = right_choices(model, tiny_tokenizer(), "capitals.json", by_length=True)
    assert single.metrics == {"acc,none": np.mean(single.row_values), "acc_norm,none": np.mean(by_length)}


@pytest.mark.tiny
def test_an_adapter_counts_from_a_folder_and_in_memory(adapter: Path, saved: Path) -> None:
    options: dict[str, Any] = {"tasks": ["tiny_capitals", "tiny_opposites"], "include": TASKS}
    base = evaluate(str(saved), **options)
    from_folder = evaluate(str(adapter), **options)
    in_memory = evaluate(with_adapter(adapter, saved), tokenizer=tiny_tokenizer(), name="mine", **options)
    merged = with_adapter(adapter, saved).merge_and_unload()
    expected = [right_choices(merged, tiny_tokenizer(), f"{name}.json") for name in ("capitals", "opposites")]
    assert [task.row_values for task in from_folder.tasks] == expected
    assert [task.row_values for task in in_memory.tasks] == expected
    assert [task.row_values for task in base.tasks] != expected
    assert in_memory.model["name"] == "mine"
    assert from_folder.model["weights"] == base.model["weights"]
    assert from_folder.model["adapter_weights"] != base.model["weights"]


@pytest.mark.tiny
def test_a_model_in_memory_is_left_as_it_was() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    evaluate(model, tokenizer=tokenizer, tasks=["tiny_capitals", "tiny_sums"], include=TASKS, limit=2)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
    assert len(tokenizer) == VOCABULARY


@pytest.mark.tiny
def test_a_model_in_memory_needs_its_tokenizer() -> None:
    with pytest.raises(ModelError, match=r"tokenizer is missing: evaluate\(\) needs it with a model"):
        evaluate(tiny_model(), tasks="tiny_capitals", include=TASKS)


@pytest.mark.tiny
def test_the_chat_template_is_used_on_request(saved: Path) -> None:
    tokenizer, model = tiny_tokenizer(), AutoModelForCausalLM.from_pretrained(saved)
    found = evaluate(str(saved), tasks="tiny_capitals", include=TASKS, chat_template=True)
    expected = []
    for row in rows("capitals.json"):
        turns = [{"role": "user", "content": row["question"] + "\nAnswer:"}]
        context = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        scores = [log_likelihood(model, tokenizer, context, choice) for choice in row["choices"]]
        expected.append(float(int(np.argmax(scores)) == row["answer"]))
    assert found["tiny_capitals"].row_values == tuple(expected)
    assert found.settings["chat_template"] is True


@pytest.mark.tiny
def test_a_missing_chat_template_is_an_error(saved: Path) -> None:
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        if file.endswith("json"):
            about = json.loads((saved / file).read_text())
            about.pop("chat_template", None)
            (saved / file).write_text(json.dumps(about))
        else:
            (saved / file).unlink(missing_ok=True)
    with pytest.raises(ModelError) as caught:
        evaluate(str(saved), tasks="tiny_capitals", include=TASKS, chat_template=True)
    assert str(caught.value) == f"model '{saved}' has no chat template: leave --chat-template out"


@pytest.mark.tiny
def test_prompts_that_the_model_cannot_take_are_mentioned(tmp_path: Path) -> None:
    small = save_tiny_model(tmp_path / "small", max_position_embeddings=24)
    found = evaluate(str(small), tasks="tiny_capitals", include=TASKS, limit=2)
    assert found.notes == (
        "at most 2 questions of each task (--limit): for trying out, not to be quoted",
        "some prompts with their worked examples were longer than the model can take, and were cut from the left",
    )


# The protocol


@pytest.mark.tiny
def test_a_task_file_stands_in_for_a_benchmark_of_the_paper(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(TASKS, tmp_path / "mine")
    about = yaml.safe_load((TASKS / "tiny_sums.yaml").read_text())
    about |= {"task": "gsm8k", "num_fewshot": 5}
    about["filter_list"][0]["name"] = "strict-match"
    (tmp_path / "mine/gsm8k.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(DataError) as caught:
        evaluate(str(saved), tasks="gsm8k", include=tmp_path / "mine")
    assert str(caught.value) == (
        "task gsm8k shows 8 worked examples before each question, and its data hold 3: add some, or set num_fewshot "
        "lower (of a benchmark of the paper, under another name)"
    )
    with (tmp_path / "mine/data/sums_shots.jsonl").open("a") as shots:
        shots.writelines(json.dumps({"a": a, "b": 1}) + "\n" for a in range(5))
    found = evaluate(str(saved), tasks="gsm8k,tiny_capitals", include=tmp_path / "mine")
    assert (found["gsm8k"].shots, found["gsm8k"].metric) == (8, "exact_match,strict-match")
    assert found.averages == ()  # they would not be the paper's
    assert found.model["dtype"] == "bfloat16"  # as in the paper; the checkpoint is in float32
    file = tmp_path / "mine/gsm8k.yaml"
    assert found["gsm8k"].source == str(file)
    assert found.notes == (
        f"gsm8k is from {file}, not the harness's benchmark: it is left out of the paper's averages",
    )
    about["filter_list"][0]["name"] = "first-number"
    file.write_text(yaml.safe_dump(about))
    with pytest.raises(DataError) as caught:
        evaluate(str(saved), tasks="gsm8k", include=tmp_path / "mine")
    assert str(caught.value) == (
        "task gsm8k has no exact_match,strict-match, the paper's figure of gsm8k, only exact_match,first-number: name "
        "metric and filter in its file so, or give it another name"
    )


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "bfloat16"),
        (["--tasks", "gsm8k,tiny_words"], "bfloat16"),
        (["--tasks", "tiny_words"], "auto"),
        (["--dtype", "float32"], "float32"),
        (["--dtype", "auto"], "auto"),
    ],
)
def test_the_papers_benchmarks_are_run_in_bfloat16_unless_a_dtype_is_given(
    options: list[str], expected: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(self: Place, config: ADGConfig) -> None:
        loaded.append(config.dtype)
        raise ModelError("far enough")

    monkeypatch.setattr(run, "load", lambda *_, **__: [])
    monkeypatch.setattr(Place, "load", load)
    monkeypatch.chdir(saved)
    assert adg("eval", str(saved), *options) == 2
    assert loaded == [expected]


@pytest.mark.slow
def test_the_harness_has_the_benchmarks_with_their_metrics_and_enough_examples() -> None:
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    for task in PAPER:
        entry = index[task.name]
        path = Path(entry["yaml_path"] if isinstance(entry, dict) else entry.yaml_path)
        about = declared(path)
        if "group" in about:  # of bbh, the file of the first task says what its parts have in common
            (metric,) = about["aggregate_metric_list"]
            assert metric["weight_by_size"]
            filters = metric.get("filter_list", "none")
            assert task.metric == f"{metric['metric']},{filters}"
        else:
            metrics = [str(m["metric"]).rpartition(".")[2] for m in about["metric_list"]]
            first = (about.get("filter_list") or [{"name": "none"}])[0]["name"]
            known = {"pass_at_k": "pass@1"}.get(metrics[0], metrics[0])  # one figure for each k
            assert task.metric == f"{known},{first}"
        assert bool(about.get("unsafe_code")) == task.runs_code
        assert task.shots == 0 or about.get("num_fewshot") != 0


def declared(path: Path) -> dict[str, Any]:
    """Return a task file with its templates, functions as their names."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: str(loader.construct_scalar(node)))
    about = yaml.load(path.read_text(encoding="utf-8"), Loader=Loader)  # noqa: S506  # a safe one with one tag more
    return declared(path.parent / about["include"]) | about if "include" in about else about


# What is refused, before any model is loaded


def no_model(tmp_path: Path) -> str:
    """A model that is looked at only after the tasks: loading it would be another error."""
    return str(tmp_path / "none")


@pytest.mark.slow
def test_data_sets_that_are_not_here_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        evaluate(no_model(tmp_path), tasks="truthfulqa_mc2,gsm8k")
    first, second, fix = str(caught.value).splitlines()
    assert first.startswith("task truthfulqa_mc2 cannot be loaded (Couldn't reach 'truthfulqa/truthful_qa' on the Hub")
    assert second.startswith("task gsm8k cannot be loaded (Couldn't reach 'openai/gsm8k' on the Hub")
    assert fix == (
        "its data set is fetched once, with a network and without HF_HUB_OFFLINE; on a machine without one, --include "
        "DIR takes task files of your own, and one of the same name goes before the harness's"
    )


@pytest.mark.slow
def test_an_unknown_task_is_named_with_others_like_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adg("eval", no_model(tmp_path), "--tasks", "tiny_sumz", "--include", str(TASKS)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(
        "error: tasks names 'tiny_sumz', which is neither a task of lm-evaluation-harness nor of a file in --include: "
        "did you mean tiny_sums"
    )


def test_code_is_run_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adg("eval", no_model(tmp_path), "--tasks", "tiny_code", "--include", str(TASKS)) == 2
    assert capsys.readouterr() == ("", f"error: task tiny_code: {RUNS_CODE}, or leave the task out\n")


def code_task(folder: Path, name: str, **keys: Any) -> Path:
    """Write a task like tiny_code that declares nothing but `keys`."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(TASKS / "data", folder / "data", dirs_exist_ok=True)
    shutil.copy(TASKS / "tiny_code.py", folder)
    text = (TASKS / "tiny_code.yaml").read_text().replace("task: tiny_code", f"task: {name}")
    lines = [line for line in text.splitlines() if not line.startswith("unsafe_code")]
    (folder / f"{name}.yaml").write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in keys.items())]))
    return folder


@pytest.mark.tiny
def test_the_environment_permits_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    with pytest.raises(ConfigError, match=f"^task tiny_code: {RUNS_CODE}"):
        evaluate(str(saved), tasks="tiny_code", include=TASKS)
    mine = code_task(tmp_path / "mine", "silent")
    assert evaluate(str(saved), tasks="silent", include=mine, limit=2)["silent"].value == 0
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "1"


@pytest.mark.parametrize("how", ["yes", "a word", "a list of templates", "a group", "in a group", "undeclared"])
def test_code_that_is_declared_in_any_way_is_refused(tmp_path: Path, how: str) -> None:
    mine, name = tmp_path / "mine", "mine"
    if how == "yes":
        code_task(mine, name, unsafe_code="yes")
    elif how == "a word":
        code_task(mine, name, unsafe_code="'no'")  # the harness takes it for true
    elif how == "a list of templates":
        code_task(mine, name, include="[_a_yaml, _b_yaml]")
        (mine / "_a_yaml").write_text("num_fewshot: 0")
        (mine / "_b_yaml").write_text("unsafe_code: true")
    elif how == "a group":
        code_task(mine, "leaf", unsafe_code="true")
        (mine / "group.yaml").write_text("group: mine\ntask: [leaf]")
    elif how == "in a group":
        code_task(mine, "leaf")
        (mine / "group.yaml").write_text("group: mine\ntask:\n- {task: leaf, unsafe_code: true}")
    else:
        name = "prompt_robustness_math_algebra"  # gives the model's text to sympy's parse_expr, which is eval
        code_task(mine, name)
    with pytest.raises(ConfigError) as caught:
        evaluate(no_model(tmp_path), tasks=name, include=mine)
    assert caught.value.problems == [f"task {name}: {RUNS_CODE}, or leave the task out"]


@pytest.mark.tiny
def test_on_request_the_metric_may_run_it_and_not_after(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "0")
    found = evaluate(str(saved), tasks="tiny_code", include=TASKS, limit=2, allow_code_execution=True)
    assert found["tiny_code"].value == 1
    assert found.settings["code_execution"] is True
    assert os.environ["HF_ALLOW_CODE_EVAL"] == "0"


@pytest.mark.tiny
def test_an_adapter_of_another_model_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", hidden_size=24)
    with pytest.raises(ModelError) as caught:
        evaluate(str(adapter), base=str(other), tasks="tiny_capitals", include=TASKS)
    message = str(caught.value)
    assert message.startswith(f"adapter '{adapter}' does not go with '{other}' (size mismatch for base_model.")
    assert message.endswith("): name the base that it was trained on with --base")


@pytest.mark.tiny
def test_an_adapter_with_more_tokens_than_its_base(tmp_path: Path, saved: Path) -> None:
    """As trainers leave it that added tokens: the embeddings are in the adapter."""
    peft = pytest.importorskip("peft")
    tokenizer = AutoTokenizer.from_pretrained(saved)
    tokenizer.add_tokens(["<new>", "<other>"], special_tokens=True)
    base = AutoModelForCausalLM.from_pretrained(saved)
    base.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    model = peft.get_peft_model(base, config)
    with torch.no_grad():
        model.get_input_embeddings().weight[-2:].normal_(0, 1.0)
    folder = tmp_path / "grown"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = evaluate(str(folder), tasks="tiny_capitals", include=TASKS)["tiny_capitals"]
    assert found.row_values == right_choices(model.eval(), tokenizer, "capitals.json")


@pytest.mark.tiny
def test_an_adapter_on_the_hub_brings_its_tokenizer_and_its_bases_revision(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    about = json.loads((adapter / "adapter_config.json").read_text())
    about |= {"base_model_name_or_path": "org/base", "revision": "old"}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{{ messages[0]['content'] }}: "
    tokenizer.save_pretrained(adapter)
    in_cache(cache, "org/adapter", adapter, "main", "a" * 40)
    in_cache(cache, "org/base", tmp_path / "base", "old", "b" * 40)
    in_cache(cache, "org/base", save_tiny_model(tmp_path / "newest", hidden_size=24), "main", "c" * 40)
    found = evaluate("org/adapter", tasks="tiny_capitals", include=TASKS, chat_template=True)
    assert found.model["weights"] == f"org/base@{'b' * 40}"
    assert (found.model["revision"], found.model["adapter_weights"]) == ("old", f"org/adapter@{'a' * 40}")
    local = evaluate(
        str(adapter), base=str(tmp_path / "base"), tasks="tiny_capitals", include=TASKS, chat_template=True
    )
    assert found["tiny_capitals"].row_values == local["tiny_capitals"].row_values
    assert found["tiny_capitals"].digest == local["tiny_capitals"].digest


def in_cache(cache: Path, repository: str, folder: Path, revision: str, commit: str) -> None:
    """Put a folder into the hub's cache as it would be after a download."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    for name in ("config.json", "generation_config.json", "added_tokens.json", "special_tokens_map.json"):
        if not (folder / name).exists():  # was asked for, and is not there
            missing = place / ".no_exist" / commit / name
            missing.parent.mkdir(parents=True, exist_ok=True)
            missing.touch()
