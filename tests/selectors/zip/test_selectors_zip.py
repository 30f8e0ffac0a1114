"""ZIP against a slow transcription that compresses the whole choice anew for every candidate."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_zip import ratio, slow_zip

from adg_plugin.selectors.zip import greedy as zip_ratio
from adg_plugin.selectors.zip import selector as zip_steps
from adg_plugin.selectors.zip.greedy import Stages, _Joined, zip_order

TEXT = "the a sum of river proof apple integer blue seven compress list Paris energy cell write code why short"
WORDS = TEXT.split()


def sentences(rows, *, seed=0, words=(3, 60)):
    """Return rows of text that share words and now and then whole phrases."""
    rng = random.Random(seed)
    phrase = " ".join(rng.choices(WORDS, k=30))
    texts = []
    for _ in range(rows):
        text = " ".join(rng.choices(WORDS, k=rng.randint(*words))) + f" {rng.getrandbits(40):x}"
        texts.append((phrase + text if rng.random() < 0.3 else text).encode())
    return texts


def noise(rows, *, seed=0, size=400):
    rng = random.Random(seed)
    return [rng.randbytes(size + 7 * row) for row in range(rows)]


def order_by(stages, texts, budget, **options):
    return zip_order(texts, budget, stages=stages, **options)


def check(texts, budget, **stages):
    order, ratios = order_by(Stages(**stages), texts, budget)
    expected, expected_ratios = slow_zip(texts, budget, **stages)
    assert order.tolist() == expected
    assert ratios.tolist() == expected_ratios
    assert order.dtype == np.int64
    assert ratios.dtype == np.float64


@pytest.mark.parametrize(
    ("pool", "short_list", "per_step"),
    [(1000, 200, 100), (20, 10, 5), (7, 7, 3), (30, 4, 9), (1, 1, 1), (60, 60, 1)],
)
@pytest.mark.parametrize("budget", [1, 13, 59, 60])
def test_the_choice_agrees_with_a_slow_one(pool, short_list, per_step, budget):
    check(sentences(60), budget, pool=pool, short_list=short_list, per_step=per_step)


def test_the_choice_agrees_beyond_the_window_and_a_full_block():
    # 120 rows of 1 to 3 kB: more than four windows of 32 KiB, and several blocks of 16,383 symbols.
    texts = [text * 4 for text in sentences(60, seed=1, words=(40, 120))] + noise(60, seed=1, size=700)
    check(texts, 110, pool=25, short_list=12, per_step=6)


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([b"a" * 300, b"a" * 301])), max_size=14),
    st.integers(0, 16),
    st.tuples(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16)),
)
def test_any_bytes_and_ties_agree_with_the_slow_choice(texts, budget, stages):
    check(texts, budget, **dict(zip(("pool", "short_list", "per_step"), stages, strict=True)))


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(0, 12_000))
def test_a_copied_compressor_gives_as_many_bytes_as_zlib_at_once(seed, pieces, size):
    rng = random.Random(seed)
    kinds = [
        lambda n: rng.randbytes(n),
        lambda n: b"x" * n,
        lambda n: " ".join(rng.choices(WORDS, k=n // 5 + 1)).encode(),
    ]
    texts = [rng.choice(kinds)(rng.randint(1, size + 1)) for _ in range(pieces)]
    joined = _Joined()
    for count, text in enumerate(texts, start=1):
        assert joined.ratio_with(text) == ratio(texts[:count])
        joined.add(text)
    assert joined.ratio() == ratio(texts)


@given(st.integers(0, 40), st.integers(0, 45), st.integers(1, 12), st.integers(1, 12))
def test_the_budget_is_spent_exactly_and_no_row_is_taken_twice(rows, budget, short_list, per_step):
    order, ratios = order_by(Stages(20, short_list, per_step), sentences(rows), budget)
    assert len(order) == len(ratios) == min(budget, rows)
    assert len(set(order.tolist())) == len(order)
    assert set(order.tolist()) <= set(range(rows))


def test_a_larger_budget_begins_with_the_same_steps():
    texts = sentences(80)
    small, _ = order_by(Stages(40, 10, 5), texts, 20)
    large, _ = order_by(Stages(40, 10, 5), texts, 60)
    assert large[:20].tolist() == small.tolist()


@pytest.mark.parametrize("shuffled", range(3))
def test_the_order_of_distinct_rows_plays_no_part(shuffled):
    texts = noise(50)
    other = random.Random(shuffled).sample(texts, len(texts))
    one, one_ratios = order_by(Stages(30, 12, 5), texts, 20)
    two, two_ratios = order_by(Stages(30, 12, 5), other, 20)
    assert [texts[i] for i in one] == [other[i] for i in two]
    assert one_ratios.tolist() == two_ratios.tolist()


@pytest.mark.parametrize("stages", [Stages(), Stages(60, 10, 5)])
def test_copies_are_chosen_last(stages):
    texts = [text for text in noise(30, size=200) for _ in range(2)]
    order, ratios = order_by(stages, texts, 60)
    assert sorted(row // 2 for row in order[:30].tolist()) == list(range(30))
    assert ratios[-1] > 1.5
    assert order_by(stages, texts, 30)[1][-1] < 1


def test_the_third_stage_does_not_see_earlier_steps():
    # All three are on the short list each time. Row 1 is a copy of row 0, but no more redundant by itself.
    first, other = random.Random(5).randbytes(80), random.Random(6).randbytes(200)
    texts = [first, first, other]
    assert order_by(Stages(per_step=1), texts, 2)[0].tolist() == [0, 1]
    assert order_by(Stages(per_step=2), texts, 2)[0].tolist() == [0, 2]
    assert order_by(Stages(per_step=1, short_list=1), texts, 2)[0].tolist() == [0, 2]


def test_candidates_that_a_step_leaves_stay_in():
    # Were the rest of a short list dropped, one row would be all that is ever chosen.
    order, _ = order_by(Stages(12, 12, 1), noise(12), 12)
    assert sorted(order.tolist()) == list(range(12))


def test_a_score_that_is_not_computed_again_keeps_its_value():
    # Row 1 has the lowest score left as long as nobody looks whether it repeats row 0.
    first, other = random.Random(5).randbytes(80), random.Random(6).randbytes(500)
    texts = [first, first, other]
    assert order_by(Stages(1, 1, 1), texts, 2)[0].tolist() == [0, 1]
    assert order_by(Stages(2, 1, 1), texts, 2)[0].tolist() == [0, 2]


def test_a_step_has_the_sizes_of_the_paper_and_is_announced(monkeypatch):
    """Of 10,050 rows, 10,000 are scored again; of 200 of them, 100 are taken, and 50 where the budget ends."""
    asked, steps = [], []
    ratios_with = zip_ratio._ratios_with

    def counted(joined, texts, rows, threads):
        asked.append(len(rows))
        return ratios_with(joined, texts, rows, threads)

    monkeypatch.setattr(zip_ratio, "_ratios_with", counted)
    order, _ = zip_order([f"row {n}".encode() for n in range(10_050)], 150, advance=steps.append)
    assert len(set(order.tolist())) == 150
    assert [step.order.tolist() for step in steps] == [order[:100].tolist()]  # of whole steps only
    first, second = [10_000, *range(200, 100, -1)], [9_950, *range(200, 150, -1)]
    assert asked == [10_050, *first, *second]


@pytest.mark.parametrize("budget", [5, 7, 20, 33, 60])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_it_goes_on_from_whole_steps_as_if_it_had_not_stopped(after, budget):
    texts, steps = sentences(60), []
    order_by(Stages(40, 10, 5), texts, 60, advance=steps.append)
    order, ratios = order_by(Stages(40, 10, 5), texts, budget, begun=steps[after])
    expected, expected_ratios = order_by(Stages(40, 10, 5), texts, budget)
    assert order.tolist() == expected.tolist()
    assert ratios.tolist() == expected_ratios.tolist()


def test_steps_are_kept_for_the_same_texts_alone_and_a_damaged_file_begins_anew(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(zip_steps, "_EVERY_S", 0.0)
    texts, steps = sentences(60), []

    def cut_off():
        with zip_steps.KeptSteps(tmp_path / "zip", texts) as kept:
            assert kept.begun is None

            def stopped(one):
                steps.append(one)
                kept.add(one)
                if len(steps) == 3:
                    raise KeyboardInterrupt

            order_by(Stages(40, 10, 5), texts, 60, advance=stopped)

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    with zip_steps.KeptSteps(tmp_path / "zip", texts) as kept:
        assert kept.begun is not None
        assert kept.begun.order.tolist() == steps[-1].order.tolist()
        assert kept.begun.scores.tolist() == steps[-1].scores.tolist()
    for others in ([*texts[:-1], b"another"], texts[:-1], texts[::-1]):
        assert zip_steps.KeptSteps(tmp_path / "zip", others).begun is None
    (file,) = (tmp_path / "zip").iterdir()  # the older ones are gone
    whole = file.read_bytes()
    flipped = bytes([*whole[:6], whole[6] ^ 1, *whole[7:]])  # says that it is encrypted
    for damage in (whole[:-40], b"", whole.replace(b"order", b"ordre"), flipped):
        file.write_bytes(damage)
        assert zip_steps.KeptSteps(tmp_path / "zip", texts).begun is None
        assert f"{file} is damaged (its checksum differs): zip does without" in caplog.text
        caplog.clear()


def kept_of(folder, texts, monkeypatch, steps):
    """Write each of the steps to a folder as a process does that is killed then: nothing ends well."""
    monkeypatch.setattr(zip_steps, "_EVERY_S", 0.0)
    kept = zip_steps.KeptSteps(folder, texts)
    for one in steps:
        kept.add(one)


def test_a_killed_process_leaves_its_steps_and_of_several_the_most_count(tmp_path, monkeypatch):
    texts, steps = sentences(60), []
    order_by(Stages(40, 10, 5), texts, 60, advance=steps.append)
    kept_of(tmp_path / "a", texts, monkeypatch, steps[:4])
    kept_of(tmp_path / "b", texts, monkeypatch, steps[:2])
    for short in (tmp_path / "b").iterdir():  # as from an older copy of the folder
        short.rename(tmp_path / "a" / short.name)
    (tmp_path / "a" / "steps-0.npz.adg-tmp").write_bytes(b"half")
    again = zip_steps.KeptSteps(tmp_path / "a", texts)
    assert again.begun.order.tolist() == steps[3].order.tolist()
    again.add(steps[4])
    assert len(list((tmp_path / "a").iterdir())) == 1
    monkeypatch.setattr(zip_steps, "_EVERY_S", 1e9)
    late = zip_steps.KeptSteps(tmp_path / "c", texts)
    late.add(steps[0])
    assert not (tmp_path / "c").exists()


def test_steps_that_cannot_be_written_hide_no_error_and_undo_no_choice(tmp_path, caplog):
    texts, steps = sentences(60), []
    order_by(Stages(40, 10, 5), texts, 60, advance=steps.append)
    (tmp_path / "file").write_bytes(b"")
    with zip_steps.KeptSteps(tmp_path / "file" / "zip", texts) as kept:
        kept.add(steps[0])
    assert "the last steps of zip are not kept: cannot write" in caplog.text

    def interrupted():
        with zip_steps.KeptSteps(tmp_path / "file" / "zip", texts) as kept:
            kept.add(steps[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_the_texts_may_number_none():
    order, ratios = zip_order([], 5)
    assert order.tolist() == ratios.tolist() == []


@pytest.mark.parametrize(
    ("texts", "budget", "message"),
    [
        ([b"a", b""], 1, "row 1 has no text: reject it before choosing"),
        ([b"a"], -1, "budget is -1: use 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(texts, budget, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        zip_order(texts, budget)
