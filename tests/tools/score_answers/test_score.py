"""`adg score`: answers that somebody else generated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CHAT_TEMPLATE, save_tiny_model, tiny_model, tiny_tokenizer
from tiny_runs import BAD, read_jsonl, save, spoil, write_jsonl

from adg_plugin import ADGConfig
from adg_plugin.errors import DataError, ModelError, StoreError
from adg_plugin.tools.score_answers import score_answers

pytestmark = pytest.mark.tiny

ANSWERS = ["forty-two", "It depends.", "Nobody knows what 6 times 7 is!", "42"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ADGConfig:
    return ADGConfig(model=str(save(tmp_path_factory.mktemp("models") / "tiny")))


def row(id_: object, answers: object = tuple(ANSWERS), **more: object) -> dict[str, object]:
    return {"id": id_, "instruction": "What is 6 times 7?", "generated_answers": answers, **more}


def scored(folder: Path, config: ADGConfig, *rows: dict[str, object]) -> list[dict[str, object]]:
    score_answers(config, write_jsonl(folder / "answers.jsonl", rows), folder / "out.jsonl")
    return read_jsonl(folder / "out.jsonl")


def by_hand(prompt: str, answers: list[str], layers: slice = slice(-4, None)) -> tuple[float, float]:
    """Section 2 of the design with a plain forward pass per answer: dispersion and anisotropy."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    vectors = []
    for answer in answers:
        start, tokens = tokenizer.encode(prompt), tokenizer.encode(answer)
        with torch.no_grad():
            states = model(torch.tensor([start + tokens]), output_hidden_states=True).hidden_states
        mean = torch.stack(states[layers]).mean(0)[0, len(start) :].mean(0)
        vectors.append((mean / mean.norm()).numpy())
    v = np.array(vectors, dtype=float)
    v = v - v.mean(0)
    spectrum = np.linalg.eigvalsh(v @ v.T)
    return spectrum.sum() / len(v), 1 - spectrum[-1] / spectrum.sum()


def chat(*turns: tuple[str, str]) -> str:
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    assert "im_start" in CHAT_TEMPLATE
    return text + "<|im_start|>assistant\n"


@pytest.mark.parametrize("layers", [4, 2])
def test_scores_agree_with_plain_forward_passes(config, tmp_path, layers):
    rows = [
        row("alpaca", input="In base ten."),
        {"id": "turns", "generated_answers": ANSWERS[:3], "messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "6 * 7?"},
            {"role": "assistant", "content": "not seen"}]},
    ]  # fmt: skip
    expected = [
        by_hand(chat(("user", "What is 6 times 7?\n\nIn base ten.")), ANSWERS, slice(-layers, None)),
        by_hand(
            chat(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "6 * 7?")),
            ANSWERS[:3],
            slice(-layers, None),
        ),
    ]
    found = scored(tmp_path, config.updated(layers=layers), *rows)
    assert [list(line) for line in found] == [["id", "dispersion", "anisotropy", "score"]] * 2
    assert [line["id"] for line in found] == ["alpaca", "turns"]
    for line, (dispersion, anisotropy) in zip(found, expected, strict=True):
        assert line["dispersion"] == pytest.approx(dispersion, abs=1e-5)
        assert line["anisotropy"] == pytest.approx(anisotropy, abs=1e-5)
        assert line["score"] == pytest.approx(0.6 * dispersion + 0.4 * anisotropy, abs=1e-5)


def test_forms_of_the_score_compare_all_rows(config, tmp_path):
    rows = [row(n, [f"{a} {'!' * n}" for a in ANSWERS]) for n in range(5)]
    raw = scored(tmp_path, config, *rows)
    ranked = scored(tmp_path, config.updated(score="rank", weight=0.0), *rows)
    order = np.argsort(np.argsort([line["dispersion"] for line in raw]))
    assert [line["score"] for line in ranked] == pytest.approx(list(order / 4))


def test_ids_come_back_as_they_were(config, tmp_path):
    ids = [7, "7", 7.0, "ä/b", 10**30]
    assert [json.dumps(line["id"]) for line in scored(tmp_path, config, *map(row, ids))] == [json.dumps(i) for i in ids]
    no_id = row(None)
    (of_null, of_none) = scored(tmp_path, config, no_id, {k: v for k, v in no_id.items() if k != "id"})
    assert of_null["id"] == of_none["id"]
    assert of_null["id"].startswith("h")


def test_rows_are_kept_in_order_and_none_is_dropped(config, tmp_path):
    rows = [row(n, [f"{n} {a}" for a in ANSWERS]) for n in range(150)]
    assert [line["id"] for line in scored(tmp_path, config, *rows)] == list(range(150))
    alone = scored(tmp_path, config, rows[77])
    assert alone[0]["dispersion"] == pytest.approx(scored(tmp_path, config, *rows)[77]["dispersion"], abs=1e-5)


def test_equal_answers_have_no_dispersion_and_no_direction(config, tmp_path):
    (same, one_other) = scored(tmp_path, config, row(1, ["42"] * 5), row(2, ["42", "42", "42", "forty-two"]))
    assert (same["dispersion"], same["anisotropy"]) == (pytest.approx(0, abs=1e-9), 0)
    assert one_other["dispersion"] > 1e-3
    assert one_other["anisotropy"] == pytest.approx(0, abs=1e-6)


def test_the_first_k_answers_count(config, tmp_path, caplog):
    (four,) = scored(tmp_path, config.updated(num_samples=4), row(1, [*ANSWERS, "one more", "and more"]))
    assert four == scored(tmp_path, config, row(1))[0]
    assert caplog.messages == ["cut to the first 4 answers (num_samples): 1 row"]


def test_rows_that_cannot_be_scored_are_written_with_their_reasons(tmp_path, capsys):
    config = ADGConfig(model=str(save(tmp_path / "spoilt", spoil)), max_prompt_tokens=300)
    rows = [
        row(1),
        row(2, ["one", "two"]),
        row(3, ["one", "two", "", ""]),
        row(4, instruction="  "),
        row(5, instruction="word " * 100),
        row(6, ["a", "b", BAD]),
        row(7),
    ]
    counts = score_answers(config, write_jsonl(tmp_path / "answers.jsonl", rows), tmp_path / "out.jsonl")
    assert (counts.scored, counts.rejected) == (2, 5)
    assert counts.rejected_path == tmp_path / "out.jsonl.rejected.jsonl"
    assert [line["id"] for line in read_jsonl(tmp_path / "out.jsonl")] == [1, 7]
    rejected = {line["id"]: line for line in read_jsonl(counts.rejected_path)}
    assert {i: line["reason"] for i, line in rejected.items()} == {
        2: "too_few_answers",
        3: "too_few_answers",
        4: "only_white_space",
        5: "prompt_too_long",
        6: "non_finite_states",
    }
    assert rejected[3]["detail"] == "2 of 4 answers are not empty, 3 are needed"
    assert rejected[4]["where"] == f"{tmp_path / 'answers.jsonl'}:4"
    score_answers(config, write_jsonl(tmp_path / "answers.jsonl", rows[:1]), tmp_path / "out.jsonl")
    assert not counts.rejected_path.exists()  # it would be of the run before


@pytest.mark.parametrize(
    ("answers", "seen"),
    [(None, "missing"), ("text", "'text'"), ([1, 2, 3], "[1, 2, 3]"), ({"a": "b"}, "{'a': 'b'}")],
)
@pytest.mark.parametrize("line", [1, 3])
def test_a_row_without_answers_is_named_with_its_line(config, tmp_path, answers, seen, line):
    rows = [row(1), row(2), row(3)]
    rows[line - 1] = {"id": 9, "instruction": "x", **({} if answers is None else {"generated_answers": answers})}
    (tmp_path / "out.jsonl").write_text("from before\n")
    with pytest.raises(DataError) as caught:
        score_answers(config, write_jsonl(tmp_path / "answers.jsonl", rows), tmp_path / "out.jsonl")
    assert str(caught.value) == (
        f"{tmp_path / 'answers.jsonl'}:{line}: generated_answers is {seen}: give a list of 3 texts or more per row"
    )
    assert (tmp_path / "out.jsonl").read_text() == "from before\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"no such file or folder"),
        ("", r"no rows in .*answers.jsonl"),
        ('{"id": 1, "instruction": "x", "generated_answers": ["a"]}\n{oops\n', r"answers.jsonl:2: not JSON"),
        ('{"generated_answers": ["a", "b", "c"], "question": "x"}\n', r"answers.jsonl:1: unknown row format \(columns"),
    ],
)
def test_a_file_that_is_none_is_refused(config, tmp_path, content, said):
    path = tmp_path / "answers.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=said):
        score_answers(config, path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_work(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "adg_plugin.engines.models.loading.load_backbone", lambda config: pytest.fail("the model was loaded")
    )
    answers = write_jsonl(tmp_path / "answers.jsonl", [row(1)])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file.*: a part of the path is a file; give another --out"):
        score_answers(config, answers, tmp_path / "file" / "out.jsonl")
    with pytest.raises(DataError, match=r" is a folder: give the path of a file as --out$"):
        score_answers(config, answers, tmp_path)


def test_more_layers_than_the_model_has(config, tmp_path):
    answers = write_jsonl(tmp_path / "answers.jsonl", [row(1)])
    with pytest.raises(ModelError, match=r"^layers is 9: the model has 5 layers, use at most that$"):
        score_answers(config.updated(layers=9), answers, tmp_path / "out.jsonl")


def test_missing_folders_of_the_output_are_made(config, tmp_path):
    answers = write_jsonl(tmp_path / "answers.jsonl", [row(1)])
    assert score_answers(config, answers, tmp_path / "a" / "b" / "out.jsonl").rejected_path is None
    assert len(read_jsonl(tmp_path / "a" / "b" / "out.jsonl")) == 1


def test_answers_beyond_the_positions_of_a_model_are_rejected(tmp_path):
    model = save_tiny_model(tmp_path / "gpt2", "gpt2")
    rows = [row("long", ["a" * 1100, "b", "c"]), row("short", ["a", "b", "c"])]
    assert [line["id"] for line in scored(tmp_path, ADGConfig(model=str(model)), *rows)] == ["short"]
    (rejected,) = read_jsonl(tmp_path / "out.jsonl.rejected.jsonl")
    assert rejected["reason"] == "too_long"
    assert rejected["detail"].endswith("tokens, the model has 1024 positions")
