"""Layers and pooling of a sweep: the stored answers, embedded again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from sweep_runs import invoke, tree, unit

from adg_plugin.errors import ADGError, ModelError, StoreError
from adg_plugin.scoring.score import choose_rows
from adg_plugin.store import RunFolder
from adg_plugin.tools.sweep.sweep import sweep


def by_hand(reader, layers, pooling):
    """Return ids, Gram matrices and prompt vectors of the stored answers, from transformers' own hidden states."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(reader.manifest()["config"]["model"], dtype=torch.float32).eval()
    prompts = {p.id: p for window in reader.iter_windows(pending_only=False) for p in window}
    found = {}
    for result in reader.results():
        prompt, vectors = prompts[result.id], []
        for answer in result.answers:
            ids = torch.tensor(np.concatenate([prompt.token_ids, answer.token_ids]))[None]
            with torch.no_grad():
                output = model(ids, output_hidden_states=True)
            states = torch.stack(output.hidden_states[-layers:]).mean(0)[0]
            tokens = states[len(prompt) :].numpy()
            weights = np.ones(len(tokens))
            if pooling == "last_token":
                weights = np.arange(len(tokens)) == len(tokens) - 1
            elif pooling == "skip_first" and len(tokens) > 1:
                weights[0] = 0
            elif pooling == "surprisal":
                logs = torch.log_softmax(output.logits[0, len(prompt) - 1 : -1], -1).numpy()
                weights = -logs[np.arange(len(tokens)), answer.token_ids]
            vectors.append(unit((weights[:, None] * tokens).sum(0)))
        at = states[slice(*prompt.span)].mean(0).numpy()  # the prompt's own states do not see the answer
        found[result.id] = np.array(vectors) @ np.array(vectors).T, unit(at)
    ids = sorted(found)
    return ids, np.stack([found[id][0] for id in ids]), np.stack([found[id][1] for id in ids])


@pytest.mark.tiny
@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("pooling", ["answer", "last_token", "skip_first", "surprisal"])
def test_embedding_again_gives_the_vectors_of_the_definition(run, layers, pooling):
    from adg_plugin.store.reader import finished
    from adg_plugin.tools.sweep.choices import embed_again

    reader = RunFolder.read(run.run_dir)
    ids, grams, prompts = by_hand(reader, layers, pooling)
    stored = reader.geometry()
    found, lost = embed_again(reader, finished(reader), stored, [(layers, pooling)], show_progress=False)
    vectors = found[layers, pooling]
    assert vectors.ids.tolist() == ids
    assert not lost
    (group,) = vectors.grams
    np.testing.assert_allclose(group.grams, grams, atol=2e-5)
    np.testing.assert_allclose(vectors.prompt_vectors, prompts, atol=1e-3)  # float16
    if (layers, pooling) == (4, "answer"):  # the run's own
        (own,) = stored.grams
        np.testing.assert_allclose(group.grams, own.grams, atol=2e-5)


@pytest.mark.tiny
@pytest.mark.parametrize("changes", [{"layers": 1}, {"pooling": "last_token"}])
def test_the_choice_under_other_vectors_is_that_of_a_selection_with_them(run, changes):
    from adg_plugin.store import GramGroup
    from adg_plugin.store.reader import finished

    reader = RunFolder.read(run.run_dir)
    stored, config = reader.geometry(), finished(reader).updated(**changes)
    _, grams, prompts = by_hand(reader, config.layers, config.pooling)
    groups = (GramGroup(np.arange(len(grams)), grams.astype(np.float32)),)
    other = choose_rows(replace(stored, grams=groups, prompt_vectors=prompts.astype(np.float16)), config, 40)
    table = reader.scores()
    own, expected = table["chosen"].to_numpy(zero_copy_only=False), other.choice.chosen
    (line,) = sweep(str(run.run_dir), {key: [value] for key, value in changes.items()}, show_progress=False).part_lines
    assert line.found.shared == (own & expected).sum() / 10
    assert line.found.shared < 1
    spearman = scipy.stats.spearmanr(table["score"].to_numpy(), other.scores).statistic
    assert line.found.rank_correlation == pytest.approx(spearman, abs=1e-3)


@pytest.mark.tiny
def test_layers_and_pooling_change_the_choice_and_not_the_run_folder(run):
    before = tree(run.run_dir)
    about = sweep(str(run.run_dir), {"layers": [1, 4], "pooling": ["last_token"], "weight": [0]}, show_progress=False)
    assert tree(run.run_dir) == before
    assert [line.name for line in about.lines] == ["weight=0 (D alone)"]
    one, own, last = about.part_lines
    assert [line.name for line in about.part_lines] == ["layers=1", "layers=4", "pooling=last_token"]
    assert about.part == about.run  # all rows
    assert own.own
    assert own.found.shared == 1.0
    assert own.found.rank_correlation == pytest.approx(1.0, abs=1e-3)
    assert one.found.rank_correlation < 0.999
    assert last.found.rank_correlation < 0.999
    assert any("layers=4 and pooling=answer, the run's own" in note for note in about.notes)


@pytest.mark.tiny
def test_a_random_part_is_compared_with_the_run_s_settings_on_that_part(run):
    vary = {"layers": [4, 1], "num_samples": [3, 4]}
    about = sweep(str(run.run_dir), vary, product=True, rows=20, show_progress=False)
    assert not about.lines
    assert about.run.rows == 40
    own, *_ = (line for line in about.part_lines if line.own)
    assert (own.name, own.found.rows, own.found.chosen) == ("layers=4, num_samples=4", 20, 5)
    assert own.found.shared == 1.0
    assert own.found.shared_by_chance == about.part.shared_by_chance
    assert [line.name for line in about.part_lines][2] == "layers=1, num_samples=3"
    (told,) = [note for note in about.notes if "20 of 40" in note]
    assert told == "layers, pooling: 20 of 40 rows, compared among themselves: 5 chosen, with bins in proportion"
    again = sweep(str(run.run_dir), vary, product=True, rows=20, show_progress=False)
    assert again == about
    assert sweep(str(run.run_dir), {"layers": [1]}, rows=400, show_progress=False).part.rows == 40


@pytest.mark.tiny
def test_the_command_embeds_and_tells(run, capsys):
    assert invoke(run.run_dir, "--vary", "layers=1,4", "--rows", "20") == 0
    said = capsys.readouterr()
    assert "embedded again: 20 rows, 5 chosen" in said.out
    assert "layers=4 = run" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert "embedding: 40/40 rows" in said.err
    assert invoke(run.run_dir, "--vary", "pooling=answer,skip_first", "--json") == 0
    found = json.loads(capsys.readouterr().out)["embedded_again"]
    assert [one["changes"] for one in found["variants"]] == [{"pooling": "answer"}, {"pooling": "skip_first"}]
    assert found["run"]["rows"] == 40


@pytest.mark.tiny
def test_layers_that_the_model_has_not(run):
    with pytest.raises(ModelError, match="layers is 40: the model has 5 layers, use at most that"):
        sweep(str(run.run_dir), {"layers": [2, 40]}, show_progress=False)


@pytest.mark.tiny
def test_rows_that_cannot_be_embedded_again_are_counted_and_left_out(run, monkeypatch):
    from adg_plugin.engines.encode import shared_prompt as encoding

    (lost, *_) = sorted(RunFolder.read(run.run_dir).scores()["id"].to_pylist())
    made = encoding.row_result

    def failing(prompt, answers, units, prompt_state, **settings):
        return made(prompt, answers, units * (np.nan if prompt.id == lost else 1), prompt_state, **settings)

    monkeypatch.setattr(encoding, "row_result", failing)
    about = sweep(str(run.run_dir), {"layers": [1]}, show_progress=False)
    assert about.part.rows == about.part_lines[0].found.rows == 39
    assert "1 of 40 rows could not be embedded again (non_finite_states 1) and are left out" in about.notes


@pytest.mark.tiny
def test_where_no_row_can_be_embedded_again_it_says_why(run, monkeypatch):
    from adg_plugin.engines.encode import shared_prompt as encoding

    made = encoding.row_result
    monkeypatch.setattr(
        encoding, "row_result", lambda prompt, answers, units, *a, **k: made(prompt, answers, units * np.nan, *a, **k)
    )
    with pytest.raises(ADGError, match=r"none of the 20 rows could be embedded again \(non_finite_states 20\): "):
        sweep(str(run.run_dir), {"layers": [1], "weight": [0]}, rows=20, show_progress=False)


@pytest.mark.tiny
def test_another_model_is_refused(run):
    from safetensors.torch import load_file, save_file

    (weights,) = (run.run_dir.parent / "model").glob("*.safetensors")
    kept = weights.read_bytes()
    try:
        save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
        with pytest.raises(
            StoreError, match=r"is not what it was \(model '.*' \(now '.*'\)\): vectors would be another"
        ):
            sweep(str(run.run_dir), {"layers": [2]}, show_progress=False)
    finally:
        weights.write_bytes(kept)
