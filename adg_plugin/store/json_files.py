"""The small JSON files of a run folder: what they hold, and what it means where one is damaged or gone.

A shape names the keys that readers depend on; other keys are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from adg_plugin.errors import StoreError
from adg_plugin.store.files import digest_json, read_json, reading, write_json
from adg_plugin.store.names import ANSWERS, CONFIG, LOCK, MANIFEST, SAMPLES, STAGED
from adg_plugin.store.parts import Inventory, named_parts

VERSION = 1
_MARKER, _CHECKSUM = "adg_run_folder", "checksum"
_SETTINGS = ("config", "recipe", "versions")
_OTHER = "give another --out"
_OPENS = "the folder opens without it, for each row's answers carry their own key"
_AGAIN = "run adg select on this folder again, which keeps the answers"
_RESTAGED = "the pool will be staged again"


class RunConfig(BaseModel):
    """config.json. A model's folder has a file of that name too, so no key is required."""

    adg_run_folder: int = 0  # version of the run folder
    checksum: str = ""  # of all else in the file; older versions wrote none
    config: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}


class PoolSeal(BaseModel):
    """prompts.json."""

    digest: str  # of all that staging depends on
    blake2b: str  # of prompts.parquet
    notes: list[str] = []


class FileDigest(BaseModel):
    """An entry of `files` in manifest.json."""

    blake2b: str


class Manifest(BaseModel):
    """manifest.json."""

    files: dict[str, FileDigest]  # under its own name that of all else in it; older versions wrote none
    config: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}


class Holder(BaseModel):
    """.lock.json."""

    pid: int
    host: str
    since: str


class Heartbeat(BaseModel):
    """in-use.json behind a URL."""

    id: str
    pid: int
    host: str
    time: float  # in seconds since 1970


def check_is_run_folder(path: Path) -> str | None:
    """Return None, or a sentence where config.json is damaged or gone and what lies beside it is a run folder's.

    Raises:
        StoreError: it is no run folder, or one of a later version of this package.
    """
    is_ours = _looks_like_one(path)
    fix = _OPENS if is_ours else _OTHER
    try:
        config = read_json(path / CONFIG, fix=fix, shape=RunConfig)
    except StoreError as err:
        if is_ours:
            return str(err)
        raise
    if config is not None and _MARKER in config:
        is_whole = config.pop(_CHECKSUM, None) in (None, digest_json(config))
        if is_whole and config[_MARKER] == VERSION:
            return None
        if is_whole or not is_ours:
            raise StoreError(
                f"{path} is a run folder of version {config[_MARKER]}, not {VERSION}: {_OTHER}, or upgrade adg-plugin"
            )
        return f"{path / CONFIG} is damaged (it does not match its checksum): {fix}"
    # A file of other keys is somebody else's, such as a model's; one of ours may have lost its marker alone.
    if is_ours and (not config or config.keys() & RunConfig.model_fields.keys()):
        return f"{path / CONFIG} is {'gone' if config is None else f'damaged (no `{_MARKER}` in it)'}: {fix}"
    raise StoreError(f"{path} exists and is not a run folder (no `{_MARKER}` in its {CONFIG}): {_OTHER}")


def is_run_folder(path: Path) -> bool:
    """Return whether a folder is a run folder that this version can read."""
    try:
        check_is_run_folder(path)
    except StoreError:
        return False
    return True


def _looks_like_one(path: Path) -> bool:
    """Return whether a folder looks like a run folder, whatever its config.json says: opened, answered or staged."""
    with reading(path, fix=_OTHER):
        if (path / LOCK).exists() and (path / ANSWERS).is_dir():
            return True
        if any((path / name).is_dir() and named_parts(path / name, Inventory()) for name in (ANSWERS, SAMPLES)):
            return True
    try:
        return read_json(path / STAGED, fix="", shape=PoolSeal) is not None
    except StoreError:
        return False


def read_config(path: Path) -> dict[str, Any]:
    """Return what config.json of a run folder was given; where it is damaged or gone, what the manifest has of it."""
    if check_is_run_folder(path) is None:
        config = read_json(path / CONFIG, fix=_OTHER) or {}
        return {key: value for key, value in config.items() if key not in (_MARKER, _CHECKSUM)}
    with suppress(StoreError):
        manifest = read_manifest(path) or {}
        return {key: manifest[key] for key in _SETTINGS if key in manifest}
    return {}


def write_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write config.json of a run folder, with its marker and checksum, whole or not at all."""
    config = {_MARKER: VERSION, **config}
    write_json(path / CONFIG, {**config, _CHECKSUM: digest_json(config)})


def read_manifest(path: Path) -> dict[str, Any] | None:
    """Return manifest.json of a run folder, without its own digest, or None; a StoreError where it is damaged."""
    manifest = read_json(path / MANIFEST, fix=_AGAIN, shape=Manifest)
    if manifest is not None:
        seal = manifest["files"].pop(MANIFEST, None)
        if seal is not None and seal["blake2b"] != digest_json(manifest):
            raise StoreError(f"{path / MANIFEST} is damaged (it does not match its checksum): {_AGAIN}")
    return manifest


def write_manifest(path: Path, manifest: Mapping[str, Any], files: Mapping[str, Any]) -> None:
    """Write manifest.json of a run folder with the digests of `files` and its own, whole or not at all."""
    manifest = {**manifest, "files": files}
    own = {MANIFEST: {"blake2b": digest_json(manifest)}}
    write_json(path / MANIFEST, {**manifest, "files": {**files, **own}})


def read_seal(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return prompts.json of a run folder, empty where it is damaged or gone, and a sentence where it is damaged."""
    try:
        return read_json(path / STAGED, fix=_RESTAGED, shape=PoolSeal) or {}, []
    except StoreError as err:
        return {}, [str(err)]
