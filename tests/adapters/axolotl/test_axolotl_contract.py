"""What the plugin expects of Axolotl's inside. A new release that breaks one of these breaks the plugin."""

import dataclasses
import inspect
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest
import yaml
from paths import ROOT

RECIPES = ROOT / "recipes" / "axolotl"

pytestmark = [
    pytest.mark.axolotl,
    pytest.mark.skipif(find_spec("axolotl") is None, reason="needs Axolotl: `make test` runs this in .venv-axolotl"),
]


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_hooks_are_those_that_axolotl_calls():
    from axolotl.integrations.base import BasePlugin

    from adg_plugin import ADGPlugin

    assert issubclass(ADGPlugin, BasePlugin)
    for hook in ("register", "get_input_args", "load_datasets"):
        assert parameters(getattr(ADGPlugin, hook)) == parameters(getattr(BasePlugin, hook)), hook


def test_an_import_error_of_a_plugin_is_passed_over_and_another_error_is_not():
    from axolotl.integrations.base import PluginManager

    PluginManager.get_instance().register("no_such_module.Plugin")
    with pytest.raises(AttributeError):
        PluginManager.get_instance().register("adg_plugin.NoSuchPlugin")


def test_evaluate_asks_no_plugin_for_its_rows():
    """As docs/axolotl.md says: where this fails, `axolotl evaluate` may look at the chosen rows."""
    from axolotl.cli import evaluate, train

    asks = "plugin_manager.load_datasets("
    assert asks in inspect.getsource(train)
    assert asks not in inspect.getsource(evaluate)


def test_the_functions_take_what_they_are_given():
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import TrainDatasetMeta, load_datasets
    from axolotl.utils.chat_templates import get_chat_template_from_config
    from axolotl.utils.data import sft, shared, wrappers
    from axolotl.utils.trainer import calculate_total_num_steps

    assert parameters(load_cfg)[0] == "config"
    assert [f.name for f in dataclasses.fields(TrainDatasetMeta)] == [
        "train_dataset",
        "eval_dataset",
        "total_num_steps",
    ]
    assert "cfg" in parameters(load_datasets)
    assert parameters(get_chat_template_from_config)[:3] == ["cfg", "ds_cfg", "tokenizer"]
    assert parameters(shared.datasets_with_name_generator) == ["dataset_configs"]
    assert parameters(shared.load_dataset_with_config)[:2] == ["dataset_config", "use_auth_token"]
    assert parameters(shared.generate_dataset_hash_from_config) == ["cfg", "cfg_datasets", "tokenizer_name"]
    wanted = {"dataset_config", "tokenizer", "cfg", "dataset_base_type", "dataset", "dataset_prompt_style"}
    assert wanted <= set(parameters(wrappers.get_dataset_wrapper))
    assert sft._parse_dataset_type("chat_template.default:x") == ("chat_template.default", "x")
    assert parameters(calculate_total_num_steps)[:2] == ["cfg", "train_dataset"]


def test_steps_are_counted_over_the_table_past_a_selection_s_indices():
    from axolotl.utils.dict import DictDefault
    from axolotl.utils.trainer import calculate_total_num_steps
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[1, 2]] * 8, "labels": [[1, 2]] * 8}).select([0, 5])

    def counted(dataset):
        cfg = DictDefault({"num_epochs": 1, "batch_size": 1, "sequence_len": 8})
        calculate_total_num_steps(cfg, dataset)
        return cfg.total_num_tokens

    assert (counted(rows), counted(rows.flatten_indices())) == (16, 4)


def test_axolotl_finds_the_command():
    from axolotl.cli.main import cli
    from axolotl.cli.plugins import ENTRY_POINT_GROUP

    assert "adg-select" in {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)}
    import click

    command = cli.get_command(click.Context(cli), "adg-select")
    assert command.resolve().name == "adg-select"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_for_axolotl(path):
    from axolotl.cli.config import prepare_plugins
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().plugins.clear()
    cfg = DictDefault(yaml.safe_load(path.read_text()))
    prepare_plugins(cfg)
    gpu = {"bf16": True, "fp8": False, "tf32": False, "n_gpu": 1, "compute_capability": "sm_80"}
    checked = validate_config(cfg, capabilities=gpu, env_capabilities={"torch_version": "2.13.0"})
    assert checked.datasets
    assert checked.adg
    # A key that Axolotl does not know is dropped without a word.
    assert set(cfg) - {"axolotl_config_path"} <= set(checked)
