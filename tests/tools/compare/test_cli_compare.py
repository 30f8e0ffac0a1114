"""`adg compare`: what it prints, how it ends, and a comparison with the demo model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from rich.console import Console

from adg_plugin.errors import ConfigError
from adg_plugin.report.facets import Facet, Facets
from adg_plugin.tools.compare.cli import compare, print_comparison
from adg_plugin.tools.compare.compare import Comparison
from adg_plugin.tools.compare.facts import facts_of
from adg_plugin.tools.compare.runner import Compared

METHODS = "adg,adg:residual,random,longest,zip,ifd"


def invoke(*arguments):
    app = typer.Typer()
    app.command()(compare)
    try:
        app([str(argument) for argument in arguments], prog_name="adg", standalone_mode=True)
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture
def config(model, tmp_path, monkeypatch):
    from tiny_runs import SETTINGS, pool_rows, write_jsonl

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(30))
    Path("mine.yaml").write_text(yaml.safe_dump({**SETTINGS, "model": str(model), "datasets": ["pool.jsonl"]}))
    return Path("mine.yaml")


@pytest.mark.tiny
def test_the_tables_fit_80_columns_and_say_what_the_json_says(config, capsys):
    assert invoke(config, "--methods", "adg,adg:rank,random,longest,zip,adg:weight=0,adg:weight=1,random:seed=12") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[-1] == "runs/mine/compare.json"
    assert max(map(len, lines)) <= 80
    assert "sampling: 30/30 rows" in err
    about = json.loads(Path(lines[-1]).read_text())
    assert "choices of 10 of 30 rows; by chance 20%" in out
    for number, (name, row) in enumerate(zip(about["names"], about["jaccard"], strict=True), 1):
        (shown,) = [line for line in lines if line.split()[:2] == [str(number), name]]
        assert shown.split()[2:] == [f"{value:.0%}" for value in row]
        (shown,) = [line.split() for line in lines if line.split()[:1] == [name]]
        place, lengths = number - 1, about["lengths"][number - 1]
        model_time = f"{about['costs']['answers']['seconds']:.1f}" if name.startswith("adg") else "-"
        assert shown[1:] == [
            "10",
            str(about["bins"]["reached"][place]),
            f"{about['bins']['largest_share'][place]:.0%}",
            f"{lengths['prompt_tokens']['p50']:.0f}",
            f"{lengths['reference_words']['p50']:.0f}",
            str(about["alone"][place]),
            model_time,
            f"{about['methods'][place]['seconds']:.1f}",
        ]
    everyone, none = about["chosen_by"]["all"], about["chosen_by"]["none"]
    assert f"{everyone} rows are chosen by all methods, {none} by none" in out


def test_shares_are_of_the_choice_and_rows_without_value_or_bin_are_told():
    ids = [f"r{n:02d}" for n in range(20)]
    kinds = np.array([*(f"kind {n}" for n in range(10)), *["kind 9"] * 6, *[None] * 4], dtype=object)
    lengths = np.arange(20, dtype=np.int64)
    choices = {"adg": ids[:4], "random": ids[14:18]}
    bins = np.array([0, 1] * 8 + [-1] * 4)
    eligible = {"adg": ids, "random": ids[10:]}
    facts = facts_of(choices, eligible, ids, Facets(lengths, lengths, {"category": Facet(kinds)}), bins)
    methods = [Compared(name, name, {}, tuple(chosen), len(eligible[name])) for name, chosen in choices.items()]
    methods[1] = replace(methods[1], rejected={"no_answer": 9, "prompt_too_long": 1})
    failed = Compared("zip", "zip", {}, error="a reason")
    rows = {"pool": 20, "candidates": 20}
    console = Console(width=80, file=StringIO())
    found = Comparison(Path("compare.json"), 4, rows, (methods[0], failed, methods[1]), {}, facts, {})
    print_comparison(found, console)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert "random could choose from 10 rows; rejected: no_answer 9, prompt_too_long 1" in lines
    start = lines.index("Rows by category, as shares of the pool and of each choice")
    table = [line.rsplit(maxsplit=3) for line in lines[start + 1 : start + 12]]
    assert table[0] == ["category", "pool", "1", "2"]
    assert table[1] == ["kind 9", "35%", "0%", "50%"]
    assert table[2:6] == [[f"kind {n}", "5%", "25%", "0%"] for n in range(4)]
    assert table[9:] == [["2 others", "10%", "0%", "0%"], ["no value", "20%", "0%", "50%"]]
    cells = {line.split()[0]: line.split() for line in lines if re.match(r"(adg|random) +\d", line)}
    assert cells["adg"][1:5] == ["4", "2", "50%", "0"]
    assert cells["random"][1:5] == ["4", "2", "25%", "2"]  # two of four rows have no bin: their shares are of the four
    assert "no bin: rows of the choice without answers, which are in no bin" in lines


@pytest.mark.tiny
def test_json_and_quiet(config, capsys):
    arguments = (config, "--methods", "random,zip", "--set", "budget=4", "--out", "there")
    assert invoke(*arguments, "--json") == 0
    out = capsys.readouterr().out
    assert json.loads(out) == json.loads(Path("there/compare.json").read_text())
    assert [len(one["ids"]) for one in json.loads(out)["methods"]] == [4, 4]
    assert invoke(*arguments, "--quiet") == 0
    captured = capsys.readouterr()
    assert captured.out == "there/compare.json\n"
    assert "rows" not in captured.err
    assert not Path("runs").exists()
    assert not Path("there/selected.jsonl").exists()
    assert not Path("there/manifest.json").exists()


@pytest.mark.tiny
def test_the_default_methods(config, capsys):
    assert invoke(config, "-q", "--set", "output_dir=by-config") == 0
    assert capsys.readouterr().out == "by-config/compare.json\n"
    about = json.loads(Path("by-config/compare.json").read_text())
    assert about["names"] == ["adg", "random", "longest", "zip", "ifd"]


@pytest.mark.tiny
def test_a_failed_method_ends_it_with_1(config, tmp_path, capsys):
    from tiny_runs import break_altogether, save

    broken = save(tmp_path / "broken", break_altogether)
    assert invoke(config, "--methods", "adg,random", "--set", f"model={broken}") == 1
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert "adg failed: 30 of 30 rows gave NaN or infinity: set dtype to bfloat16 or float32" in said
    assert next(line.split() for line in out.splitlines() if line.startswith("adg ")) == ["adg", "failed"]
    assert max(map(len, out.splitlines())) <= 80
    assert out.splitlines()[-1] == "runs/mine/compare.json"
    assert json.loads(Path("runs/mine/compare.json").read_text())["names"] == ["random"]
    assert invoke(config, "--methods", "adg", "--set", f"model={broken}") == 1
    # The rows that were sampled stay rejected.
    said = " ".join(capsys.readouterr().out.split())
    assert "adg failed: none of the 30 rows can be chosen (non_finite_states 30)" in said


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        ({}, (), "mine.yaml: datasets is missing: give a pool, such as datasets: [pool.jsonl]"),
        ({"datasets": ["pool.jsonl"]}, ("--methods", ","), "--methods: no method is named: use some, such as "
         "adg,random,longest,zip,ifd"),
        (
            {"datasets": ["pool.jsonl"]},
            ("--methods", "random,adg:weigth=0,ifd:seed=1"),
            "--methods: 2 problems\n"
            "  - adg:weigth=0: weigth is not a setting: did you mean `weight`?\n"
            "  - ifd:seed=1: seed is 1: all methods share one pool and its answers; use a run folder of its own "
            "(--set, --out)",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_read(tmp_path, monkeypatch, settings, arguments, said):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"model": "no/such", **settings}))
    with pytest.raises(ConfigError) as caught:
        invoke("mine.yaml", *arguments)
    assert str(caught.value) == said
    assert not Path("runs").exists()


@pytest.mark.tiny
def test_a_run_folder_behind_a_url(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADG_RUN_CACHE", str(tmp_path / "cache"))
    assert invoke(config, "-q", "--methods", "random", "--out", f"file://{tmp_path}/far") == 0
    assert capsys.readouterr().out == f"file://{tmp_path}/far/compare.json\n"
    assert len(json.loads((tmp_path / "far" / "compare.json").read_text())["methods"][0]["ids"]) == 10


@pytest.mark.tiny
def test_a_comparison_on_the_demo_pool(model, tmp_path, monkeypatch, capsys):
    from adg_plugin import select
    from adg_plugin.config.schema import load_config
    from adg_plugin.engines.models import loading

    monkeypatch.chdir(tmp_path)
    settings = {"model": str(model), "datasets": ["demo"], "budget": 64, "max_new_tokens": 4, "num_samples": 3}
    Path("mine.yaml").write_text(yaml.safe_dump(settings))
    loaded = []
    load = loading.load_backbone
    monkeypatch.setattr(loading, "load_backbone", lambda *given: loaded.append(given) or load(*given))
    assert invoke("mine.yaml", "--methods", METHODS) == 0
    assert len(loaded) == 2  # to sample, and to measure
    about = json.loads(Path("runs/mine/compare.json").read_text())
    assert about["names"] == METHODS.split(",")
    ids = [set(one["ids"]) for one in about["methods"]]
    assert [len(choice) for choice in ids] == [64] * 6
    for i, one in enumerate(ids):
        for j, other in enumerate(ids):
            assert about["jaccard"][i][j] == pytest.approx(len(one & other) / len(one | other))
    assert {coverage["kind"] for coverage in about["coverage"]} == {"category", "file"}
    for coverage in about["coverage"]:
        assert [sum(value["chosen"][at] for value in coverage["values"]) for at in range(6)] == [64] * 6
        assert sum(value["pool"] for value in coverage["values"]) == about["rows"]["candidates"]
    assert about["costs"]["answers"]["is_whole"]
    assert about["costs"]["ifd"]["is_whole"]

    selection = select(config=load_config("mine.yaml"), output_dir="runs/mine", show_progress=False)
    assert list(selection.ids) == about["methods"][0]["ids"]
    files = ("selected.jsonl", "scores.parquet", "manifest.json", "config.json", "rejected.jsonl")
    before = [Path("runs/mine", name).read_bytes() for name in files]
    capsys.readouterr()
    assert invoke("mine.yaml", "--methods", METHODS) == 0
    assert len(loaded) == 2
    assert [Path("runs/mine", name).read_bytes() for name in files] == before
    again = json.loads(Path("runs/mine/compare.json").read_text())
    assert [one["ids"] for one in again["methods"]] == [one["ids"] for one in about["methods"]]
    assert again["costs"]["answers"]["seconds"] == about["costs"]["answers"]["seconds"]
