"""A run folder behind a URL: the local copy comes and goes, the URL has everything."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem
from store_rows import IDS, check, pending, result, stage, staged

from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.store import RunFolder, mirror
from adg_plugin.store.mirror import local_run_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_SETTLE_S", 0.01)
    monkeypatch.setenv("ADG_RUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def url(tmp_path):
    return f"file://{tmp_path}/bucket/run"


@pytest.fixture
def bucket(tmp_path):
    return tmp_path / "bucket" / "run"


def test_a_path_is_itself(tmp_path):
    with local_run_folder(str(tmp_path / "run")) as folder:
        assert folder == tmp_path / "run"
        assert not folder.exists()


def test_the_url_has_everything_and_another_machine_goes_on(url, bucket, cache):
    with local_run_folder(url) as folder:
        stage(folder, IDS[:40])
        with RunFolder.open(folder, rows_per_part=5) as run:
            for id in IDS[:20]:
                run.append(result(id))
        assert folder != bucket
    shutil.rmtree(cache)  # another machine
    with local_run_folder(url) as folder:
        with RunFolder.open(folder) as run:
            assert run.damage == []
            left = pending(run)
            assert left == IDS[20:40]
            for id in left:
                run.append(result(id))
            run.flush()
            run.compact()
        check(folder, IDS[:40])
    check(bucket, IDS[:40])
    assert len(list((bucket / "answers").iterdir())) == 1  # the merged parts are gone there, too


def test_an_error_in_the_middle_uploads_what_there_is(url, bucket):
    def work():
        with local_run_folder(url) as folder:
            stage(folder, IDS[:10])
            with RunFolder.open(folder, rows_per_part=2) as run:
                for id in IDS[:4]:
                    run.append(result(id))
                raise RuntimeError("of the work")

    with pytest.raises(RuntimeError, match="of the work"):
        work()
    assert len(list(RunFolder.read(bucket).results())) == 4


def test_parts_are_uploaded_while_the_work_goes_on(url, bucket, monkeypatch):
    monkeypatch.setattr(mirror, "_PUSH_EVERY_S", 0.02)
    with local_run_folder(url) as folder:
        stage(folder, IDS[:10])
        with RunFolder.open(folder, rows_per_part=2) as run:
            run.append(result(IDS[0]))
            run.append(result(IDS[1]))
            deadline = time.monotonic() + 20
            while not list(bucket.glob("answers/part-*")):
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_of_a_stepwise_choice_the_longest_steps_count_wherever_they_are(url, bucket, monkeypatch):
    import numpy as np

    from adg_plugin.selectors.zip import selector as zip_steps
    from adg_plugin.selectors.zip.greedy import Steps

    monkeypatch.setattr(zip_steps, "_EVERY_S", 0.0)
    texts, other = [b"a text", b"another", b"more"], [b"other", b"texts", b"here"]
    with local_run_folder(url) as folder:
        stage(folder, IDS[:4])
        zip_steps.KeptSteps(folder / "measures" / "zip", texts).add(Steps(np.array([1]), np.arange(3.0)))
    assert len(list((bucket / "measures" / "zip").iterdir())) == 1
    zip_steps.KeptSteps(folder / "measures" / "zip", texts).add(Steps(np.array([1, 2]), np.arange(3.0)))  # went down
    with local_run_folder(url) as folder:
        kept = zip_steps.KeptSteps(folder / "measures" / "zip", texts)
        assert kept.begun.order.tolist() == [1, 2]
        kept.add(Steps(np.array([1, 2, 0]), np.arange(3.0)))
    (there,) = (bucket / "measures" / "zip").iterdir()
    with local_run_folder(url) as folder:  # another pool: its file may be as long
        zip_steps.KeptSteps(folder / "measures" / "zip", other).add(Steps(np.array([0, 1, 2]), np.arange(3.0)))
    (now,) = (bucket / "measures" / "zip").iterdir()
    assert now.name != there.name
    assert zip_steps.KeptSteps(bucket / "measures" / "zip", other).begun.order.tolist() == [0, 1, 2]


def test_its_own_claim_is_never_read_half_written(url, monkeypatch, caplog):
    write = LocalFileSystem.pipe_file

    def slowly(self, path, value, **options):
        if path.endswith(mirror._HEARTBEAT):
            write(self, path, b"", **options)
            time.sleep(0.05)
        write(self, path, value, **options)

    monkeypatch.setattr(LocalFileSystem, "pipe_file", slowly)
    monkeypatch.setattr(mirror, "_PUSH_EVERY_S", 0.01)
    with local_run_folder(url) as folder:
        stage(folder, IDS[:10])
        time.sleep(0.3)
    assert not caplog.messages


def test_what_was_sampled_before_a_crash_is_kept_and_everything_else_is_the_urls(url, bucket, cache):
    with local_run_folder(url) as folder:
        stage(folder, IDS[:10])
    saved = folder
    with RunFolder.open(saved, rows_per_part=2) as run:  # written locally, never uploaded: the machine went down
        run.append(result(IDS[0]))
        run.append(result(IDS[1]))
        run.stage_prompts([staged(id) for id in IDS[:3]], digest="other")
    with local_run_folder(url) as folder, RunFolder.open(folder) as run:
        assert run.staged_digest() == "d"
        assert pending(run) == IDS[2:10]


def test_a_manifest_is_there_only_with_all_that_it_names(url, bucket, monkeypatch):
    import pyarrow as pa

    with local_run_folder(url) as folder:
        stage(folder, IDS[:10])
        with RunFolder.open(folder) as run:
            run.write_scores(pa.table({"id": IDS[:10]}))
            run.write_selected(IDS[:2])
            run.write_manifest({"rows": 2})
    assert RunFolder.read(bucket).manifest()["rows"] == 2

    def fail(self, path):
        if path.startswith("scores"):
            raise StoreError("the line is cut")
        return put(self, path)

    put = mirror._Mirror._put
    monkeypatch.setattr(mirror._Mirror, "_put", fail)
    with pytest.raises(StoreError, match="the line is cut"), local_run_folder(url) as folder:
        pass
    assert RunFolder.read(bucket).manifest() is None


def test_two_processes_do_not_work_on_one_url(url, bucket, tmp_path, monkeypatch):
    with local_run_folder(url):
        with pytest.raises(StoreError, match="is in use by another process of this machine"), local_run_folder(url):
            pass
        monkeypatch.setenv("ADG_RUN_CACHE", str(tmp_path / "of another machine"))
        in_use = r"is in use by process \d+ on host \S+: wait for it"
        with pytest.raises(StoreError, match=in_use), local_run_folder(url):
            pass
        about = json.loads((bucket / "in-use.json").read_text())
    assert not (bucket / "in-use.json").exists()
    (bucket / "in-use.json").write_text(json.dumps({**about, "time": time.time() - 301}))  # killed long ago
    with local_run_folder(url):
        pass


def claimed_at_once(url, monkeypatch):
    """Return the errors of four processes on as many machines that have all found the URL free; None: it has it."""
    together, over = threading.Barrier(4), threading.Barrier(4)
    looked = threading.local()
    claim = mirror._Mirror._claim

    def looking(self):
        found = claim(self)
        if not hasattr(looked, "once"):
            looked.once = True
            together.wait(10)
        return found

    monkeypatch.setattr(mirror._Mirror, "_claim", looking)

    def work():
        try:
            with mirror._Mirror(url).held():
                over.wait(10)
                return None
        except StoreError as err:
            over.wait(10)
            return str(err)

    with ThreadPoolExecutor(4) as machines:
        return [one.result() for one in [machines.submit(work) for _ in range(4)]]


@pytest.mark.parametrize("driver", ["creates", "has no exclusive mode", "overwrites"])
def test_of_processes_that_find_a_url_free_at_once_one_gets_it(url, bucket, monkeypatch, driver):
    opened = LocalFileSystem.open

    def other(self, path, mode="rb", **options):
        if "x" in mode and driver == "has no exclusive mode":
            raise NotImplementedError("File mode not supported")
        return opened(self, path, mode.replace("x", "w"), **options)

    if driver != "creates":
        monkeypatch.setattr(mirror, "_SETTLE_S", 0.3)
        monkeypatch.setattr(LocalFileSystem, "open", other)
    bucket.mkdir(parents=True)
    errors = claimed_at_once(url, monkeypatch)
    assert errors.count(None) == 1
    assert all("is in use by process" in error for error in errors if error is not None)
    assert not list(bucket.iterdir())


def test_of_processes_that_find_a_stale_claim_at_once_one_gets_it(url, bucket, monkeypatch):
    monkeypatch.setattr(mirror, "_SETTLE_S", 0.3)
    bucket.mkdir(parents=True)
    (bucket / "in-use.json").write_text(json.dumps({"id": "gone", "pid": 7, "host": "far", "time": time.time() - 301}))
    assert claimed_at_once(url, monkeypatch).count(None) == 1


def test_a_claim_that_is_just_being_written_is_read_again(url, bucket):
    bucket.mkdir(parents=True)
    claim = bucket / "in-use.json"
    claim.touch()
    text = json.dumps({"id": "other", "pid": 7, "host": "far", "time": time.time()})
    threading.Timer(0.1, claim.write_text, [text]).start()
    with pytest.raises(StoreError, match="is in use by process 7 on host far"), local_run_folder(url):
        pass


def test_local_copies_that_are_whole_behind_their_urls_are_removed_after_two_weeks(tmp_path, cache):
    def used(name, age_days, *, uploaded=True):
        url = f"file://{tmp_path}/bucket/{name}"
        with local_run_folder(url) as folder:
            stage(folder, IDS[:4])
        mark = folder.with_suffix(".uploaded")
        if uploaded:
            os.utime(mark, (time.time() - age_days * 86400,) * 2)
        else:
            mark.unlink()  # the line was cut
        return folder, url

    old, again = used("old", 15)
    new, _ = used("new", 13)
    only, _ = used("only here", 99, uploaded=False)
    at_work, _ = used("at work", 15)
    with FileLock(at_work.with_suffix(".lock")), local_run_folder(f"file://{tmp_path}/bucket/another"):
        assert [folder.is_dir() for folder in (old, new, only, at_work)] == [False, True, True, True]
    with local_run_folder(again) as folder:
        assert RunFolder.read(folder).staged_digest() == "d"
        assert not folder.with_suffix(".uploaded").exists()  # until it is in step again


def test_an_unknown_protocol_is_named():
    with (
        pytest.raises(StoreError, match=r"cannot use nosuch://bucket/run: .*Check the URL, the credentials"),
        local_run_folder("nosuch://bucket/run"),
    ):
        pass


def test_a_run_that_was_taken_over_uploads_and_deletes_nothing_more(url, bucket, caplog):
    def work():
        with local_run_folder(url) as folder:
            stage(folder, IDS[:4])
            with RunFolder.open(folder, rows_per_part=2) as run:
                run.append(result(IDS[0]))
                run.append(result(IDS[1]))
            # Out of reach for long, while another machine took the run over.
            (bucket / "answers").mkdir(parents=True, exist_ok=True)
            (bucket / "answers" / "part-of-the-other").write_text("kept")
            (bucket / "in-use.json").write_text(
                json.dumps({"id": "other", "pid": 7, "host": "far", "time": time.time()})
            )

    with pytest.raises(StoreError, match=r"was taken over by process 7 on host far: nothing more is uploaded"):
        work()
    assert (bucket / "answers" / "part-of-the-other").read_text() == "kept"
    assert (bucket / "in-use.json").exists()
    assert not (bucket / "prompts.parquet").exists()


def test_what_others_have_put_there_is_not_deleted(url, bucket):
    with local_run_folder(url) as folder:
        stage(folder, IDS[:4])
        bucket.mkdir(parents=True, exist_ok=True)
        (bucket / "notes.txt").write_text("mine")
    assert (bucket / "notes.txt").read_text() == "mine"


def test_an_upload_that_was_cut_off_is_repeated(url, bucket):
    with local_run_folder(url) as folder:
        stage(folder, IDS[:4])
        with RunFolder.open(folder, rows_per_part=4) as run:
            for id in IDS[:4]:
                run.append(result(id))
    [part] = (bucket / "answers").iterdir()
    part.write_bytes(part.read_bytes()[:100])
    with local_run_folder(url) as folder:
        check(folder, IDS[:4])
    check(bucket, IDS[:4])


def test_a_password_in_the_url_is_refused():
    with (
        pytest.raises(ConfigError, match="a URL with a password in it"),
        local_run_folder("s3://key:secret@bucket/run"),
    ):
        pass
