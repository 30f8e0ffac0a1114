"""The plugin in a real Axolotl, on a tiny model: what it keeps is what `adg select` keeps of the same rows."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError
from tiny_runs import pool_rows, read_jsonl, write_jsonl

pytestmark = [
    pytest.mark.axolotl,
    pytest.mark.skipif(find_spec("axolotl") is None, reason="needs Axolotl: `make test` runs this in .venv-axolotl"),
]
os.environ.setdefault("AXOLOTL_DO_NOT_TRACK", "1")

from axolotl_runs import ADG, chosen, load, load_datasets, scores, texts, write_config  # noqa: E402

from adg_plugin import select  # noqa: E402
from adg_plugin.adapters import recipes  # noqa: E402
from adg_plugin.errors import ConfigError  # noqa: E402

QUESTIONS = pool_rows(40)
CHATS = [
    {
        "id": f"chat-{n}",
        "messages": [
            {"role": "user", "content": f"Hello {n}"},
            {"role": "assistant", "content": "What is it?"},
            {"role": "user", "content": f"Tell me {n % 5} things about {n}."},
            {"role": "assistant", "content": f"{n} is a number."},
        ],
    }
    for n in range(30)
]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    """Select in this process: a child costs as long as everything else here. test_axolotl_commands.py has real ones."""
    from adg_plugin.adapters import selection_process
    from adg_plugin.adapters.axolotl import select as axolotl_select

    def stage(name, arguments):
        selection_process.select_staged(Path(arguments[3]), arguments[4])

    monkeypatch.setattr(axolotl_select, "run_stage", stage)


def expected(tmp_path, rows, template, name="expected", **settings):
    """Return the ids that `adg select` chooses, best first."""
    settings = {**ADG, "template": template, "dtype": "float32", **settings}
    pool = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    run = select(pool, model=tmp_path / "backbone", config=settings, output_dir=tmp_path / name, show_progress=False)
    return list(run.ids)


def instructions(rows, ids):
    return {row["instruction"] for row in rows if row["id"] in set(ids)}


def test_alpaca_with_an_eval_split_packing_and_more_budget(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", QUESTIONS)
    entry = {"path": str(pool), "type": "alpaca"}
    settings = {"val_set_size": 0.2, "adg": {**ADG, "datasets": [entry]}}
    cfg, meta = load_datasets(write_config(tmp_path, **settings))
    assert (len(meta.train_dataset), len(meta.eval_dataset), meta.total_num_steps) == (10, 8, 5)
    held_back = " ".join(texts(cfg, meta.eval_dataset))
    rows = [row for row in QUESTIONS if f"{row['instruction']}\n" not in held_back]
    assert len(rows) == 32
    assert chosen(cfg) == expected(tmp_path, rows, "alpaca")
    kept = texts(cfg, meta.train_dataset)
    assert all(any(f"{text}\n" in row for row in kept) for text in instructions(rows, chosen(cfg)))

    first, parts = scores(cfg), sorted((Path(cfg["dataset_prepared_path"]) / "adg" / "answers").iterdir())
    more = {**settings, "adg": {**settings["adg"], "budget": 0.5}}
    cfg, meta = load_datasets(write_config(tmp_path, **more))
    assert (len(meta.train_dataset), meta.total_num_steps) == (16, 8)
    assert sorted((Path(cfg["dataset_prepared_path"]) / "adg" / "answers").iterdir()) == parts
    assert scores(cfg) == first

    packed = {**settings, "sample_packing": True, "pad_to_sequence_len": True, "eval_sample_packing": False}
    cfg, meta = load_datasets(write_config(tmp_path, **packed))
    tokens = sum(map(len, meta.train_dataset["input_ids"]))
    assert len(meta.train_dataset) == 10
    assert cfg["total_num_tokens"] == tokens
    assert 1 <= meta.total_num_steps <= tokens // 512 + 1


def test_conversations_are_asked_their_last_question(tmp_path):
    entry = {"path": str(write_jsonl(tmp_path / "pool.jsonl", CHATS)), "type": "chat_template"}
    cfg, meta = load_datasets(write_config(tmp_path, adg={**ADG, "datasets": [entry]}))
    assert chosen(cfg) == expected(tmp_path, CHATS, "chat")
    assert len(meta.train_dataset) == 10


@pytest.mark.parametrize("names", [("prompter", "bing"), ("customer", "agent")])
def test_roles_of_an_entry_are_those_of_the_selection(tmp_path, names):
    said = dict(zip(("user", "assistant"), names, strict=True))
    rows = [
        {"id": row["id"], "talk": [{"who": said[turn["role"]], "says": turn["content"]} for turn in row["messages"]]}
        for row in CHATS
    ]
    entry = {"path": str(write_jsonl(tmp_path / "pool.jsonl", rows)), "type": "chat_template", "field_messages": "talk"}
    entry |= {"roles": {role: [name] for role, name in said.items()}}
    entry |= {"message_property_mappings": {"role": "who", "content": "says"}}
    cfg, meta = load_datasets(write_config(tmp_path, adg={**ADG, "datasets": [entry]}))
    assert len(meta.train_dataset) == 10
    assert chosen(cfg) == expected(tmp_path, CHATS, "chat")


@pytest.mark.parametrize(
    ("rows", "kind", "template", "settings", "entry"),
    [
        (QUESTIONS, "alpaca", "alpaca", {"train_on_inputs": True}, {}),
        (CHATS, "chat_template", "chat", {}, {"train_on_eos": "all", "roles_to_train": ["user", "assistant"]}),
    ],
)
def test_prompts_are_found_where_training_looks_at_them_too(tmp_path, rows, kind, template, settings, entry):
    entry = {"path": str(write_jsonl(tmp_path / "pool.jsonl", rows)), "type": kind, **entry}
    cfg, meta = load_datasets(write_config(tmp_path, adg={**ADG, "datasets": [entry]}, **settings))
    assert chosen(cfg) == expected(tmp_path, rows, template)
    prompts_trained = any(label != -100 for labels in meta.train_dataset["labels"] for label in labels[:40])
    assert prompts_trained  # the training rows keep their own labels


def test_a_prompt_by_formats_is_asked_as_it_is_trained(tmp_path):
    kind = yaml.safe_load(recipes.read("axolotl/llama3-8b-paper"))["adg"]["datasets"][0]["type"]
    rows = [{**row, "input": f"{n} again" if n % 3 == 0 else ""} for n, row in enumerate(pool_rows(40))]
    rows = [{"question" if key == "instruction" else key: value for key, value in row.items()} for row in rows]
    pool = str(write_jsonl(tmp_path / "pool.jsonl", rows))
    block = {**ADG, "datasets": [{"path": pool, "type": {**kind, "field_instruction": "question"}}]}
    cfg, meta = load_datasets(write_config(tmp_path, adg=block))
    named = [{"path": pool, "type": "alpaca", "field_instruction": "question"}]
    settings = {**ADG, "template": "alpaca-paper", "dtype": "float32", "datasets": named}
    run = select(
        None, model=tmp_path / "backbone", config=settings, output_dir=tmp_path / "expected", show_progress=False
    )
    assert chosen(cfg) == list(run.ids)
    columns = ["id", "token_ids", "span_start", "span_end"]
    theirs, ours = (
        pq.read_table(tmp_path / name / "prompts.parquet", columns=columns) for name in ("prepared/adg", "expected")
    )
    assert theirs.sort_by("id").equals(ours.sort_by("id"))
    asked = {tuple(tokens) for tokens in ours["token_ids"].to_pylist()}
    for ids, labels in zip(meta.train_dataset["input_ids"], meta.train_dataset["labels"], strict=True):
        start = labels.count(-100)
        assert tuple(ids[:start]) in asked
        assert labels == [-100] * start + ids[start:]
        assert ids[-1] == 2  # the end token is trained on, too


def test_two_data_sets_with_a_budget_each(tmp_path):
    # Rows of both have the ids of their own data set, which overlap.
    sources = [
        [{**row, "id": str(n)} for n, row in enumerate(QUESTIONS[:20])],
        [{**row, "id": str(n)} for n, row in enumerate(CHATS)],
    ]
    entries = [
        {"path": str(write_jsonl(tmp_path / "a.jsonl", sources[0])), "type": "alpaca"},
        {"path": str(write_jsonl(tmp_path / "b.jsonl", sources[1])), "type": "chat_template"},
    ]
    block = {**ADG, "datasets": entries, "budget_per_dataset": [4, 0.1]}
    cfg, meta = load_datasets(write_config(tmp_path, adg=block))
    assert len(meta.train_dataset) == 4 + 3
    folder = Path(cfg["dataset_prepared_path"]) / "adg"
    for number, (template, budget) in enumerate([("alpaca", 4), ("chat", 0.1)]):
        ids = [row["id"] for row in read_jsonl(folder.with_name(f"adg-{number}") / "selected.jsonl")]
        assert ids == expected(tmp_path, sources[number], template, name=f"expected-{number}", budget=budget)

    swapped = {**block, "datasets": entries[::-1], "budget_per_dataset": [0.1, 4]}
    cfg, again = load_datasets(write_config(tmp_path, adg=swapped))
    assert sorted(texts(cfg, again.train_dataset)) == sorted(texts(cfg, meta.train_dataset))

    with pytest.raises(ConfigError, match="has 1 entries, datasets has 2: give one budget for each"):
        load_datasets(write_config(tmp_path, adg={**block, "budget_per_dataset": [4]}))

    merged = {key: value for key, value in block.items() if key != "budget_per_dataset"}
    cfg, meta = load_datasets(write_config(tmp_path, adg=merged))
    assert len(meta.train_dataset) == 10
    ids = set(scores(cfg))
    assert len(ids) == 50
    assert sum(len(id) == 33 for id in ids) == 20  # the second data set's ids that were taken


def test_a_pool_that_changed_since_it_was_prepared_is_noticed(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", QUESTIONS)
    config = write_config(tmp_path, adg={**ADG, "datasets": [{"path": str(pool), "type": "alpaca"}]})
    load_datasets(config, preprocess=True)
    (tmp_path / "prepared" / "adg" / "training_rows.parquet").unlink()
    write_jsonl(pool, QUESTIONS[1:])
    with pytest.raises(Exception, match="1 of 40 training rows are not in `datasets` as they are now"):
        load_datasets(config)


def test_several_ranks_without_a_selection_are_told_to_preprocess(tmp_path, monkeypatch):
    pool = write_jsonl(tmp_path / "pool.jsonl", QUESTIONS)
    config = write_config(tmp_path, adg={**ADG, "datasets": [{"path": str(pool), "type": "alpaca"}]})
    cfg = load(config)
    from adg_plugin.adapters.axolotl import internals as axolotl_internals
    from adg_plugin.adapters.axolotl import select as axolotl_select

    rows = axolotl_internals.load_rows(cfg).train_dataset
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exception, match="2 processes would wait for one of them: run `axolotl preprocess`"):
        axolotl_select.selected_positions(cfg, rows)
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone = axolotl_select.selected_positions(cfg, rows)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert axolotl_select.selected_positions(cfg, rows) == alone


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rl": "dpo"}, "rl is 'dpo': preference and reward data"),
        ({"streaming": True}, "streaming is True: rows that stream cannot be compared"),
        ({"pretraining_dataset": [{"path": "c4"}]}, "text without instructions cannot be asked"),
        ({"skip_prepare_dataset": True}, "skip_prepare_dataset is True: the prompts are read from the prepared rows"),
        ({"processor_type": "AutoProcessor"}, "processor_type is 'AutoProcessor': images and sound are not supported"),
        ({"reward_model": True}, "reward_model is True: a reward model has no answers"),
        ({"process_reward_model": True}, "process_reward_model is True: a reward model has no answers"),
        ({"adg": {"datasets": [{"path": "x", "type": "completion"}]}}, "datasets[0].type is 'completion': finished"),
        ({"adg": {"budgett": 5, "datasets": [{"path": "x", "type": "alpaca"}]}}, "did you mean `budget`?"),
    ],
)
def test_mistakes_stop_axolotl_at_validation(tmp_path, settings, text):
    block = {"adg": {"datasets": [{"path": "x", "type": "alpaca"}]}}
    with pytest.raises((ConfigError, ValidationError), match=re.escape(text)):
        load(write_config(tmp_path, **{**block, **settings}))


def test_without_the_plugin_axolotl_stops(tmp_path):
    config = write_config(tmp_path, plugins=None, adg={"datasets": [{"path": "x", "type": "alpaca"}]})
    with pytest.raises(Exception, match="either datasets or pretraining_dataset is required"):
        load(config)


def test_a_plugin_that_fails_at_import_stops_axolotl(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "adg_plugin.adapters.axolotl.plugin", None)
    config = write_config(tmp_path, datasets=[{"path": "x", "type": "alpaca"}], adg=dict(ADG))
    with pytest.raises(Exception, match=r"adg_plugin\.ADGPlugin cannot be loaded, so nothing is trained"):
        load(config)


def test_the_manifest_names_what_was_asked(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", QUESTIONS)
    cfg, _ = load_datasets(write_config(tmp_path, adg={**ADG, "datasets": [{"path": str(pool), "type": "alpaca"}]}))
    manifest = json.loads((Path(cfg["dataset_prepared_path"]) / "adg" / "manifest.json").read_text())
    assert manifest["config"]["model"] == str(tmp_path / "backbone")
    assert manifest["rows"]["selected"] == 10


def test_filters_choose_from_the_rows_that_are_left_and_a_changed_one_samples_nothing_again(tmp_path):
    pool = write_jsonl(tmp_path / "pool.jsonl", QUESTIONS)
    adg = {**ADG, "budget": 1.0, "datasets": [{"path": str(pool), "type": "alpaca"}]}
    cfg, meta = load_datasets(write_config(tmp_path, adg={**adg, "filters": {"max_words": 5}}))
    short = [row for row in QUESTIONS if row["instruction"].startswith("What is")]
    assert len(meta.train_dataset) == len(short) == 20
    assert chosen(cfg) == expected(tmp_path, QUESTIONS, "alpaca", budget=1.0, filters={"max_words": 5})
    folder = Path(cfg["dataset_prepared_path"]) / "adg"
    assert read_jsonl(folder / "rejected.jsonl")[0]["detail"] == "10 words, filters.max_words is 5"

    parts = sorted((folder / "answers").iterdir())
    cfg, meta = load_datasets(write_config(tmp_path, adg={**adg, "filters": {"max_words": 5, "min_words": 5}}))
    assert len(meta.train_dataset) == 20
    assert sorted((folder / "answers").iterdir()) == parts
    cfg, meta = load_datasets(write_config(tmp_path, adg={**adg, "filters": {"min_words": 6}}))
    assert len(meta.train_dataset) == 20
    assert not set(chosen(cfg)) & {row["id"] for row in short}
