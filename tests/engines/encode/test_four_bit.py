"""A backbone in 4-bit, by the real bitsandbytes, on whatever device there is."""

import numpy as np
import pytest
import torch
from tiny_models import save_tiny_model, tiny_prompts
from tiny_runs import choose, pool_rows

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.encode.embed import answer_sequence, embed
from adg_plugin.engines.factory import make_engine
from adg_plugin.engines.models.loading import load_backbone
from adg_plugin.engines.one_pass.engine import OnePassEngine

pytestmark = [pytest.mark.tiny, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(
        tmp_path_factory.mktemp("model"), hidden_size=64, intermediate_size=128, num_attention_heads=4
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"bnb_4bit_quant_type": "fp4"}, {"bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"}],
)
def test_the_one_pass_runs_in_4_bit_and_its_vectors_are_those_of_a_plain_forward(model, settings):
    import bitsandbytes

    quant = {"load_in_4bit": True, "dtype": "float32", "num_samples": 3, "max_new_tokens": 8, "keep_vectors": True}
    config = ADGConfig(model=str(model), **quant, **settings)
    backbone = load_backbone(config)
    layers = [m for m in backbone.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(layers) == 5 * 7
    assert {layer.weight.quant_type for layer in layers} == {config.bnb_4bit_quant_type}
    assert {layer.weight.quant_state.nested for layer in layers} == {config.bnb_4bit_use_double_quant}
    engine = make_engine(backbone, config)
    assert isinstance(engine, OnePassEngine)
    prompts = tiny_prompts([30, 5, 60])
    for result in engine.run(prompts):
        assert result.reason is None
        prompt = next(p for p in prompts if p.id == result.id)
        sequences = [answer_sequence(prompt.token_ids, a.token_ids) for a in result.answers]
        vectors = embed(backbone.model, sequences, (-4, -3, -2, -1))
        found = torch.from_numpy(result.vectors.astype(np.float32))
        gap = float((1 - torch.cosine_similarity(found, vectors, dim=-1)).max())
        assert gap < (1e-5 if config.bnb_4bit_compute_dtype == "float32" else 1e-3)


def test_a_selection_in_4_bit_asks_other_weights_than_one_in_full_precision(model, tmp_path):
    rows = pool_rows(12)
    full = choose(rows, model, tmp_path / "run", dtype="float32")
    quantised = choose(rows, model, tmp_path / "run", dtype="float32", load_in_4bit=True)
    assert full.manifest["sampling"]["rows"] == quantised.manifest["sampling"]["rows"] == 12
    assert quantised.manifest["config"]["load_in_4bit"]
    again = choose(rows, model, tmp_path / "other", dtype="float32", load_in_4bit=True)
    assert again.ids == quantised.ids
