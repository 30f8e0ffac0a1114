"""The schema: what is accepted, and what is said about the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adg_plugin import ADGConfig
from adg_plugin.config.groups import Filters
from adg_plugin.config.schema import DatasetSpec
from adg_plugin.errors import ConfigError

ROWS_OR_FRACTION = "use a number of rows (10000) or a fraction of the pool (0.2)"


FRACTION = "a number with a point is a fraction of the pool: use 0 < fraction <= 1, or a whole number of rows"


def problems(data: dict[str, object], **options: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        ADGConfig.parse(data, **options)
    return caught.value.problems


def test_the_defaults_are_the_papers():
    config = ADGConfig()
    assert (config.num_samples, config.temperature, config.top_p, config.max_new_tokens) == (5, 1.4, 0.9, 256)
    assert (config.top_k, config.repetition_penalty) == (50, 1.0)  # what `generate` brings
    assert (config.budget, config.weight, config.score, config.layers, config.pooling) == (
        10_000,
        0.4,
        "raw",
        4,
        "answer",
    )
    assert (config.bins, config.subset, config.template, config.truncate) == (None, "top", "auto", False)
    assert (config.engine, config.dtype, config.load_in_4bit) == ("hf", "auto", False)


def test_every_error_comes_at_once_each_with_key_value_and_fix():
    with pytest.raises(ConfigError) as caught:
        ADGConfig.parse(
            {"budgt": 3, "num_samples": 2, "top_p": "high", "score": "rnk", "datasets": [{"pth": "x"}, 3]},
            source="run.yaml",
            prefix="adg.",
        )
    assert str(caught.value).splitlines() == [
        "run.yaml: 7 problems",
        "  - adg.num_samples is 2: use a whole number from 3 to 64; two answers span a single direction",
        "  - adg.top_p is 'high': use a number above 0 and up to 1",
        "  - adg.score is 'rnk': use 'raw', 'rank', 'zscore' or 'residual'; did you mean `rank`?",
        "  - adg.datasets[0].path is missing: set it",
        "  - adg.datasets[0].pth is not a setting: did you mean `path`?",
        "  - adg.datasets[1] is 3: use a path, or a mapping with `path`",
        "  - adg.budgt is not a setting: did you mean `budget`?",
    ]
    assert caught.value.exit_code == 2


def test_one_problem_is_one_line():
    with pytest.raises(ConfigError) as caught:
        ADGConfig.parse({"layers": 0}, source="run.yaml")
    assert str(caught.value) == "run.yaml: layers is 0: use a whole number, 1 or more"


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("temperature", 0, "use a number above 0 and up to 10, such as 1.4"),
        ("temperature", 11, "use a number above 0 and up to 10, such as 1.4"),
        ("temperature", float("inf"), "use a number above 0 and up to 10, such as 1.4"),
        (
            "top_k",
            -1,
            "use 2 or more, such as 50, or 0 for all tokens; with 1 all answers would be equal, and dispersion 0",
        ),
        (
            "top_k",
            1,
            "use 2 or more, such as 50, or 0 for all tokens; with 1 all answers would be equal, and dispersion 0",
        ),
        (
            "top_k",
            2.5,
            "use 2 or more, such as 50, or 0 for all tokens; with 1 all answers would be equal, and dispersion 0",
        ),
        ("repetition_penalty", 0, "use a number above 0 and up to 10; 1 is off"),
        ("repetition_penalty", float("nan"), "use a number above 0 and up to 10; 1 is off"),
        ("top_p", 0, "use a number above 0 and up to 1"),
        ("top_p", 1.01, "use a number above 0 and up to 1"),
        ("num_samples", 65, "use a whole number from 3 to 64; two answers span a single direction"),
        ("num_samples", 5.5, "use a whole number from 3 to 64; two answers span a single direction"),
        ("max_new_tokens", 0, "use a whole number, 1 or more"),
        ("max_new_tokens", "1e3", "use a whole number, 1 or more"),
        ("max_prompt_tokens", 0, "use a whole number, 1 or more"),
        ("layers", 1.5, "use a whole number, 1 or more"),
        ("seed", -1, "use a whole number from 0 to 2**63 - 1"),
        ("seed", 2**63, "use a whole number from 0 to 2**63 - 1"),
        ("weight", 1.1, "use a number from 0 to 1"),
        ("weight", float("nan"), "use a number from 0 to 1"),
        ("bins", 0, "use a whole number, 1 or more, or leave it out"),
        ("batch_tokens", 0, "use a whole number, 1 or more, or leave it out"),
        ("device", "gpu", "use auto, cpu, cuda, cuda:N, mps or xpu"),
        ("device", 0, "use auto, cpu, cuda, cuda:N, mps or xpu"),
        ("truncate", "maybe", "use true or false"),
        ("load_in_4bit", 4, "use true or false"),
        ("model", 3, "use text; in YAML, with quotes around it"),
        ("revision", 1.0, "use text; in YAML, with quotes around it"),
        ("model", "", "use text of at least one character, or leave it out"),
        ("template", "", "use text of at least one character, or leave it out"),
        ("dtype", "bf61", "use 'auto', 'bfloat16', 'float16' or 'float32'"),
        ("bnb_4bit_quant_type", "nf3", "use 'nf4' or 'fp4'; did you mean `nf4`?"),
        ("datasets", None, "use a list of paths, or of mappings with `path`"),
    ],
)
def test_a_value_out_of_range_or_of_another_type_says_what_to_use(key, value, fix):
    assert problems({key: value}) == [f"{key} is {value!r}: {fix}"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), "nan", "inf", "1e999"])
@pytest.mark.parametrize("schema", [ADGConfig, Filters])
def test_a_number_without_end_is_no_number(schema, value):
    for key in [name for name, f in schema.model_fields.items() if "float" in str(f.annotation)]:
        named = f"filters.{key}" if schema is Filters else key
        (problem,) = problems({"filters": {key: value}} if schema is Filters else {key: value})
        assert problem.startswith(f"{named} is {value!r}: "), problem


@pytest.mark.parametrize("key", [name for name, f in ADGConfig.model_fields.items() if "float" in str(f.annotation)
                                 or "int" in str(f.annotation)])  # fmt: skip
@pytest.mark.parametrize("value", [True, False])
def test_a_boolean_is_no_number(key, value):
    (problem,) = problems({key: value})
    assert problem.startswith(f"{key} is {value}: use ")


@pytest.mark.parametrize(
    ("given_", "meant"),
    [(300, 300), (1, 1), (0.2, 0.2), ("0.2", 0.2), ("300", 300), (1.0, 1.0), (10**9, 10**9), ("1e-9", 1e-9),
     ("2E-1", 0.2), ("1e0", 1.0)],
)  # fmt: skip
def test_budgets_are_rows_or_a_fraction(given_, meant):
    budget = ADGConfig.parse({"budget": given_}).budget
    assert budget == meant
    assert type(budget) is type(meant)  # 1 is a row, 1.0 the whole pool


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        (0, "use 1 or more rows, or a fraction of the pool (0.2)"),
        (-3, "use 1 or more rows, or a fraction of the pool (0.2)"),
        (0.0, FRACTION),
        (1.5, FRACTION),
        ("1.5", FRACTION),
        (-0.1, FRACTION),
        (float("nan"), FRACTION),
        (".nan", FRACTION),
        ("1e4", FRACTION),
        ("-1e-9", FRACTION),
        ("1e-999", FRACTION),
        ("1e999", FRACTION),
        ("nan", ROWS_OR_FRACTION),
        ("[" * 9_999, ROWS_OR_FRACTION),
        (True, ROWS_OR_FRACTION),
        ("yes", ROWS_OR_FRACTION),
        ("ten", ROWS_OR_FRACTION),
        ("[1", ROWS_OR_FRACTION),
        ("", ROWS_OR_FRACTION),
        (None, ROWS_OR_FRACTION),
        ([10], ROWS_OR_FRACTION),
    ],
)
def test_other_budgets_are_refused(value, fix):
    assert problems({"budget": value}) == [f"budget is {value!r}: {fix}"]


@given(st.one_of(st.integers(), st.floats(), st.text(), st.booleans(), st.none()))
def test_a_budget_is_used_as_it_means_or_refused_with_its_value(value):
    said, budget = f"budget is {value!r}: ", None
    try:
        budget = ADGConfig.parse({"budget": value}).budget
    except ConfigError as err:
        said = str(err)
    assert said.startswith(f"budget is {value!r}: ")
    if budget is not None:
        assert budget >= 1 if isinstance(budget, int) else 0 < budget <= 1
        assert isinstance(value, str) or budget == value


def test_a_key_that_resembles_none_gets_the_list():
    (problem,) = problems({"learning_rate_of_the_trainer": 1})
    assert problem.startswith("learning_rate_of_the_trainer is not a setting: known keys: answers, ")
    assert problem.partition("known keys: ")[2].split(", ") == sorted(ADGConfig.model_fields)
    (problem,) = problems({3: 1})
    assert "3" in problem
    assert "is not a setting: known keys: answers" in problem


@given(st.sampled_from(sorted(ADGConfig.model_fields)).filter(lambda key: len(key) > 4), st.data())
def test_a_key_with_two_letters_exchanged_is_recognised(key, data):
    at = data.draw(st.integers(0, len(key) - 2))
    misspelt = key[:at] + key[at + 1] + key[at] + key[at + 2 :]
    if misspelt not in ADGConfig.model_fields:
        assert problems({misspelt: 1})[0].startswith(f"{misspelt} is not a setting: did you mean `")


def test_data_sets_are_paths_or_mappings():
    config = ADGConfig.parse({"datasets": ["a.jsonl", Path("b.csv"), {"path": "c", "type": "chat_template"}]})
    assert [spec.path for spec in config.datasets] == ["a.jsonl", "b.csv", "c"]
    assert config.datasets[2].type == "messages"
    for single in ("a.jsonl", {"path": "a.jsonl"}, ["a.jsonl"], Path("a.jsonl")):
        assert ADGConfig.parse({"datasets": single}).datasets == (DatasetSpec(path="a.jsonl"),)
    assert ADGConfig.parse({"datasets": {"path": Path("a.jsonl")}}).datasets == (DatasetSpec(path="a.jsonl"),)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({}, "datasets[1].path is missing: set it"),
        ({"path": ""}, "datasets[1].path is '': use text of at least one character"),
        ({"path": 3}, "datasets[1].path is 3: use text; in YAML, with quotes around it"),
        (None, "datasets[1] is None: use a path, or a mapping with `path`"),
        ({"path": "x", "field_instrction": "q"}, "datasets[1].field_instrction is not a setting: "
                                                 "did you mean `field_instruction`?"),
        ({"path": "x", "type": "alpca"}, "datasets[1].type is 'alpca': use 'auto', 'alpaca', 'messages', "
                                         "'prompt_completion' or 'sharegpt'; did you mean `alpaca`?"),
        ({"path": "x", "ds_type": "xml"}, "datasets[1].ds_type is 'xml': use 'json', 'csv', 'parquet' or 'arrow'"),
        ({"path": "x", "data_files": 3}, "datasets[1].data_files is 3: use a file name, or a list of file names"),
        ({"path": "x", "data_files": [3]}, "datasets[1].data_files is [3]: use a file name, or a list of file names"),
        ({"path": "x", "message_property_mappings": {"role": 3}},
         "datasets[1].message_property_mappings.role is 3: use text; in YAML, with quotes around it"),
    ],
)  # fmt: skip
def test_errors_of_a_data_set_name_its_place_in_the_list(entry, said):
    found = problems({"datasets": ["good.jsonl", entry]})
    assert len(found) == 1
    assert found[0].startswith(said)


def test_short_dtype_names_are_understood():
    config = ADGConfig.parse({"dtype": "bf16", "bnb_4bit_compute_dtype": "fp16"})
    assert (config.dtype, config.bnb_4bit_compute_dtype) == ("bfloat16", "float16")


def test_paths_are_taken_as_text():
    config = ADGConfig.parse({"model": Path("m"), "output_dir": Path("o/p"), "template": Path("t.jinja")})
    assert (config.model, config.output_dir, config.template) == ("m", str(Path("o/p")), "t.jinja")


VALUES = {
    "budget": st.one_of(st.integers(1, 10**6), st.floats(0, 1, exclude_min=True)),
    "model": st.one_of(st.none(), st.text(min_size=1)),
    "datasets": st.lists(st.fixed_dictionaries({"path": st.text(min_size=1)}, optional={
        "type": st.sampled_from(["auto", "alpaca", "sharegpt"]), "data_files": st.lists(st.text(), min_size=1),
        "message_property_mappings": st.dictionaries(st.sampled_from(["role", "content"]), st.text())})),
    "num_samples": st.integers(3, 64),
    "temperature": st.floats(0, 10, exclude_min=True),
    "bins": st.one_of(st.none(), st.integers(1)),
    "seed": st.integers(0, 2**63 - 1),
    "dtype": st.sampled_from(["auto", "bf16", "float32"]),
    "weight": st.floats(0, 1),
    "truncate": st.booleans(),
}  # fmt: skip


@given(st.fixed_dictionaries({}, optional=VALUES))
def test_a_config_comes_back_from_what_it_dumps(data):
    config = ADGConfig.parse(data)
    assert ADGConfig.parse(config.model_dump()) == config
    assert ADGConfig.parse(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert ADGConfig.parse(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_updated_checks_again_and_leaves_the_original_alone():
    config = ADGConfig.parse({"budget": 0.5, "datasets": ["a"]})
    other = config.updated(budget=3, model="m")
    assert (other.budget, other.model, other.datasets) == (3, "m", config.datasets)
    assert (config.budget, config.model) == (0.5, None)
    with pytest.raises(ConfigError, match="budget is 0"):
        config.updated(budget=0)


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        ADGConfig().budget = 3


def test_every_setting_says_what_it_is():
    for schema in (ADGConfig, DatasetSpec):
        for name, field in schema.model_fields.items():
            assert (field.description or "").endswith("."), name


# --- where answers are drawn


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "vllm-server"}, "server_urls is (): give the servers, such as [http://localhost:8000]"),
        ({"server_urls": ["http://a"]}, "server_urls is ['http://a']: set engine: vllm-server, too"),
        ({"engine": "vllm-server", "server_urls": ["gpu1:8000"]}, "use URLs such as http://localhost:8000"),
        ({"engine": "vllm-server", "server_urls": ["http://key@a"]}, "leave keys and passwords out"),
        ({"engine": "vllm-server", "server_urls": ["http://a?key=1"]}, "leave keys and passwords out"),
        ({"engine": "vllm-server", "server_urls": ["http://a", "http://a/v1"]}, "name each server once"),
        ({"engine": "vllm", "vllm_options": {"quantization": "fp8"}}, "not among the options that change no answer"),
        ({"engine": "vllm", "vllm_options": {"load_format": "dummy"}}, "not among the options that change no answer"),
        ({"vllm_options": {"block_size": float("nan")}}, "block_size is nan: use a number, text, true or false"),
        ({"vllm_options": {"block_size": [1]}}, "block_size is [1]: use a number, text, true or false"),
        (
            {"engine": "vllm-server", "server_urls": ["http://a"], "load_in_4bit": True},
            "load_in_4bit is True: how a server holds its weights is set where it starts",
        ),
        ({"ray_min_workers": 4, "ray_max_workers": 2}, "ray_max_workers is 2: use a whole number, ray_min_workers"),
        ({"engine": "vlm"}, "did you mean `vllm`?"),
    ],
)
def test_settings_of_scale_that_contradict_each_other(settings, said):
    (problem,) = problems(settings)
    assert said in problem


def test_a_single_url_may_stand_alone_and_end_in_v1():
    assert ADGConfig.parse({"engine": "vllm-server", "server_urls": "http://a:1/v1/"}).server_urls == ("http://a:1",)
