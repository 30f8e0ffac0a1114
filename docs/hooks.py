"""What the site shows beside docs/*.md, made when it is built: the changelog and the recipes, as they are.

Pages link to such files by their place in the repository (`../CHANGELOG.md`), which a code host understands; in the
site these links lead to the pages made here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_PAGES = {"CHANGELOG.md": "changelog.md", "README.md": "index.md", "recipes": "recipes.md"}


def on_files(files: Files, config: Any) -> Files:
    """Return the files of the site with the pages that are made of others."""
    root = Path(config.config_file_path).parent
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=changelog))
    files.append(File.generated(config, "recipes.md", content=_recipes_page(root / "recipes")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page whose links out of docs/ lead to pages of the site."""
    return re.sub(r"\]\(\.\./([^)#]+)\)", lambda link: f"]({_page_of(link[1])})", markdown)


def _page_of(path: str) -> str:
    if path.startswith("recipes/"):
        return f"recipes.md#{_anchor(path.removeprefix('recipes/').removesuffix('.yaml'))}"
    return _PAGES.get(path, f"../{path}")  # of any other, `mkdocs build --strict` says that it is missing


def _anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _recipes_page(folder: Path) -> str:
    parts = [
        "# Recipes",
        "",
        "They come with the package: `adg recipes ls` lists them, `adg recipes cp NAME` copies one here.",
        "",
    ]
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        name = path.relative_to(folder).with_suffix("").as_posix()
        group, _, rest = name.rpartition("/")
        if group and f"## {group} {{" not in "\n".join(parts):
            parts += [f"## {group} {{ #{_anchor(group)} }}", ""]
        text = path.read_text(encoding="utf-8").rstrip()
        parts += [f"##{'#' if group else ''} {rest} {{ #{_anchor(name)} }}", "", "```yaml", text, "```", ""]
    return "\n".join(parts)
