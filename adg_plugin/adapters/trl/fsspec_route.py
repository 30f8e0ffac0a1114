"""`adg:///PATH/config.yaml/selected.jsonl`: a file that is the selection, made when the file is opened.

This is how the unmodified `trl sft` trains on a selection: `datasets` opens the URL like any other file.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from filelock import FileLock
from fsspec import AbstractFileSystem

from adg_plugin.config.run_folder import run_folder
from adg_plugin.config.schema import load_config
from adg_plugin.data.sources import pool_fingerprint
from adg_plugin.errors import ADGError
from adg_plugin.pipeline.training_rows import TRAINING_FILE

_FILES = {"selected.jsonl": Path("selected.jsonl"), "train.parquet": TRAINING_FILE}


class SelectionFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The files of selections: `selected.jsonl`, the rows as they were, and `train.parquet`, as TRL trains on them."""

    protocol = "adg"
    cachable = False

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Return name and kind, without selecting; the ETag changes with the settings and the pool's files.

        Raises:
            FileNotFoundError: no such configuration, or no such file of a selection.
        """
        config_path, name = _parts(path)
        config = load_config(config_path)
        key = f"{config_path.read_text(encoding='utf-8')}\0{pool_fingerprint(config.datasets)}"
        digest = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        return {"name": f"{config_path}/{name}", "type": "file", "size": None, "ETag": digest}

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
        config_path, name = _parts(path)
        run_dir = Path(run_folder(load_config(config_path).output_dir, settings=config_path)).absolute()
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(run_dir.with_name(f".{run_dir.name}.adg-route.lock")):
            command = [sys.executable, "-m", "adg_plugin", "select", str(config_path), "--out", str(run_dir)]
            done = subprocess.run(command, stdout=sys.stderr.fileno())
        if done.returncode:
            raise ADGError(f"the selection for {path} failed (exit code {done.returncode}); see above")
        file = run_dir / _FILES[name]
        if not file.is_file():
            raise ADGError(f"{path}: the chosen rows cannot be put into one table; read selected.jsonl instead")
        return file.open("rb")


def _parts(path: str) -> tuple[Path, str]:
    config_path, _, name = path.removeprefix("adg://").rpartition("/")
    if name not in _FILES or not Path(config_path).is_file():
        raise FileNotFoundError(
            f"{path}: write adg:///PATH/config.yaml/selected.jsonl or .../train.parquet, with a config.yaml that exists"
        )
    return Path(config_path), name
