"""`adg:///PATH/config.yaml/selected.jsonl`: a file that is the selection, made when the file is opened.

This is how the unmodified `trl sft` trains on a selection: `datasets` opens the URL like any other file. It
opens one in a data set's card, too, so only what the user named is selected.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from fsspec import AbstractFileSystem

from adg_plugin.adapters.processes import run_on_stderr
from adg_plugin.config.files import load_yaml
from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import ADGConfig, load_config
from adg_plugin.data.sources import pool_fingerprint
from adg_plugin.errors import ADGError
from adg_plugin.pipeline.training_rows import TRAINING_FILE

ALLOWED = "ADG_ROUTES"  # environment variable: files of settings, with a colon between them
_SCHEME = "adg://"
_FILES = {"selected.jsonl": Path("selected.jsonl"), "train.parquet": TRAINING_FILE}


class SelectionFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of selections: `selected.jsonl`, the rows as they were, and `train.parquet`, as TRL trains on them.

    Raises:
        ADGError: of everything but a write: the user named no such URL, or its settings trust code.
    """

    protocol = "adg"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name and kind, without selecting; the ETag changes with the settings and the pool's files.

        Raises:
            FileNotFoundError: no such configuration, or no such file of a selection.
        """
        config_path, name, config = _asked_for(path)
        key = f"{config_path.read_text(encoding='utf-8')}\0{pool_fingerprint(config.datasets)}"
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return {"name": f"{config_path}/{name}", "type": "file", "size": None, "ETag": digest}

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether `path` is there; fsspec's own hides what is wrong with the settings."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return the one file that `path` is."""
        found = self.info(path)
        return [found if detail else found["name"]]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> IO[bytes]:
        """Open the file in the run folder, after a selection that reuses what is there.

        The selection runs in a process of its own, so its model is gone before training starts. Several processes may
        ask at once: the first selects, the others wait for it.
        """
        if mode != "rb":
            raise ADGError(f"{path} is opened with mode {mode!r}: a selection can only be read")
        config_path, name, config = _asked_for(path)
        run_dir = Path(run_folder(config.output_dir, settings=config_path)).absolute()
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(run_dir.with_name(f".{run_dir.name}.adg-route.lock")):
            command = [sys.executable, "-m", "adg_plugin", "select", str(config_path), "--out", str(run_dir)]
            # Its own pool may be somebody else's, and opens nothing.
            environment = {key: value for key, value in os.environ.items() if key != ALLOWED}
            code = run_on_stderr(command, env=environment)
        if code:
            raise ADGError(f"the selection for {path} failed (exit code {code}); see above")
        file = run_dir / _FILES[name]
        if not file.is_file():
            raise ADGError(f"{path}: the chosen rows cannot be put into one table; read selected.jsonl instead")
        return file.open("rb")


def _asked_for(path: str) -> tuple[Path, str, ADGConfig]:
    """Return the settings' path, the name of the selection's file, and the settings, where the user named them."""
    settings, _, name = path.removeprefix(_SCHEME).rpartition("/")
    if name in _FILES and not _is_named(settings):
        raise ADGError(
            f"{_SCHEME}{settings}/{name}: not opened, as a data set may name it and neither the command line, the YAML "
            f"after its --config nor {ALLOWED} does; if it is yours, set {ALLOWED}={settings}"
        )
    if name not in _FILES or not Path(settings).is_file():
        raise FileNotFoundError(
            f"{path}: write adg:///PATH/config.yaml/selected.jsonl or .../train.parquet, with a config.yaml that exists"
        )
    config = load_config(settings)
    if config.trust_remote_code:
        raise ADGError(
            f"{settings}: trust_remote_code is true, and {_SCHEME} runs no code of a model; run adg select {settings} "
            "first, and give its run folder as dataset_name"
        )
    return Path(settings), name, config


def _is_named(settings: str) -> bool:
    """Return whether the user named these settings: in the environment, on the command line, in the YAML it names."""
    wanted = os.path.abspath(settings)
    if wanted in {os.path.abspath(file) for file in os.environ.get(ALLOWED, "").split(os.pathsep) if file}:
        return True
    arguments = sys.argv[1:]
    configs = [value for flag, value in pairwise(arguments) if flag == "--config"]
    configs += [text.removeprefix("--config=") for text in arguments if text.startswith("--config=")]
    texts = [*arguments, *(text for config in configs for text in _texts(load_yaml(config)))]
    urls = [text.partition(_SCHEME)[2] for text in texts if _SCHEME in text]
    return wanted in {os.path.abspath(url.rpartition("/")[0]) for url in urls}


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts within a YAML's value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)
