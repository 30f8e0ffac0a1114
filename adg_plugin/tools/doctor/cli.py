"""`adg doctor`: whether everything is there, before the first run or when something does not work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from adg_plugin.config.run_folder import RUNS
from adg_plugin.console import Text, message_console, print_json, result_console
from adg_plugin.tools.doctor.checks import Check, Status, guarded

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

    console, progress = result_console(), message_console()
    found = versions()
    if not as_json:
        print_versions(found, console)
    checks: dict[str, list[Check]] = {}
    for title, looked_at in _sections(config, self_test):
        with progress.status(f"{title} ...") if progress.is_terminal else nullcontext():
            checks[title] = list(looked_at)
        if not as_json:
            print_section(title, checks[title], console)
    every = list(chain.from_iterable(checks.values()))
    failed = any(check.status == "failed" for check in every)
    if as_json:
        shown = {title: [asdict(check) for check in found_there] for title, found_there in checks.items()}
        print_json({"ok": not failed, "versions": found, "checks": shown})
    else:
        print_verdict(every, console)
    if failed:
        raise typer.Exit(1)


def _sections(config: Path | None, self_test: bool) -> Iterator[tuple[str, Iterable[Check]]]:
    """Yield the titles, each with its checks, which are made while they are iterated over."""
    from adg_plugin.tools.doctor import machine, packages

    extras = guarded("packages", packages.check_extras)
    yield "packages", chain(guarded("packages", packages.check_packages), extras)
    yield "conflicts", guarded("conflicts", packages.check_conflicts)
    yield "devices", guarded("devices", machine.check_devices)
    if config is None:
        yield "disk", guarded("disk", machine.check_disk, Path(RUNS))
    else:
        yield "configuration", guarded("configuration", _check_file, config)
    if self_test:
        yield "self-test", guarded("self-test", machine.check_by_selecting)


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


def print_section(title: str, checks: Iterable[Check], console: Console) -> None:
    """Print checks, one below the other; messages are never read as markup."""
    table = _table(title, console)
    for check in checks:
        message = Text(f"{check.name}: {check.message}")
        if check.fix:
            message.append(f"\n{check.fix}", "bold")
        table.add_row(Text(check.status, _STYLES[check.status]), message)
    console.print(table)


def print_verdict(checks: Sequence[Check], console: Console) -> None:
    """Print how many checks failed."""
    failed = sum(check.status == "failed" for check in checks)
    warnings = sum(check.status == "warning" for check in checks)
    verdict = Text("all is well", "bold green")
    if failed:
        verdict = Text(f"{failed} checks failed" if failed > 1 else "1 check failed", "bold red")
    if warnings:
        verdict.append(f", {warnings} warning{'s' if warnings > 1 else ''}", "yellow")
    console.print(verdict)


def _table(title: str, console: Console) -> Table:
    console.print(Text(title, "bold"))
    table = Table.grid(padding=(0, 1, 0, 1))
    table.add_column(width=len("warning"), no_wrap=True)
    table.add_column(overflow="fold")
    return table
