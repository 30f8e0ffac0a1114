"""SCAR through the real `scar-tool`, with a tiny random encoder; without the package, what a user is told."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from adg_plugin.errors import MissingExtraError, ModelError
from adg_plugin.selectors.scar import scar_scores

FIX = "give a folder that holds the ranker, or the name of one on the hub, such as lizhuang144/scar-roberta-base"
PAIRS = [
    ("Name a prime.", "Seven."),
    ("Write a line about spring.", "Blossoms open while the cold rain is still falling on the garden wall."),
    ("What is 2 + 2?", "4"),
    ("Translate: good morning", "Guten Morgen! " * 30),
    ("Sort 3, 1, 2.", "1, 2, 3"),
]


@pytest.fixture
def ranker(tmp_path):
    """Folder of a ranker with random weights, as the published package saves it."""
    model = pytest.importorskip("style_ranker.ranker.model", reason="scar-tool is not installed")
    import torch
    from tiny_models import VOCABULARY, tiny_tokenizer
    from transformers import RobertaConfig, RobertaModel

    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    encoder, folder = tmp_path / "encoder", tmp_path / "ranker"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    RobertaModel(
        RobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=516, pad_token_id=3, **sizes)
    ).save_pretrained(encoder)
    config = model.StyleRankerConfig(encoder_name=str(encoder), hidden_dim=32, linear_dim=16)
    model.StyleRanker(config).save_pretrained(str(folder))
    torch.random.set_rng_state(state)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def edit(file: Path, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def published_scores(folder, pairs, max_length=512):
    """The scores by the package's own functions, one pair at a time."""
    from style_ranker.rank import load_ranker, score_pairs

    model, tokenizer = load_ranker(str(folder), device="cpu")
    # Each pair twice: a batch of one makes it fail.
    return [
        score_pairs(model, tokenizer, [ask] * 2, [answer] * 2, max_length=max_length, device="cpu")[0]
        for ask, answer in pairs
    ]


@pytest.mark.tiny
@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_scores_are_those_of_the_published_package(ranker, batch_size, capsys):
    expected = published_scores(ranker, PAIRS)
    capsys.readouterr()
    done = []
    scores = scar_scores(PAIRS, str(ranker), batch_size=batch_size, device="cpu", advance=done.append)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 1e-3  # else the order could be anything
    assert sum(done) == len(PAIRS)
    assert len(done) == -(-len(PAIRS) // batch_size)
    assert capsys.readouterr().out == ""


@pytest.mark.tiny
def test_long_texts_are_cut(ranker):
    expected = published_scores(ranker, PAIRS, max_length=8)
    np.testing.assert_allclose(scar_scores(PAIRS, str(ranker), max_tokens=8, device="cpu"), expected, atol=1e-5)
    assert not np.allclose(scar_scores(PAIRS, str(ranker), device="cpu"), expected, atol=1e-4)


@pytest.mark.tiny
def test_no_pairs_have_no_scores(ranker):
    assert scar_scores([], str(ranker), device="cpu").tolist() == []


@pytest.mark.tiny
def test_weights_that_are_filled_in_at_random_are_refused(ranker):
    import torch

    state = torch.load(ranker / "pytorch_model.bin")  # noqa: TID251  # the published package's own format
    del state["output_layer.2.weight"]
    torch.save(state, ranker / "pytorch_model.bin")  # noqa: TID251
    with pytest.raises(ModelError) as caught:
        scar_scores(PAIRS, str(ranker), device="cpu")
    assert str(caught.value) == (
        f"the SCAR ranker {str(ranker)!r} is not whole: its weights do not fit its config; {FIX}"
    )


@pytest.mark.tiny
@pytest.mark.parametrize("damage", ["truncated", "absent", "other sizes"])
def test_a_damaged_ranker_is_named(ranker, damage):
    weights = ranker / "pytorch_model.bin"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "absent":
        weights.unlink()
    else:
        edit(ranker / "config.json", linear_dim=20)
    with pytest.raises(ModelError, match=r"cannot be loaded \(.+\): give a folder") as caught:
        scar_scores(PAIRS, str(ranker), device="cpu")
    assert str(caught.value).startswith(f"the SCAR ranker {str(ranker)!r} cannot be loaded (")


@pytest.mark.tiny
def test_another_model_is_no_ranker(ranker):
    encoder = ranker.parent / "encoder"
    with pytest.raises(ModelError) as caught:
        scar_scores(PAIRS, str(encoder), device="cpu")
    assert str(caught.value) == (
        f"the SCAR ranker {str(encoder)!r} cannot be loaded (its config.json names no encoder_name, so it is no "
        f"ranker): {FIX}"
    )


@pytest.mark.tiny
def test_code_of_the_encoder_is_not_run_unasked(ranker):
    encoder = ranker.parent / "encoder"
    ran = ranker.parent / "ran"
    edit(encoder / "config.json", auto_map={"AutoModel": "code.Model"}, model_type="of its own")
    (encoder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Model: pass\n")
    with pytest.raises(ModelError) as caught:
        scar_scores(PAIRS, str(ranker), device="cpu")
    assert str(caught.value) == (
        f"the SCAR ranker {str(ranker)!r} has the encoder {str(encoder)!r}, which brings its own code: read it, and "
        "set trust_remote_code: true, or use a ranker without, such as lizhuang144/scar-roberta-base"
    )
    assert not ran.exists()


@pytest.mark.tiny
@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="asks the hub")
def test_a_ranker_that_cannot_be_fetched_is_named(ranker):
    name = "lizhuang144/scar-gte-base"
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        scar_scores(PAIRS, name, device="cpu")
    assert str(caught.value).startswith(f"the SCAR ranker {name!r} cannot be loaded (")
    assert str(caught.value).endswith(f"): {FIX}")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "style_ranker", None)
    with pytest.raises(MissingExtraError) as caught:
        scar_scores(PAIRS, "anything")
    assert str(caught.value) == "method: scar needs `style_ranker`: pip install 'adg-plugin[scar]'"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("ask", " \n"), "pair 1 has no answer: reject it before scoring"),
        (("", "x"), "pair 1 has no instruction: reject it before scoring"),
    ],
)
def test_an_empty_side_is_refused(pair, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        scar_scores([PAIRS[0], pair], "anything")
