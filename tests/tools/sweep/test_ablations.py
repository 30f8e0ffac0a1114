"""`benchmarks/bench_ablations.py`: two runs compared row by row, and sweeps as tables."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import scipy.stats
from paths import ROOT
from sweep_runs import CONFIG, drawn, tree, write

from adg_plugin.store import RunFolder


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "benchmarks" / "bench_ablations.py"
    spec = importlib.util.spec_from_file_location("bench_ablations", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_two_runs_are_compared_row_by_row(folder, tmp_path, bench):
    scored = write(tmp_path / "other", drawn(150)[::-1].copy(), CONFIG.updated(budget=30, bins=4, weight=1))
    found = bench.against(str(folder), str(tmp_path / "other"))
    table = RunFolder.read(folder).scores().to_pylist()
    one = {row["id"]: row for row in table}
    other = {row["id"]: row for row in scored.table().to_pylist()}
    both = sorted(one.keys() & other.keys())
    assert found.common_rows == len(both) == 150
    for name, told in (
        ("score", found.rank_correlation),
        ("dispersion", found.correlation_dispersion),
        ("anisotropy", found.correlation_anisotropy),
    ):
        expected = scipy.stats.spearmanr([one[id][name] for id in both], [other[id][name] for id in both]).statistic
        assert told == pytest.approx(expected)
    first, second = ({id for id, row in rows.items() if row["chosen"]} for rows in (one, other))
    assert found.shared == len(first & second) / 30
    assert found.jaccard == len(first & second) / len(first | second)

    def rate(rows, id):
        mates = [row["chosen"] for row in rows.values() if row["bin"] == rows[id]["bin"]]
        return sum(mates) / len(mates)

    assert found.shared_by_chance == pytest.approx(sum(rate(one, id) * rate(other, id) for id in both) / 30)
    itself = bench.against(str(folder), str(folder))
    assert (itself.shared, itself.jaccard, itself.rank_correlation) == pytest.approx((1, 1, 1))


def test_two_runs_over_other_rows_with_the_same_ids_are_refused(tmp_path, bench):
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, drawn(50), CONFIG.updated(budget=30, bins=4), asked=str)
    write(other, drawn(40), CONFIG.updated(budget=30, bins=4), asked=lambda n: "another" * 20 if n == 7 else str(n))
    with pytest.raises(SystemExit) as ended:
        bench.against(str(one), str(other))
    shown = ("another" * 20)[:60]
    assert (
        str(ended.value) == f"error: row 'r0007' is '7' in {one} and '{shown}' in {other}: give two runs over one pool"
    )


@pytest.mark.tiny
def test_the_benchmark_prints_tables_and_json_last(run, bench, capsys, monkeypatch, tmp_path):
    asked = ["bench_ablations.py", str(run.run_dir), "--layers", "1", "4", "--pooling", "last_token"]
    monkeypatch.setattr(sys, "argv", [*asked, "--other", str(run.run_dir), "--out", str(tmp_path / "page.md")])
    before = tree(run.run_dir)
    bench.main()
    assert tree(run.run_dir) == before
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert [one["name"] for one in result["embedded_again"]["variants"]] == [
        "layers=1",
        "layers=4",
        "pooling=last_token",
    ]
    assert [one["name"] for one in result["variants"] if "num_samples" in one["changes"]] == ["num_samples=3"]
    assert result["others"][0]["shared"] == 1.0
    for name in ("| weight=0 (D alone) |", "| weight=0.4 (the run's) |", "| bins=1 |", f"| `{run.run_dir}` | 40 |"):
        assert name in out
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith(out.rpartition("{")[0].splitlines()[0])
    assert json.loads(page.splitlines()[-2]) == result
