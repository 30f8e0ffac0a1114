"""The results of one name: where they are, and how later runs of the same model and settings add to them.

They are written after each task. While one is running, the harness's cache of the model's responses lies beside them,
so that no question is asked again after an interruption.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adg_plugin.config.run_folder import PRIVATE, SELECTION
from adg_plugin.errors import ConfigError, StoreError, need
from adg_plugin.report.evaluated import FOLDER
from adg_plugin.store.files import digest_bytes, writing
from adg_plugin.store.json_files import is_run_folder, read_manifest
from adg_plugin.store.names import MANIFEST, SELECTED
from adg_plugin.tools.evaluation.quiet import Remarks
from adg_plugin.tools.evaluation.results import FIX, Evaluation, papers_averages, read_results, write_results
from adg_plugin.tools.evaluation.tasks import EXTRA, WHY, LoadedTask

_ANCESTORS = 3  # RUN/model/checkpoint-100 is the deepest that training writes
# Folder names that do not tell one model from another.
_SHARED_NAMES = re.compile(r"adapter|checkpoint-\d+|final|merged|model")
_CUT = "cut"  # in the cache, beside the responses: whether a prompt was cut
# What the results of one file have in common. Batch size and device change a figure by rounding only.
_SAME = {
    "settings": ("limit", "chat_template", "seed"),
    "versions": ("lm_eval", "transformers", "torch"),
    "model": ("weights", "adapter_weights", "dtype", "load_in_4bit"),
}


def results_path(model: str, *, run: Path | None = None, name: str | None = None, limit: int | None = None) -> Path:
    """Return where the results of a model are kept: `eval/NAME.json` in its run folder, else here.

    Args:
        model: a folder or a hub name.
        run: the run folder; None: the one that the model was trained from, where its place tells.
        name: NAME; None: one that is made from the model's, and from the limit: a try-out has a file of its own.
        limit: questions per task; None: all.

    Raises:
        ConfigError: `name` is no plain file name.
        StoreError: `run` is no run folder of a finished selection.
    """
    if name is not None and not re.fullmatch(r"\w[\w.+=@ -]*", name):
        raise ConfigError([f"--name is {name!r}: use one plain file name, such as {label(name)!r}"])
    if run is not None and not _is_finished_run(run):
        raise StoreError(
            f"--run is {str(run)!r}: no run folder of a finished selection; give one, or leave --run out for ./{FOLDER}"
        )
    folder = run or run_folder_of(model) or Path()
    made = label(model) + ("" if limit is None else f"-limit-{limit}")
    return folder / FOLDER / f"{name or made}.json"


def run_folder_of(model: str) -> Path | None:
    """Return the finished run folder that a model was trained from, or None where its place does not tell.

    It is the one that the model's folder lies in, or the one that `adg run` and the trainers write into their output
    folder: OUT/_adg/selection (in 0.2 OUT/selection), of the model in OUT, OUT/checkpoint-8 or OUT/model. Nothing else.
    """
    place = Path(model)
    if not _is_folder(place):
        return None
    around = [place.absolute(), *list(place.absolute().parents)[:_ANCESTORS]]
    outputs = []
    for folder in around:
        outputs += [folder / PRIVATE / SELECTION, folder / SELECTION]
        if not _SHARED_NAMES.fullmatch(folder.name):
            break  # a name of its own: what lies beside it is not its output
    found = next(filter(_is_finished_run, [*around, *outputs]), None)
    if found is None or place.is_absolute():
        return found
    here = Path.cwd()  # to show it as the user would write it
    return found.relative_to(here) if found.is_relative_to(here) else found


def selection_of(results: Path) -> dict[str, Any] | None:
    """Return which selection a file of results lies beside, or None: run folder, `created`, digest of its rows.

    Raises:
        StoreError: the run's manifest cannot be read.
    """
    run = results.absolute().parent.parent
    if not _is_finished_run(run):
        return None
    manifest = read_manifest(run) or {"files": {}}
    digest = manifest["files"].get(SELECTED, {}).get("blake2b")
    return {"run": str(run), "created": manifest.get("created"), "selected": digest}


def label(model: str) -> str:
    """Return a file name, without its ending, for a model: `runs/demo/model` -> `demo-model`, `org/name` -> `org-name`.

    Of a folder, the last name that tells it from others, and what follows.
    """
    place = Path(model)
    if _is_folder(place):
        names = place.absolute().parts[1:]
        first = len(names) - 1
        while first > 0 and _SHARED_NAMES.fullmatch(names[first]):
            first -= 1
        model = "-".join(names[first:])
    return re.sub(r"[^\w.]+", "-", model).strip("-.") or "model"


def _is_folder(place: Path) -> bool:
    try:
        return place.is_dir()
    except OSError:  # a folder around it is not ours to read
        return False


def _is_finished_run(folder: Path) -> bool:
    try:
        return (folder / MANIFEST).is_file() and is_run_folder(folder)
    except OSError:  # not ours to read
        return False


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
        limit = now.get("settings", {}).get("limit")
        if before is None:
            return
        if self.overwrite and limit is not None and before.settings.get("limit") is None:
            raise StoreError(f"{self.path} has all questions, and --limit {limit} is a try-out: give another --name")
        if self.overwrite:
            return
        differing = [
            f"{key} {'none' if was is None else was} (now {'none' if value is None else value})"
            for part, about in now.items()
            for key in _SAME[part]
            if (was := getattr(before, part).get(key)) != (value := about.get(key))
        ]
        if differing:
            raise StoreError(f"{self.path} has results of {', '.join(differing)}: {FIX}")

    def missing(self, tasks: Sequence[LoadedTask]) -> list[LoadedTask]:
        """Return the tasks that have no result in the file.

        Raises:
            StoreError: a task of that name is there that was put in another way.
        """
        before = None if self.overwrite else self._there()
        there = () if before is None else before.tasks
        known = {task.name: [one for one in there if task.name in (one.task, one.asked)] for task in tasks}
        other = [task.name for task in tasks if any(one.digest != task.digest(one.task) for one in known[task.name])]
        if other:
            raise StoreError(
                f"{self.path} has {', '.join(other)} with other questions, examples or metrics than "
                f"{'it has' if len(other) == 1 else 'they have'} now: {FIX}"
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
        lock, caching = FileLock(locked), None
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
            yield lm if caching is None else caching
            if caching is not None:
                caching.dbdict.terminate()
        except BaseException:
            if caching is not None:
                caching.dbdict.close()
            raise
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
