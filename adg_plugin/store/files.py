"""Files that are whole or absent, and errors that say which path failed and what to do about it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ValidationError

from adg_plugin.errors import StoreError

TEMPORARY = ".adg-tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a StoreError that names it and the fix."""
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            fix = "free some space and run the same command again"
        elif err.errno in _FORBIDDEN:
            fix = "make the folder writable, or give another --out"
        elif err.errno in _NOT_A_FOLDER:
            fix = "a part of the path is a file; give another --out"
        else:
            fix = "run the same command again once that is mended"
        raise StoreError(f"cannot write {path}: {err.strerror or err}. Nothing written before is lost: {fix}") from err


@contextmanager
def reading(path: Path, *, fix: str) -> Iterator[None]:
    """Turn a failure to read or parse `path` into a StoreError that names it and the fix."""
    try:
        yield
    except (OSError, pa.ArrowException) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else err
        raise StoreError(f"cannot read {path}: {reason}; {fix}") from err


class Sink:
    """An unbuffered file whose write errors come out as StoreErrors; pyarrow can write to it."""

    def __init__(self, path: Path, shown: Path) -> None:
        self._shown = shown
        self._hash = hashlib.blake2b(digest_size=16)
        with writing(shown):
            # For its owner alone: what is in a pool may be nobody else's business.
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=0)

    @property
    def closed(self) -> bool:
        """Whether the file is closed; pyarrow asks."""
        return self._file.closed

    @property
    def digest(self) -> str:
        """The digest of what has been written, as `digest_file` would give it."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`, return its length in bytes; a StoreError where the disk is full or unwritable."""
        rest = memoryview(data).cast("B")
        self._hash.update(rest)
        size_bytes = len(rest)
        with writing(self._shown):
            while rest:
                rest = rest[self._file.write(rest) :]
        return size_bytes

    def flush(self) -> None:
        """Do nothing: every write goes to the system at once. pyarrow calls it."""

    def settle(self) -> None:
        """Wait until the bytes are on the disk, then close."""
        with writing(self._shown):
            os.fsync(self._file.fileno())
            self._file.close()

    def close(self) -> None:
        """Close without waiting for the disk."""
        self._file.close()


@contextmanager
def replacing(path: Path) -> Iterator[Sink]:
    """Yield a sink whose bytes become `path` at the end: all of them or, after an error or a crash, none.

    Raises:
        StoreError: the disk is full or the path cannot be written; the file that was there before still is.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    sink = Sink(temporary, shown=path)
    try:
        yield sink
        sink.settle()
        with writing(path):
            temporary.replace(path)
            sync_folder(path.parent)
    except BaseException:
        sink.close()
        temporary.unlink(missing_ok=True)  # on a full disk its bytes are needed
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk: a renamed file may otherwise lose its name in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those around it, for their owner alone; what is there stays as it is.

    Raises:
        StoreError: it cannot be made.
    """
    with writing(path):
        for folder in reversed(path.parents):
            if not folder.exists():
                folder.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    with replacing(path) as sink:
        sink.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path, *, fix: str, shape: type[BaseModel] | None = None) -> dict[str, Any] | None:
    """Return the JSON object in `path`, None where there is no file.

    Args:
        shape: of the keys that the reader needs; others are free.

    Raises:
        StoreError: it cannot be read, is no JSON object, or has another shape.
    """
    with reading(path, fix=fix):
        if not path.exists():
            return None
        data = path.read_bytes()
    return parse_json(data, str(path), fix=fix, shape=shape)


def parse_json(data: bytes, name: str, *, fix: str, shape: type[BaseModel] | None = None) -> dict[str, Any]:
    """Return the JSON object in the bytes of a file of that name, checked as by `read_json`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as err:
        raise StoreError(f"{name} is not JSON ({err}): {fix}") from None
    if not isinstance(value, dict):
        raise StoreError(f"{name} holds a JSON {type(value).__name__}, not an object: {fix}")
    try:
        if shape is not None:
            shape.model_validate(value, strict=True)
    except ValidationError as err:
        first = err.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StoreError(f"{name} is not as it was written ({key}: {first['msg'].lower()}): {fix}") from None
    return value


def digest_json(value: Mapping[str, Any]) -> str:
    """Return the digest of a JSON object's keys, in their order, and values, however it is laid out as text."""
    return digest_bytes(json.dumps(value).encode())


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the 128-bit BLAKE2b digest of `data` in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Return the 128-bit BLAKE2b digest of a file in hex, read in blocks; an OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def with_columns(table: pa.Table, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    """Return the table's columns `names`; one that the file is too old to have is null in every row."""
    for name in names:
        if name not in table.column_names:
            table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    return table.select(names)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files that a killed process left in `folder`."""
    for path in folder.glob("*" + TEMPORARY):
        with writing(path):
            path.unlink()
