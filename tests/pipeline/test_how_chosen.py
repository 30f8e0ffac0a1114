"""What a plan says of who chooses."""

from __future__ import annotations

import pytest

from adg_plugin.config.schema import ADGConfig
from adg_plugin.pipeline.plan import how_chosen


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "sampled from demo: 5 answers per row, at most 256 tokens each"),
        ({"load_in_4bit": True}, "sampled from demo in 4-bit: 5 answers per row, at most 256 tokens each"),
        ({"method": "random"}, "chosen by random"),
        ({"method": "ifd", "load_in_4bit": True}, "chosen by ifd, judged by demo in 4-bit"),
        ({"method": "superfiltering"}, "chosen by superfiltering, judged by gpt2"),
        ({"method": "scar", "scar_model": "a/ranker"}, "chosen by scar, judged by a/ranker"),
    ],
)
def test_the_plan_of_a_recipe_says_who_chooses(settings, line):
    assert how_chosen(ADGConfig.parse({"model": "demo", **settings})) == line
