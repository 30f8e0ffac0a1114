from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_tokenizer

from adg_plugin.adapters.axolotl.rows import Training, answer_start, frame, row_digests, stage
from adg_plugin.config.groups import Filters
from adg_plugin.config.schema import ADGConfig
from adg_plugin.data.filters import ReferenceResponses, RowFilters
from adg_plugin.data.prompts import PromptLimit, PromptRenderer
from adg_plugin.data.rows import parse_row
from adg_plugin.data.sources import Record
from adg_plugin.errors import ConfigError
from adg_plugin.store import Rejection as StoredRejection

END = frozenset({2})
NO_LIMIT = 10**6
LIMIT_20 = PromptLimit.of(ADGConfig(max_prompt_tokens=20))


def labels(*runs):
    """Return labels of runs such as (-100, 4): a value and how often, or a list of tokens."""
    parts = [np.full(run[1], run[0]) if isinstance(run, tuple) else np.array(run) for run in runs]
    return np.concatenate(parts).astype(np.int32)


@pytest.mark.parametrize(
    ("given_labels", "start"),
    [
        (labels((-100, 5), [7, 8, 2]), 5),  # alpaca, a single turn
        (labels((-100, 5), [7, 8, 2], (-100, 6), [9, 2], (-100, 1)), 14),  # the last of two answers
        (labels((-100, 5), [7, 8], (-100, 1), [2]), 5),  # the template puts a line break before the end token
        (labels((-100, 3), [7, 2], (-100, 3), [9, 2]), 8),  # a question of one token between two answers
        (labels((-100, 5), [7], (-100, 4), [2]), 10),  # too far for the end token of that turn
        (labels([7, 8, 2]), 0),  # train_on_inputs
        (labels((-100, 4)), None),
    ],
)
def test_the_answer_begins_where_the_last_trained_run_does(given_labels, start):
    assert answer_start(given_labels, END) == start


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), min_size=1, max_size=6))
def test_the_frame_is_what_all_prompts_begin_and_end_with(prompts):
    head, tail = frame(np.array(p, np.int32) for p in prompts)
    lengths = range(min(map(len, prompts)) + 1)
    assert head == max(n for n in lengths if len({tuple(p[:n]) for p in prompts}) == 1)
    assert tail == max(n for n in lengths if len({tuple(p[len(p) - n :]) for p in prompts}) == 1)


def test_rows_are_known_by_the_tokens_that_training_keeps():
    rows = Dataset.from_dict(
        {"input_ids": [[1, 2, 3], [1, 2], [1, 2, 3, 4]], "labels": [[1, 2, 3], [1, 2], [1, 2, 3, 4]]}
    )
    one, two, three = row_digests(rows, 3)
    assert one == three != two
    assert row_digests(rows.select([2, 0]), NO_LIMIT) == [
        row_digests(rows, NO_LIMIT)[2],
        row_digests(rows, NO_LIMIT)[0],
    ]


def training(**changes):
    values = {
        "limit": PromptLimit.of(ADGConfig(), vocabulary=260),
        "recipe": b"r",
        "reference_responses": ReferenceResponses(tiny_tokenizer(), 0),
        "tokenizer": tiny_tokenizer(),
        "end_tokens": END,
        "sequence_len": 512,
        "template_kwargs": {},
        **changes,
    }
    return Training(**values)


def source(rows, kind="alpaca", template=None, answers="output", raw=True, render=None):
    """Return a source as Axolotl would tokenise it: the prompt masked, then the answer and its end."""
    tokenizer = tiny_tokenizer()
    render = render or PromptRenderer(tokenizer, "alpaca", None)
    tokens, masked = [], []
    for n, row in enumerate(rows):
        shown = render.render(parse_row(Record(row, f"x:{n}", SPEC)))
        answer = [*tokenizer(row[answers])["input_ids"], 2]
        tokens.append([*shown.token_ids.tolist(), *answer])
        masked.append([-100] * len(shown.token_ids) + answer)
    tokenised = Dataset.from_dict({"input_ids": tokens, "labels": masked})
    return SimpleNamespace(
        number=0,
        path="x",
        kind=kind,
        columns={},
        chat_template=template,
        formats=None,
        raw=Dataset.from_list(rows if raw else rows[1:]),
        tokenised=tokenised,
    )


SPEC = ADGConfig.parse({"datasets": ["x"]}).datasets[0]
ROWS = [{"id": f"r{n}", "instruction": f"Say {n} words", "output": "a b c"} for n in range(5)]


def staged(sources, filters=None, **changes):
    ids = {}
    wanted = [d for s in sources for d in row_digests(s.tokenised, 512)]
    return list(stage(sources, wanted, training(**changes), ids, filters)), ids


def test_prompts_ids_and_spans_are_those_of_adg_select():
    rows, ids = staged([source(ROWS)])
    expected = [
        PromptRenderer(tiny_tokenizer(), "alpaca", None).render(parse_row(Record(r, "x:1", SPEC))) for r in ROWS
    ]
    assert [row.prompt.id for row in rows] == [row["id"] for row in ROWS] == list(ids.values())
    assert [row.prompt.token_ids.tolist() for row in rows] == [e.token_ids.tolist() for e in expected]
    assert [row.prompt.span for row in rows] == [e.span for e in expected]
    assert rows[0].reference == "a b c"
    assert rows[0].where == "x:1"


def test_without_a_known_template_the_frame_is_left_out_of_the_instruction():
    rows, _ = staged([source(ROWS, kind="my_own.format")])
    known, _ = staged([source(ROWS)])
    texts = [tiny_tokenizer().decode(r.prompt.token_ids[slice(*r.prompt.span)]) for r in rows]
    assert texts == ["0", "1", "2", "3", "4"]  # `Say ` and ` words` are in every row
    assert [r.prompt.token_ids.tolist() for r in rows] == [r.prompt.token_ids.tolist() for r in known]


def test_rows_whose_raw_rows_are_unknown_are_named_by_their_tokens():
    rows, ids = staged([source(ROWS, raw=False)])
    assert [row.prompt.id for row in rows] == [f"t{digest.hex()}" for digest in ids]
    # Other methods than ADG look at the answer: here it is what is trained on.
    assert [row.reference.strip() for row in rows] == [row["output"] for row in ROWS]


def test_equal_rows_come_once_and_an_id_twice_gets_another():
    other = [{**ROWS[0], "instruction": "Another question"}]
    rows, ids = staged([source(ROWS + ROWS[:1]), source(other)])
    assert [row.prompt.id for row in rows[:5]] == [row["id"] for row in ROWS]
    assert rows[5].prompt.id == f"t{list(ids)[5].hex()}"
    assert len(rows) == len(ids) == 6


def test_of_equal_rows_the_first_gives_the_id():
    rows, _ = staged([source([ROWS[0], {**ROWS[0], "id": "later"}])])
    assert [row.prompt.id for row in rows] == [ROWS[0]["id"]]


@pytest.mark.parametrize(
    ("changes", "reason", "detail"),
    [
        (
            {"limit": PromptLimit.of(ADGConfig(max_prompt_tokens=20))},
            "prompt_too_long",
            "max_prompt_tokens is 20: raise it",
        ),
        (
            {"limit": PromptLimit.of(ADGConfig(), vocabulary=100)},
            "unknown_token",
            "and the model has embeddings for 100 tokens",
        ),
    ],
)
def test_prompts_that_cannot_be_asked_are_rejected_with_the_reason(changes, reason, detail):
    rows, ids = staged([source(ROWS)], **changes)
    assert {row.reason for row in rows} == {reason}
    assert all(detail in row.detail for row in rows)
    assert len(ids) == 5


def test_nothing_trained_and_everything_trained_are_rejected():
    all_masked = source(ROWS[:1])
    all_masked.tokenised = all_masked.tokenised.map(lambda row: {"labels": [-100] * len(row["labels"])})
    all_trained = source(ROWS[1:2])
    all_trained.tokenised = all_trained.tokenised.map(lambda row: {"labels": row["input_ids"]})
    rows, _ = staged([all_masked, all_trained])
    assert [(row.reason, row.detail) for row in rows] == [
        ("no_trained_answer", "nothing of the row is trained on"),
        ("no_trained_answer", "all of the row is trained on"),
    ]


def test_a_backbone_with_other_tokens_gets_prompts_of_its_own():
    own = PromptRenderer(tiny_tokenizer(), "chat", None)
    rows, _ = staged([source(ROWS)], other_tokens=own)
    assert rows[0].text == "<|im_start|>user\nSay 0 words<|im_end|>\n<|im_start|>assistant\n"
    rejected, _ = staged([source(ROWS, raw=False)], other_tokens=own)
    assert {row.reason for row in rejected} == {"template_error"}


def test_flags_within_a_message_are_refused_by_row_and_name():
    flagged = source(ROWS[:1])
    turns = [{"role": "assistant", "content": [{"text": "a", "train": False}]}]
    flagged.raw = Dataset.from_list([{"messages": turns}])
    with pytest.raises(ConfigError, match=r"^x:1: a part of `content` has `train`"):
        staged([flagged])


def test_filters_look_at_the_rows_that_training_would_get():
    rows = [{**row, "output": "a b c " * n} for n, row in enumerate(ROWS, 1)]
    rows += [{**ROWS[0], "id": "twin", "instruction": "say 0 WORDS."}]
    filters = RowFilters(Filters(max_answer_words=12, near_duplicates=0.9))
    found, ids = staged([source(rows)], filters=filters)
    rejected = {row.id: (row.reason, row.detail) for row in found if isinstance(row, StoredRejection)}
    assert rejected == {
        "r4": ("too_many_answer_words", "15 words in the answer, filters.max_answer_words is 12"),
        "twin": ("near_duplicate", "1 like 'r0', filters.near_duplicates is 0.9"),
    }
    assert [row.prompt.id for row in found if not isinstance(row, StoredRejection)] == ["r0", "r1", "r2", "r3"]
    assert list(ids.values()) == ["r0", "r1", "r2", "r3", "r4", "twin"]  # rejected rows are of the pool, too


def test_filters_that_cannot_see_a_row_s_text_are_refused_by_name():
    filters = RowFilters(Filters(min_words=2, languages=("en", "es")))
    with pytest.raises(ConfigError) as caught:
        staged([source(ROWS, raw=False)], filters=filters)
    assert str(caught.value) == (
        "adg.filters.min_words is 2, adg.filters.languages is [en, es], but what the instruction of x:1 is cannot be "
        "told: leave adg.filters out, or write the rows as alpaca or chat_template"
    )
    for unseen in (Filters(), Filters(underspecified=True)):  # it looks at the answers
        assert len(staged([source(ROWS, raw=False)], filters=RowFilters(unseen))[0]) == len(ROWS)


def test_agreement_of_rows_whose_own_answer_is_unknown_is_refused_by_name():
    filters = RowFilters(Filters(drop_least_agreeing=0.1))
    asked = {"filters": filters, "reference_responses": ReferenceResponses(tiny_tokenizer(), 8)}
    with pytest.raises(ConfigError, match=r"adg\.filters\.drop_least_agreeing is 0\.1, but what the instruction of"):
        staged([source(ROWS, raw=False)], **asked)
    found, _ = staged([source([{**row, "output": "a b c"} for row in ROWS])], **asked)
    assert all(len(row.prompt.reference_ids) for row in found)
