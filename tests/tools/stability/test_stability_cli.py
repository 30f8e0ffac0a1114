"""`adg stability`: what it prints, and fresh answers against those of a run with another seed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from stability_runs import BUDGET, drawn, write

from adg_plugin.cli import main
from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError
from adg_plugin.scoring.stability import stability
from adg_plugin.tools.stability import FEWEST_ROWS, print_stability, resample_rows


def test_what_would_tell_nothing_is_refused_before_anything_is_read(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["stability", "no-such-folder", "--resample", str(FEWEST_ROWS - 1)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "--resample" in said
    assert str(FEWEST_ROWS) in said
    assert "no-such-folder" not in said


def test_help_says_that_a_seed_also_moves_the_bins(capsys):
    with pytest.raises(SystemExit):
        main(["stability", "--help"])
    assert "Another `seed` also moves the bins" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("60", 60), ("nonsense", 80)])
def test_without_a_terminal_its_width_is_80_or_columns(tmp_path, monkeypatch, capsys, columns, width):
    write(tmp_path / "run", drawn(10, 5, 0.5, 60), ADGConfig(budget=15, bins=3))
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main(["stability", str(tmp_path / "run")])
    assert width - 12 < max(map(len, capsys.readouterr().out.splitlines())) <= width


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_fits_the_terminal(tmp_path, width):
    write(tmp_path / "run", drawn(10, 5, 0.5), ADGConfig(budget=BUDGET, bins=6))
    out = io.StringIO()
    print_stability(stability(str(tmp_path / "run")), Console(file=out, width=width), rows=3)
    assert max(map(len, out.getvalue().splitlines())) <= width


def test_the_command_says_what_the_json_holds(tmp_path, capsys):
    write(tmp_path / "run", drawn(10, 5, 0.5), ADGConfig(budget=BUDGET, bins=6))
    outputs = []
    for arguments in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["stability", str(tmp_path / "run"), *arguments])
        assert ended.value.code == 0
        outputs.append(capsys.readouterr().out)
    text, figures = " ".join(outputs[0].split()), json.loads(outputs[1])
    expected = figures["expected_overlap"]
    assert (
        f"would share about {expected['mean']:.0%} ({expected['p5']:.0%} to {expected['p95']:.0%}) of this choice of "
        f"100 rows within the same bins, which another seed also moves; by chance {figures['overlap_by_chance']:.0%}"
        in text
    )
    assert f"{figures['rows_near_the_cut']} of 500 rows are near the cut" in text
    assert figures["near_the_cut"][0] in text
    assert f"{figures['expected_overlap_with_more_answers']['8']:.0%} with num_samples: 8" in text


# Fresh answers


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tiny_runs import choose as select
    from tiny_runs import pool_rows, save

    folder = tmp_path_factory.mktemp("stability")
    settings = {"budget": 10, "bins": 3, "num_samples": 4, "score": "rank"}
    return select(pool_rows(30), save(folder / "model"), folder / "run", **settings)


@pytest.mark.tiny
def test_fresh_answers_are_those_of_a_run_with_the_next_seed(run, tmp_path):
    from tiny_runs import choose as select
    from tiny_runs import pool_rows, scores

    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}
    fresh = resample_rows(str(run.run_dir), 1000, stability(str(run.run_dir)), show_progress=False)
    config = run.manifest["config"]
    settings = {"budget": 10, "bins": 3, "num_samples": 4, "score": "rank", "seed": 1}
    other = scores(select(pool_rows(30), config["model"], tmp_path / "other", **settings).run_dir)
    assert len(fresh.ids) == 30
    np.testing.assert_allclose(fresh.new, [other[id][0] for id in fresh.ids])
    np.testing.assert_allclose(fresh.old, [scores(run.run_dir)[id][0] for id in fresh.ids])
    assert fresh.correlation[0] == pytest.approx(np.corrcoef(fresh.old, fresh.new)[0, 1])
    assert fresh.error[0] == pytest.approx(np.sqrt(np.mean((fresh.old - fresh.new) ** 2) / 2))
    assert before == {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file()}


@pytest.mark.tiny
def test_the_command_with_fresh_answers(run, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["stability", str(run.run_dir), "--resample", "12", "--json"])
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out)["resampled"]
    assert found["rows"] + found["left_out"] == 12
    assert found["seed"] == 1
    with pytest.raises(SystemExit):
        main(["stability", str(run.run_dir), "--resample", "12"])
    out = " ".join(capsys.readouterr().out.split())
    assert f"old and new scores correlate at {found['correlation']['found']:.2f}" in out


@pytest.mark.tiny
def test_fresh_answers_that_cannot_be_had(run, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    with pytest.raises(ConfigError, match="--resample is 5: use 10 or more, fewer show nothing"):
        resample_rows(str(run.run_dir), 5, stability(str(run.run_dir)))
    (weights,) = (run.run_dir.parent / "model").glob("*.safetensors")
    kept = weights.read_bytes()
    tensors = load_file(weights)
    try:
        save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights, {"format": "pt"})
        with pytest.raises(SystemExit) as ended:
            main(["stability", str(run.run_dir), "--resample", "12"])
    finally:
        weights.write_bytes(kept)
    assert ended.value.code == 3
    assert "is not what it was (model '" in capsys.readouterr().err
