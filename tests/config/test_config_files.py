"""The YAML file that holds the settings, and `--set` on top of it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import dedent

import pytest

from adg_plugin import ADGConfig, load_config
from adg_plugin.config.files import yaml_value
from adg_plugin.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(dedent(text), encoding="utf-8")
    return path


def test_a_file_is_flat_or_has_an_adg_block(tmp_path: Path):
    flat = load_config(write(tmp_path, "budget: 3\ndatasets: [a.jsonl]\n"))
    block = load_config(write(tmp_path, "base_model: x\nplugins: [y]\nadg:\n  budget: 3\n  datasets: [a.jsonl]\n"))
    assert flat == block
    assert load_config(write(tmp_path, "base_model: x\nadg:\n")) == ADGConfig()


def test_keys_of_a_block_are_named_with_it(tmp_path: Path):
    path = write(tmp_path, "budgt: 1\nadg: {budgt: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: adg.budgt is not a setting: did you mean `budget`?"


def test_a_block_that_is_no_mapping_is_refused(tmp_path: Path):
    path = write(tmp_path, "adg: [budget, 3]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: adg is ['budget', 3]: write `key: value` lines under it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budget: 3\nmodel: x\nbudget: 4\n", "`budget` is given twice: keep one"),
        ("adg:\n  seed: 1\n  seed: 2\n", "`seed` is given twice: keep one"),
        ("datasets:\n- path: x\n  path: y\n", "`path` is given twice: keep one"),
        ("budget: [1\n", "expected ',' or ']'"),
        ("a: b: c\n", "mapping values are not allowed here"),
        ("output_dir: {{ folder }}\n", "found unhashable key"),
        ("? [a, b]\n: 1\n", "found unhashable key"),
        ("model: !!python/object:os.system x\n", "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path, text: str, said: str):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: not valid YAML: ")
    assert said in str(caught.value)
    assert ", line " in str(caught.value)


def grown(one: str, further: str, times: int) -> str:
    """Return a YAML in which each anchor stands for several of the one before it."""
    return f"a0: &a0 {one}\n" + "".join(f"a{n}: &a{n} {further.format(f'*a{n - 1}')}\n" for n in range(1, times))


BOMBS = {
    "deep list": ("x: " + "[" * 9_999, "more than 50 levels deep: write it flatter"),
    "deep mapping": ("{a: " * 5_000, "more than 50 levels deep: write it flatter"),
    "deep block": ("- " * 9_999 + "x", "more than 50 levels deep: write it flatter"),
    "deep aliases": (grown("[1]", "[[[[[{}]]]]]", 30), "more than 50 levels deep: write it flatter"),
    "many aliases": (grown("[x]", "[{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]", 12), "more than 100,000 values"),
    "many merges": (grown("{x: 1}", "{{<<: [{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}]}}", 12), "more than 100,000 "),
    "within itself": ("x: &a [1, *a]", "`*a` stands within itself: write it out"),
    "within its value": ("x: &a {b: [*a]}", "`*a` stands within itself: write it out"),
    "no bool": ("x: !!bool maybe", "'maybe' cannot be read as bool"),
    "no int": ("x: !!int ''", "'' cannot be read as int"),
    "no float": ("x: !!float a", "'a' cannot be read as float"),
    "no date": ("x: 2026-02-30", "'2026-02-30' cannot be read as timestamp"),
    "no time": ("x: !!timestamp now", "'now' cannot be read as timestamp"),
    "digits": ("x: " + "9" * 5_000, "9' cannot be read as int"),
    "hexadecimal": ("x: 0x" + "f" * 5_000, "f' cannot be read as int"),
}


@pytest.mark.parametrize(("text", "said"), BOMBS.values(), ids=BOMBS)
def test_what_no_settings_can_be_is_refused_with_its_line_and_at_once(tmp_path: Path, text: str, said: str):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: not valid YAML: ")
    assert said in str(caught.value)
    assert f'in "{path}", line ' in str(caught.value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match=re.escape(said)):  # as in `--set filters=...`
        yaml_value(text)


def test_as_deep_and_as_much_as_is_allowed_is_read():
    assert yaml_value("[" * 50 + "]" * 50)
    with pytest.raises(ValueError, match="more than 50 levels"):
        yaml_value("[" * 51 + "]" * 51)
    ten = "[" + ", ".join("x" * 9) + "]"  # a list and its nine values
    head = f"- &a {ten}\n"
    assert len(yaml_value(head + "- *a\n" * 9_089)) == 9_090  # an alias is a value, too: 1 + 10 + 11 * 9,089 = 99,990
    with pytest.raises(ValueError, match="more than 100,000 values"):
        yaml_value(head + "- *a\n" * 9_090)


def test_a_file_too_large_for_settings_is_not_read(tmp_path: Path):
    path = tmp_path / "pool.yaml"
    with path.open("wb") as file:
        file.truncate(10_000_001)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    size = "holds 10,000,001 bytes, more than the 10,000,000 of settings"
    assert str(caught.value) == f"{path}: {size}: give the path of a YAML file"


def test_a_key_of_a_thousand_parts_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"a key of 5,000 parts: use at most 50$"):
        load_config(write(tmp_path, "budget: 1\n"), [".".join("a" * 5_000) + "=1"])


def test_anchors_and_merge_keys_work(tmp_path: Path):
    text = """\
        base: &base {temperature: 1.0, top_p: 0.5}
        later:
          deep: &more
            <<: *base
            top_p: 0.6
        adg:
          <<: *more
          temperature: 2.0
        """
    config = load_config(write(tmp_path, text))
    assert (config.temperature, config.top_p) == (2.0, 0.6)


@pytest.mark.parametrize(("text", "kind"), [("", "nothing"), ("- a\n", "a list"), ("word\n", "text"), ("3\n", "3")])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str, kind: str):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}: holds {kind}, not a mapping: write `key: value` lines"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_config("missing.yaml")
    assert str(caught.value) == f"missing.yaml: no such file: give the path of a YAML file (in {tmp_path})"
    with pytest.raises(ConfigError, match=r": cannot be read \(Is a directory\): give the path of a YAML file$"):
        load_config(tmp_path)
    (tmp_path / "file").write_text("x: 1")
    with pytest.raises(ConfigError, match=r": cannot be read \(Not a directory\)"):
        load_config("file/run.yaml")
    (tmp_path / "latin.yaml").write_bytes("model: caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml: not valid YAML: 'utf-8' codec can't decode byte 0xe9"):
        load_config("latin.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path: Path):
    path = write(tmp_path, "budget: 3\n")
    path.chmod(0)
    with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\)"):
        load_config(path)


@pytest.mark.parametrize(
    "text", ["budget: 9\ndatasets: [a, {path: b}]\n", "adg: {budget: 9, datasets: [a, {path: b}]}\n"]
)
def test_set_overrides_flat_and_dotted_keys(tmp_path: Path, text: str):
    overrides = [
        "budget=0.25",
        "adg.seed=7",
        "datasets.0.path=c",
        "datasets.1.type=alpaca",
        "datasets.2=d",
        "bins=null",
    ]
    config = load_config(write(tmp_path, text), overrides)
    assert (config.budget, config.seed, config.bins) == (0.25, 7, None)
    assert [(spec.path, spec.type) for spec in config.datasets] == [("c", "auto"), ("b", "alpaca"), ("d", "auto")]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("datasets.0.path=x=y.jsonl", {"datasets": ["x=y.jsonl"]}),
        ("datasets=[x, y]", {"datasets": ["x", "y"]}),
        ("datasets=x", {"datasets": ["x"]}),
        ("model=a/b", {"model": "a/b"}),
        ("truncate=true", {"truncate": True}),
        ("dtype=fp32", {"dtype": "float32"}),
    ],
)
def test_values_of_set_are_yaml(tmp_path: Path, override: str, expected: dict[str, object]):
    assert load_config(write(tmp_path, "budget: 10000"), [override]) == ADGConfig.parse(expected)


def test_every_wrong_set_and_every_wrong_key_come_together(tmp_path: Path):
    path = write(tmp_path, "datasets: [a]\nlayrs: 3\n")
    overrides = ["budget", "=3", "datasets.5.path=x", "datasets.x=y", "seed.deep=1", "seed=[1", "weight=2"]
    overrides.insert(4, "seed=1")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert str(caught.value).splitlines()[0] == f"{path}: 8 problems"
    first, *others = caught.value.problems
    assert first == "--set budget: write key=value"
    assert others[0] == "--set =3: write key=value"
    assert others[1] == "--set datasets.5.path=x: `5` is no place in a list of 1: use 0 to 1"
    assert others[2] == "--set datasets.x=y: `x` is no place in a list of 1: use 0 to 1"
    assert others[3] == "--set seed.deep=1: 1 has nothing named `deep`: set the whole of it"
    assert others[4].startswith("--set seed=[1: not YAML: ")
    assert others[5:] == [
        "weight is 2: use a number from 0 to 1",
        "layrs is not a setting: did you mean `layers`?",
    ]


def test_what_python_passes_wins_over_the_file_and_set(tmp_path: Path):
    config = load_config(write(tmp_path, "budget: 1\nseed: 1\n"), ["budget=2", "seed=2"], budget=3)
    assert (config.budget, config.seed) == (3, 2)
