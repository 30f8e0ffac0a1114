"""What of ours Axolotl's training does not upload, and what of a YAML is not written."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from adg_plugin.adapters.axolotl import run as axolotl_run
from adg_plugin.adapters.axolotl.args import check_supported, selection_folder
from adg_plugin.adapters.secrets import handed_over
from adg_plugin.errors import ConfigError

POOL = [{"path": "https://me:sesame@example.org/pool.jsonl", "type": "alpaca", "ds_type": "json"}]


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "last_run_prepared/adg"),
        ({"dataset_prepared_path": "prepared"}, "prepared/adg"),
        ({"dataset_prepared_path": "out/prepared"}, "out/_adg/selection"),
        ({"dataset_prepared_path": "out/_mine"}, "out/_mine/adg"),
        ({"dataset_prepared_path": "prepared", "output_dir": "."}, "_adg/selection"),
        ({"dataset_prepared_path": "out/prepared", "adg": {"output_dir": "out/mine"}}, "out/mine"),
    ],
)
def test_the_run_folder_is_not_among_what_is_uploaded(settings, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = {"output_dir": "out", "adg": {}, **settings}
    assert selection_folder(cfg) == Path(where)
    Path("out/prepared/adg").mkdir(parents=True)  # of version 0.2
    if where == "out/_adg/selection":
        assert selection_folder(cfg) == Path("out/prepared/adg")


def test_a_run_folder_that_would_be_uploaded_is_refused(tmp_path):
    cfg = {"output_dir": str(tmp_path), "adg": {"output_dir": str(tmp_path / "mine")}, "hub_model_id": "me/model"}
    with pytest.raises(
        ConfigError, match=r"the output folder is uploaded, and run folder .*/mine in it holds the whole"
    ):
        check_supported(cfg)
    check_supported({**cfg, "hub_model_id": None})
    check_supported({**cfg, "adg": {}})


def test_no_file_holds_a_key_and_axolotl_has_them_all(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(axolotl_run, "_check_axolotl", lambda _: None)
    monkeypatch.setattr(axolotl_run, "run_stage", lambda *stage: started.append(stage))
    data = {"base_model": "org/model", "plugins": ["adg_plugin.ADGPlugin"], "adg": {"datasets": POOL}}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**data, "comet_api_key": "sesame"}))
    out = tmp_path / "out"
    plan = axolotl_run.make_plan(config, ["adg.budget=5"], out)
    assert "sesame" not in "".join(plan.lines())
    axolotl_run.run(plan)
    assert [path.name for path in out.iterdir()] == ["_adg"]
    written = out / "_adg" / "adg-axolotl.yaml"
    assert "sesame" not in written.read_text()
    assert [stage[0] for stage in started] == ["axolotl preprocess", "axolotl train"]
    assert all(str(written) in stage[1] for stage in started)
    if find_spec("axolotl") is None:
        return
    from adg_plugin.adapters.axolotl.plugin import ADGPlugin

    for name, value in handed_over(started[1][2]).items():
        monkeypatch.setenv(name, value)
    cfg = yaml.safe_load(written.read_text())
    ADGPlugin().register(cfg)
    assert (cfg["comet_api_key"], cfg["datasets"]) == ("sesame", POOL)
    assert cfg["adg"] == {"budget": 5}


def test_a_misspelt_key_is_named_without_its_value(monkeypatch, tmp_path):
    pytest.importorskip("axolotl")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"base_model": "m", "plugins": ["adg_plugin.ADGPlugin"], "adg": {}}))
    with pytest.raises(ConfigError, match=r"^--set comet_api_ky: Axolotl has no setting comet_api_ky: did you mean"):
        axolotl_run.dry_run(axolotl_run.make_plan(config, ["comet_api_ky=sesame"]))
