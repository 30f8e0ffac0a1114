"""SCAR through the real `scar-tool`, with a tiny random encoder; without the package, what a user is told."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from adg_plugin.errors import MissingExtraError, ModelError, NumericalError

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


@pytest.fixture
def pool(tmp_path):
    """The pairs, a row without an answer, and one with a sign of its own, as a file."""
    from tiny_runs import BAD, write_jsonl

    rows = [{"id": f"row-{n}", "instruction": ask, "output": answer} for n, (ask, answer) in enumerate(PAIRS)]
    rows += [{"id": "empty", "instruction": "Say nothing.", "output": " \n"}]
    rows += [{"id": "bad", "instruction": "Draw a wave.", "output": BAD}]
    return write_jsonl(tmp_path / "pool.jsonl", rows)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    from tiny_runs import save

    return save(tmp_path_factory.mktemp("backbone"))


def results(folder, pairs=PAIRS):
    """What the ranker makes of each pair, by its number."""
    from judging import findings

    from adg_plugin.engines.judges.style_ranker import StyleRanker, StyleRow

    rows, ranker = [StyleRow(str(n), *pair) for n, pair in enumerate(pairs)], StyleRanker(str(folder), "cpu")
    found = findings(ranker.load(), rows, lambda row: next(ranker.inputs([row])))
    return [found[row.id] for row in rows]


def scored(folder, pairs=PAIRS):
    return [result.values.get("score") for result in results(folder, pairs)]


def change_weights(ranker, change):
    import torch

    path = ranker / "pytorch_model.bin"
    state = torch.load(path)  # noqa: TID251  # the published package's own format
    change(state)
    torch.save(state, path)  # noqa: TID251


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
@pytest.mark.parametrize("batch_rows", [1, 2, 4, 32])
def test_scores_are_those_of_the_published_package(ranker, batch_rows, monkeypatch, capsys):
    from adg_plugin.engines.judges import style_ranker

    expected = published_scores(ranker, PAIRS)
    capsys.readouterr()
    monkeypatch.setattr(style_ranker, "_BATCH_ROWS", batch_rows)
    scores = scored(ranker)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(scores) > 1e-3  # else the order could be anything
    assert capsys.readouterr().out == ""


@pytest.mark.tiny
def test_long_texts_are_cut(ranker, monkeypatch):
    from adg_plugin.engines.judges import style_ranker

    assert style_ranker.MAX_TOKENS == 512  # as the published package has it
    whole = scored(ranker)
    expected = published_scores(ranker, PAIRS, max_length=8)
    monkeypatch.setattr(style_ranker, "MAX_TOKENS", 8)
    np.testing.assert_allclose(scored(ranker), expected, atol=1e-5)
    assert not np.allclose(whole, expected, atol=1e-4)


@pytest.mark.tiny
def test_rows_with_an_empty_side_are_rejected_and_the_others_scored(ranker):
    found = results(ranker, [PAIRS[0], ("ask", " \n"), ("", "x"), PAIRS[1]])
    assert [result.reason for result in found] == [None, "no_answer", "no_instruction", None]
    np.testing.assert_allclose(
        [found[n].values["score"] for n in (0, 3)], published_scores(ranker, PAIRS[:2]), atol=1e-5
    )
    assert results(ranker, []) == []


@pytest.mark.tiny
def test_a_row_without_memory_alone_is_told_and_the_others_are_scored(ranker, monkeypatch):
    import torch

    from adg_plugin.engines.judges import style_ranker

    expected, sizes, answers = scored(ranker), [], style_ranker.StyleScores.answers

    def limited(self, rows):
        sizes.append(len(rows))
        if len(rows) > 2 or any(row.answer == PAIRS[3][1] for row in rows):
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return answers(self, rows)

    monkeypatch.setattr(style_ranker.StyleScores, "answers", limited)
    found = results(ranker)
    assert [result.reason for result in found] == [None, None, None, "out_of_memory", None]
    assert sizes[:3] == [5, 2, 1]
    for number in (0, 1, 2, 4):
        assert found[number].values["score"] == pytest.approx(expected[number], abs=1e-5)


@pytest.mark.tiny
def test_weights_that_are_filled_in_at_random_are_refused(ranker):
    change_weights(ranker, lambda state: state.pop("output_layer.2.weight"))
    with pytest.raises(ModelError) as caught:
        scored(ranker)
    assert str(caught.value) == (
        f"scar_model is {str(ranker)!r}: the ranker is not whole, its weights do not fit its config: {FIX}"
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
        scored(ranker)
    assert str(caught.value).startswith(f"scar_model is {str(ranker)!r}: the ranker cannot be loaded (")


@pytest.mark.tiny
def test_another_model_is_no_ranker(ranker):
    encoder = ranker.parent / "encoder"
    with pytest.raises(ModelError) as caught:
        scored(encoder)
    assert str(caught.value) == (
        f"scar_model is {str(encoder)!r}: the ranker cannot be loaded (its config.json names no encoder_name, so it "
        f"is no ranker): {FIX}"
    )


@pytest.mark.tiny
def test_code_of_the_encoder_is_not_run_because_that_of_the_backbone_is_trusted(ranker, pool, backbone, tmp_path):
    from tiny_runs import choose

    encoder = ranker.parent / "encoder"
    ran = ranker.parent / "ran"
    edit(encoder / "config.json", auto_map={"AutoModel": "code.Model"}, model_type="of its own")
    (encoder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Model: pass\n")
    with pytest.raises(ModelError) as caught:
        choose(pool, backbone, tmp_path / "run", method="scar", scar_model=str(ranker), trust_remote_code=True)
    assert str(caught.value) == (
        f"scar_model is {str(ranker)!r}: its encoder {str(encoder)!r} brings its own code (trust_remote_code is about "
        "the backbone): use a ranker without, such as lizhuang144/scar-roberta-base"
    )
    assert not ran.exists()


@pytest.mark.tiny
@pytest.mark.skipif(os.environ.get("HF_HUB_OFFLINE") != "1", reason="asks the hub")
def test_a_ranker_that_cannot_be_fetched_is_named(ranker):
    name = "lizhuang144/scar-gte-base"
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        scored(name)
    assert str(caught.value).startswith(f"scar_model is {name!r}: the ranker cannot be loaded (")
    assert str(caught.value).endswith(f"): {FIX}")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "style_ranker", None)
    with pytest.raises(MissingExtraError) as caught:
        scored("anything")
    assert str(caught.value) == "method: scar needs `style_ranker`: pip install 'adg-plugin[scar]'"


# -- over a run folder -----------------------------------------------------------------------------------------------


def spoil(state):
    """Give NaN for every text with the sign of a bad row."""
    from tiny_models import tiny_tokenizer
    from tiny_runs import BAD

    name = next(name for name in state if name.endswith("word_embeddings.weight"))
    state[name][tiny_tokenizer().convert_tokens_to_ids(BAD)] = float("nan")


@pytest.mark.tiny
def test_the_choice_is_by_the_published_scores_and_what_has_none_is_told(ranker, pool, backbone, tmp_path, capsys):
    from tiny_runs import choose, read_jsonl, scores

    change_weights(ranker, spoil)
    expected = {f"row-{n}": score for n, score in enumerate(published_scores(ranker, PAIRS))}
    capsys.readouterr()
    chosen = choose(pool, backbone, tmp_path / "run", method="scar", scar_model=str(ranker), budget=3)
    assert chosen.ids == tuple(sorted(expected, key=lambda id: (-expected[id], id))[:3])
    assert {id: score for id, (score, _) in scores(tmp_path / "run").items()} == pytest.approx(expected, abs=1e-5)
    told = {row["id"]: (row["reason"], row["detail"]) for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert told == {
        "empty": (
            "no_answer",
            "there is no answer of the row's own; name its column (field_output, field_completion) if there is one",
        ),
        "bad": (
            "non_finite_states",
            f"scar_model {str(ranker)!r} gave NaN or infinity: check the weights of scar_model, or give another ranker",
        ),
    }
    assert capsys.readouterr().out == ""


@pytest.mark.tiny
def test_scores_are_kept_and_a_run_that_was_cut_off_goes_on(ranker, pool, backbone, tmp_path, monkeypatch):
    from tiny_runs import choose

    from adg_plugin.engines.judges import style_ranker
    from adg_plugin.store.ledger import Ledger

    def chosen(**settings):
        return choose(pool, backbone, tmp_path / "run", method="scar", scar_model=str(ranker), **settings)

    append, seen, answers = Ledger.append, [], style_ranker.StyleScores.answers

    def dying(self, result):
        if len(self.stock.completed) == 2:
            raise KeyboardInterrupt
        append(self, result)

    def noted(self, rows):
        seen.extend(row.id for row in rows)
        return answers(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            chosen(budget=5)
    monkeypatch.setattr(style_ranker.StyleScores, "answers", noted)
    first = chosen(budget=5)
    assert first.manifest["sampling"]["rows"] == len(seen) == 4  # six rows have an answer
    assert first.manifest["sampling"]["tokens"] > 0
    monkeypatch.setattr(style_ranker.StyleRanker, "load", lambda self: pytest.fail("the ranker was loaded"))
    again = chosen(budget=2)
    assert again.manifest["sampling"]["rows"] == 0
    assert again.ids == first.ids[:2]


@pytest.mark.tiny
def test_another_ranker_never_takes_the_scores_of_the_first_and_a_broken_one_is_an_error(
    ranker, pool, backbone, tmp_path
):
    from tiny_runs import choose, scores

    def chosen():
        choose(pool, backbone, tmp_path / "run", method="scar", scar_model=str(ranker))
        return {id: score for id, (score, _) in scores(tmp_path / "run").items()}

    def turn(state):
        state["output_layer.2.weight"] *= -1

    first = chosen()
    change_weights(ranker, turn)
    second = chosen()
    assert first.keys() == second.keys()
    assert all(first[id] != second[id] for id in first)
    change_weights(ranker, lambda state: state["output_layer.2.bias"].fill_(float("nan")))
    with pytest.raises(NumericalError) as caught:
        chosen()
    assert str(caught.value) == (
        "6 of 6 rows gave NaN or infinity: check the weights of scar_model, or give another ranker"
    )


@pytest.mark.tiny
def test_a_comparison_scores_once_and_counts_the_cost(ranker, pool, backbone, tmp_path, monkeypatch):
    from adg_plugin.engines.judges import style_ranker
    from adg_plugin.tools.compare.compare import compare

    settings = {"model": str(backbone), "datasets": [str(pool)], "budget": 3, "scar_model": str(ranker)}
    found = compare(settings, ["scar", "random"], tmp_path / "run", show_progress=False)
    name = f"scar {ranker}"
    assert [one.asked for one in found.methods] == [(name,), ()]
    assert (found.costs[name].rows, found.methods[0].rejected) == (6, {"no_answer": 1})
    monkeypatch.setattr(style_ranker.StyleRanker, "load", lambda self: pytest.fail("the ranker was loaded"))
    again = compare(settings, ["scar"], tmp_path / "run", show_progress=False)
    assert again.methods[0].ids == found.methods[0].ids
    assert (again.costs[name].rows, again.costs[name].seconds_now) == (6, 0)
