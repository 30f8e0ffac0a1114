"""A tiny model, settings, the command, and distributions that are there by their metadata alone."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from doctor_checks import PROJECT, Ended, written
from tiny_runs import SETTINGS, pool_rows, write_jsonl

from adg_plugin import __version__, cli


@pytest.fixture
def config(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config in the current folder, with a pool of 20 rows."""
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "pool.jsonl", pool_rows(20))
    return written({**SETTINGS, "model": str(model), "datasets": ["pool.jsonl"]})


@pytest.fixture
def adg(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command, within this process."""

    def run(*arguments: object) -> Ended:
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main(["doctor", *map(str, arguments)])
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ended(ended.value.code or 0, capsys.readouterr().out)

    return run


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a distribution be installed, as far as metadata tell."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def install(name: str, version: str, *lines: str) -> None:
        folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")

    return install


@pytest.fixture
def ours(distribution: Callable[..., None]) -> None:
    """This package, with the metadata that pyproject.toml gives it; what is installed may be older."""
    lines = [f"Requires-Dist: {text}" for text in PROJECT["dependencies"]]
    for extra, texts in PROJECT["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f"Requires-Dist: {text}; extra == '{extra}'" for text in texts)]
    distribution("adg-plugin", __version__, *lines)
