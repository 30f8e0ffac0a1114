import pytest
from packaging.requirements import Requirement
from paths import ROOT
from pydantic import ValidationError

from adg_plugin.adapters.axolotl import run as axolotl_run
from adg_plugin.adapters.axolotl.args import ADGArgs, adopt_pool, check_supported, selection_config
from adg_plugin.adapters.axolotl.run import is_axolotl, make_plan
from adg_plugin.config.schema import load_config
from adg_plugin.demo import pool_paths
from adg_plugin.errors import ConfigError

RECIPES = sorted((ROOT / "recipes" / "axolotl").glob("*.yaml"))
POOL = [{"path": "pool.jsonl", "type": "alpaca"}]


def problems(**settings):
    with pytest.raises(ConfigError) as caught:
        check_supported({"adg": {"budget": 5}, "datasets": POOL, **settings})
    return caught.value.problems


@pytest.mark.parametrize(
    ("settings", "beginning"),
    [
        ({"rl": "dpo"}, "rl is 'dpo': "),
        ({"streaming": True}, "streaming is True: "),
        ({"pretraining_dataset": "c4"}, "pretraining_dataset is 'c4': "),
        ({"skip_prepare_dataset": True}, "skip_prepare_dataset is True: "),
        ({"reward_model": True}, "reward_model is True: "),
        ({"process_reward_model": True}, "process_reward_model is True: "),
        ({"processor_type": "AutoProcessor"}, "processor_type is 'AutoProcessor': "),
        ({"datasets": [{"path": "x", "type": "completion"}]}, "datasets[0].type is 'completion': "),
        (
            {"datasets": [*POOL, {"path": "x", "type": "bradley_terry.chat_template"}]},
            "datasets[1].type is 'bradley_terry",
        ),
        ({"datasets": ["pool.jsonl"]}, "datasets[0] is 'pool.jsonl': write it as Axolotl does, with `path` and `type`"),
        ({"adg": None}, "adg is missing: "),
        ({"adg": {"datasets": POOL}}, "datasets and adg.datasets are both given: "),
        ({"adg": {"template": "alpaca"}}, "adg.template is 'alpaca': the prompts are those of training"),
        ({"adg": {"truncate": True}}, "adg.truncate is True: the prompts are those of training"),
    ],
)
def test_what_cannot_be_selected_from_is_refused_by_name(settings, beginning):
    (problem,) = problems(**settings)
    assert problem.startswith(beginning)


def test_all_refusals_come_at_once():
    assert len(problems(rl="dpo", streaming=True, adg={"truncate": True})) == 3


def test_a_backbone_of_its_own_may_have_a_template():
    check_supported({"adg": {"model": "other", "template": "alpaca"}, "datasets": POOL})


def test_the_pool_moves_to_where_axolotl_looks():
    cfg = {"adg": {"budget": 5, "datasets": POOL}}
    adopt_pool(cfg)
    assert cfg == {"adg": {"budget": 5}, "datasets": POOL}


def test_demo_stands_for_the_pool_that_comes_with_the_package():
    cfg = {"adg": {"datasets": ["demo"]}}
    adopt_pool(cfg)
    assert {entry["path"] for entry in cfg["datasets"]} == {str(path) for path in pool_paths()}
    assert {entry["type"] for entry in cfg["datasets"]} == {"alpaca", "chat_template"}


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"budgett": 5}, "adg.budgett is not a setting: did you mean `budget`?"),
        ({"num_samples": 2}, "adg.num_samples is 2: use "),
        (7, "adg is 7: write its settings below it, such as budget: 10000"),
        (
            {"budget_per_dataset": 5},
            "adg.budget_per_dataset is 5: use a list, a budget for each entry of Axolotl's datasets",
        ),
    ],
)
def test_mistakes_in_the_block_are_named_in_our_words(block, text):
    with pytest.raises(ValidationError) as caught:
        ADGArgs(adg=block)
    assert text in str(caught.value)


def test_what_the_block_leaves_out_comes_from_training():
    cfg = {
        "adg": {"budget": 5},
        "base_model": "org/model",
        "revision_of_model": "abc",
        "trust_remote_code": True,
        "torch_dtype": "torch.bfloat16",
        "load_in_4bit": True,
        "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False, "llm_int8_threshold": 1.0},
    }
    config = selection_config(cfg)
    assert (config.model, config.revision, config.trust_remote_code) == ("org/model", "abc", True)
    assert (config.dtype, config.load_in_4bit, config.bnb_4bit_quant_type) == ("bfloat16", True, "nf4")
    assert not config.bnb_4bit_use_double_quant
    assert selection_config({**cfg, "adg": {"load_in_4bit": False}}).load_in_4bit is False
    other = selection_config({**cfg, "adg": {"model": "org/small"}})
    assert (other.model, other.revision, other.dtype, other.load_in_4bit) == ("org/small", None, "auto", False)


def test_elsewhere_budgets_for_each_data_set_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("datasets: [pool.jsonl]\nbudget_per_dataset: [5]\n")
    with pytest.raises(ConfigError, match="budget for each entry of Axolotl's datasets; elsewhere leave it out"):
        load_config(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_fail_closed_and_open_with_their_commands(path):
    import yaml

    text = path.read_text()
    recipe = yaml.safe_load(text)
    assert recipe["plugins"] == ["adg_plugin.ADGPlugin"]
    assert "datasets" not in recipe
    assert recipe["adg"]["datasets"]
    assert is_axolotl(path)
    assert make_plan(path).lines()
    assert f"#   axolotl preprocess recipes/axolotl/{path.name}" in text
    assert f"#   axolotl train      recipes/axolotl/{path.name}" in text
    check_supported(recipe)
    adopt_pool(recipe)
    ADGArgs(adg=recipe["adg"])
    selection_config(recipe)


def test_the_pins_of_axolotl_s_environment_are_exact_public_versions():
    path = ROOT / "constraints" / "axolotl.txt"
    pins = [Requirement(line) for line in path.read_text().splitlines()]
    assert all(pin.url is None and str(pin.specifier).startswith("==") and "+" not in str(pin) for pin in pins)
    assert {"axolotl==0.19.0", "trl==1.9.0", "torch==2.13.0"} <= {str(pin) for pin in pins}
    # torch of CUDA asks for one exact triton, torch for the CPU for none.
    assert "triton" not in {pin.name for pin in pins}


def write(tmp_path, **keys):
    import yaml

    data = {"base_model": "org/model", "plugins": ["adg_plugin.ADGPlugin"], "adg": {"datasets": POOL}, **keys}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
    return path


def test_a_bare_key_of_the_selection_alone_goes_to_its_block(tmp_path):
    overrides = ["budget=500", "adg.seed=3", "seed=4", "learning_rate=0.1"]
    plan = make_plan(write(tmp_path), overrides, tmp_path / "out", ["--launcher", "torchrun"])
    assert plan.data["adg"] == {"datasets": POOL, "budget": 500, "seed": 3}
    assert (plan.data["seed"], plan.data["learning_rate"], plan.out) == (4, 0.1, tmp_path / "out")
    assert "selection  500 rows, sampled from org/model" in plan.lines()
    assert "launch     axolotl preprocess, then axolotl train --launcher torchrun" in plan.lines()


def test_a_plan_names_every_mistake(tmp_path):
    path = write(tmp_path, plugins=None, rl="dpo", adg={"datasets": POOL, "budgett": 3})
    with pytest.raises(ConfigError) as caught:
        make_plan(path, ["adg.=1"])
    told = str(caught.value)
    for piece in ("plugins does not name", "rl is 'dpo'", "did you mean `budget`?"):
        assert piece in told
    with pytest.raises(ConfigError, match="adg is missing"):
        make_plan(write(tmp_path, adg=None))
    with pytest.raises(ConfigError, match="adg is 7: write its settings below it"):
        make_plan(write(tmp_path, adg=7))


def test_adg_run_shows_the_plan_of_an_axolotl_yaml(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from adg_plugin.cli import app

    monkeypatch.setattr(axolotl_run, "need", lambda module, **_: module)  # Axolotl, which a plan needs only to be there
    done = CliRunner().invoke(app, ["run", str(write(tmp_path)), "--dry-run", "--", "--launcher", "torchrun"])
    assert done.exit_code == 0, done.output
    assert "axolotl train --launcher torchrun" in done.stdout
