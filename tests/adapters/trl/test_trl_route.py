"""`adg://` opens what the user named, and nothing that a data set names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import yaml

from adg_plugin.adapters.trl.fsspec_route import ALLOWED
from adg_plugin.errors import ADGError

CARD = "---\nconfigs:\n- config_name: default\n  data_files: {url}\n---\n"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a selection that needs no model, in a process that no argument started."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.delenv(ALLOWED, raising=False)
    rows = [{"instruction": f"Count to {n}.", "output": "one " * n} for n in range(1, 6)]
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return write(tmp_path / "selection.yaml", datasets=[str(pool)], model="demo", method="longest", budget=2)


def write(path: Path, **keys: object) -> Path:
    path.write_text(yaml.safe_dump({"output_dir": str(path.parent / "run"), **keys}))
    return path


def url(settings: Path, name: str = "selected.jsonl") -> str:
    return f"adg://{settings}/{name}"


def changed(settings: Path, **keys: object) -> Path:
    return write(settings, **{**yaml.safe_load(settings.read_text()), **keys})


def refused(asked: str) -> str:
    """Return why a URL is not opened, which must be so however it is asked for."""
    fs, path = fsspec.core.url_to_fs(asked)
    said = set()
    for ask in (fs.open, fs.info, fs.exists, fs.ls, fs.glob):
        with pytest.raises(ADGError) as caught:
            ask(path)
        said.add(str(caught.value))
    (text,) = said
    return text


def test_what_nobody_named_is_not_opened(settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = sorted(tmp_path.rglob("*"))
    for place in (settings, tmp_path / "none.yaml"):  # nor is told whether it exists
        assert refused(url(place)) == (
            f"{url(place)}: not opened, as a data set may name it and neither the command line, the YAML "
            f"after its --config nor {ALLOWED} does; if it is yours, set {ALLOWED}={place}"
        )
    other = write(tmp_path / "other.yaml", datasets=[{"path": "parquet", "data_files": url(tmp_path / "mine.yaml")}])
    monkeypatch.setenv(ALLOWED, str(tmp_path / "mine.yaml"))
    monkeypatch.setattr(sys, "argv", ["sft.py", "--config", str(other), str(settings), "--out", str(tmp_path)])
    assert ": not opened, " in refused(url(settings))
    other.unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_the_environment_names_what_is_opened(settings: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ALLOWED, os.pathsep.join(["", "/no/such.yaml", os.path.relpath(settings)]))
    fs, path = fsspec.core.url_to_fs(url(settings))
    assert fs.info(path)["type"] == "file"
    with pytest.raises(FileNotFoundError, match=r"write adg:///PATH/config.yaml/selected.jsonl or"):
        fsspec.open(url(settings, "x.jsonl")).open()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "sft.yaml"],
        ["--seed", "1", "--config=sft.yaml"],
        ["--data_files", "adg://{settings}/train.parquet"],
        ["--data_files=adg://{settings}/train.parquet"],
    ],
)
@pytest.mark.parametrize("nest", [lambda url: url, lambda url: {"train": [url]}], ids=["plain", "nested"])
def test_the_command_line_names_what_is_opened(settings, tmp_path, monkeypatch, arguments, nest):
    monkeypatch.chdir(tmp_path)
    data = [{"path": "parquet", "data_files": nest(url(settings, "train.parquet"))}]
    write(tmp_path / "sft.yaml", datasets=data, env={"X": "1"})
    monkeypatch.setattr(sys, "argv", ["sft.py", *(text.format(settings=settings) for text in arguments)])
    fs, path = fsspec.core.url_to_fs(url(settings))
    assert [info["type"] for info in fs.glob(path, detail=True).values()] == ["file"]


def test_no_code_of_a_model_runs_also_where_it_is_named(settings, monkeypatch):
    monkeypatch.setenv(ALLOWED, str(settings))
    changed(settings, trust_remote_code=True)
    assert refused(url(settings)) == (
        f"{settings}: trust_remote_code is true, and adg:// runs no code of a model; run adg select {settings} first, "
        "and give its run folder as dataset_name"
    )


def test_mistakes_of_the_settings_are_told(settings, monkeypatch):
    monkeypatch.setenv(ALLOWED, str(settings))
    changed(settings, budget=-1)
    assert refused(url(settings)).startswith(f"{settings}: budget is -1: ")
    settings.unlink()
    fs, path = fsspec.core.url_to_fs(url(settings))
    assert not fs.exists(path)


@pytest.mark.slow
def test_a_selection_opens_no_other(settings, tmp_path, monkeypatch, capfd):
    inner = tmp_path / "inner.yaml"
    inner.write_text(settings.read_text())
    changed(settings, datasets=[{"path": "json", "data_files": url(inner)}])
    monkeypatch.setenv(ALLOWED, f"{settings}{os.pathsep}{inner}")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    with pytest.raises(ADGError, match=r"the selection for .* failed"):
        fsspec.open(url(settings)).open()
    assert f"error: {url(inner)}: not opened, " in capfd.readouterr().err


def test_a_data_set_that_names_a_selection_does_not_run_it(settings: Path, tmp_path: Path):
    card = tmp_path / "theirs"
    card.mkdir()
    (card / "README.md").write_text(CARD.format(url=url(settings)))
    code = f"import datasets; datasets.load_dataset({str(card)!r}, cache_dir={str(tmp_path / 'cache')!r})"
    online = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **online}, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ADGError: {url(settings)}: not opened, " in done.stderr
    assert not (tmp_path / "run").exists()
