"""Likelihoods in the run folder: which model is asked, after what, and where answers are cut."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from likelihood_runs import Asking, mean_nll, tokens
from tiny_models import tiny_model, tiny_tokenizer
from tiny_runs import pool_rows, save

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import ModelError
from adg_plugin.pipeline.stage import Pool
from adg_plugin.selectors.likelihood.judge import plain_prompt
from adg_plugin.store import RunFolder

tiny = pytest.mark.tiny

ROWS = [
    {"id": "b", "instruction": "Add the numbers.", "input": "2 and 3", "output": "That is 5."},
    {"id": "a", "instruction": "Name a sea.", "output": "The Baltic é"},
    {"id": "c", "instruction": "Say no more.", "input": "", "output": "  "},
    {"id": "d", "instruction": "One letter.", "output": "x"},
]


@tiny
def test_ifd_asks_the_backbone_after_the_prompt_as_training_renders_it(tmp_path, backbone):
    asking = Asking(tmp_path / "run", backbone, ROWS)
    stats = asking.measure()
    assert {name: stats[name] for name in ("rows", "cut", "tokens")} == {"rows": 4, "cut": 0, "tokens": 10 + 13 + 1}
    model, staged = tiny_model(dtype=torch.float64), asking.staged()
    found = asking.found()
    for row in ROWS[:2] + ROWS[3:]:
        with_prompt, alone, count, reason = found[row["id"]]
        answer = tokens(row["output"])
        assert (count, reason) == (len(answer), None)
        assert with_prompt == pytest.approx(mean_nll(model, staged[row["id"]].prompt.token_ids, answer), rel=2e-5)
        opening = tokens("<|im_end|>\n<|im_start|>assistant\n")
        assert alone == pytest.approx(mean_nll(model, opening, answer), rel=2e-5)
    assert np.isnan(found["c"][:2]).all()
    assert found["c"][2:] == (0, "no_answer")


@tiny
@pytest.mark.parametrize(
    ("bos", "begins", "stays"),
    [
        ("<|endoftext|>", "{{ bos_token }}", "<|endoftext|>"),
        ("<|endoftext|>", "", ""),
        ("<|im_start|>", "", ""),  # as SmolLM2's: each turn begins with it
    ],
)
def test_alone_the_answer_keeps_the_bos_of_the_template(tmp_path, backbone, bos, begins, stays):
    folder = Path(shutil.copytree(backbone, tmp_path / "model"))
    template = folder / "chat_template.jinja"
    template.write_text(begins + template.read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": bos}))
    asking = Asking(tmp_path / "run", folder, ROWS[:2])
    asking.measure()
    model, found = tiny_model(dtype=torch.float64), asking.found()
    for row in ROWS[:2]:
        opening = tokens(f"{stays}<|im_end|>\n<|im_start|>assistant\n")
        assert found[row["id"]][1] == pytest.approx(mean_nll(model, opening, tokens(row["output"])), rel=2e-5)
        prompt = asking.staged()[row["id"]].prompt.token_ids
        assert (int(prompt[0]) == tokens("<|endoftext|>")[0]) == bool(stays)


@tiny
def test_superfiltering_asks_the_small_model_after_the_plain_instruction_and_input(tmp_path, backbone, small):
    asking = Asking(tmp_path / "run", backbone, ROWS)
    asking.source = replace(asking.source, load=lambda: pytest.fail("the backbone is not asked"))
    asking.measure("superfiltering", small_model=str(small))
    model = tiny_model("gpt2", seed=3, dtype=torch.float64)
    found = asking.found("superfiltering", small_model=str(small))
    for row, prompt in zip(ROWS, ["Add the numbers.\n2 and 3\n", "Name a sea.\n", "", "One letter.\n"], strict=True):
        if row["id"] in ("a", "b"):  # as gpt2's, the tokenizer puts nothing before a text
            with_prompt, alone, _, _ = found[row["id"]]
            answer = tokens(row["output"])
            assert with_prompt == pytest.approx(mean_nll(model, tokens(prompt), answer, skip=1), rel=2e-5)
            assert alone == pytest.approx(mean_nll(model, [], answer, skip=1), rel=2e-5)
    assert found["d"][3] == "answer_too_short"


@tiny
def test_a_bos_that_the_tokenizer_puts_before_texts_stands_before_both_and_is_measured_anew(tmp_path, backbone, small):
    from tokenizers.processors import TemplateProcessing

    asking = Asking(tmp_path / "run", backbone, ROWS)
    asking.measure("superfiltering", small_model=str(small))
    other = tmp_path / "other"
    tiny_model("gpt2", seed=3).save_pretrained(other)
    tokenizer = copy.deepcopy(tiny_tokenizer())  # that one is shared by all tests
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(other)
    assert asking.measure("superfiltering", small_model=str(other))["rows"] == 4
    model = tiny_model("gpt2", seed=3, dtype=torch.float64)
    with_prompt, alone, count, _ = asking.found("superfiltering", small_model=str(other))["a"]
    answer, bos_id = tokens(ROWS[1]["output"]), tokenizer.bos_token_id
    assert count == len(answer)
    assert with_prompt == pytest.approx(mean_nll(model, [bos_id, *tokens("Name a sea.\n")], answer), rel=2e-5)
    assert alone == pytest.approx(mean_nll(model, [bos_id], answer), rel=2e-5)


@tiny
def test_likelihoods_for_one_method_are_none_for_the_other(tmp_path, backbone, small):
    asking = Asking(tmp_path / "run", backbone, ROWS)
    asking.measure("superfiltering", small_model=str(small))
    assert {row[3] for row in asking.found("ifd").values()} == {"not_measured"}


@tiny
def test_answers_that_are_cut_are_told_and_prompts_without_room_rejected(tmp_path, backbone, caplog):
    rows = [
        {"id": "short", "instruction": "Go on.", "output": "ok"},
        {"id": "long", "instruction": "Go on.", "output": "on and on " * 20},
        {"id": "prompt", "instruction": "Go on and on. " * 9, "output": "ok"},
    ]
    small = save(tmp_path / "small", max_position_embeddings=100)
    asking = Asking(tmp_path / "run", backbone, rows, small_model=str(small))
    stats = asking.measure("superfiltering")
    found = asking.found("superfiltering")
    assert stats["cut"] == 1
    assert caplog.messages == [
        "superfiltering: of 1 of 3 answers the end is left out, so that prompt and answer have at most 100 tokens"
    ]
    # Nothing stands before the answer alone, so its first token is predicted in neither.
    assert found["long"][2] == 100 - len(tokens("Go on.\n")) - 1
    assert found["prompt"][2:] == (0, "prompt_too_long")
    assert found["short"][2:] == (1, None)


@tiny
def test_only_superfiltering_ends_at_1024_tokens_where_the_model_has_more_positions(tmp_path):
    rows = [{"id": "long", "instruction": "Go on.", "output": "on and on " * 110}]
    model = save(tmp_path / "model", max_position_embeddings=2048)
    asking = Asking(tmp_path / "run", model, rows, small_model=str(model))
    assert asking.measure()["cut"] == 0
    assert asking.found()["long"][2] == 1100
    assert asking.measure("superfiltering")["cut"] == 1
    assert asking.found("superfiltering")["long"][2] == 1024 - len(tokens("Go on.\n")) - 1


@tiny
def test_the_code_of_a_small_model_is_not_run_because_that_of_the_backbone_is_trusted(tmp_path, backbone):
    small = save(tmp_path / "small")
    ran = tmp_path / "ran"
    about = json.loads((small / "config.json").read_text())
    about |= {"model_type": "of its own", "auto_map": {"AutoConfig": "code.Config"}}
    (small / "config.json").write_text(json.dumps(about))
    (small / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\n")
    asking = Asking(tmp_path / "run", backbone, pool_rows(3), small_model=str(small), trust_remote_code=True)
    with pytest.raises(ModelError) as caught:
        asking.measure("superfiltering")
    assert str(caught.value) == (
        f"small_model is {str(small)!r}: it brings its own code, and trust_remote_code is about the backbone; name a "
        "model without"
    )
    assert not ran.exists()


@tiny
def test_a_model_with_few_positions_is_given_no_more(tmp_path):
    rows = [{"id": "long", "instruction": "Go on.", "output": "on and on " * 20}]
    asking = Asking(tmp_path / "run", save(tmp_path / "model", max_position_embeddings=128), rows)
    assert asking.measure()["cut"] == 1
    assert asking.found()["long"][2] == 128 - len(asking.staged()["long"].prompt)


@pytest.mark.parametrize(
    ("instruction", "data", "settings", "prompt"),
    [
        ("Do it.", '{"instruction": "Do it.", "output": "x"}', {}, "Do it.\n"),
        ("Do it.\n\nnow", '{"instruction": "Do it.", "input": "now"}', {}, "Do it.\nnow\n"),
        ("Do it.\n\nnow", '{"instruction": "Do it.\\n\\nnow"}', {}, "Do it.\n\nnow\n"),
        ("Do it.\n\n\n\n", '{"instruction": "Do it.", "input": "\\n\\n"}', {}, "Do it.\n\n\n\n"),
        ("Do it.", '{"instruction": "Do it.", "input": null}', {}, "Do it.\n"),
        ("Hello", '{"messages": [{"role": "user", "content": "Hello"}], "input": 3}', {}, "Hello\n"),
        (
            "Do it.\n\nnow",
            '{"task": "Do it.", "about": "now"}',
            {"datasets": [{"path": "memory", "field_instruction": "task", "field_input": "about"}]},
            "Do it.\nnow\n",
        ),
    ],
)
def test_the_plain_prompt_is_instruction_and_input_on_lines_of_their_own(instruction, data, settings, prompt):
    row = {"instruction": instruction, "data": data, "dataset": 0}
    assert plain_prompt(row, ADGConfig(**settings)) == prompt


@pytest.mark.model
def test_the_demo_model_on_rows_of_the_demo_pool(tmp_path):
    config = ADGConfig(model="demo", device="cpu", dtype="float32", datasets=[{"path": "demo"}])
    source = Source.configured(config)
    records = [record.data for record, _ in zip(Pool.of(config).records, range(3), strict=False)]
    asking = Asking(tmp_path / "run", Path("demo"), records, dtype="float32")
    asking.config, asking.source = config.updated(datasets=[]), source
    backbone = source.load()
    asking.source = replace(source, load=lambda: backbone)
    asking.measure()
    found, staged = asking.found(), list(RunFolder.read(asking.folder).staged_rows(set(asking.found())))
    assert len(staged) == 3
    opening = source.tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    for row in staged:
        answer = source.tokenizer(row.reference, add_special_tokens=False)["input_ids"]
        with_prompt, alone, count, _ = found[row.prompt.id]
        assert count == len(answer)
        assert with_prompt == pytest.approx(mean_nll(backbone.model, row.prompt.token_ids, answer), rel=1e-4)
        assert alone == pytest.approx(mean_nll(backbone.model, opening, answer), rel=1e-4)
