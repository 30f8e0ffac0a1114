"""Keeps what the harness prints off stdout, its bars out of logs, and its remarks to those that a user can act on."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

log = logging.getLogger(__name__)

# Parts of warnings about how the harness is called, which is this package's doing and meant.
_OURS = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model",
    "Overwriting default num_fewshot",
    "Chat template formatting change affects",
    "is defined, but aggregation is not",
    "is defined, but higher_is_better is not",
    "num_fewshot > 0 but fewshot_split is None",
    "Duplicate task name",
    "will not be registered",
    "Caching will not be performed",
)
_CUT = ("runcat", "exceeds model's max length")


class Remarks(logging.Handler):
    """Passes on each of the harness's warnings once.

    Attributes:
        cut: whether a prompt was too long for the model, and was cut from the left.
        on_cut: called when that is known.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.cut = False
        self.on_cut: Callable[[], None] = lambda: None
        self._passed_on: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one remark."""
        text = record.getMessage()
        if any(part in text for part in _CUT):
            if not self.cut:
                self.cut = True
                self.on_cut()
        elif not any(part in text for part in _OURS) and text not in self._passed_on:
            self._passed_on.add(text)
            log.log(record.levelno, "lm-evaluation-harness: %s", text.strip())


class _WithoutBars:
    """A stream that leaves out progress bars: they begin with a carriage return."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._in_bar = False

    def write(self, text: str) -> int:
        is_bar = text.startswith("\r") or (self._in_bar and text == "\n")
        self._in_bar = text.startswith("\r")
        if not is_bar:
            self._stream.write(text)
        return len(text)

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Leave the stream open: loggers that came with the harness keep this one, and close it at the end."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def quietened(*, show_bars: bool) -> Iterator[Remarks]:
    """Yield the harness's remarks while stdout goes to stderr, with its bars or without."""
    from huggingface_hub.utils import logging as hub

    from adg_plugin.engines.models.inference_state import replaced

    remarks, harness = Remarks(), logging.getLogger("lm_eval")
    stderr = sys.stderr or io.StringIO()  # a process may have none
    with ExitStack() as stack:
        stack.callback(hub.set_verbosity, hub.get_verbosity())
        hub.set_verbosity(logging.ERROR)  # ten lines on each data set that it cannot reach; the error says it once
        stack.callback(harness.setLevel, harness.level)
        harness.setLevel(logging.WARNING)
        stack.enter_context(replaced(harness, propagate=False, handlers=[*harness.handlers, remarks]))
        if not show_bars:
            stack.enter_context(redirect_stderr(_WithoutBars(stderr)))
        stack.enter_context(redirect_stdout(stderr))
        yield remarks
