"""Where results go: what the user names, in order, else a default; and the first line of an error, for messages."""

from __future__ import annotations

from pathlib import Path

import pytest

from adg_plugin.config.run_folder import load_selection, run_folder
from adg_plugin.errors import ConfigError, first_line
from adg_plugin.store.keys import changes


@pytest.mark.parametrize(
    ("named", "known", "where"),
    [
        ((None, None), {}, "runs/selection"),
        ((None, None), {"settings": Path("a/mine.yaml")}, "runs/mine"),
        ((None, None), {"training": Path("out")}, "out/_adg/selection"),
        (("b/", "c"), {"settings": Path("mine.yaml")}, "b"),
        ((None, Path("c")), {"training": "out"}, "c"),
        (("s3://bucket/run/", None), {}, "s3://bucket/run"),
        (("/", None), {}, "/"),
        (("memory://", None), {}, "memory://"),
        (("file:///", None), {}, "file:///"),
    ],
)
def test_the_first_that_is_named_wins_else_a_default(named, known, where):
    assert run_folder(*named, **known) == where


def test_settings_are_loaded_with_their_run_folder_and_must_name_a_pool(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("datasets: [pool.jsonl]\n")
    config, where = load_selection(path, ["budget=3"], None, executor=None, answers=Path("a.jsonl"))
    assert (config.budget, config.executor, config.answers, where) == (3, "inline", "a.jsonl", "runs/mine")
    assert load_selection(path, ["output_dir=b"], "c")[1] == "c"
    path.write_text("budget: 3\n")
    with pytest.raises(ConfigError) as caught:
        load_selection(path)
    assert str(caught.value) == f"{path}: datasets is missing: give a pool, such as datasets: [pool.jsonl]"


def test_an_error_without_a_message_is_named_by_its_class():
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyError()) == "KeyError"


def test_what_differs_between_two_runs_is_said_in_one_way():
    assert list(changes({"a": 1, "b": None}, {"a": 2, "c": "x"}).values()) == ["a 1 (now 2)", "c None (now 'x')"]
