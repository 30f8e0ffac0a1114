"""The command, within the process of the tests."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import NamedTuple

import pytest

from adg_plugin import cli


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def adg(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """The command, within this process."""

    def run(*arguments: object) -> Ended:
        before = signal.getsignal(signal.SIGTERM)
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main([str(a) for a in arguments])
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ended(ended.value.code or 0, *capsys.readouterr())

    return run
