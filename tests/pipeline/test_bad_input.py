"""What bad input gets: each line of the table, through the command where it ends there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tiny_models import save_tiny_model, tiny_tokenizer
from tiny_runs import SETTINGS, choose, command, fall_silent, parts, pool_rows, read_jsonl, save, write_jsonl

from adg_plugin import cli
from adg_plugin.data.readers import ACCEPTED_FILES
from adg_plugin.errors import ConfigError, DataError, ModelError
from adg_plugin.store import RunFolder

pytestmark = pytest.mark.tiny


@pytest.fixture
def refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `adg select` on a pool; return what it says after `error: `, once it has ended as bad input does."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def run(*pool: object, code: int = 2, **settings: object) -> str:
        config = {**SETTINGS, "model": str(model), "datasets": list(pool), **settings}
        Path("run.yaml").write_text(yaml.safe_dump(config))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(["select", "run.yaml", "--out", "run"])
        out, err = capsys.readouterr()
        assert (ended.value.code, out) == (code, "")
        assert not Path("run/manifest.json").exists()
        (_, _, said) = err.rpartition("error: ")
        return said.rstrip("\n")

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_a_missing_file(refused, tmp_path):
    assert refused("pool.jsonl") == (
        f"pool.jsonl: no such file or folder: give a file or folder that exists (in {tmp_path}); "
        f"formats: {ACCEPTED_FILES}"
    )
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ('{"instruction": "x"', "not JSON (Expecting ',' delimiter, column 20)"),
        ("instruction: x", "not JSON (Expecting value, column 1): saw 'instruction: x'"),
        ("[1, 2]", "saw '[1, 2]', expected a JSON object: one row per line"),
    ],
)
def test_not_json_on_line_n(refused, line, seen):
    rows = [json.dumps(row) for row in pool_rows(8)]
    Path("pool.jsonl").write_text("\n".join([*rows[:5], line, *rows[5:]]))
    assert refused("pool.jsonl").startswith(f"pool.jsonl:6: {seen}")


def test_unknown_formats(refused):
    Path("pool.xlsx").write_bytes(b"PK")
    assert refused("pool.xlsx") == (
        f"pool.xlsx: unknown file format: use {ACCEPTED_FILES}; or set ds_type to json, csv, parquet or arrow"
    )
    write_jsonl(Path("pool.jsonl"), [{"query": "x", "reply": "y"}] * 3)
    assert refused("pool.jsonl") == (
        "pool.jsonl:1: unknown row format (columns: query, reply). Accepted: alpaca (instruction, input, output), "
        "messages (messages), prompt_completion (prompt, completion), sharegpt (conversations); or name your columns, "
        "such as field_instruction: question and field_output: answer"
    )
    assert refused({"path": "pool.jsonl", "type": "alpaca"}) == (
        "pool.jsonl:1: type is alpaca, but there is no column `instruction` (columns: query, reply): "
        "set field_instruction"
    )


def test_an_empty_pool(refused):
    Path("pool.jsonl").write_text("\n\n")
    assert refused("pool.jsonl") == "no rows in pool.jsonl: give a data set with rows"
    Path("folder").mkdir()
    assert refused("folder") == f"folder: no data file in this folder (saw nothing): use {ACCEPTED_FILES}"
    assert refused() == "run.yaml: datasets is missing: give a pool, such as datasets: [pool.jsonl]"


def test_two_rows_with_one_id(refused):
    rows = pool_rows(4)
    rows[3]["id"] = "row-1"
    write_jsonl(Path("pool.jsonl"), rows)
    assert refused("pool.jsonl") == (
        "pool.jsonl:4: id 'row-1' is taken by a different row, pool.jsonl:2: "
        "make ids unique, or set field_id: '' to use content hashes instead"
    )


def test_bad_input_leaves_an_earlier_result_as_it_was(refused, model):
    pool = write_jsonl(Path("pool.jsonl"), pool_rows(20))
    choose(pool, model, Path("run"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    with pool.open("a") as file:
        file.write("{oops\n")
    assert refused("pool.jsonl").startswith("pool.jsonl:21: not JSON")
    assert parts(Path("run"))
    for name in ("selected.jsonl", "scores.parquet", "prompts.parquet"):
        assert (Path("run") / name).read_bytes() == before[Path("run") / name]


BAD_ROWS = {
    "only_white_space": {"instruction": " \n\t"},
    "no_instruction": {"instruction": None, "output": "x"},
    "prompt_too_long": {"instruction": "word " * 100},
    "bad_type": {"instruction": 3},
    "no_user_turn": {"messages": [{"role": "assistant", "content": "x"}]},
    "not_unicode": {"instruction": "half \ud800 a character"},
}


def test_rows_that_cannot_be_asked_are_rejected_with_their_reason_and_counted(model, tmp_path):
    rows = pool_rows(12)
    for number, (reason, bad) in enumerate(BAD_ROWS.items()):
        rows.insert(2 * number, {"id": reason, **bad})
    pool = write_jsonl(tmp_path / "pool.jsonl", rows)
    selection = choose(pool, model, tmp_path / "run", max_prompt_tokens=200)
    rejected = {row["id"]: row for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")}
    assert {id_: row["reason"] for id_, row in rejected.items()} == {reason: reason for reason in BAD_ROWS}
    assert selection.manifest["rows"]["rejected"] == Counter(BAD_ROWS.keys())
    assert selection.manifest["rows"]["scored"] == 12
    for number, reason in enumerate(BAD_ROWS):
        assert rejected[reason]["where"] == f"{pool}:{2 * number + 1}"
        assert rejected[reason]["detail"]
    assert rejected["prompt_too_long"]["detail"].endswith(
        "tokens, max_prompt_tokens is 200: raise it, or set truncate: true"
    )
    assert not rejected.keys() & set(selection.ids)


def test_long_prompts_are_cut_only_when_that_is_allowed(model, tmp_path):
    rows = [{**row, "instruction": f"{row['id']} " + "word " * 100} for row in pool_rows(6)]
    with pytest.raises(DataError, match=r"^none of the 6 rows can be sampled \(.*\): see .*rejected.jsonl$"):
        choose(rows, model, tmp_path / "run", max_prompt_tokens=200)
    selection = choose(rows, model, tmp_path / "run", max_prompt_tokens=200, truncate=True)
    assert len(selection.ids) == 6
    assert sorted(row["instruction"] for row in selection.rows()) == sorted(row["instruction"] for row in rows)
    for row in RunFolder.read(tmp_path / "run").staged_rows(selection.ids):
        assert 190 < len(row.prompt) <= 200
        assert row.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert list(row.prompt.token_ids) == tiny_tokenizer().encode(row.text)


def test_empty_answers_reject_the_row(tmp_path):
    silent = save(tmp_path / "silent", fall_silent)
    with pytest.raises(DataError, match=r"\(too_few_answers 12\)"):
        choose(pool_rows(12), silent, tmp_path / "run")
    assert {row["reason"] for row in read_jsonl(tmp_path / "run" / "rejected.jsonl")} == {"too_few_answers"}


# Imports once, then runs `adg select` in a child for each line of its input: "DEED RUN_FOLDER".
HOSTILE = """
import os, resource, sys, traceback
import torch
torch.set_num_threads(1)
import transformers.models.llama.modeling_llama
import adg_plugin.pipeline.run, adg_plugin.report.summary, adg_plugin.selectors.adg
from adg_plugin.cli import main
import adg_plugin.engines.models.loading
print("ready", flush=True)
for line in sys.stdin:
    deed, run = line.split()
    log = os.open(run + ".log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    pid = os.fork()
    if pid == 0:
        os.dup2(log, 1)
        os.dup2(log, 2)
        if deed == "nobody":
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        elif deed != "plain":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(deed), resource.RLIM_INFINITY))
        code = 1
        try:
            main(["select", sys.argv[1], "--out", run])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(log)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def open_folder():
    """A folder that every user may enter, unlike those that pytest makes."""
    folder = Path(tempfile.mkdtemp(prefix="adg-open-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def hostile(open_folder: Path):
    """A function that runs `adg select` where the system refuses to write, and returns exit code and output."""
    pool = write_jsonl(open_folder / "pool.jsonl", pool_rows(150))
    model = save(open_folder / "model")
    for path in model.iterdir():
        path.chmod(0o644)  # safetensors leaves the weights to their owner alone
    config = open_folder / "run.yaml"
    config.write_text(
        yaml.safe_dump({**SETTINGS, "model": str(model), "datasets": [str(pool)],
                        "max_new_tokens": 40, "keep_vectors": True})
    )  # fmt: skip
    process = command(config, code=HOSTILE, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n", process.communicate()

    def run(deed: str, to: Path) -> tuple[int, str]:
        process.stdin.write(f"{deed} {to}\n")
        process.stdin.flush()
        return int(process.stdout.readline()), Path(f"{to}.log").read_text()

    yield run
    process.stdin.close()
    process.wait()


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_loses_nothing_written_before(hostile: Callable[..., tuple[int, str]], tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert hostile("plain", whole)[0] == 0
    ((_, part),) = parts(whole).values()
    pool_bytes = (whole / "prompts.parquet").stat().st_size
    assert pool_bytes * 1.2 < len(part)
    for limit, file in ((pool_bytes // 2, "prompts.parquet"), ((pool_bytes + len(part)) // 2, "answers/part-000000-")):
        code, said = hostile(str(limit), run)
        assert code == 3, said
        error = said.splitlines()[-1]
        assert error.startswith(f"error: cannot write {run}/{file}"), said
        assert error.endswith(
            ": File too large. Nothing written before is lost: free some space and run the same command again"
        )
        assert "Traceback" not in said
        assert not list(run.rglob("*.adg-tmp"))
    pool_before = (run / "prompts.parquet").stat().st_mtime_ns
    code, said = hostile("plain", run)
    assert code == 0, said
    assert (run / "prompts.parquet").stat().st_mtime_ns == pool_before  # staged before the disk was full
    assert (run / "selected.jsonl").read_bytes() == (whole / "selected.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes the rights of another user")
def test_permission_denied_says_what_to_do(hostile: Callable[..., tuple[int, str]], open_folder: Path):
    code, said = hostile("nobody", open_folder / "new")
    assert code == 3, said
    assert said.splitlines()[-1] == (
        f"error: cannot write {open_folder / 'new'}: Permission denied. Nothing written before is lost: "
        "make the folder writable, or give another --out"
    )
    assert hostile("plain", open_folder / "run")[0] == 0
    before = {p: p.read_bytes() for p in (open_folder / "run").rglob("*") if p.is_file()}
    code, said = hostile("nobody", open_folder / "run")
    assert code == 3, said
    assert "Permission denied. Nothing written before is lost: make the folder writable" in said.splitlines()[-1]
    assert {p: p.read_bytes() for p in (open_folder / "run").rglob("*") if p.is_file()} == before


def edited(file: Path, **values: object) -> None:
    """Set keys of a JSON file; None removes one."""
    data = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


@pytest.fixture
def other(model: Path, tmp_path: Path) -> Path:
    """A copy of the model to spoil."""
    return shutil.copytree(model, tmp_path / "other")


def problem(pool: object, model: object, run: Path, **settings: object) -> str:
    with pytest.raises(ModelError) as caught:
        choose(pool, model, run, **settings)
    return str(caught.value)


def test_a_model_without_a_chat_template(other, tmp_path):
    (other / "chat_template.jinja").unlink()
    assert problem(pool_rows(12), other, tmp_path / "run", template="chat") == (
        f"template is chat, but the tokenizer of {other} has no chat template: "
        "set template to alpaca, chatml, raw, or the path of a .jinja file"
    )
    assert len(choose(pool_rows(12), other, tmp_path / "run").ids) == 10
    for row in RunFolder.read(tmp_path / "run").staged_rows(["row-1"]):
        assert row.text.startswith("Below is an instruction that describes a task.")


def test_a_model_without_eos(other, tmp_path):
    edited(other / "config.json", eos_token_id=None)
    edited(other / "generation_config.json", eos_token_id=None)
    edited(other / "tokenizer_config.json", eos_token=None)
    said = problem(pool_rows(12), other, tmp_path / "run")
    assert said == f"{other} names no end-of-answer token: set eos_token, such as `</s>`"
    assert problem(pool_rows(12), other, tmp_path / "run", eos_token="stop") == (
        "eos_token is 'stop': it is 4 tokens, name a single one"
    )
    selection = choose(pool_rows(12), other, tmp_path / "run", eos_token="<|im_end|>")
    assert selection.manifest["recipe"]["eos_ids"] == [2]


def test_a_model_that_transformers_does_not_know(other, tmp_path):
    edited(other / "config.json", model_type="nonesuch", architectures=["NoneSuch"])
    said = problem(pool_rows(12), other, tmp_path / "run")
    assert said.startswith(f"model is '{other}': its config cannot be loaded (The checkpoint you are trying to load")
    assert said.endswith(
        ": this transformers does not know the architecture: upgrade it, or set trust_remote_code: true"
    )


def test_a_model_that_is_not_there(tmp_path):
    said = problem(pool_rows(12), "no-such/model", tmp_path / "run")
    assert said.startswith("model is 'no-such/model': its tokenizer cannot be loaded (")
    assert said.endswith("): check the name; it is no folder here, so it was looked for on the hub")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_whole_model(other, tmp_path):
    (other / "model.safetensors").unlink()
    said = problem(pool_rows(12), other, tmp_path / "run")
    assert said.startswith(f"model is '{other}': its model cannot be loaded (Error no file named model.safetensors")
    assert said.endswith("): give a folder that save_pretrained wrote, or a hub name")


def test_more_layers_than_the_model_has(model, tmp_path):
    said = problem(pool_rows(12), model, tmp_path / "run", layers=9)
    assert said == "layers is 9: the model has 5 layers, use at most that"


def test_a_prompt_beyond_the_positions_of_a_model_is_rejected_and_counted(tmp_path):
    model = save_tiny_model(tmp_path / "gpt2", "gpt2")  # learnt positions: 1,024 of them, and no more
    rows = [*pool_rows(6), {"id": "long", "instruction": "x" * 1100}, {"id": "edge", "instruction": "y" * 980}]
    selection = choose(rows, model, tmp_path / "run", max_prompt_tokens=2000, max_new_tokens=10, template="raw")
    (rejected,) = read_jsonl(tmp_path / "run" / "rejected.jsonl")
    assert (rejected["id"], rejected["reason"]) == ("long", "prompt_too_long")
    assert rejected["detail"].startswith("1100 tokens, the model has 1024 positions, of which an answer may take 10:")
    assert len(selection.ids) == 7
    with pytest.raises(ConfigError, match=r"max_new_tokens is 1024: the model has 1024 positions, use fewer than that"):
        choose(rows, model, tmp_path / "other", max_new_tokens=1024)
