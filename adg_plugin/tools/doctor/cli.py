"""`adg doctor`: whether everything is there, before the first run or when something does not work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adg_plugin.config.run_folder import RUNS
from adg_plugin.console import result_console
from adg_plugin.tools.doctor.checks import Check, Look, Section, Status, guarded

_STYLES: Mapping[Status, str] = {"ok": "green", "note": "cyan", "warning": "yellow", "failed": "bold red"}


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.yaml]", help="Settings of a selection, a recipe of TRL, or a YAML of Axolotl."),
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Whether to run a selection with a tiny random model.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check the installation, the devices and a configuration, and run a tiny selection.

    Each finding names its way out. Ends with 1 if a check failed; extras that are not installed are no failure.
    """
    from adg_plugin.tools.doctor.packages import versions

    console, progress = result_console(), Console(stderr=True)
    found = versions()
    if not as_json:
        print_versions(found, console)
    sections: list[Section] = []
    for title, looks in _looks(config, self_test):
        with progress.status(f"{title} ...") if progress.is_terminal else nullcontext():
            sections.append(Section(title, tuple(check for look in looks for check in guarded(title, look))))
        if not as_json:
            print_section(sections[-1], console)
    failed = any(section.failed() for section in sections)
    if as_json:
        checks = {section.title: [asdict(check) for check in section.checks] for section in sections}
        print(json.dumps({"ok": not failed, "versions": found, "checks": checks}, indent=2, ensure_ascii=False))
    else:
        print_verdict(sections, console)
    if failed:
        raise typer.Exit(1)


def _looks(config: Path | None, self_test: bool) -> Iterator[tuple[str, list[Look]]]:
    """Yield the sections, each with what looks."""
    from adg_plugin.tools.doctor import devices, packages
    from adg_plugin.tools.doctor.self_test import check_by_selecting

    yield "packages", [packages.check_packages, packages.check_extras]
    yield "conflicts", [packages.check_conflicts]
    yield "devices", [devices.check_devices]
    if config is None:
        yield "disk", [lambda: devices.check_disk(Path(RUNS))]
    else:
        yield "configuration", [lambda: _check_file(config)]
    if self_test:
        yield "self-test", [check_by_selecting]


def _check_file(config: Path) -> Iterable[Check]:
    from adg_plugin.tools.doctor.files import check_file  # where its imports are broken, that is a finding, too

    return check_file(config)


def print_versions(found: Mapping[str, str | None], console: Console) -> None:
    """Print the versions of what matters, what is not installed last."""
    table = _table("versions", console)
    text = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    absent = [name for name, number in found.items() if not number]
    table.add_row("", Text(f"{text}; not installed: {', '.join(absent)}" if absent else text))
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


def _table(title: str, console: Console) -> Table:
    console.print(Text(title, "bold"))
    table = Table.grid(padding=(0, 1, 0, 1))
    table.add_column(width=len("warning"), no_wrap=True)
    table.add_column(overflow="fold")
    return table


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)
