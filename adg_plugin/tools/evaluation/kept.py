"""The file of results of one name: written after each task, added to by later runs of the same model and settings.

Beside `NAME.json` lies `NAME.rows.jsonl` with the value of each question, a line for each. While a task is running, the
harness's cache of the model's responses lies there too, so that no question is asked again after an interruption.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adg_plugin.errors import StoreError, need
from adg_plugin.store.files import digest_bytes, read_json, reading, replacing, write_json, writing
from adg_plugin.tools.evaluation.quiet import Remarks
from adg_plugin.tools.evaluation.results import Evaluation, papers_averages
from adg_plugin.tools.evaluation.tasks import EXTRA, WHY, LoadedTask

_FIX = "give another --name, or --overwrite to replace it"
_CUT = "cut"  # in the cache, beside the responses: whether a prompt was cut
# What the results of one file have in common. Batch size and device change a figure by rounding only.
_SAME = {
    "settings": ("limit", "chat_template", "seed"),
    "versions": ("lm_eval", "transformers", "torch"),
    "model": ("weights", "adapter_weights", "dtype", "load_in_4bit"),
}


@dataclass(slots=True)
class Kept:
    """What was found, in a file or in memory.

    Attributes:
        path: NAME.json, which later runs add to; None: only in memory.
        overwrite: whether what is there is to be replaced by the first result, in the place of being added to.
        command: the command that the results come from, for the file.
    """

    path: Path | None = None
    overwrite: bool = False
    command: str = ""
    _found: Evaluation | None = None

    def check(self, **now: Mapping[str, Any]) -> None:
        """Validate that results of these `settings`, `versions` and this `model` may go into the file.

        Args:
            now: those of the three that are known already.

        Raises:
            StoreError: others are there, or it is no file of results; names what differs.
        """
        before = self._there()
        if before is None:
            return
        if self.overwrite:
            limit = now.get("settings", {}).get("limit")
            if limit is not None and before.settings.get("limit") is None:
                raise StoreError(
                    f"{self.path} has all questions, and --limit {limit} is a try-out: give another --name"
                )
            return
        differing = [
            f"{key} {_format(getattr(before, part).get(key))} (now {_format(about.get(key))})"
            for part, about in now.items()
            for key in _SAME[part]
            if getattr(before, part).get(key) != about.get(key)
        ]
        if differing:
            raise StoreError(f"{self.path} has results of {', '.join(differing)}: {_FIX}")

    def missing(self, tasks: Sequence[LoadedTask]) -> list[LoadedTask]:
        """Return the tasks that have no result in the file.

        Raises:
            StoreError: a task of that name is there that was put in another way.
        """
        there = () if self.overwrite or (before := self._there()) is None else before.tasks
        known = {task.name: [one for one in there if task.name in (one.task, one.asked)] for task in tasks}
        other = [task.name for task in tasks if any(one.digest != task.digest(one.task) for one in known[task.name])]
        if other:
            raise StoreError(
                f"{self.path} has {', '.join(other)} with other questions, examples or metrics than "
                f"{'it has' if len(other) == 1 else 'they have'} now: {_FIX}"
            )
        return [task for task in tasks if not known[task.name]]

    @contextmanager
    def responses(self, lm: Any, remarks: Remarks, **about: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the harness's model with its cache of responses, which is gone when all tasks are done.

        The harness looks a response up by its prompt alone, so the file is one of all else that the response depends
        on. It is of one process at a time: to another one, and in memory, the model is yielded as it is. Responses
        that a task samples are not kept.

        Args:
            lm: a model of the harness.
            remarks: on the responses, kept with them.
            about: as of `check`.

        Raises:
            StoreError: the folder cannot be written.
        """
        if self.path is None:
            yield lm
            return
        same = [[about[part].get(key) for key in keys] for part, keys in _SAME.items()]
        fast = getattr(lm.tokenizer, "backend_tokenizer", None)
        tokens = digest_bytes((json.dumps(lm.tokenizer.get_vocab()) if fast is None else fast.to_str()).encode())
        key = digest_bytes(json.dumps([same, tokens]).encode())[:16]
        file = self.path.with_name(f".{self.path.stem}.{key}.responses")
        locked = self.path.with_name(f".{self.path.stem}.responses.lock")
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
                for earlier in file.parent.glob(f".{escape(self.path.stem)}.{'[0-9a-f]' * len(key)}.responses"):
                    if self.overwrite or earlier != file:
                        earlier.unlink()
            caching = _with_cache(lm, file, remarks)
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

    def add(self, news: Evaluation) -> None:
        """Put the new results to those that are there, and write them, whole or not at all.

        Raises:
            StoreError: the path cannot be written.
        """
        self._found = self.with_news(news)
        self.overwrite = False  # from now on, what is there is this run's
        if self.path is not None:
            write_results(self.path, self._found, command=self.command)

    def with_news(self, news: Evaluation) -> Evaluation:
        """Return the results that are there together with the new ones; of a task in both, the new one."""
        before = None if self.overwrite else self._there()
        if before is None:
            return news
        by_name = {one.task: one for one in (*before.tasks, *news.tasks)}
        include = [*before.settings.get("include", []), *news.settings.get("include", [])]
        code = before.settings.get("code_execution") or news.settings.get("code_execution")
        return replace(
            news,
            tasks=tuple(by_name.values()),
            averages=papers_averages(by_name.values()),
            left_out={name: why for name, why in {**before.left_out, **news.left_out}.items() if name not in by_name},
            notes=tuple(dict.fromkeys([*before.notes, *news.notes])),
            settings={**news.settings, "include": list(dict.fromkeys(include)), "code_execution": bool(code)},
            seconds=round(before.seconds + (news.seconds if news.tasks else 0), 2),
            # Of the first run: the same weights were there then, so no later selection was what they were trained on.
            selection=before.selection if before.selection is not None else news.selection,
            created=news.created if news.tasks else before.created,
        )

    def _there(self) -> Evaluation | None:
        if self.path is None:
            return self._found
        try:
            return read_results(self.path)  # each time: another process may have added a task
        except StoreError:
            if self.overwrite:
                return None
            raise


def write_results(path: Path, found: Evaluation, *, command: str = "") -> None:
    """Write the results, the values of single questions first, over those that were there.

    Raises:
        StoreError: a path cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(rows_path(path)) as sink:
        for task in found.tasks:
            for number, value in enumerate(task.row_values):
                line = {"task": task.task, "question": number, "value": value}
                sink.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    write_json(path, {**found.summary(), **({"command": command} if command else {})})


def read_results(path: Path) -> Evaluation | None:
    """Return the results in a file with the values of single questions beside it, or None where there is no file.

    Raises:
        StoreError: it cannot be read, or is no file of results.
    """
    about = read_json(path, fix=_FIX)
    if about is None:
        return None
    values: dict[str, list[float]] = {}
    try:
        if (rows := rows_path(path)).is_file():
            with reading(rows, fix=_FIX), rows.open(encoding="utf-8") as lines:
                for row in map(json.loads, lines):
                    values.setdefault(row["task"], []).append(row["value"])
        return Evaluation.parse(about, {task: tuple(found) for task, found in values.items()})
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        raise StoreError(f"{path} holds no results of adg eval: {_FIX}") from err


def rows_path(path: Path) -> Path:
    """Return where the values of single questions are: NAME.json -> NAME.rows.jsonl."""
    return path.with_name(f"{path.stem}.rows.jsonl")


def _with_cache(lm: Any, file: Path, remarks: Remarks) -> Any:
    """Return the model with the cache in a file, which is replaced if it cannot be read; None if that fails, too."""
    caching_model = need("lm_eval.api.model", extra=EXTRA, why=WHY).CachingLM
    for _ in range(2):
        with suppress(sqlite3.Error):
            with writing(file):
                file.touch()
            caching = caching_model(lm, str(file))
            kept = caching.dbdict
            kept.encode, kept.decode = json.dumps, json.loads  # its own way is pickle, which runs what it reads
            remarks.cut = _CUT in kept
            remarks.on_cut = partial(kept.update, {_CUT: True})
            return caching
        with writing(file):
            file.unlink(missing_ok=True)
    return None


def _format(value: object) -> str:
    return "none" if value is None else str(value)
