"""What the tests of `adg doctor` share."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tiny_runs import ROOT

from adg_plugin.tools.doctor.checks import Check

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Ended(NamedTuple):
    code: int
    out: str


def written(settings: dict[str, Any], name: str = "mine.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Path(name)


def found(checks: Iterable[Check], name: str) -> list[Check]:
    return [check for check in checks if check.name == name]


def bad(checks: Iterable[Check]) -> list[Check]:
    return [check for check in checks if check.status in ("warning", "failed")]
