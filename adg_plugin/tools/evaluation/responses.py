"""The harness's cache of a model's responses, so that no question is asked again after an interruption.

It is a hidden file beside the results while tasks are running, of one process at a time, and gone when all are done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from glob import escape
from json import dumps, loads
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adg_plugin.errors import need
from adg_plugin.store.files import writing
from adg_plugin.tools.evaluation.quiet import Remarks
from adg_plugin.tools.evaluation.tasks import EXTRA, WHY

_CUT = "cut"  # in the cache, beside the responses: whether a prompt was cut


@contextmanager
def cached(results: Path, key: str, lm: Any, remarks: Remarks, *, anew: bool) -> Iterator[Any]:
    """Yield the harness's model with its cache, or as it is where another process has the cache of these results.

    The harness looks a response up by its prompt alone, so the file is one of all else that the response depends on.

    Args:
        results: NAME.json, beside which it lies.
        key: hexadecimal digits that stand for all that a response depends on, but for its prompt.
        lm: a model of the harness.
        remarks: on the responses, kept with them.
        anew: remove what an earlier run has kept.

    Raises:
        StoreError: the folder cannot be written.
    """
    file = results.with_name(f".{results.stem}.{key}.responses")
    locked = results.with_name(f".{results.stem}.responses.lock")
    with writing(locked):
        locked.parent.mkdir(parents=True, exist_ok=True)
        locked.touch()
    lock = FileLock(locked)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield lm
        return
    try:
        with writing(file):
            for earlier in file.parent.glob(f".{escape(results.stem)}.{'[0-9a-f]' * len(key)}.responses"):
                if anew or earlier != file:
                    earlier.unlink()
        caching = _opened(file, lm, remarks)
        if caching is None:
            yield lm
            return
        try:
            yield caching
        except BaseException:
            caching.dbdict.close()
            raise
        caching.dbdict.terminate()
    finally:
        locked.unlink(missing_ok=True)
        lock.release()


def _opened(file: Path, lm: Any, remarks: Remarks) -> Any:
    """Return the model with the cache in a file, which is replaced if it cannot be read; None if that fails, too."""
    caching_model = need("lm_eval.api.model", extra=EXTRA, why=WHY).CachingLM
    for _ in range(2):
        with suppress(sqlite3.Error):
            with writing(file):
                file.touch()
            caching = caching_model(lm, str(file))
            kept = caching.dbdict
            kept.encode, kept.decode = dumps, loads  # its own way is pickle, which runs what it reads
            remarks.cut = _CUT in kept
            remarks.on_cut = partial(kept.update, {_CUT: True})
            return caching
        with writing(file):
            file.unlink(missing_ok=True)
    return None
