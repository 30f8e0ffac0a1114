"""Checks on a terminal or in a log, at any width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adg_plugin.tools.doctor.checks import Section, Status
from adg_plugin.tools.doctor.packages import as_text

_STYLES: Mapping[Status, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red"}


def print_versions(found: Mapping[str, str | None], console: Console) -> None:
    """Print the versions of what matters."""
    table = _table("versions", console)
    table.add_row("", Text(as_text(found)))
    console.print(table)


def print_section(section: Section, console: Console) -> None:
    """Print checks, one below the other; messages are never read as markup."""
    table = _table(section.title, console)
    for check in section.checks:
        message = Text(f"{check.name}: {check.message}")
        if check.fix:
            message.append(f"\n{check.fix}", "bold")
        table.add_row(Text(check.status, _STYLES[check.status]), message)
    console.print(table)


def print_verdict(sections: Sequence[Section], console: Console) -> None:
    """Print how many checks failed."""
    failed = sum(section.failed() for section in sections)
    warnings = sum(check.status == "warning" for section in sections for check in section.checks)
    verdict = (
        Text(f"{failed} checks failed" if failed > 1 else "1 check failed", "bold red")
        if failed
        else Text("all is well", "bold green")
    )
    if warnings:
        verdict.append(f", {warnings} warning{'s' if warnings > 1 else ''}", "yellow")
    console.print(verdict)


def as_json(versions: Mapping[str, str | None], sections: Sequence[Section]) -> dict[str, Any]:
    """Return everything for programs: `ok`, `versions`, and `checks`, a list by section."""
    return {
        "ok": not any(section.failed() for section in sections),
        "versions": dict(versions),
        "checks": {section.title: [_plain(check) for check in section.checks] for section in sections},
    }


def _plain(check: Any) -> dict[str, str]:
    return {"name": check.name, "status": check.status, "message": check.message, "fix": check.fix}


def _table(title: str, console: Console) -> Table:
    console.print(Text(title, "bold"))
    table = Table.grid(padding=(0, 1, 0, 1))
    table.add_column(width=len("warning"), no_wrap=True)
    table.add_column(overflow="fold")
    return table
