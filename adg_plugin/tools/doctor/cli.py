"""`adg doctor`: whether everything is there, before the first run or when something does not work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from adg_plugin.config.run_folder import RUNS
from adg_plugin.console import result_console

if TYPE_CHECKING:
    from adg_plugin.tools.doctor.checks import Check

_Look = Callable[[], Iterable["Check"]]


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
    from adg_plugin.tools.doctor import view as doctor_view
    from adg_plugin.tools.doctor.checks import Section, guarded
    from adg_plugin.tools.doctor.packages import versions

    console = result_console()
    found = versions()
    if not as_json:
        doctor_view.print_versions(found, console)
    sections = []
    for title, looks in _looks(config, self_test):
        with _working(title):
            section = Section(title, tuple(check for look in looks for check in guarded(title, look)))
        sections.append(section)
        if not as_json:
            doctor_view.print_section(section, console)
    if as_json:
        print(json.dumps(doctor_view.as_json(found, sections), indent=2, ensure_ascii=False))
    else:
        doctor_view.print_verdict(sections, console)
    if any(section.failed() for section in sections):
        raise typer.Exit(1)


def _looks(config: Path | None, self_test: bool) -> Iterator[tuple[str, list[_Look]]]:
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


def _working(title: str) -> AbstractContextManager[Any]:
    """Return what says on a terminal that a section takes its time."""
    console = Console(stderr=True)
    return console.status(f"{title} ...") if console.is_terminal else nullcontext()


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(doctor)
