"""The floors of the package: an import goes down, or stays within its own package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "adg_plugin"
FLOORS = {
    "cli": 9,
    "__main__": 10,
    "tools": 8,
    "adapters": 7,
    "pipeline": 6,
    "report": 6,
    "selectors": 5,
    "engines": 4,
    "scoring": 3,
    "data": 2,
    "demo": 2,
    "store": 2,
    "config": 1,
    "console": 1,
    "digests": 0,
    "errors": 0,
    "version": 0,
}
# `adg_plugin` itself names what users are told, and imports it when it is first used.
PUBLIC = "adg_plugin"


@cache
def modules() -> dict[str, Path]:
    """Return the files of the package by the dotted names of their modules."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, those within functions and type checks included."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PUBLIC)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PUBLIC:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else str(node.module)


@cache
def arrows() -> tuple[tuple[str, str], ...]:
    """Return (importer, imported) of every module but `adg_plugin` itself."""
    return tuple((m, other) for m in modules() if m != PUBLIC for other in imports(m) if other not in (PUBLIC, m))


def room(module: str) -> str:
    """Return the package or top module that a module belongs to."""
    return module.split(".")[1]


def test_every_room_has_a_floor():
    assert {room(module) for module in modules() if module != PUBLIC} == FLOORS.keys()


def test_imports_go_down():
    up = [f"{a} -> {b}" for a, b in arrows() if room(a) != room(b) and FLOORS[room(a)] <= FLOORS[room(b)]]
    assert up == []


def test_nothing_imports_in_a_circle():
    graph: dict[str, set[str]] = {}
    for a, b in arrows():
        graph.setdefault(a, set()).add(b)
    TopologicalSorter(graph).prepare()


def test_packages_within_a_room_do_not_import_in_a_circle():
    graph: dict[str, set[str]] = {}
    for a, b in arrows():
        if room(a) == room(b) and ".".join(a.split(".")[:3]) != ".".join(b.split(".")[:3]):
            graph.setdefault(".".join(a.split(".")[:3]), set()).add(".".join(b.split(".")[:3]))
    TopologicalSorter(graph).prepare()


def test_tools_do_not_import_one_another():
    pairs = [(a.split("."), b.split(".")) for a, b in arrows() if room(a) == room(b) == "tools"]
    assert [f"{'.'.join(a)} -> {'.'.join(b)}" for a, b in pairs if a[2:3] != b[2:3]] == []


@pytest.mark.parametrize("package", ["scoring", "data", "store", "config"])
def test_what_needs_no_torch_imports_none(package):
    for module, path in modules().items():
        if module.startswith(f"{PUBLIC}.{package}"):
            named = {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                for name in (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            assert "torch" not in named, module
