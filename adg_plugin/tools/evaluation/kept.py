"""The file of results of one name: written after each task, added to by later runs of the same model and settings.

Beside `NAME.json` lies `NAME.rows.jsonl` with the value of each question, a line for each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adg_plugin.errors import StoreError
from adg_plugin.store.files import read_json, reading, replacing, write_json, writing
from adg_plugin.tools.evaluation.results import Evaluation, TaskResult, papers_averages
from adg_plugin.tools.evaluation.tasks import LoadedTask

_FIX = "give another --name, or --overwrite to replace it"
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
            f"{key} {_said(getattr(before, part).get(key))} (now {_said(about.get(key))})"
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
        return news if before is None else _merged(before, news)

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
        for line in _row_lines(found.tasks):
            sink.write((line + "\n").encode())
    write_json(path, {**found.summary(), **({"command": command} if command else {})})


def read_results(path: Path) -> Evaluation | None:
    """Return the results in a file with the values of single questions beside it, or None where there is no file.

    Raises:
        StoreError: it cannot be read, or is no file of results.
    """
    about = read_json(path, fix=_FIX)
    if about is None:
        return None
    try:
        return Evaluation.parse(about, _row_values(rows_path(path)))
    except (KeyError, TypeError, AttributeError, ValueError) as err:
        raise StoreError(f"{path} holds no results of adg eval: {_FIX}") from err


def rows_path(path: Path) -> Path:
    """Return where the values of single questions are: NAME.json -> NAME.rows.jsonl."""
    return path.with_name(f"{path.stem}.rows.jsonl")


def _row_lines(tasks: Sequence[TaskResult]) -> Iterator[str]:
    for task in tasks:
        for number, value in enumerate(task.row_values):
            yield json.dumps({"task": task.task, "question": number, "value": value}, ensure_ascii=False)


def _row_values(path: Path) -> dict[str, tuple[float, ...]]:
    if not path.is_file():
        return {}
    values: dict[str, list[float]] = {}
    with reading(path, fix=_FIX), path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            values.setdefault(row["task"], []).append(row["value"])
    return {task: tuple(found) for task, found in values.items()}


def _merged(before: Evaluation, news: Evaluation) -> Evaluation:
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


def _said(value: object) -> str:
    return "none" if value is None else str(value)
