"""What a training remembers in JSON files of its own, where one of them was damaged."""

from __future__ import annotations

import re

import pytest
import yaml

from adg_plugin.adapters.trl import run as recipe_run
from adg_plugin.adapters.trl.choice import ChosenIds
from adg_plugin.errors import StoreError

DAMAGED = pytest.mark.parametrize("text", ["", "{}", "[]", '{"ids": "row-1", "rows": 3}'])


@DAMAGED
def test_the_chosen_ids_of_a_checkpoint(tmp_path, text):
    chosen = ChosenIds(("row-1", "row-2"), "d")
    chosen.write(tmp_path)
    assert ChosenIds.read(tmp_path) == chosen
    path = tmp_path / "adg_selection.json"
    path.write_text(text)
    fix = "resume from another checkpoint, or start without resume_from_checkpoint"
    with pytest.raises(StoreError, match=rf"^{re.escape(str(path))} .*: {fix}$"):
        ChosenIds.read(tmp_path)


@DAMAGED
def test_the_summary_of_a_finished_training(tmp_path, monkeypatch, text):
    monkeypatch.setattr(recipe_run, "run_stage", lambda *_: None)
    keys = {"model_name_or_path": "demo", "use_cpu": True, "adg": {"datasets": ["demo"], "budget": 5}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(keys))
    plan = recipe_run.make_plan(tmp_path / "recipe.yaml", out=tmp_path / "out")
    summary = recipe_run.private_path(plan.out, recipe_run.SUMMARY)
    summary.parent.mkdir(parents=True, exist_ok=True)
    summary.write_text(text)
    with pytest.raises(StoreError, match=rf"^{re.escape(str(summary))} .*: delete it and run the same command again$"):
        recipe_run.run(plan)
