import os
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from tiny_models import tiny_tokenizer
from tiny_runs import choose, pool_rows, write_jsonl
from trl_runs import pool, sft_config, tiny
from typer.testing import CliRunner

from adg_plugin import ADGSFTTrainer
from adg_plugin.adapters import recipes
from adg_plugin.adapters.trl import run as recipe_run
from adg_plugin.adapters.trl.arguments import launcher_arguments, read_command, read_recipe
from adg_plugin.adapters.trl.checks import trl
from adg_plugin.adapters.trl.plan import selection_config
from adg_plugin.adapters.trl.script import of_run_folder, resume_value, trained_tokens
from adg_plugin.cli import app
from adg_plugin.config.files import load_yaml
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ADGError, ConfigError, DataError, ModelError, StoreError

__all__ = ["tiny"]

TRL_RECIPES = [name for name in recipes.names() if name.startswith("trl/")]
NO_GPU = ["use_cpu=true", "tf32=false"]  # a machine without one refuses both, which is no mistake of a recipe's


def write(folder, **keys):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def request(folder, *flags, **keys):
    path = write(folder, **keys)
    return read_command(["--config", str(path), *flags])


def test_all_mistakes_of_both_parts_come_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        request(
            tmp_path,
            "--adg_budgett",
            "5",
            "--lerning_rate",
            "1",
            "--num_procesess",
            "2",
            learning_rte=1e-4,
            max_step=3,
            num_samples=7,
            num_train_epochs="many",
            adg={"tempreature": 1.0, "top_p": 3},
        )
    expected = [
        "learning_rte is not a setting of trl sft: did you mean `learning_rate`?",
        "max_step is not a setting of trl sft: did you mean `max_steps`?",
        "num_samples is not a setting of trl sft: did you mean `adg.num_samples`?",
        "adg.top_p is 3: use a number above 0 and up to 1",
        "adg.tempreature is not a setting: did you mean `temperature`?",
        "adg.budgett is not a setting: did you mean `budget`?",
        "argument --num_train_epochs/--num-train-epochs: invalid float value: 'many'",
        "--lerning_rate is not a setting of trl sft: did you mean `--learning_rate`?",
        "--num_procesess is not a setting of trl sft: did you mean `--num_processes`?",
    ]
    assert sorted(caught.value.problems) == sorted(expected)


def test_the_command_line_wins_over_the_file_in_every_part(tmp_path):
    flags = ["--adg_budget", "7", "--adg-seed=3", "--learning_rate", "0.5", "--num_machines", "1", "--multi_gpu"]
    trainer = {"output_dir": "x", "learning_rate": 1e-4, "use_cpu": True}
    asked = request(tmp_path, *flags, **trainer, num_processes=2, adg={"budget": 3, "layers": 2})
    assert asked.adg == {"budget": 7, "layers": 2, "seed": 3}
    assert asked.training.learning_rate == 0.5
    assert asked.launch == ["--num_processes", "2", "--num_machines", "1", "--multi_gpu"]
    assert asked.passed == ["--config", str(tmp_path / "recipe.yaml"), *flags[:5]]


def test_accelerate_config_is_resolved_as_trl_does(tmp_path):
    (flag, path) = launcher_arguments(["--accelerate_config", "single_gpu"])
    assert flag == "--config_file"
    assert Path(path).is_file()
    with pytest.raises(ConfigError, match="neither a file nor a valid config"):
        launcher_arguments(["--accelerate_config", "no_such"])


def test_a_selection_by_itself_asks_the_model_that_is_trained_as_it_is_trained(tmp_path):
    keys = {"model_name_or_path": "demo", "dtype": "bfloat16", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}
    config = selection_config(request(tmp_path, **keys, use_cpu=True, adg={"datasets": ["demo"]}), Path("run"))
    assert (config.model, config.dtype, config.load_in_4bit) == ("demo", "bfloat16", True)
    assert config.bnb_4bit_quant_type == "fp4"
    other = {"datasets": ["demo"], "model": "small"}
    config = selection_config(request(tmp_path, **keys, use_cpu=True, adg=other), Path("run"))
    assert (config.model, config.dtype, config.load_in_4bit) == ("small", "auto", False)


def test_the_trainers_data_set_is_the_pool_where_none_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    asked = request(tmp_path, model_name_or_path="demo", use_cpu=True, dataset_name=str(tmp_path / "train.jsonl"))
    assert selection_config(asked, Path("run")).datasets[0].path == str(tmp_path / "train.jsonl")
    mixture = [{"path": "json", "data_files": str(tmp_path / "train.jsonl")}]
    asked = request(tmp_path, model_name_or_path="demo", use_cpu=True, datasets=mixture)
    assert selection_config(asked, Path("run")).datasets[0].data_files == str(tmp_path / "train.jsonl")


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"dataset_streaming": True}, "dataset_streaming is true"),
        ({"streaming": True}, "streaming is true"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset is true"),
        ({"test_split_size": 0.1}, "test_split_size is 0.1"),
        ({"eval_strategy": "steps"}, "there is no data set to evaluate on"),
        ({"load_in_8bit": True}, "load_in_8bit is true"),
        ({"chat_template_path": "other/model"}, "chat_template_path is 'other/model'"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"adg": {"budget": 3}}, "datasets is missing"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_runs(keys, told, tmp_path):
    plain = {"model_name_or_path": "demo", "use_cpu": True, "adg": {"datasets": ["demo"]}}
    with pytest.raises(ConfigError) as caught:
        recipe_run.make_plan(write(tmp_path, **{**plain, **keys}))
    assert told in str(caught.value)
    assert not (tmp_path / "runs").exists()


BAD_ROWS = {
    "input_ids": ({"input_ids": [1, 2]}, "a column `input_ids`"),
    "image": ({"image": "x", "messages": []}, "`image`: vision data"),
    "vision_turns": (
        {"messages": [{"role": "user", "content": [{"type": "image", "text": None}]}]},
        "messages with content of type image",
    ),
    "text": ({"text": "a b"}, "a column `text` only: where a prompt ends in it cannot be known; split it into"),
    "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, "`chosen`, `rejected`: preference or reward data"),
    "reward": ({"prompt": "a", "completions": ["b"], "labels": [True]}, "`completions`, `labels`"),
    "unpaired": ({"prompt": "a", "completion": "b", "label": True}, "`prompt`, `completion`, `label`"),
    "unanswered": ({"prompt": "a"}, "no `completion`"),
    "unknown": ({"question": "a", "reply": "b"}, "question"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_cannot_be_selected_from_are_refused_before_any_model_loads(name, tmp_path):
    row, told = BAD_ROWS[name]
    trainer = {"model": "no/such-model", "args": sft_config(tmp_path), "selection_config": ADGConfig()}
    with pytest.raises(DataError) as caught:
        ADGSFTTrainer(train_dataset=Dataset.from_list([row]), **trainer)
    assert told in str(caught.value)
    lines = tmp_path / "pool.jsonl"
    Dataset.from_list([row]).to_json(lines)
    recipe = write(tmp_path, model_name_or_path="no/such-model", use_cpu=True, adg={"datasets": [str(lines)]})
    with pytest.raises(DataError) as caught:
        recipe_run.make_plan(recipe)
    assert told in str(caught.value)


def test_streams_transforms_and_trainer_settings_are_refused_before_any_model_loads(tmp_path, monkeypatch):
    def make(rows, config=None, func=None, **settings):
        ADGSFTTrainer(
            model="no/such-model",
            args=sft_config(tmp_path, **settings),
            train_dataset=rows,
            formatting_func=func,
            selection_config=config or ADGConfig(),
        )

    with pytest.raises(DataError, match="IterableDataset: a stream has no pool"):
        make(pool().to_iterable_dataset())
    with pytest.raises(DataError, match="has a transform"):
        make(pool().with_transform(lambda batch: batch))
    with pytest.raises(DataError, match="has no rows"):
        make(pool().select([]))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError) as caught:
        make(pool(), ADGConfig(template="chatml"), str, dataset_kwargs={"skip_prepare_dataset": True})
    assert [problem.split()[0] for problem in caught.value.problems] == [
        "template",
        "dataset_kwargs.skip_prepare_dataset",
        "formatting_func",
        "FSDP",
    ]


@pytest.mark.parametrize("name", TRL_RECIPES)
def test_every_recipe_is_valid_and_says_how_it_is_launched_and_what_it_costs(name, monkeypatch, tmp_path):
    path = recipes.find(name)
    head = [line for line in path.read_text().splitlines()[:4] if line.startswith("#")]
    assert "election cost: " in head[0]
    assert any(f"recipes/{name}.yaml" in line for line in head)
    asked = read_recipe(path, NO_GPU)
    assert asked.training.output_dir == f"runs/{path.stem}"
    if "adg" in load_yaml(path):
        (tmp_path / "pool.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("adg_plugin.adapters.trl.plan.iter_records", no_hub)
        recipe_run.make_plan(path, NO_GPU)


def no_hub(specs):
    from adg_plugin.data.sources import Record

    yield Record({"instruction": "a", "output": "b"}, "pool:1", specs[0])


def test_the_recipes_that_were_promised_are_there():
    promised = {"paper", "8b-lora", "8b-qlora", "1b-lora", "small-selects-for-large", "cpu-demo"}
    assert all(any(part in name for name in TRL_RECIPES) for part in promised)


def test_a_dry_run_prints_the_plan_and_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, model_name_or_path="demo", use_peft=True, num_processes=2, adg={"datasets": ["demo"]})
    done = CliRunner().invoke(app, ["run", str(path), "--dry-run", "--set", "budget=5", "--set", "use_cpu=true"])
    assert done.exception is None
    assert "5 rows, sampled from demo: 5 answers per row, at most 256 tokens each" in done.stdout
    assert "training   demo, LoRA" in done.stdout
    assert "accelerate launch --num_processes 2" in done.stdout
    assert "rows       265 to choose from" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_dry_run_refuses_what_the_selection_would(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, model_name_or_path="no/such", use_cpu=True, adg={"datasets": ["demo"]})
    done = CliRunner().invoke(app, ["run", str(path), "--dry-run"])
    assert isinstance(done.exception, ModelError)
    assert "model is 'no/such': its tokenizer cannot be loaded" in str(done.exception)
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_an_output_folder_of_another_recipe_is_refused_naming_what_differs(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_run, "run_stage", lambda *_: None)
    monkeypatch.setattr(recipe_run, "_train", lambda plan: (plan.out / "_adg" / "adg_summary.json").write_text("{}"))
    keys = {"model_name_or_path": "demo", "use_cpu": True, "adg": {"datasets": ["demo"], "budget": 5}}
    path, out = write(tmp_path, **keys), tmp_path / "out"
    assert recipe_run.run(recipe_run.make_plan(path, out=out)) == {}
    plan = recipe_run.make_plan(path, ["adg.budget=6", "learning_rate=0.5"], out)
    with pytest.raises(StoreError) as caught:
        recipe_run.run(plan)
    assert "was begun with adg.budget 5 (now 6), learning_rate None (now 0.5)" in str(caught.value)
    with pytest.raises(StoreError) as planned:
        recipe_run.dry_run(plan)
    assert str(planned.value) == str(caught.value)
    assert recipe_run.dry_run(recipe_run.make_plan(path, out=out))[-1].startswith(f"{out} is finished already")


def test_two_runs_do_not_share_an_output_folder(tmp_path, monkeypatch):
    from adg_plugin.adapters import processes as stages

    monkeypatch.setattr(stages, "_WAIT_S", 0.1)
    with (
        stages.parent_watchdog(tmp_path),
        pytest.raises(StoreError, match="in use by another"),
        stages.parent_watchdog(tmp_path),
    ):
        pass


def test_a_folder_within_another_leaves_the_variable_of_the_outer_one(tmp_path):
    import os

    from adg_plugin.adapters.processes import _VARIABLE, parent_watchdog

    with parent_watchdog(tmp_path / "outer"):
        outer = os.environ[_VARIABLE]
        with parent_watchdog(tmp_path / "inner"):
            assert os.environ[_VARIABLE] != outer
        assert os.environ[_VARIABLE] == outer
    assert _VARIABLE not in os.environ


def test_the_private_hook_of_trl_is_under_contract(monkeypatch):
    from trl import SFTTrainer

    trl()  # today's is right

    def changed(self, dataset, processing_class, args, packing):
        return dataset

    monkeypatch.setattr(SFTTrainer, "_prepare_dataset", changed)
    with pytest.raises(ADGError, match=r"_prepare_dataset of TRL .* takes \(self, dataset, processing_class, "):
        trl()
    monkeypatch.delattr(SFTTrainer, "_prepare_dataset")
    with pytest.raises(ADGError, match=r"_prepare_dataset of TRL .* is gone"):
        trl()


def test_a_trainer_that_no_longer_asks_the_hook_stops(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(ADGSFTTrainer, "_prepare_dataset", lambda self, dataset, *_: dataset)
    with pytest.raises(ADGError, match="did not prepare its training rows by _prepare_dataset"):
        ADGSFTTrainer(
            model=str(tiny), args=sft_config(tmp_path), train_dataset=pool(), selection_config=ADGConfig(budget=2)
        )


@pytest.mark.parametrize(
    ("given", "meant"), [("true", True), (True, True), ("last", True), ("none", None), (None, None), ("x/c-1", "x/c-1")]
)
def test_resume_from_checkpoint_is_read_as_people_write_it(given, meant):
    assert resume_value(given) == meant


def test_tokens_are_counted_over_a_resume():
    assert trained_tokens([100, 250, 30, 90]) == 340


def test_a_recipe_without_its_flag_is_told_apart_from_a_script(tmp_path):
    with pytest.raises(ConfigError, match=r"^recipe.yaml: adg sft takes flags, as trl sft does: write --config recipe"):
        read_command(["recipe.yaml"])


def test_a_finished_run_folder_and_settings_of_a_selection_contradict_each_other(tmp_path):
    with pytest.raises(ConfigError, match=r"adg_run_folder is 'runs/x' and adg.budget is set: the rows are chosen"):
        request(tmp_path, "--adg_run_folder", "runs/x", "--adg_budget", "5", use_cpu=True)


EVALUATED = {"model_name_or_path": "demo", "use_cpu": True, "eval_strategy": "steps", "adg": {"datasets": ["demo"]}}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('{"text": "a"}', "the evaluation split has a column `text` only"),
        ('{"question": "a"}', "the evaluation split: "),
        (None, "it cannot be loaded"),
    ],
)
def test_what_cannot_be_evaluated_on_is_refused_before_the_selection(tmp_path, lines, told):
    held_out = tmp_path / "test.jsonl"
    if lines is not None:
        held_out.write_text(lines + "\n")
    keys = {**EVALUATED, "dataset_name": str(held_out), "dataset_test_split": "train"}
    with pytest.raises(DataError, match=told):
        recipe_run.make_plan(write(tmp_path, **keys))
    assert not (tmp_path / "runs").exists()


def test_a_missing_evaluation_split_is_named_before_the_selection(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    keys = {**EVALUATED, "dataset_name": str(tmp_path / "test.jsonl")}
    with pytest.raises(DataError, match=r"no split 'test', it has train: set dataset_test_split"):
        recipe_run.make_plan(write(tmp_path, **keys))
    recipe_run.make_plan(write(tmp_path, **keys, dataset_test_split="train"))


def test_a_recipe_cannot_say_where_to_resume(tmp_path):
    keys = {"model_name_or_path": "demo", "use_cpu": True, "adg": {"datasets": ["demo"]}}
    with pytest.raises(ConfigError, match="resume_from_checkpoint is set: `adg run` resumes from the last checkpoint"):
        recipe_run.make_plan(write(tmp_path, **keys, resume_from_checkpoint="out/checkpoint-3"))


def test_every_data_set_of_a_pool_is_looked_at(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"chosen": "a", "rejected": "b", "prompt": "c"}\n')
    keys = {"model_name_or_path": "demo", "use_cpu": True}
    with pytest.raises(DataError, match="preference or reward data"):
        recipe_run.make_plan(write(tmp_path, **keys, adg={"datasets": ["demo", str(tmp_path / "pairs.jsonl")]}))


def test_training_on_a_cpu_gets_all_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    flag = "--num_cpu_threads_per_process"

    def threads(*launch):
        command = recipe_run.launch_command(list(launch), ["--config", "c.yaml"])
        return command[command.index(flag) + 1] if flag in command else None

    assert (threads(), "OMP_WAIT_POLICY" in os.environ) == ("8", False)
    assert (threads("--num_processes", "2"), threads("--num_processes=4")) == ("4", "2")
    assert os.environ["OMP_WAIT_POLICY"] == "passive"  # of several processes
    assert threads(flag, "3") == "3"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads() is None


def test_evaluation_rows_get_the_template_of_the_selection(tiny, tmp_path):
    choose(pool_rows(6), tiny, tmp_path / "run", budget=4, template="alpaca-paper")
    held_out = write_jsonl(tmp_path / "test.jsonl", pool_rows(2, start=6))
    keys = {"model_name_or_path": str(tiny), "output_dir": str(tmp_path / "out"), "bf16": False, "use_cpu": True}
    keys |= {"dataset_name": str(held_out), "dataset_test_split": "train", "eval_strategy": "epoch"}
    trainer, _ = of_run_folder(request(tmp_path, report_to="none", adg_run_folder=str(tmp_path / "run"), **keys))
    for rows in (trainer.train_dataset, trainer.eval_dataset):
        text = tiny_tokenizer().decode(rows[0]["input_ids"])
        assert text.startswith("Below is an instruction")
        assert "\n\n### Response:\n" not in text
