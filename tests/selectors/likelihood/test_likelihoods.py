"""Likelihoods in the run folder: measured once, kept through crashes, never stale; and the two scores made of them."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer
from tiny_runs import BAD, break_altogether, pool_rows, save, spoil

from adg_plugin.config.schema import ADGConfig
from adg_plugin.engines.judges import likelihood
from adg_plugin.engines.models.loading import Source
from adg_plugin.errors import ModelError, NumericalError, OutOfMemoryError
from adg_plugin.pipeline.run import prepare
from adg_plugin.pipeline.stage import Pool
from adg_plugin.selectors.likelihood import ifd as ifd_module
from adg_plugin.selectors.likelihood import superfiltering as superfiltering_module
from adg_plugin.selectors.likelihood.ifd import ifd
from adg_plugin.selectors.likelihood.measure import likelihoods_of, measure, plain_prompt
from adg_plugin.selectors.likelihood.superfiltering import superfiltering
from adg_plugin.store import RunFolder, keys
from adg_plugin.store.measures import Measures, read_measures

tiny = pytest.mark.tiny

ROWS = [
    {"id": "b", "instruction": "Add the numbers.", "input": "2 and 3", "output": "That is 5."},
    {"id": "a", "instruction": "Name a sea.", "output": "The Baltic é"},
    {"id": "c", "instruction": "Say no more.", "input": "", "output": "  "},
    {"id": "d", "instruction": "One letter.", "output": "x"},
]


class Asking:
    """A run folder of a pool, and everything that `measure` wants."""

    def __init__(self, folder: Path, model: Path, rows, **settings):
        self.folder = folder
        self.config = ADGConfig(model=str(model), device="cpu", num_samples=3, max_new_tokens=6, **settings)
        self.source = Source.configured(self.config)
        self.rows = rows

    def stage(self, run):
        recipe = keys.sampling_fingerprint(self.config, model=self.source.identity, eos_ids=self.source.eos_ids)
        prepare(run, Pool.of(self.config, self.rows), self.config, self.source, recipe, own=False)

    def measure(self, method="ifd", **settings):
        with RunFolder.open(self.folder) as run:
            self.stage(run)
            return measure(run, self.config.updated(**settings), self.source, method=method, show=False)

    def found(self, method="ifd", **settings):
        run, config = RunFolder.read(self.folder), self.config.updated(**settings)
        table = likelihoods_of(run, config, self.source, method=method)
        assert list(table.ids) == sorted(table.ids)
        columns = (table.with_prompt.tolist(), table.alone.tolist(), table.tokens.tolist(), table.reasons.tolist())
        return dict(zip(table.ids, zip(*columns, strict=True), strict=True))

    def staged(self):
        return {row.prompt.id: row for row in RunFolder.read(self.folder).staged_rows({r["id"] for r in self.rows})}

    def parts(self, method="ifd"):
        return sorted((self.folder / "measures" / method).glob("*.parquet"))


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    return save(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    tiny_model("gpt2", seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def seen(monkeypatch):
    """Ids of the rows that reach a model, in order."""
    ids: list[str] = []
    run = likelihood.Likelihoods.run

    def spied(self, rows):
        def noted():
            for row in rows:
                ids.append(row.id)
                yield row

        return run(self, noted())

    monkeypatch.setattr(likelihood.Likelihoods, "run", spied)
    return ids


def mean_nll(model, before, answer, skip=0):
    """Of one sequence by itself; the first `skip` tokens of the answer are not counted."""
    before, answer = [*before, *answer[:skip]], answer[skip:]
    ids = torch.tensor([[*map(int, before), *map(int, answer)]])
    with torch.no_grad():
        log_p = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    return -float(log_p[len(before) - 1 : -1].gather(1, ids[0, len(before) :, None]).mean())


def tokens(text):
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


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
def test_what_is_measured_is_not_measured_again_and_needs_no_model(tmp_path, backbone):
    asking = Asking(tmp_path / "run", backbone, pool_rows(12))
    asking.measure()
    before, found = [part.read_bytes() for part in asking.parts()], asking.found()
    asking.source = replace(asking.source, load=lambda: pytest.fail("there is nothing to measure"))
    assert asking.measure() == {"rows": 0, "total": 12, "cut": 0}
    assert [part.read_bytes() for part in asking.parts()] == before
    assert asking.found() == found


@tiny
def test_a_killed_run_goes_on_with_the_rows_that_no_part_holds(tmp_path, backbone, seen, monkeypatch):
    asking = Asking(tmp_path / "run", backbone, pool_rows(30))
    whole = Asking(tmp_path / "whole", backbone, pool_rows(30))
    whole.measure()
    with RunFolder.open(asking.folder) as run:
        asking.stage(run)
    with monkeypatch.context() as patched:
        patched.setattr(Measures, "__exit__", lambda *_: None)  # no farewell: what is buffered is lost
        begin = Measures.open.__func__
        patched.setattr(Measures, "open", classmethod(lambda c, r, n: begin(c, r, n, rows_per_part=7, flush_s=1e9)))
        append = Measures.append

        def dying(self, result):
            if len(self.completed) == 17:
                raise KeyboardInterrupt
            append(self, result)

        patched.setattr(Measures, "append", dying)
        with pytest.raises(KeyboardInterrupt):
            asking.measure()
    assert len(asking.parts()) == 2
    (asking.folder / "measures" / "ifd" / "part-000002-0.parquet.adg-tmp").write_bytes(b"half a part")
    done = {id for id, row in asking.found().items() if row[3] is None}
    assert len(done) == 14
    seen.clear()
    assert asking.measure()["rows"] == 16
    assert sorted(seen) == sorted(set(whole.found()) - done)
    assert not list(asking.folder.rglob("*.adg-tmp"))
    for id, row in asking.found().items():
        assert row[:2] == pytest.approx(whole.found()[id][:2], rel=2e-5)


@tiny
def test_a_changed_answer_or_prompt_is_measured_anew_and_the_old_value_is_not_used(tmp_path, backbone, seen):
    rows = pool_rows(6)
    asking = Asking(tmp_path / "run", backbone, rows)
    asking.measure()
    old = asking.found()
    asking.rows = [
        {**rows[0], "output": "another answer"},
        {**rows[1], "instruction": "Write nothing."},
        *rows[2:],
    ]
    seen.clear()
    with RunFolder.open(asking.folder) as run:
        asking.stage(run)
    assert [row[3] for row in asking.found().values()] == ["not_measured"] * 2 + [None] * 4
    assert asking.measure()["rows"] == 2
    assert seen == ["row-0", "row-1"]
    new = asking.found()
    assert all(new[id] != old[id] for id in seen)
    assert all(new[id] == old[id] for id in set(old) - set(seen))
    asking.rows = rows  # and back: both are kept
    assert asking.measure() == {"rows": 0, "total": 6, "cut": 0}
    assert asking.found() == old


@tiny
def test_another_model_type_or_length_never_takes_the_values_of_the_first(tmp_path, backbone, small):
    rows = pool_rows(4)
    first = Asking(tmp_path / "run", backbone, rows)
    first.measure()
    old = first.found()
    for other in (
        Asking(tmp_path / "run", save(tmp_path / "other", seed=9), rows),
        Asking(tmp_path / "run", backbone, rows, dtype="bfloat16"),
        Asking(tmp_path / "run", save(tmp_path / "short", max_position_embeddings=512), rows),
    ):
        assert {row[3] for row in other.found().values()} == {"not_measured"}
        assert other.measure()["rows"] == 4
        assert {row[3] for row in other.found().values()} == {None}
    assert first.measure()["rows"] == 0
    assert first.found() == old


@tiny
def test_a_damaged_part_is_set_aside_and_its_rows_are_measured_again(tmp_path, backbone, seen, caplog):
    asking = Asking(tmp_path / "run", backbone, pool_rows(5))
    asking.measure()
    asking.rows = pool_rows(9)
    asking.measure()
    good = asking.found()
    [victim, _] = asking.parts()
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert sum(row[3] == "not_measured" for row in asking.found().values()) == 5
    assert victim.exists()  # a reader changes nothing
    seen.clear()
    asking.measure()
    assert sorted(seen) == [f"row-{n}" for n in range(5)]
    assert f"{victim} is damaged" in caplog.text
    assert (victim.parent / "damaged" / victim.name).read_bytes() == data
    for id, row in asking.found().items():
        assert row[:2] == pytest.approx(good[id][:2], rel=2e-5)


@tiny
def test_rows_that_are_not_finite_are_rejected_and_counted(tmp_path):
    rows = pool_rows(9)
    rows[2]["output"] = f"an answer {BAD}"
    asking = Asking(tmp_path / "run", save(tmp_path / "model", spoil), rows)
    asking.measure()
    found = asking.found()
    assert {id: row[3] for id, row in found.items() if row[3]} == {"row-2": "non_finite_states"}
    assert np.isnan(found["row-2"][:2]).all()
    assert asking.measure()["rows"] == 0


@tiny
def test_a_broken_model_is_an_error(tmp_path):
    asking = Asking(tmp_path / "run", save(tmp_path / "model", break_altogether), pool_rows(9))
    with pytest.raises(NumericalError) as caught:
        asking.measure()
    assert str(caught.value) == (
        "9 of 9 rows gave NaN or infinity: set dtype to bfloat16 or float32 (float16 overflows in many models), or "
        "check the model's weights"
    )


def without_memory_for(monkeypatch, is_too_much):
    mean_nll = likelihood._mean_nll

    def limited(model, sequences):
        if any(is_too_much(sequence) for sequence in sequences):
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return mean_nll(model, sequences)

    monkeypatch.setattr(likelihood, "_mean_nll", limited)


@tiny
def test_a_row_without_memory_is_left_for_the_next_run(tmp_path, backbone, monkeypatch):
    rows = pool_rows(6)
    rows[3]["output"] = "a long answer " * 9
    asking = Asking(tmp_path / "run", backbone, rows)
    with monkeypatch.context() as patched:
        without_memory_for(patched, lambda sequence: sequence.targets > 100)
        assert asking.measure()["skipped"] == {"row-3": "out_of_memory"}
    assert {id: row[3] for id, row in asking.found().items() if row[3]} == {"row-3": "not_measured"}
    stats = asking.measure()
    assert (stats["rows"], "skipped" in stats) == (1, False)


@tiny
def test_without_memory_for_any_row_it_is_an_error(tmp_path, backbone, monkeypatch):
    asking = Asking(tmp_path / "run", backbone, pool_rows(6))
    without_memory_for(monkeypatch, lambda sequence: True)
    with pytest.raises(OutOfMemoryError) as caught:
        asking.measure()
    assert str(caught.value) == (
        "out of memory on 3 rows at batch size 1: free the device or lower max_prompt_tokens. What is measured is kept"
    )


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


@tiny
def test_many_small_parts_become_one(tmp_path, backbone, monkeypatch):
    rows = pool_rows(70)
    asking = Asking(tmp_path / "run", backbone, rows)
    begin = Measures.open.__func__
    with monkeypatch.context() as patched:
        patched.setattr(Measures, "open", classmethod(lambda c, r, n: begin(c, r, n, rows_per_part=1)))
        asking.measure()
    assert len(asking.parts()) == 1
    assert {row[3] for row in asking.found().values()} == {None}
    with RunFolder.open(asking.folder) as run, Measures.open(run, "ifd") as measures:
        assert len(measures.completed) == 70
        assert measures.damage == []
        one = next(iter(measures.completed))
        table = read_measures(run, "ifd", [one, b"\1" * 16, one])
    assert table["id"].is_null().to_pylist() == [False, True, False]


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


means = st.lists(st.tuples(st.floats(1e-3, 12), st.floats(1e-3, 12)), min_size=1, max_size=30)


@given(means)
def test_both_scores_are_their_formulas_and_rows_above_1_may_not_be_chosen(pairs):
    with_prompt, alone = np.array(pairs).T
    scores, kept = ifd(with_prompt, alone)
    np.testing.assert_allclose(scores, [p / q for p, q in pairs])
    assert kept.tolist() == (scores <= 1).tolist()
    scores, kept = superfiltering(with_prompt, alone)
    np.testing.assert_allclose(scores, [np.exp(p) / np.exp(q) for p, q in pairs])
    assert kept.tolist() == (scores < 1).tolist()


def test_the_two_scores_do_not_rank_alike():
    with_prompt, alone = np.array([0.2, 3.5]), np.array([0.3, 4.0])
    assert ifd(with_prompt, alone)[0] == pytest.approx([0.6667, 0.875], abs=1e-4)
    assert superfiltering(with_prompt, alone)[0] == pytest.approx([0.9048, 0.6065], abs=1e-4)


def test_rows_without_means_or_without_surprise_are_not_chosen():
    with_prompt, alone = np.array([np.nan, 0.0, 1.0, 2.0, 2.0]), np.array([np.nan, 0.0, 0.0, 2.0, 1.0])
    scores, kept = ifd(with_prompt, alone)
    np.testing.assert_array_equal(scores, [np.nan, np.nan, np.inf, 1, 2])
    assert kept.tolist() == [False, False, False, True, False]
    scores, kept = superfiltering(with_prompt, alone)
    assert np.isnan(scores[0])
    assert not kept.any()
    assert superfiltering(np.array([1e4]), np.array([1.0]))[0] == np.inf


def test_a_dropped_row_is_told_with_its_value():
    assert (ifd_module.ABOVE_1, superfiltering_module.NOT_BELOW_1) == (
        "ifd_above_1",
        "superfiltering_not_below_1",
    )
    assert ifd_module.detail(1.25) == "IFD is 1.2500, above 1: the prompt makes the answer harder to predict"
    assert ifd_module.detail(float("nan")) == (
        "IFD cannot be computed: the answer is certain with the prompt and without it"
    )
    assert superfiltering_module.detail(1.5) == (
        "the ratio of perplexities is 1.5000, not below 1: the prompt does not help to predict the answer"
    )


def test_importing_them_loads_no_torch():
    code = (
        "import sys, adg_plugin.selectors.likelihood.measure\n"
        "import adg_plugin.selectors.likelihood.ifd, adg_plugin.selectors.likelihood.superfiltering\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.model
def test_the_demo_model_on_eight_rows_of_the_demo_pool(tmp_path):
    config = ADGConfig(model="demo", device="cpu", dtype="float32", datasets=[{"path": "demo"}])
    source = Source.configured(config)
    records = [record.data for record, _ in zip(Pool.of(config).records, range(8), strict=False)]
    asking = Asking(tmp_path / "run", Path("demo"), records, dtype="float32")
    asking.config, asking.source = config.updated(datasets=[]), source
    backbone = source.load()
    asking.source = replace(source, load=lambda: backbone)
    asking.measure()
    found, staged = asking.found(), list(RunFolder.read(asking.folder).staged_rows(set(asking.found())))
    assert len(staged) == 8
    opening = source.tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    for row in staged:
        answer = source.tokenizer(row.reference, add_special_tokens=False)["input_ids"]
        with_prompt, alone, count, _ = found[row.prompt.id]
        assert count == len(answer)
        assert with_prompt == pytest.approx(mean_nll(backbone.model, row.prompt.token_ids, answer), rel=1e-4)
        assert alone == pytest.approx(mean_nll(backbone.model, opening, answer), rel=1e-4)
