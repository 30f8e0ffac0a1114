"""The page of a comparison without a selection."""

from __future__ import annotations

import json

import pytest
from browser import opened
from report_sections import cells, comparison_of

from adg_plugin.errors import StoreError
from adg_plugin.report.gather import gather
from adg_plugin.report.page import page, write_page
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny


def test_a_comparison_alone_has_a_page(chromium, only_compared):
    run = only_compared
    found = gather(run)
    assert found.about["rejected"] == {"duplicate": 1, "no_instruction": 1}
    assert found.about["comparison"]["selection"] is None
    assert found.about["warnings"] == [
        f"{run} holds a comparison and no finished selection: adg select makes one, and its page has both"
    ]
    write_page(found, run / "report.html")
    assert page(found) == page(gather(run))
    with opened(chromium, run / "report.html") as shown:
        assert shown.title() == shown.text_content("h1") == "Comparison of methods: run"
        facts = [text.split("\n") for text in shown.locator("#summary .facts > div").all_inner_texts()]
        links = shown.locator("#contents a").all_text_contents()
        drawn = shown.locator("canvas").count()
        lines = cells(shown, "#comparison .numbers >> nth=0 >>")
        rejected = shown.locator("#rejected summary").all_text_contents()
        assert shown.locator("#rows").count() == 0
    stored = comparison_of(run)
    assert facts[:3] == [["methods compared", "3"], ["pool", "42 rows"], ["rejected", "2"]]
    assert links == ["Methods on this pool", "Rejected rows", "Settings"]
    assert drawn == 1
    assert [line[:2] for line in lines] == [*([name, "10"] for name in stored["names"]), ["the pool", ""]]
    assert rejected == ["duplicate: 1 rows", "no_instruction: 1 rows"]


def test_a_folder_without_a_selection_and_with_a_broken_comparison_says_which_file(only_compared):
    (only_compared / "compare.json").write_text("{}")
    with pytest.raises(StoreError, match="is not complete yet: run adg select on it"):
        gather(only_compared)  # it is of no pool
    digest = RunFolder.read(only_compared).staged_digest()
    (only_compared / "compare.json").write_text(json.dumps({"pool_digest": digest}))
    with pytest.raises(StoreError, match=r"compare\.json has no methods: delete it and run adg compare again"):
        gather(only_compared)
