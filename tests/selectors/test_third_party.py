"""The selector of docs/selectors.md, installed by pip as another package's, through the commands of the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from paths import HELPERS, ROOT
from tiny_runs import command, pool_rows, read_jsonl, save, write_jsonl

from adg_plugin.config.methods import BUILT_IN, ENTRY_POINTS
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError
from adg_plugin.selectors import Picked, Selector, Task
from adg_plugin.selectors.candidates import Candidates, as_picked
from adg_plugin.selectors.registry import built_in_selectors, package_of, selector

PAGE = (ROOT / "docs" / "selectors.md").read_text(encoding="utf-8")
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target"]
RUN = """
import shlex, sys
from adg_plugin.cli import main
for line in sys.argv[1:]:
    try:
        main(shlex.split(line)[1:])
    except SystemExit as ended:
        if ended.code:
            raise
"""


def block(language: str) -> str:
    """Return the only block of this language on the page."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has put the package of the page."""
    package, into = tmp_path_factory.mktemp("adg-votes"), tmp_path_factory.mktemp("site")
    (package / "adg_votes.py").write_text(block("python"), encoding="utf-8")
    (package / "pyproject.toml").write_text(block("toml"), encoding="utf-8")
    subprocess.run([*PIP, str(into), str(package)], check=True, timeout=120)
    return into


@pytest.mark.tiny
def test_the_commands_of_the_page_work_with_an_installed_selector(installed, tmp_path):
    rows = [{**row, "votes": 3 * n % 20} for n, row in enumerate(pool_rows(20))]
    del rows[0]["votes"]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    settings = {"model": str(save(tmp_path / "tiny")), "datasets": ["pool.jsonl"], "budget": 6, "bins": 2}
    (tmp_path / "select.yaml").write_text(yaml.safe_dump({**settings, "num_samples": 3, "max_new_tokens": 4}))
    asked = [line.strip().replace("ROW_ID", "row-0") for line in PAGE.splitlines() if line.startswith("    adg ")]
    assert [line.split()[1] for line in asked] == ["select", "show", "explain", "compare", "report"]
    path = os.pathsep.join(map(str, (installed, ROOT, HELPERS)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    child = command(*asked, code=RUN, cwd=tmp_path, env=environment)
    out, err = child.communicate(timeout=200)
    assert child.returncode == 0, err
    run = tmp_path / "runs" / "votes"
    best = sorted((row for row in rows if "votes" in row), key=lambda row: (-row["votes"], row["id"]))[:6]
    assert [row["id"] for row in read_jsonl(run / "selected.jsonl")] == [row["id"] for row in best]
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["config"]["method"], manifest["versions"]["adg-votes"]) == ("votes", "1.0")
    assert "6 of 20 scored rows chosen by votes; pool 20, rejected 0" in out
    assert re.search(r"row row-0 of .*: not chosen, not reached", out)
    assert "votes gave it no score" in out
    compared = json.loads((run / "compare.json").read_text())
    assert {one["name"]: one["error"] for one in compared["methods"]} == {"adg": None, "random": None, "votes": None}
    assert compared["methods"][2]["ids"] == [row["id"] for row in best]
    assert (compared["costs"].keys(), compared["versions"]["adg-votes"]) == ({"answers"}, "1.0")
    assert "<title>Selection by votes: votes</title>" in (run / "report.html").read_text(encoding="utf-8")


class Point:
    """An entry point, as `importlib.metadata` gives one."""

    name, value, dist = "theirs", "pkg:Theirs", None

    def __init__(self, found: object) -> None:
        self._found = found

    def load(self) -> object:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


@pytest.fixture
def theirs(monkeypatch):
    """A function that lets a package bring something as the selector `theirs`."""

    def bring(found: object) -> None:
        def points(*, group: str, name: str | None = None) -> list[Point]:
            return [Point(found)] if group == ENTRY_POINTS and name in (None, "theirs") else []

        monkeypatch.setattr("adg_plugin.config.methods.entry_points", points)
        monkeypatch.setattr("adg_plugin.selectors.registry.entry_points", points)

    selector.cache_clear()
    yield bring
    selector.cache_clear()


def test_the_names_of_the_schema_are_those_of_the_registry():
    assert tuple(one.name for one in built_in_selectors()) == BUILT_IN
    assert package_of("adg") == {}


def test_an_unknown_method_lists_what_there_is_and_what_is_close(theirs):
    theirs(Selector)
    assert ADGConfig(method="theirs").method == "theirs"
    said = (
        "method is 'thiers': use 'adg', 'random', 'longest', 'ifd', 'superfiltering', 'zip', 'mig', 'scar' or "
        "'theirs'; did you mean `theirs`?"
    )
    for refused in (lambda: ADGConfig.parse({"method": "thiers"}), lambda: selector("thiers")):
        with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
            refused()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (len, "pkg:Theirs of a package is no Selector class"),
        (ImportError("no module pkg"), "pkg:Theirs of a package cannot be loaded (no module pkg)"),
    ],
)
def test_what_is_no_selector_is_named(theirs, found, said):
    theirs(found)
    with pytest.raises(ConfigError) as caught:
        selector("theirs")
    assert str(caught.value) == f"method is 'theirs': {said}"


def test_settings_of_sampled_answers_are_those_of_adg(theirs):
    theirs(Selector)
    with pytest.raises(ConfigError, match="or use method: adg: theirs draws no answers"):
        ADGConfig.parse({"method": "theirs", "subset": "bottom"})
    with pytest.raises(ConfigError, match="only ADG scores answers"):
        ADGConfig.parse({"method": "theirs", "answers": "answers.jsonl"})


@pytest.mark.parametrize(
    ("picked", "said"),
    [
        (Picked(np.array([0, 0]), np.zeros(4)), "its rows are to be up to 2 different numbers from 0 to 3"),
        (Picked(np.array([0, 1, 2]), np.zeros(4)), "its rows are to be up to 2 different numbers from 0 to 3"),
        (Picked(np.array([4]), np.zeros(4)), "its rows are to be up to 2 different numbers from 0 to 3"),
        (Picked.best([1, 2, 3], 2), "its scores are to be 4 numbers, one for each row"),
        (Picked.best(np.zeros(4), 2, {"words": list("abcd")}), "its words are to be 4 numbers, one for each row"),
        (Picked.best(np.zeros(4), 2, {"rank": np.zeros(4)}), "its column 'rank' is one that every method has: give it "
         "another name"),
        (Picked(np.array([True, False]), np.zeros(4)), "its rows are to be up to 2 different numbers from 0 to 3"),
        (Picked(None, np.zeros(4)), "its rows are to be up to 2 different numbers from 0 to 3"),
        (Picked([0], [1, 2, [3], 4]), "its scores are to be 4 numbers, one for each row"),
        ([0, 1], "pick returned list, not a Picked"),
        (None, "pick returned NoneType, not a Picked"),
    ],
)  # fmt: skip
def test_a_result_of_another_form_is_named(picked, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        as_picked(picked, 4, 2)


def test_lists_do_for_arrays():
    assert as_picked(Picked.best([1, np.nan, 3, 2], 2), 4, 2).rows.tolist() == [2, 3]
    stepwise = as_picked(Picked.stepwise([3, 1], 4, {"gain": [2.0, 1.0]}, {"worth": np.arange(4)}), 4, 2)
    assert (stepwise.rows.tolist(), stepwise.columns["worth"].tolist()) == ([3, 1], [0, 1, 2, 3])
    found = as_picked(Picked([1], [0, 1, 2, 3], {"votes": [4, 5, 6, 7]}, "one warning"), 4, 2)
    assert (found.rows.dtype, found.scores.dtype) == (np.int64, np.float64)
    assert (found.columns["votes"].tolist(), found.warnings) == ([4, 5, 6, 7], ("one warning",))


def test_columns_without_their_data_are_named():
    with pytest.raises(ValueError, match='add "data" to reads'):
        Candidates(np.array(["a"])).columns("votes")


def test_a_selector_with_a_fill_measures():
    class Asks(Selector):
        def fill(self, run, config, source, *, show):
            return {"rows": 0}

    one = Asks("theirs")
    assert (one.measures, Selector("theirs").measures) == (True, False)
    assert [ask.cost for ask in one.asks(None, ADGConfig())] == ["theirs"]
    assert not one.shares_work(ADGConfig())


def test_a_row_without_a_score_is_never_chosen():
    assert Picked.best([1, np.nan, 3], 3).rows.tolist() == [2, 0]
    found = Picked.stepwise([3, 1], 4, {"gain": [2.0, 1.0]})
    np.testing.assert_array_equal(found.scores, [np.nan, 1, np.nan, 2])
    np.testing.assert_array_equal(found.columns["gain"], [np.nan, 1, np.nan, 2])


def test_a_selector_without_a_choice_says_so():
    with pytest.raises(NotImplementedError, match=r"^Selector has neither pick nor decide$"):
        Selector("theirs").pick(Candidates(np.array([])), 0, Task(None, ADGConfig(), None, 0))
