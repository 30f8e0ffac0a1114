"""benchmarks/RESULTS.md says what the published results say."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
PAGE = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize(("options", "rows"), [((), 40), (("--against", "adg-raw"), 5)])
def test_the_tables_of_the_evaluation_are_what_its_results_say(options, rows):
    files = sorted(RESULTS.glob("downstream*.jsonl"))
    command = [sys.executable, str(BENCHMARKS / "downstream_table.py"), *map(str, files), *options]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if options:  # one of its four measures is on the page, of the forms alone
        printed = printed.split("### loss user_oriented")[1].split("###")[0]
    found = [line for line in printed.splitlines() if re.match(r"\| [a-z-]+ \| \d", line)]
    if options:
        found = [line for line in found if re.match(r"\| (adg-|anisotropy|dispersion)", line)]
    assert len(found) >= rows
    assert [row for row in found if row not in PAGE.splitlines()] == []


def test_the_tables_of_other_settings_are_what_the_ablations_say():
    found = published("ablations.md")
    table = table_under("| setting | r | shared | r(s, D) | r(s, I) | D | I | tokens |")
    single = [row for row in table if "," not in row[0].replace("(`raw`, weight 0.4)", "")]
    assert (len(table), len(single)) == (12, 11)
    for label, *cells in single:
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
    for (_, *cells), of in zip(table, wanted, strict=True):
        assert cells == [f"{of['rank_correlation']:.2f}", percent(of["shared"]), percent(of["shared_by_chance"])]

    wanted = [published("ablations.md")["others"][0], published("ablations-4bit.md")["others"][0]]
    assert [own["run"] for own in wanted] == ["runs/other-seed", "runs/nf4"]
    table = table_under("| against the default | rows | r | r of D | r of I | shared | by chance |")
    for (_, *cells), of in zip(table, wanted, strict=True):
        parts = [f"{of[key]:.2f}" for key in ("rank_correlation", "correlation_dispersion", "correlation_anisotropy")]
        shares = percent(of["shared"]), percent(of["shared_by_chance"])
        assert [cell.split(" (")[0] for cell in cells] == [f"{of['common_rows']:,}", *parts, *shares]


def test_the_table_of_fewer_tokens_is_what_the_curves_say():
    with (RESULTS / "adaptive.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = {
        key: [(float(row["tokens"]), float(row["overlap"])) for row in of]
        for key, of in groupby(rows, key=lambda row: (row["form"], row["budget"], row["bins"]))
    }
    table = table_under(
        "| score | choice | overlap for a third of the tokens | for half | tokens for 95 % | with the oracle |"
    )
    assert len(table) == len(curves) == 12
    for form, choice, third, half, needed, _ in table:
        budget, bins = (number for number in re.findall(r"\b\d+\b", choice.replace("1,200", "")))
        curve = curves[form.strip("`"), budget, bins]
        most = [max(overlap for tokens, overlap in curve if tokens <= share) for share in (1 / 3, 1 / 2)]
        least = min(tokens for tokens, overlap in curve if overlap >= 0.95)
        assert [third, half, needed] == [percent(most[0]), percent(most[1]), percent(least)], (form, choice)
