"""Which methods compare, with which settings, and what is refused."""

from __future__ import annotations

import pytest

from adg_plugin.config.schema import ADGConfig
from adg_plugin.errors import ConfigError
from adg_plugin.tools.compare.plans import planned, split_methods

CONFIG = ADGConfig(budget=10)


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("adg,random", ["adg", "random"]),
        (" adg , adg:rank ,", ["adg", "adg:rank"]),
        ("adg:weight=0, bins=10,random", ["adg:weight=0,bins=10", "random"]),
        ("superfiltering:small_model=a:b,zip", ["superfiltering:small_model=a:b", "zip"]),
        ("adg:rank,weight=0.2,ifd", ["adg:rank,weight=0.2", "ifd"]),
        ("mig:field_labels=a=b:c,bins=2", ["mig:field_labels=a=b:c,bins=2"]),
        ("", []),
    ],
)
def test_a_list_of_methods_is_split_at_their_names(text, methods):
    assert split_methods(text) == methods


def test_a_method_has_the_shared_settings_and_its_own():
    texts = ["adg", "adg:rank", "adg:score=rank", "adg:weight=0", "adg:weight=0.0", "adg:bins=none,weight=1"]
    plans = planned(CONFIG.updated(bins=4, weight=0.3), [*texts, "random:seed=7", "zip", "zip", "mig:field_quality=q"])
    assert [plan.name for plan in plans] == [
        "adg",
        "adg:rank",
        "adg:weight=0",
        "adg:bins=none,weight=1",
        "random:seed=7",
        "zip",
        "mig:field_quality=q",
    ]
    assert [plan.config.method for plan in plans] == ["adg"] * 4 + ["random", "zip", "mig"]
    rank, drawn = plans[1].config, plans[4].config
    assert (rank.score, rank.weight, rank.bins, rank.budget) == ("rank", 0.3, 4, 10)
    assert plans[3].changes == {"bins": None, "weight": 1.0}
    assert (drawn.seed, drawn.bins) == (7, 4)


METHODS = "'adg', 'random', 'longest', 'ifd', 'superfiltering', 'zip', 'mig' or 'scar'"
SHARED = "all methods share one pool and its answers; use a run folder of its own (--set, --out)"


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ([], "no method is named: use some, such as adg,random,longest,zip,ifd"),
        (["randm"], f"randm: method is 'randm': use {METHODS}; did you mean `random`?"),
        (["adg:wieght=1"], "adg:wieght=1: wieght is not a setting: did you mean `weight`?"),
        (["adg:weight=2"], "adg:weight=2: weight is 2: use a number from 0 to 1"),
        (
            ["adg:best"],
            "adg:best: 'best' is no setting: write METHOD:KEY=VALUE, such as adg:weight=0, or one of raw, rank, "
            "zscore, residual",
        ),
        (["zip:rank"], "zip:rank: 'rank' is no setting: write METHOD:KEY=VALUE, such as adg:weight=0"),
        (["adg:"], "adg:: '' is no setting: write METHOD:KEY=VALUE, such as adg:weight=0, or one of raw, rank, "
         "zscore, residual"),
        (["adg:rank,score=raw"], "adg:rank,score=raw: score is given twice: keep one"),
        (["adg:num_samples=7"], f"adg:num_samples=7: num_samples is 7: {SHARED}"),
        (["adg:seed=1"], f"adg:seed=1: seed is 1: {SHARED}"),
        (["zip:seed=1"], f"zip:seed=1: seed is 1: {SHARED}"),
        (["ifd:dtype=float32"], f"ifd:dtype=float32: dtype is 'float32': {SHARED}"),
        (["random:template=raw"], f"random:template=raw: template is 'raw': {SHARED}"),
        (
            ["zip:budget=5"],
            "zip:budget=5: budget is 5: all methods choose as many rows; use --set budget=5",
        ),
        (
            ["random:weight=0"],
            "random:weight=0: weight is 0: random does not look at it, it looks at seed",
        ),
        (
            ["zip:bins=3"],
            "zip:bins=3: bins is 3: zip does not look at it, it looks at no setting but the budget",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told(methods, said):
    with pytest.raises(ConfigError) as caught:
        planned(CONFIG, methods)
    assert str(caught.value) == f"--methods: {said}"


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as caught:
        planned(CONFIG.updated(filters={"min_agreement": 0.1}), ["adg", "random", "adg:bins=0"])
    (random, bins) = caught.value.problems
    assert random.startswith("random: filters is ")
    assert random.endswith(
        "leave min_agreement, drop_least_agreeing and underspecified out, or use method: adg: random draws no answers"
    )
    assert bins == "adg:bins=0: bins is 0: use a whole number, 1 or more, or leave it out"


def test_every_setting_that_touches_answers_is_refused_for_adg():
    from adg_plugin.store import keys

    for key in (
        *keys._OF_SAMPLING,
        *keys._OF_VECTORS,
        "answers",
        "model",
        "datasets",
        "filters",
        "max_prompt_tokens",
        "truncate",
        "eos_token",
    ):
        with pytest.raises(ConfigError, match="use a run folder of its own"):
            planned(CONFIG, [f"adg:{key}=1"])
