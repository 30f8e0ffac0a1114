from pathlib import Path

import pytest

from adg_plugin.settings import settings_page

ROOT = Path(__file__).parents[1]


def test_the_settings_page_is_that_of_the_schema():
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page(), (
        "run: adg settings > docs/settings.md"
    )


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")]))
def test_every_file_that_a_page_links_to_is_there(page):
    import re

    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing
