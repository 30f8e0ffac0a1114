"""The recipes that come with the package: found, shown, copied."""

from __future__ import annotations

import difflib
from pathlib import Path

from adg_plugin.errors import ConfigError

_PACKAGE = Path(__file__).parents[1]


def folder() -> Path:
    """Return the folder of the recipes: in the package once installed, next to it in a working tree."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Return the recipes' names, such as `trl/cpu-demo`, sorted."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


def find(name: str) -> Path:
    """Return the path of a recipe by its name, with or without `.yaml`, or its last part; or a ConfigError."""
    wanted = name.removesuffix(".yaml")
    known = names()
    found = [wanted] if wanted in known else [n for n in known if n.rpartition("/")[2] == wanted]
    if len(found) == 1:
        return folder() / f"{found[0]}.yaml"
    if found:
        raise ConfigError([f"{name!r} is several recipes: {', '.join(found)}"])
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"
    raise ConfigError([f"no recipe is named {name!r}: {hint}"])


def read(name: str) -> str:
    """Return a recipe's text."""
    return find(name).read_text(encoding="utf-8")


def title(name: str) -> str:
    """Return a recipe's first line, without its sign."""
    return read(name).splitlines()[0].lstrip("# ")


def copy(name: str, to: Path) -> Path:
    """Copy a recipe to a file or into a folder, and return where it is; a ConfigError where there is a file already."""
    source = find(name)
    target = to / source.name if to.is_dir() else to
    if target.exists():
        raise ConfigError([f"{target} exists already: give another name"])
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return target
