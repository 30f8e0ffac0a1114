"""benchmarks/RESULTS.md says what the published results say."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
PAGE = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
FORMS = ("adg-raw", "adg-rank", "adg-residual", "dispersion", "anisotropy")
CHANGES = {
    "default (`raw`, weight 0.4)": "weight=0.4",
    "`weight: 0` (D alone)": "weight=0 (D alone)",
    "`weight: 1` (I alone)": "weight=1 (I alone)",
    "first 3 of the 5 answers": "num_samples=3",
    "default, embedded again": "layers=4",
}


def table_under(head: str) -> list[list[str]]:
    """Return the cells of the rows of the page's table that begins with `head`."""
    rows = PAGE.split(f"\n{head}\n", 1)[1].splitlines()[1:]
    end = next(at for at, row in enumerate(rows) if not row.startswith("|"))
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[:end]]


def published(name: str) -> dict[str, Any]:
    """Return the JSON at the end of a file of ablations."""
    return dict(json.loads((RESULTS / name).read_text(encoding="utf-8").split("```json\n")[1].split("\n```")[0]))


def variant(found: dict[str, Any], label: str) -> dict[str, Any]:
    name = CHANGES.get(label) or label.strip("`").replace(": ", "=")
    return next(dict(one) for one in found["variants"] if one["name"] == name)


def percent(share: float) -> str:
    return f"{int(100 * share + 0.5)} %"


def tables_of(*options: str) -> dict[str, list[str]]:
    """Return the rows of each table that the benchmark prints of its published results, by what was measured."""
    files = sorted(RESULTS.glob("downstream*.jsonl"))
    command = [sys.executable, str(BENCHMARKS / "downstream_table.py"), *map(str, files), *options]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return tables_in(printed)


def tables_in(text: str) -> dict[str, list[str]]:
    found = {part.splitlines()[0].split(" (")[0]: part.splitlines() for part in text.split("\n### ")[1:]}
    return {name: [line for line in lines if re.match(r"\| [a-z-]+ \| \d", line)] for name, lines in found.items()}


@pytest.mark.slow
@pytest.mark.benchmark
def test_the_tables_of_the_evaluation_are_what_its_results_say():
    found = tables_of()
    assert len(found) == 4
    whole = PAGE.split("The forms of the score against `raw`")[0]
    assert tables_in(whole) == found
    assert all(len(rows) == 11 for rows in found.values())


@pytest.mark.slow
@pytest.mark.benchmark
def test_the_table_against_the_default_is_what_the_results_say():
    rows = [row for row in tables_of("--against", "adg-raw")["loss user_oriented"] if row.split()[1] in FORMS]
    table = PAGE.split("difference from adg-raw |")[1].split("\n\n")[0].splitlines()[2:]
    assert table == rows
    assert len(rows) == len(FORMS)


def test_the_tables_of_other_settings_are_what_the_ablations_say():
    found = published("ablations.md")
    table = table_under("| setting | r | shared | r(s, D) | r(s, I) | D | I | tokens |")
    assert len(table) == 13
    for label, *cells in table:
        of = variant(found, label)
        correlations = [f"{of[f'correlation_{part}']:.2f}" for part in ("dispersion", "anisotropy")]
        parts = [f"{of[f'mean_{part}']:.3f}" for part in ("dispersion", "anisotropy")]
        rest = [*parts, f"{of['mean_answer_tokens']:.0f}"]
        assert cells == [f"{of['rank_correlation']:.2f}", percent(of["shared"]), *correlations, *rest], label
    for label, *cells in table_under("| setting | r | shared | r(s, D) | r(s, I) |"):
        of = variant(found["embedded_again"], label)
        correlations = [f"{of[f'correlation_{part}']:.2f}" for part in ("dispersion", "anisotropy")]
        assert cells == [f"{of['rank_correlation']:.2f}", percent(of["shared"]), *correlations], label


def test_the_tables_of_more_answers_and_other_draws_are_what_the_ablations_say():
    seven = published("ablations-seven.md")
    (own,) = seven["others"]
    wanted = [variant(seven, "num_samples: 3"), variant(seven, "num_samples: 5"), own]
    table = table_under("| against the choice by 7 answers | r | shared | by chance |")
    assert [row[0] for row in table] == [
        "the first 3 of them",
        "the first 5 of them",
        "5 answers, in a run of their own",
    ]
    for (_, *cells), of in zip(table, wanted, strict=True):
        assert cells == [f"{of['rank_correlation']:.2f}", percent(of["shared"]), percent(of["shared_by_chance"])]

    wanted = [published("ablations.md")["others"][0], published("ablations-4bit.md")["others"][0]]
    assert [own["run"] for own in wanted] == ["runs/other-seed", "runs/nf4"]
    table = table_under("| against the default | rows | r | r of D | r of I | shared | by chance |")
    assert [row[0] for row in table] == ["another seed", "nf4"]
    for (_, *cells), of in zip(table, wanted, strict=True):
        parts = [f"{of[key]:.2f}" for key in ("rank_correlation", "correlation_dispersion", "correlation_anisotropy")]
        shares = percent(of["shared"]), percent(of["shared_by_chance"])
        assert [cell.split(" (")[0] for cell in cells] == [f"{of['common_rows']:,}", *parts, *shares]


def test_the_table_of_fewer_tokens_is_what_the_curves_say():
    with (RESULTS / "adaptive.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        key = row["form"], row["budget"], row["bins"], str(", oracle," in row["policy"])
        curves.setdefault(key, []).append((float(row["tokens"]), float(row["overlap"])))
    table = table_under(
        "| score | choice | overlap for a third of the tokens | for half | tokens for 95 % | with the oracle |"
    )
    assert len(table) == len(curves) / 2 == 12
    for form, choice, *cells in table:
        key = form.strip("`"), *re.findall(r"\b\d+\b", choice.replace("1,200", ""))
        policies, oracles = (curves[*key, of] for of in ("False", "True"))
        most = [max(overlap for tokens, overlap in policies if tokens <= share) for share in (1 / 3, 1 / 2)]
        least = [min(tokens for tokens, overlap in curve if overlap >= 0.95) for curve in (policies, oracles)]
        assert cells == [percent(share) for share in (*most, *least)], (form, choice)
