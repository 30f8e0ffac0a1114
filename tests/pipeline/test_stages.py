"""Answers and vectors as stages of one run folder: what one has drawn, another embeds, and a third selects from."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from tiny_models import EOS, tiny_model, tiny_tokenizer
from tiny_runs import pool_rows, read_jsonl, save, write_jsonl

from adg_plugin import ADGConfig, select
from adg_plugin.engines.one_pass.engine import OnePassEngine
from adg_plugin.errors import ConfigError, MissingExtraError, StoreError
from adg_plugin.pipeline.run import run_stage
from adg_plugin.store import RunFolder
from adg_plugin.store.records import RowResult

pytestmark = [
    pytest.mark.tiny,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="needs an environment without vLLM"),
]


@pytest.fixture
def config(tmp_path):
    return ADGConfig.parse(
        {
            "model": str(save(tmp_path / "model")),
            "datasets": [str(write_jsonl(tmp_path / "pool.jsonl", pool_rows(40)))],
            "budget": 10,
            "num_samples": 3,
            "max_new_tokens": 6,
            "engine": "vllm",
        }
    )


@pytest.fixture
def drawn(config, tmp_path):
    """A run folder with the answers of 30 of 40 rows, as vLLM's environment may leave it."""
    run = tmp_path / "run"
    with pytest.raises(MissingExtraError, match=r"engine: vllm needs `vllm`: pip install .* `adg sample` draws the"):
        run_stage("sample", config, run, show_progress=False)
    draw(run, config, 30)
    return run


def draw(run, config, count):
    engine = OnePassEngine(tiny_model(), tiny_tokenizer(), config, (EOS,))
    with RunFolder.open(run) as folder:
        prompts = [p for window in folder.iter_windows(unsampled_only=True) for p in window][:count]
        for result in engine.run(prompts):
            folder.append_sample(RowResult(result.id, result.key, result.answers, None, None, result.reason))


def test_what_is_drawn_is_embedded_without_what_drew_it(drawn, config):
    counts = RunFolder.read(drawn).counts()
    assert (counts.prompts, counts.sampled, counts.completed, counts.unsampled) == (40, 30, 0, 10)
    counts = run_stage("embed", config, drawn, show_progress=False)
    assert (counts.sampled, counts.completed, counts.unsampled) == (0, 30, 10)
    assert not list((drawn / "samples").iterdir())
    assert run_stage("embed", config, drawn, show_progress=False) == counts  # nothing is left to do
    with pytest.raises(MissingExtraError, match="engine: vllm needs `vllm`"):  # ten rows have no answers
        select(config=config, output_dir=drawn, show_progress=False)


def test_select_embeds_what_is_drawn_and_chooses_as_in_one_pass(drawn, config, tmp_path):
    draw(drawn, config, 10)
    chosen = select(config=config, output_dir=drawn, show_progress=False)
    assert chosen.manifest["sampling"]["embedding"]["rows"] == 40
    whole = select(config=config.updated(engine="hf"), output_dir=tmp_path / "whole", show_progress=False)
    assert set(chosen.ids) == set(whole.ids)  # the answers are the same here, so the choice is
    assert len(read_jsonl(chosen.path)) == 10
    grams = [RunFolder.read(run).geometry().grams[0].grams for run in (chosen.run_dir, whole.run_dir)]
    np.testing.assert_allclose(*grams, atol=2e-5)


def test_an_interrupted_embedding_goes_on(drawn, config, monkeypatch):
    from adg_plugin.engines.encode.shared_prompt import SharedPromptEncoder

    run = SharedPromptEncoder.run

    def cut_off(self, rows):
        for number, result in enumerate(run(self, rows)):
            if number == 12:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch:
        patch.setattr(SharedPromptEncoder, "run", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_stage("embed", config, drawn, show_progress=False)
    counts = RunFolder.read(drawn).counts()
    assert (counts.completed, counts.sampled) == (12, 18)
    counts = run_stage("embed", config, drawn, show_progress=False)
    assert (counts.completed, counts.sampled) == (30, 0)


def test_other_settings_embed_nothing(drawn, config):
    other = config.updated(layers=2)
    with pytest.raises(StoreError, match=r"was made with layers 4 \(now 2\): go back to that"):
        run_stage("embed", other, drawn, show_progress=False)
    # A run with the other settings that was stopped between its settings and its pool.
    with RunFolder.open(drawn) as folder:
        about = folder.read_config()
        folder.write_config({**about, "recipe": {**about["recipe"], "layers": 2}})
    with pytest.raises(StoreError, match=r"row 'row-\d+' was drawn under other settings"):
        run_stage("embed", other, drawn, show_progress=False)
    assert RunFolder.read(drawn).counts().completed == 0


def test_there_must_be_something_to_embed(config, tmp_path):
    with pytest.raises(StoreError, match=r"there is no run folder .*nowhere"):
        run_stage("embed", config, tmp_path / "nowhere", show_progress=False)
    assert not (tmp_path / "nowhere").exists()


def test_a_model_in_memory_is_what_answers(config, tmp_path):
    from datasets import Dataset

    from adg_plugin import select_dataset

    pool = Dataset.from_list([{"prompt": f"word {n}", "completion": "yes"} for n in range(20)])
    with pytest.raises(ConfigError, match=r"engine is 'vllm': the model that is trained answers here; leave it out"):
        select_dataset(pool, tiny_model(), tiny_tokenizer(), {"engine": "vllm", "budget": 3, "output_dir": "r"})


def test_a_url_is_for_the_command_line(config):
    with pytest.raises(ConfigError, match=r"output_dir is 's3://bucket/run': only `adg select --out` takes URLs"):
        select(config=config, output_dir="s3://bucket/run", show_progress=False)
