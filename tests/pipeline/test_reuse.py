"""Which answers of an earlier run are used again, and which are not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import (
    choose,
    parts,
    pool_rows,
    read_jsonl,
    save,
    scores,
    write_jsonl,
)

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import StoreError
from adg_plugin.pipeline import run as pipeline
from adg_plugin.pipeline.stage import Pool
from adg_plugin.store import RunFolder, keys
from adg_plugin.store.reader import finished as finished_settings

pytestmark = pytest.mark.tiny


def sampled(selection: pipeline.Selection) -> int:
    return selection.manifest["sampling"]["rows"]


@pytest.mark.parametrize(
    "change",
    [
        {"budget": 25},
        {"budget": 0.1},
        {"weight": 1.0},
        {"score": "rank"},
        {"score": "residual"},
        {"bins": 1},
        {"subset": "bottom"},
        {"batch_tokens": 100},
        {"bnb_4bit_quant_type": "fp4"},  # says nothing without load_in_4bit
    ],
    ids=str,
)
def test_settings_that_do_not_touch_the_answers_sample_nothing_again(run, pool, model, no_model, change):
    before = parts(run)
    staged = (run / "prompts.parquet").stat().st_mtime_ns
    no_model()
    selection = choose(pool, model, run, **change)
    assert sampled(selection) == 0
    assert parts(run) == before
    assert (run / "prompts.parquet").stat().st_mtime_ns == staged
    assert len(selection.ids) == {25: 25, 0.1: 4}.get(change.get("budget"), 10)


def test_what_is_reused_gives_what_a_fresh_run_gives(run, pool, model, tmp_path):
    change = {"budget": 0.5, "weight": 0.9, "score": "zscore", "bins": 3, "subset": "middle"}
    reused = choose(pool, model, run, **change)
    fresh = choose(pool, model, tmp_path / "fresh", **change)
    assert (sampled(reused), sampled(fresh)) == (0, 40)
    assert reused.ids == fresh.ids
    assert scores(run) == scores(tmp_path / "fresh")


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 1.3},
        {"top_k": 20},
        {"top_p": 0.8},
        {"repetition_penalty": 1.2},
        {"seed": 1},
        {"max_new_tokens": 7},
        {"num_samples": 4},
        {"template": "alpaca"},
        {"pooling": "reference"},
        {"layers": 3},
        {"dtype": "bfloat16"},
        {"keep_vectors": True},
        {"eos_token": "<pad>"},
    ],
    ids=str,
)
def test_settings_that_touch_the_answers_reuse_none(run, pool, model, no_model, change):
    first = parts(run)
    assert sampled(choose(pool, model, run, **change)) == 40
    after = parts(run)
    assert first.items() < after.items()  # what was there is kept
    no_model()
    assert sampled(choose(pool, model, run)) == 0  # and of use again
    assert sampled(choose(pool, model, run, **change)) == 0
    assert parts(run) == after


def as_before_top_k(run):
    """Make a run folder one of the version that had neither top-k nor a repetition penalty."""
    for name in ("config.json", "manifest.json"):
        stored = json.loads((run / name).read_text())
        for part in ("config", "recipe"):
            del stored[part]["top_k"], stored[part]["repetition_penalty"]
        stored["recipe"]["version"] = 1
        stored.pop("checksum", stored.get("files", {}).pop("manifest.json", None))
        (run / name).write_text(json.dumps(stored))


def test_a_folder_sampled_without_top_k_is_told_apart(run, pool, model, caplog):
    as_before_top_k(run)
    config = finished_settings(RunFolder.read(run))
    assert config.top_k == 0  # and not the default of today
    differing = "top_k 0 (now 50), sampling rules of version 1 (now 2)"
    config = ADGConfig.parse({**config.model_dump(), "top_k": 50})
    source = Source.configured(config)
    recipe = keys.sampling_fingerprint(config, model=source.identity, eos_ids=source.eos_ids)
    with RunFolder.open(run) as folder, pytest.raises(StoreError) as caught:
        pipeline.prepare(folder, Pool.of(config), config, source, recipe, own=True)
    assert str(caught.value) == (f"run folder {run} was made with {differing}: give another folder, or delete this one")
    choose(pool, model, run)
    assert caplog.messages == [f"run folder {run} was made with {differing}: its answers are kept, and not used now"]


def test_other_weights_reuse_no_answer(run, pool, tmp_path):
    other = save(tmp_path / "other", lambda m: m.model.layers[2].mlp.up_proj.weight.mul_(1.001))
    assert sampled(choose(pool, other, run)) == 40


def test_the_same_weights_elsewhere_reuse_every_answer(run, pool, model, tmp_path, no_model):
    shutil.copytree(model, tmp_path / "copy")
    no_model()
    assert sampled(choose(pool, tmp_path / "copy", run)) == 0


def test_another_chat_template_reuses_no_answer(run, pool, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    template = (other / "chat_template.jinja").read_text(encoding="utf-8")
    (other / "chat_template.jinja").write_text("Hello. " + template, encoding="utf-8")
    assert sampled(choose(pool, other, run)) == 40


def test_a_template_file_is_known_by_what_it_says(run, pool, model, tmp_path, no_model):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0]['content'] }} ->", encoding="utf-8")
    assert sampled(choose(pool, model, run, template=str(template))) == 40
    template.write_text("{{ messages[0]['content'] }} =>", encoding="utf-8")
    assert sampled(choose(pool, model, run, template=str(template))) == 40
    no_model()
    assert sampled(choose(pool, model, run, template=str(template))) == 0


def test_another_tokenizer_stages_the_pool_again(run, pool, model, tmp_path):
    other = shutil.copytree(model, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert sampled(choose(pool, other, run)) == 40  # every instruction begins with a capital


def test_a_changed_pool_samples_its_new_rows_only(run, model, tmp_path, no_model):
    rows = pool_rows(40)
    rows[3] = {**rows[3], "instruction": "Something else"}
    pool = write_jsonl(tmp_path / "pool.jsonl", rows[:30] + pool_rows(5, start=100))
    selection = choose(pool, model, run, budget=35)
    assert sampled(selection) == 6
    assert {row["id"] for row in read_jsonl(selection.path)} == {row["id"] for row in rows[:30]} | {
        f"row-{n}" for n in range(100, 105)
    }
    no_model()
    write_jsonl(pool, [{**row, "output": "another answer"} for row in rows[:30]])  # which is not asked
    selection = choose(pool, model, run, budget=3)
    assert sampled(selection) == 0
    assert {row["output"] for row in selection.rows()} == {"another answer"}


def test_a_run_folder_serves_one_pool_after_another(run, pool, model, tmp_path, no_model):
    first = choose(pool, model, run)
    other = write_jsonl(tmp_path / "other.jsonl", pool_rows(12, start=500))
    second = choose(other, model, run, budget=4)
    assert sampled(second) == 12
    assert second.manifest["rows"]["pool"] == 12
    assert {int(i.removeprefix("row-")) >= 500 for i in second.ids} == {True}
    no_model()
    assert choose(pool, model, run).ids == first.ids


def overwrite(path: Path, tensor: str, rows: slice) -> None:
    """Change elements of a saved weight in place: the same file, as long, with the time of its last change put back."""
    before, data = path.stat(), load_file(path)
    weight = data[tensor]
    (weight if weight.dim() == 1 else weight[rows]).neg_()
    changed = path.with_name("changed")
    save_file(data, changed, metadata={"format": "pt"})
    assert changed.stat().st_size == before.st_size
    with path.open("r+b") as file:
        file.write(changed.read_bytes())
    changed.unlink()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("tensor", "rows"),
    [
        ("model.embed_tokens.weight", slice(100, 101)),
        ("model.norm.weight", slice(None)),
        ("model.layers.2.mlp.up_proj.weight", slice(0, 64)),
        (None, None),
    ],
)
def test_a_model_that_was_overwritten_in_place_is_sampled_anew(pool, tmp_path, tensor, rows):
    """One embedding row, a norm, 64 rows of a projection, the model's own Python code."""
    folder = save(tmp_path / "model")
    code = folder / "modeling_own.py"
    code.write_text("SCALE = 1\n")
    first = choose(pool, folder, tmp_path / "run", budget=3)
    assert sampled(choose(pool, folder, tmp_path / "run", budget=4)) == 0
    if tensor is None:
        before = code.stat()
        code.write_text("SCALE = 2\n")
        os.utime(code, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        overwrite(folder / "model.safetensors", tensor, rows)
    assert sampled(choose(pool, folder, tmp_path / "run", budget=3)) == sampled(first) > 0
