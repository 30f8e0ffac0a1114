"""The pool as a stream of records, whatever holds it: files, folders, the demo, the hub, objects in memory."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from itertools import islice
from pathlib import Path
from typing import Any

from adg_plugin.config.schema import IN_MEMORY, DatasetSpec
from adg_plugin.data.layouts import layout_columns
from adg_plugin.data.readers import (
    ACCEPTED_FILES,
    file_format,
    known_format,
    nested_columns,
    read_file,
    without_nulls,
)
from adg_plugin.digests import files_digest
from adg_plugin.errors import DataError, redacted

_log = logging.getLogger(__name__)

_DEMO = Path(__file__).parents[1] / "demo"
_DEMO_FILES = ("pool.jsonl", "chat.jsonl")
_BUILDERS = ("json", "csv", "parquet", "arrow")
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "dev", "val"},
    "test": {"test", "testing", "eval", "evaluation"},
}


@dataclass(frozen=True, slots=True)
class Record:
    """A row as found. `where` is `SOURCE:N`; N is the line where rows are lines, else the row, from 1."""

    data: dict[str, Any]
    where: str
    spec: DatasetSpec
    entry: int = 0  # which of the data sets it came of


def iter_records(specs: Sequence[DatasetSpec]) -> Iterator[Record]:
    """Yield the rows of every data set in turn. Memory does not grow with the pool.

    Raises:
        DataError: no such file, unknown format, not JSON on line n, hub out of reach, no rows at all.
    """
    empty = True
    for entry, spec in enumerate(specs):
        for record in _spec_records(spec):
            empty = False
            yield record if entry == 0 else replace(record, entry=entry)
    if empty:
        paths = ", ".join(spec.path for spec in specs)
        raise DataError(f"no rows in {paths or 'datasets, which is empty'}: give a data set with rows")


def iter_memory(dataset: Iterable[Mapping[str, Any]], spec: DatasetSpec = IN_MEMORY) -> Iterator[Record]:
    """Yield the rows of a `datasets.Dataset`, or of any iterable of mappings.

    Args:
        spec: the row layout and column names; by default found out by the columns. Its `path` and `split` are not used.

    Raises:
        DataError: a mapping of splits, an item that is not a mapping, no rows.
    """
    if isinstance(dataset, Mapping):
        raise DataError(
            f"dataset is a {type(dataset).__name__} with {', '.join(map(str, dataset))}: pass one split of it"
        )
    rows = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
    nested, number = _nested(dataset), 0
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"dataset:{number}: a {type(row).__name__}, expected a mapping of columns to values")
        yield Record(_as_written(row, nested), f"dataset:{number}", spec)
    if not number:
        raise DataError("dataset: no rows: give a data set with rows")


def _nested(dataset: Any) -> Container[str] | None:
    """Return the columns of a data set of `datasets` whose objects have the keys of all rows; none of other iterables.

    None stands for any column, where it does not say what they are.
    """
    if not hasattr(dataset, "features"):
        return ()
    return None if dataset.features is None else nested_columns(dataset.features.arrow_schema)


def _as_written(row: Mapping[str, Any], nested: Container[str] | None) -> dict[str, Any]:
    return {n: without_nulls(value) if nested is None or n in nested else value for n, value in row.items()}


def pool_fingerprint(specs: Sequence[DatasetSpec]) -> str | None:
    """Return a digest that changes with any byte of the pool's files, their places, or any setting that reads them.

    None where that cannot be known without reading: a data set on the hub.

    Raises:
        DataError: no such file, one that cannot be read, or unknown format.
    """
    digest = hashlib.blake2b(digest_size=16)
    for spec in specs:
        files = _saved_files(spec) or _local_files(spec)
        if files is None:
            return None
        try:
            about = [spec.model_dump(mode="json"), list(map(os.path.abspath, files)), files_digest(files)]
        except OSError as err:
            raise DataError(f"{err.filename or spec.path}: cannot be read: {err.strerror or err}") from None
        digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()


def _spec_records(spec: DatasetSpec) -> Iterator[Record]:
    split, start, stop = _split_slice(spec)
    spec = spec.model_copy(update={"split": split})
    if _saved_files(spec):
        records = _saved_records(spec)
    elif (files := _local_files(spec)) is not None:
        records = _file_records(spec, files)
    else:
        records = _hub_records(spec)
    return islice(records, start, stop)


def _split_slice(spec: DatasetSpec) -> tuple[str, int | None, int | None]:
    match = re.fullmatch(r"([^\[\]+]+)(?:\[(\d*):(\d*)\])?", spec.split)
    if match is None:
        raise DataError(
            f"{spec.path}: split is {spec.split!r}: use a name, or a name and row numbers such as train[0:1000]"
        )
    name, start, stop = match.groups()
    return name, int(start) if start else None, int(stop) if stop else None


def _file_records(spec: DatasetSpec, files: Sequence[Path]) -> Iterator[Record]:
    ds_type = spec.path if spec.path in _BUILDERS else spec.ds_type
    for path in files:
        shown = Path("demo", path.name) if spec.path == "demo" else path
        for number, data in read_file(path, ds_type, layout_columns(spec)):
            yield Record(data, f"{shown}:{number}", spec)


def _local_files(spec: DatasetSpec) -> list[Path] | None:
    """Return the files of a data set that lies here, or None for one on the hub."""
    if spec.path == "demo":
        return [_DEMO / name for name in _DEMO_FILES]
    patterns = [spec.data_files] if isinstance(spec.data_files, str) else spec.data_files
    if "://" in spec.path or any("://" in pattern for pattern in patterns or []):
        return None
    root = Path(spec.path).expanduser()
    if patterns and (root.is_dir() or spec.path in _BUILDERS):
        return _matching(root if root.is_dir() else Path(), patterns)
    if root.is_dir():
        return _folder_files(root, spec)
    if root.exists():
        return [root]
    looks_like_a_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec.path) and not spec.path.startswith(".")
    if spec.path in _BUILDERS or not looks_like_a_hub_name or file_format(root) is not None:
        fix = "set data_files" if spec.path in _BUILDERS else f"give a file or folder that exists (in {Path.cwd()})"
        raise DataError(f"{spec.path}: no such file or folder: {fix}; formats: {ACCEPTED_FILES}")
    return None


def _matching(root: Path, patterns: Sequence[str]) -> list[Path]:
    files: list[Path] = []
    for pattern in patterns:
        found = sorted(p for name in glob(pattern, root_dir=root, recursive=True) if (p := root / name).is_file())
        if not found:
            raise DataError(
                f"{root / pattern}: no such file (in {Path.cwd()}): correct data_files; formats: {ACCEPTED_FILES}"
            )
        if has_magic(pattern):  # who names a part means that part
            _refuse_gaps(found)
        files += found
    return files


def _folder_files(root: Path, spec: DatasetSpec) -> list[Path]:
    """Return the data files of a folder, sorted; where names tell splits, only those of the split asked for."""
    names = [p.relative_to(root) for p in root.rglob("*") if p.name not in _NOT_ROWS and not p.is_dir()]
    visible = sorted(n for n in names if not any(part.startswith((".", "_")) for part in n.parts))
    if broken := next((root / n for n in visible if file_format(n) and not (root / n).exists()), None):
        raise DataError(
            f"{broken}: a link to {broken.readlink()}, which is not there: copy the file, or delete the link"
        )
    data = [name for name in visible if file_format(name) is not None]
    if not data:
        raise DataError(
            f"{spec.path}: no data file in this folder (saw {', '.join(map(str, visible[:5])) or 'nothing'}): "
            f"use {ACCEPTED_FILES}"
        )
    shards = [name for name in data if re.match(re.escape(spec.split) + r"-\d+-of-\d+\.", name.name)]
    splits = {name: _split_of(name) for name in data}
    asked = next((split for split, words in _SPLIT_WORDS.items() if spec.split in words), spec.split)
    chosen = shards or [n for n in data if splits[n] == asked] or [n for n in data if splits[n] is None]
    if not chosen:
        known = ", ".join(sorted({split for split in splits.values() if split}))
        raise DataError(f"{spec.path}: no file of split {spec.split!r} in this folder, which has {known}: set split")
    left = [str(name) for name in data if name not in set(chosen)]
    if left:
        more = ", ..." if left[5:] else ""
        _log.warning("%s: split %s leaves out %s%s", spec.path, spec.split, ", ".join(left[:5]), more)
    files = [root / name for name in chosen]
    _refuse_gaps(files)
    return files


def _refuse_gaps(files: Iterable[Path]) -> None:
    """Raise a DataError where some of the files that a name counts (`-00000-of-00003`) are not among them."""
    numbers: dict[tuple[str, int, str], set[int]] = {}
    for path in files:
        if match := re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(.*)", str(path)):
            numbers.setdefault((match[1], int(match[3]), match[4]), set()).add(int(match[2]))
    for (head, total, tail), present in numbers.items():
        if missing := sorted(set(range(total)) - present):
            raise DataError(
                f"{head}-{missing[0]:05d}-of-{total:05d}{tail}: no such file, and {len(present)} of its {total} parts "
                "are there: fetch the others, or name those to read in data_files"
            )


def _split_of(name: Path) -> str | None:
    words = set(re.split(r"[-._ 0-9/\\]+", str(name).lower()))
    return next((split for split, names in _SPLIT_WORDS.items() if words & names), None)


def _saved_files(spec: DatasetSpec) -> list[Path]:
    """Return the files of a folder made by `save_to_disk`, or nothing for any other path."""
    root = Path(spec.path).expanduser()
    is_saved = any((root / name).is_file() for name in ("state.json", "dataset_dict.json"))
    if spec.path == "demo" or spec.data_files or not is_saved:
        return []
    return sorted(p for p in root.rglob("*") if p.is_file())


def _saved_records(spec: DatasetSpec) -> Iterator[Record]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(Path(spec.path).expanduser()))
    except (FileNotFoundError, ValueError, KeyError) as err:
        raise DataError(f"{spec.path}: not a whole folder of Dataset.save_to_disk ({err}): save it again") from None
    source = spec.path
    if isinstance(saved, datasets.DatasetDict):
        if spec.split not in saved:
            raise DataError(f"{spec.path}: no split {spec.split!r}, it has {', '.join(saved)}: set split")
        saved, source = saved[spec.split], f"{spec.path}[{spec.split}]"
    nested = _nested(saved)
    for number, row in enumerate(saved.with_format(None), 1):
        yield Record(_as_written(row, nested), f"{source}:{number}", spec)


def _hub_records(spec: DatasetSpec) -> Iterator[Record]:
    """Yield rows that `datasets` streams: from the hub, from its cache when offline, or from a URL."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    path, data_files = spec.path, spec.data_files
    options: dict[str, Any] = {"name": spec.name, "split": spec.split, "revision": spec.revision, "streaming": True}
    if "://" in path:
        # What follows a `?` is no part of the name: signatures have dots, too.
        form, _ = known_format(path.partition("?")[0] if path.startswith("http") else path, spec.ds_type)
        path, data_files = {"lines": "json", "tsv": "csv"}.get(form, form), spec.path
        if form == "tsv":
            options["sep"] = "\t"
    source = f"{redacted(spec.path)}[{spec.split}]"
    number = 0
    try:
        rows = datasets.load_dataset(path, data_files=data_files, **options)
        nested = _nested(rows)
        for number, row in enumerate(rows, 1):
            yield Record(_as_written(row, nested), f"{source}:{number}", spec)
    except (OSError, HfHubHTTPError) as err:
        raise DataError(
            f"{spec.path}: neither a file nor a folder here, nor a data set that the hub or its local cache could give"
            f"{f' (stopped after row {number})' if number else ''}: {err}; "
            "check the name, or download it and give the path"
        ) from None
    except StopIteration:  # a URL that answers with an error in the place of a file
        raise DataError(
            f"{spec.path}: no rows came from there; check the URL, its user, password or signature"
        ) from None
    except RuntimeError as err:  # such as a data set that is a script
        raise DataError(f"{spec.path}: {err}; use a revision or a copy of it in Parquet or JSON") from None
    except ValueError as err:
        raise DataError(f"{source}: {err}; check name, split and data_files") from None
