"""The small JSON files of a run folder: emptied, of another shape, with a byte flipped or gone, under every command."""

from __future__ import annotations

import json
import random
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from store_rows import IDS, pending, result, stage, write
from tiny_runs import SETTINGS, pool_rows, read_jsonl, write_jsonl
from typer.testing import CliRunner

from adg_plugin.cli import app
from adg_plugin.errors import ADGError, StoreError
from adg_plugin.pipeline.ranks import merge_rank_results
from adg_plugin.store import RunFolder, mirror
from adg_plugin.store.files import Sink, read_json, replacing, write_json
from adg_plugin.store.mirror import local_run_folder

HARMS: dict[str, Callable[[bytes], bytes | None]] = {
    "emptied": lambda data: b"",
    "{}": lambda data: b"{}",
    "[]": lambda data: b"[]",
    "a byte flipped": lambda data: data[:10] + bytes([data[10] ^ 0x10]) + data[11:],
    "removed": lambda data: None,
}
HARMED = pytest.mark.parametrize("harm", HARMS)


def hurt(path: Path, harm: str) -> None:
    changed = HARMS[harm](path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def finished(path: Path) -> None:
    stage(path, IDS[:4])
    write(path, IDS[:4])
    with RunFolder.open(path) as run:
        run.write_config({"config": {"model": "m"}, "recipe": {"top_k": 50}})
        run.write_scores(pa.table({"id": IDS[:4]}))
        run.write_selected(IDS[:2])
        run.write_manifest({"config": {"model": "m"}, "recipe": {"top_k": 50}, "score": {"p5": 0.25}})


# Settings


@HARMED
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_run_folder_opens_without_its_settings(tmp_path: Path, caplog, harm: str, is_finished: bool):
    finished(tmp_path)
    if not is_finished:
        (tmp_path / "manifest.json").unlink()
    hurt(tmp_path / "config.json", harm)
    told = f"{tmp_path}/config.json is "
    end = ": the folder opens without it, for each row's answers carry their own key"
    before = (tmp_path / "config.json").read_bytes() if harm != "removed" else None
    known = {"config": {"model": "m"}, "recipe": {"top_k": 50}} if is_finished else {}
    reader = RunFolder.read(tmp_path)
    assert len(list(reader.results())) == 4
    assert reader.read_config() == known  # the manifest has them, too
    assert ((tmp_path / "config.json").read_bytes() if before is not None else None) == before
    with RunFolder.open(tmp_path) as run:
        assert pending(run) == []
        assert run.read_config() == known
    assert [(m.replace("config.json holds", "config.json is").startswith(told), m.endswith(end))
            for m in caplog.messages] == [(True, True)] * 2  # fmt: skip
    caplog.clear()
    RunFolder.read(tmp_path)
    assert not caplog.messages


@pytest.mark.parametrize("part_of", ["answers", "prompts.json", ".lock"])
def test_what_lies_beside_shows_whose_folder_it_is(tmp_path: Path, part_of: str):
    finished(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != part_of and not (part_of == ".lock" and path.name == "answers"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if part_of == ".lock":
        next((tmp_path / "answers").iterdir()).unlink()
    RunFolder.open(tmp_path).close()
    assert "adg_run_folder" in json.loads((tmp_path / "config.json").read_bytes())


def test_a_model_that_was_saved_into_a_run_folder_is_left_alone(tmp_path: Path):
    finished(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for opening in (RunFolder.open, RunFolder.read):
        with pytest.raises(StoreError, match="exists and is not a run folder"):
            opening(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'


# Any bit


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "prompts.json"])
def test_no_flipped_bit_goes_unseen(tmp_path: Path, caplog, name: str):
    finished(tmp_path)
    path, reader = tmp_path / name, RunFolder.read(tmp_path)
    good, config, manifest = path.read_bytes(), reader.read_config(), reader.manifest()
    for bit in random.Random(1).sample(range(8 * len(good)), 250):
        path.write_bytes(flipped(good, bit))
        reader = RunFolder.read(tmp_path)
        assert reader.read_config().items() >= config.items()  # more where the checksum's own name is hit
        error, found = None, None
        try:
            found = reader.manifest()  # None: a digest of the files is hit, or a name
        except StoreError as err:
            error = str(err)
        assert found in (None, manifest)
        if error is not None:
            assert re.fullmatch(rf"{path} .*: run adg select on this folder again, which keeps the answers", error)
        assert (reader.staged_digest(), reader.staged_notes()) == ("d", []) or name == "prompts.json"
    assert bool(caplog.messages) == (name == "config.json")


def test_files_of_an_older_version_have_no_checksum(tmp_path: Path, caplog):
    finished(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["files"]["manifest.json"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["checksum"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    reader = RunFolder.read(tmp_path)
    assert reader.manifest() == manifest
    assert reader.read_config() == {"config": {"model": "m"}, "recipe": {"top_k": 50}}
    assert not caplog.messages


# The others


@HARMED
def test_a_pool_without_its_digests_is_staged_again(tmp_path: Path, harm: str):
    finished(tmp_path)
    hurt(tmp_path / "prompts.json", harm)
    with RunFolder.open(tmp_path) as run:
        assert run.staged_digest() is None
        assert run.staged_notes() == []
        damage = [text for text in run.damage if text.startswith(f"{tmp_path}/prompts.json ")]
        assert [text.endswith(": the pool will be staged again") for text in damage] == [True] * (harm != "removed")
    stage(tmp_path, IDS[:4])
    assert RunFolder.read(tmp_path).staged_digest() == "d"


@HARMED
def test_whoever_holds_the_folder_may_not_be_known(tmp_path: Path, harm: str):
    with RunFolder.open(tmp_path):
        hurt(tmp_path / ".lock.json", harm)
        with pytest.raises(StoreError, match="is in use by another process: wait for it, or give another --out"):
            RunFolder.open(tmp_path)


@HARMED
def test_what_other_ranks_found_is_merged_and_nothing_else(tmp_path: Path, harm: str):
    stage(tmp_path, IDS[:9])
    write(tmp_path / "ranks" / "1", IDS[:4])
    hurt(tmp_path / "ranks" / "1" / "config.json", harm)
    RunFolder.open(tmp_path / "ranks" / "2").close()  # killed before it had found anything
    hurt(tmp_path / "ranks" / "2" / "config.json", harm)
    foreign = [tmp_path / "ranks" / name for name in (".DS_Store", "3", "1.txt")]
    for path in foreign:
        path.write_text("a stray file")
    (tmp_path / ".absorbed-4").write_text("a stray file")
    (tmp_path / "ranks" / "1 copy").mkdir()
    with RunFolder.open(tmp_path) as run:
        merge_rank_results(run)
        assert pending(run) == IDS[4:9]
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {".DS_Store", "3", "1.txt", "1 copy"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff", "is not JSON ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte)"),
        (b"[" * 100_000, "is not JSON ("),
        (b"3", "holds a JSON int, not an object"),
        (b'{"pid": "1", "host": "h", "since": "s"}', "is not as it was written (pid: input should be a valid integer)"),
    ],
)
def test_one_reader_checks_text_and_shape(tmp_path: Path, data: bytes, said: str):
    from adg_plugin.store.json_files import Holder

    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(StoreError) as caught:
        read_json(tmp_path / "f.json", fix="mend it", shape=Holder)
    assert str(caught.value).startswith(f"{tmp_path}/f.json {said}")
    assert str(caught.value).endswith(": mend it")


def test_half_a_character_in_a_path_can_be_written(tmp_path: Path):
    write_json(tmp_path / "f.json", {"path": "pool\udce9.jsonl"})
    assert read_json(tmp_path / "f.json", fix="") == {"path": "pool\udce9.jsonl"}


# Whose eyes


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path):
    run = tmp_path / "runs" / "one"
    finished(run)
    with RunFolder.open(run / "ranks" / "1") as rank:
        rank.append(result(IDS[0]))
    damaged = next((run / "answers").glob("part-*"))
    damaged.write_bytes(b"")
    RunFolder.open(run).close()
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [run.parent, *run.parent.rglob("*")]}
    damaged_modes = {path for path in modes if "damaged" in path.parts}
    assert len(damaged_modes) == 2
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}


def test_a_folder_of_the_users_keeps_its_mode(tmp_path: Path):
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run").chmod(0o755)
    stage(tmp_path / "run", IDS[:2])
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
    sink = Sink(tmp_path / "file", shown=tmp_path / "file")
    sink.close()
    with replacing(tmp_path / "file"):
        pass
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


# Every command


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Path:
    """A folder with a finished selection, a comparison in it, and its settings."""
    folder = tmp_path_factory.mktemp("whole")
    pool = write_jsonl(folder / "pool.jsonl", [{**row, "output": "a b c"} for row in pool_rows(16)])
    settings = {**SETTINGS, "budget": 6, "model": str(model), "datasets": [str(pool)], "bins": 2}
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    for command in ("select", "compare"):
        assert called(folder, command) is None
    RunFolder.open(folder / "run" / "ranks" / "1").close()
    return folder


def called(folder: Path, command: str) -> BaseException | None:
    run, settings = str(folder / "run"), str(folder / "c.yaml")
    arguments = {
        "explain": [run, "row-3"],
        "export": [run, "--out", str(folder / "chosen.json")],
        "report": [run, "--json"],
        "show": [run],
        "stability": [run],
        "sweep": [run, "--vary", "weight=0.1,0.9"],
        "compare": [settings, "--out", run, "--methods", "random", "-q"],
        "dry": [settings, "--out", run, "--dry-run"],
        "embed": [settings, "--out", run, "-q"],
        "estimate": [settings, "--out", run, "-q"],
        "sample": [settings, "--out", run, "-q"],
        "select": [settings, "--out", run, "-q"],
    }[command]
    return CliRunner().invoke(app, ["select" if command == "dry" else command, *arguments]).exception


READING = ("show", "explain", "export", "report", "stability", "sweep")
WRITING = ("compare", "embed", "estimate", "sample", "select")
# For each file the commands that look at it, and those of them that cannot do without it. An estimate is refused in any
# case, for there is nothing to measure in a finished selection.
LOOKED_AT = {
    "config.json": ((*READING, "dry", *WRITING), ()),
    "manifest.json": ((*READING, "dry", *WRITING), (*READING, "compare")),
    "prompts.json": (("report", "dry", *WRITING), ("compare",)),
    "compare.json": (("report", "compare"), ("compare",)),
    "ranks/1/config.json": (("compare", "sample", "select"), ()),
}


@pytest.mark.tiny
@HARMED
@pytest.mark.parametrize("name", LOOKED_AT)
def test_every_command_does_without_the_file_or_says_what_to_do(whole: Path, tmp_path: Path, name: str, harm: str):
    chosen = read_jsonl(whole / "run" / "selected.jsonl")
    commands, refused = LOOKED_AT[name]
    for command in commands:
        if command not in READING or command == commands[0]:  # reading changes nothing
            shutil.rmtree(tmp_path, ignore_errors=True)
            shutil.copytree(whole, tmp_path)
            hurt(tmp_path / "run" / name, harm)
        error = called(tmp_path, command)
        assert error is None or isinstance(error, ADGError), (command, error)
        if error is not None:
            assert command in (*refused, "estimate"), error
            assert any(word in str(error) for word in (name, "adg select", "give another --out")), error
        if command == "select":
            assert read_jsonl(tmp_path / "run" / "selected.jsonl") == chosen
            assert called(tmp_path, "show") is None


def test_an_evaluation_finds_its_selection_without_the_settings(tmp_path: Path):
    from adg_plugin.tools.evaluation.kept import selection_of

    finished(tmp_path)
    results = tmp_path / "eval" / "one.json"
    before = selection_of(results)
    (tmp_path / "config.json").write_bytes(b"")
    assert before is not None
    assert selection_of(results) == before
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(StoreError, match=r"manifest\.json is not as it was written \(files: field required\)"):
        selection_of(results)


@HARMED
def test_a_claim_on_a_url_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch, harm: str):
    monkeypatch.setenv("ADG_RUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirror, "_HALF_WRITTEN", ())
    claim = tmp_path / "bucket" / "in-use.json"
    claim.parent.mkdir()
    write_json(claim, {"id": "other", "pid": 7, "host": "far", "time": 0})
    hurt(claim, harm)
    url = f"file://{tmp_path}/bucket"
    if harm == "removed":
        with local_run_folder(url):
            pass
        return
    fix = f"where nobody else works on {url}, delete it and run the same command again"
    with pytest.raises(StoreError, match=rf"^{url}/in-use\.json .*: {fix}"), local_run_folder(url):
        pass
