"""The file of results of `adg eval`: nothing that is finished is lost, and nothing unlike is mixed."""

from __future__ import annotations

import copy
import json
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_answers import adg, rows
from paths import TASKS
from tiny_models import save_tiny_model, tiny_tokenizer

from adg_plugin.cli import _after_interruption
from adg_plugin.errors import ConfigError, StoreError
from adg_plugin.tools.evaluation import Evaluation, TaskResult, evaluate
from adg_plugin.tools.evaluation.kept import Kept
from adg_plugin.tools.evaluation.quiet import Remarks
from adg_plugin.tools.evaluation.results import read_results, rows_path, write_results
from adg_plugin.tools.evaluation.tasks import LoadedTask, averages

FIX = "give another --name, or --overwrite to replace it"
VERSIONS = {"lm_eval": "0.4.11", "torch": "2", "transformers": "5"}


def result(task: str, value: float = 0.5, **about: Any) -> TaskResult:
    given = {"digest": f"digest of {task}", "row_values": (1.0, 0.0), **about}
    return TaskResult(task, 0, "acc,none", value, 0.1, 2, 2, 1.0, {"acc,none": value}, **given)


def evaluation(*tasks: TaskResult, left_out: Mapping[str, str] = {}, **settings: Any) -> Evaluation:
    asked = {"limit": None, "seed": 1234, "chat_template": False, "batch_size": 8, "code_execution": False}
    return Evaluation(
        model={"name": "m", "weights": "w", "dtype": "float32", "load_in_4bit": False},
        tasks=tasks,
        averages=averages({task.task: task.value for task in tasks}),
        left_out=left_out,
        notes=("a note",),
        settings={**asked, "include": [], **settings},
        versions=VERSIONS,
        seconds=10.0,
        selection={"run": "r", "created": "c", "selected": "d"},
        created="2026-01-02T03:04:05+00:00",
    )


# The file


def test_the_file_holds_all_that_was_found(tmp_path: Path) -> None:
    path = tmp_path / "eval/m.json"
    found = evaluation(result("gsm8k"), result("mine", row_values=()))
    write_results(path, found, command="adg eval m")
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.summary() | {"command": "adg eval m"}))
    assert "row_values" not in path.read_text()
    assert [json.loads(line) for line in (tmp_path / "eval/m.rows.jsonl").read_text().splitlines()] == [
        {"task": "gsm8k", "question": 0, "value": 1.0},
        {"task": "gsm8k", "question": 1, "value": 0.0},
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.json", "m.rows.jsonl"]
    assert read_results(path) == found
    rows_path(path).unlink()
    assert read_results(path) == evaluation(result("gsm8k", row_values=()), result("mine", row_values=()))
    assert read_results(tmp_path / "none.json") is None


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": {}}', "{"])
def test_another_file_is_not_written_over(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=FIX):
        Kept(path).check(settings={})
    Kept(path, overwrite=True).check(settings={})
    assert path.read_text() == text


def test_a_later_run_adds_its_tasks_and_averages_over_all(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    six = {"bbh": 0.4, "gsm8k": 0.5, "mmlu": 0.6, "truthfulqa_mc2": 0.52, "mbpp": 0.44, "humaneval": 0.3}
    first = [result(name, value) for name, value in list(six.items())[:4]]
    Kept(path).add(evaluation(*first, left_out={"mbpp": "runs code", "humaneval": "runs code"}, include=["a"]))
    later = replace(
        evaluation(result("mbpp", 0.44), code_execution=True, include=["b"]),
        selection={"run": "r", "created": "later", "selected": "other"},
        notes=("a note", "another"),
        created="2026-02-02T03:04:05+00:00",
    )
    Kept(path).add(later)
    found = read_results(path)
    assert found is not None
    assert [task.task for task in found.tasks] == ["bbh", "gsm8k", "mmlu", "truthfulqa_mc2", "mbpp"]
    assert found["bbh"].row_values == (1.0, 0.0)
    assert {one.name: one.missing for one in found.averages} == {
        "reasoning": (),
        "knowledge": (),
        "code": ("humaneval",),
        "overall": ("humaneval",),
    }
    assert (found.left_out, found.notes) == ({"humaneval": "runs code"}, ("a note", "another"))
    assert (found.settings["code_execution"], found.settings["include"]) == (True, ["a", "b"])
    assert (found.seconds, found.created) == (20.0, "2026-02-02T03:04:05+00:00")
    # The same weights were there at the first evaluation: no later selection was what they were trained on.
    assert found.selection == {"run": "r", "created": "c", "selected": "d"}


@pytest.mark.parametrize(
    ("part", "key", "value", "expected"),
    [
        ("settings", "limit", 4, "limit none (now 4)"),
        ("settings", "chat_template", True, "chat_template False (now True)"),
        ("settings", "seed", 1, "seed 1234 (now 1)"),
        ("model", "weights", "other", "weights w (now other)"),
        ("model", "adapter_weights", "a", "adapter_weights none (now a)"),
        ("model", "dtype", "bfloat16", "dtype float32 (now bfloat16)"),
        ("model", "load_in_4bit", True, "load_in_4bit False (now True)"),
        ("versions", "lm_eval", "0.4.12", "lm_eval 0.4.11 (now 0.4.12)"),
    ],
)
def test_results_of_another_model_or_other_settings_are_not_mixed(
    tmp_path: Path, part: str, key: str, value: object, expected: str
) -> None:
    path = tmp_path / "m.json"
    there = evaluation(result("a"))
    write_results(path, there)
    before = path.read_bytes()
    Kept(path).check(settings=there.settings, versions=VERSIONS, model=there.model)
    Kept(path).check(settings={**there.settings, "batch_size": 1})  # after a batch did not fit
    with pytest.raises(StoreError) as caught:
        Kept(path).check(**{part: {**getattr(there, part), key: value}})
    assert str(caught.value) == f"{path} has results of {expected}: {FIX}"
    assert path.read_bytes() == before


def test_a_try_out_replaces_no_full_result_even_with_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write_results(path, evaluation(result("a")))
    kept = Kept(path, overwrite=True)
    with pytest.raises(StoreError) as caught:
        kept.check(settings={**evaluation().settings, "limit": 4})
    assert str(caught.value) == f"{path} has all questions, and --limit 4 is a try-out: give another --name"
    kept.check(settings={**evaluation().settings, "seed": 5}, model={"weights": "other"})
    assert kept.missing([LoadedTask("a", {}, {}, None)])
    kept.add(evaluation(result("b"), seed=5))
    kept.add(evaluation(result("c"), seed=5))
    found = read_results(path)
    assert found is not None
    assert [task.task for task in found.tasks] == ["b", "c"]


def test_tasks_that_are_there_are_not_run_again_unless_they_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    one = LoadedTask("one", {}, {}, None, digests={"one": "1"})
    group = LoadedTask("group", {}, {}, None, digests={"x": "2", "y": "3"})  # with a figure of its own
    tag = LoadedTask("tag", {}, {}, None, digests={"x": "2", "z": "4"})  # without
    assert Kept(path).missing([one, group, tag]) == [one, group, tag]
    write_results(path, evaluation(result("one", digest="1"), result("x", digest="2"), result("y", digest="3")))
    assert Kept(path).missing([one, group, tag]) == [group, tag]
    of_tag = [result(name, digest=digest, asked="tag") for name, digest in (("x", "2"), ("z", "4"))]
    write_results(path, evaluation(result("group", digest=group.digest("group")), *of_tag))
    assert Kept(path).missing([one, group, tag]) == [one]
    with pytest.raises(StoreError) as caught:
        Kept(path).missing([LoadedTask("group", {}, {}, None, digests={"x": "2", "y": "5"}), tag])
    assert str(caught.value) == f"{path} has group with other questions, examples or metrics than it has now: {FIX}"


# The command


@pytest.fixture
def breaking(harness: None, tmp_path: Path) -> Path:
    """Tasks of which `breaks` does what its Python says, at the end of the task."""
    folder = shutil.copytree(TASKS, tmp_path / "mine")
    text = (folder / "tiny_code.yaml").read_text().replace("task: tiny_code", "task: breaks")
    text = text.replace("unsafe_code: true\n", "").replace("tiny_code.process", "breaks.process")
    (folder / "breaks.yaml").write_text(text)
    return folder


def break_with(folder: Path, statement: str) -> None:
    (folder / "breaks.py").write_text(f"def process_results(doc, results):\n    {statement}\n")


@pytest.mark.tiny
def test_what_is_finished_outlives_a_failure_and_ctrl_c(
    breaking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny_model(tmp_path / "base")
    capsys.readouterr()
    from lm_eval.models.huggingface import HFLM

    written: list[int] = []
    answer = HFLM.generate_until
    monkeypatch.setattr(
        HFLM, "generate_until", lambda self, asked, **kw: written.append(len(asked)) or answer(self, asked, **kw)
    )
    command = ["eval", "base", "--tasks", "tiny_capitals,breaks,tiny_opposites", "--include", "mine"]
    break_with(breaking, "assert False, 'of the metric'")
    assert adg(*command) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines()[-1] == (
        "error: task breaks failed (AssertionError: of the metric): mend its task file, data or Python, or leave it "
        "out of --tasks; the tasks before it are in eval/base.json"
    )
    assert names("eval/base.json") == ["tiny_capitals"]
    break_with(breaking, "raise KeyboardInterrupt")
    assert adg(*command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == ("interrupted: re-run the same command to resume")
    break_with(breaking, "return {'permitted': 1.0}")
    assert adg(*command) == 0
    out, err = capsys.readouterr()
    assert names("eval/base.json") == ["tiny_capitals", "breaks", "tiny_opposites"]
    assert written == [8]  # the responses to the task that broke were there
    assert sorted(path.name for path in Path("eval").iterdir()) == ["base.json", "base.rows.jsonl"]
    assert out.splitlines()[-1] == "eval/base.json"
    assert [line.split(":")[0] for line in err.splitlines() if "/2 " in line] == ["1/2 breaks", "2/2 tiny_opposites"]
    assert len(rows_path(Path("eval/base.json")).read_text().splitlines()) == 10 + 8 + 6
    assert adg(*command, "--chat-template") == 3
    assert "eval/base.json has results of chat_template False (now True): " in capsys.readouterr().err


@pytest.mark.tiny
def test_what_was_answered_before_a_kill_is_not_asked_again(
    harness: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    base, path = save_tiny_model(tmp_path / "base", max_position_embeddings=24), tmp_path / "eval/m.json"
    asked: list[int] = []
    score = HFLM._loglikelihood_tokens

    def killed(self: Any, requests: list[Any], **options: Any) -> Any:
        score(self, requests[:7], **options)
        raise KeyboardInterrupt

    def counted(self: Any, requests: list[Any], **options: Any) -> Any:
        asked.append(len(requests))
        return score(self, requests, **options)

    options: dict[str, Any] = {"tasks": "tiny_capitals", "include": TASKS, "results": path}
    whole = evaluate(str(base), **options | {"results": None})
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(base), **options)
    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", counted)
    found = evaluate(str(base), **options, batch_size=1)
    assert asked == [sum(len(row["choices"]) for row in rows("capitals.json")) - 7]
    assert found["tiny_capitals"].row_values == whole["tiny_capitals"].row_values
    assert found.notes == whole.notes  # that prompts were cut, too, though none is cut now
    assert evaluate(str(base), **options).tasks == found.tasks
    assert len(asked) == 1


class Asked:
    """As much of the harness's model as its cache looks at."""

    def __init__(self) -> None:
        self.tokenizer = copy.deepcopy(tiny_tokenizer())

    def set_cache_hook(self, hook: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("model", "weights", "other"),
        ("model", "adapter_weights", "a"),
        ("model", "dtype", "bfloat16"),
        ("settings", "chat_template", True),
        ("settings", "limit", 4),
        ("versions", "transformers", "6"),
        ("settings", "batch_size", 1),
    ],
)
def test_responses_of_another_model_or_protocol_are_never_taken(
    harness: None, tmp_path: Path, part: str, key: str, value: object
) -> None:
    kept, one = Kept(tmp_path / "m.json"), evaluation(result("a"))
    (tmp_path / f".m.n.{'0' * 16}.responses").touch()  # of another name
    about = {name: dict(getattr(one, name)) for name in ("model", "settings", "versions")}

    def responses(kept: Kept, lm: Asked, about: Mapping[str, Any]) -> dict[str, Any]:
        with suppress(KeyboardInterrupt), kept.responses(lm, Remarks(), **about) as caching:
            there = dict(caching.dbdict)
            caching.dbdict["prompt"] = [-1.5, True]
            raise KeyboardInterrupt
        return there

    assert responses(kept, Asked(), about) == {}
    assert responses(kept, Asked(), about) == {"prompt": [-1.5, True]}
    (file,) = tmp_path.glob(".m.????????????????.responses")
    with sqlite3.connect(file) as raw:
        assert raw.execute("select value from unnamed").fetchall() == [("[-1.5, true]",)]  # no pickle
    other = {**about, part: {**about[part], key: value}}
    assert responses(kept, Asked(), other) == ({"prompt": [-1.5, True]} if key == "batch_size" else {})
    assert len(list(tmp_path.iterdir())) == 2
    assert responses(Kept(tmp_path / "m.json", overwrite=True), Asked(), other) == {}
    lm = Asked()
    lm.tokenizer.add_tokens(["<new>"])
    assert responses(kept, lm, other) == {}


def names(path: str) -> list[str]:
    return [task["task"] for task in json.loads(Path(path).read_text())["tasks"]]


def test_a_batch_that_does_not_fit_names_its_task() -> None:
    from adg_plugin.tools.evaluation.run import _failed

    err = _failed("gsm8k", MemoryError(), 8, None)
    assert str(err) == "task gsm8k: a batch of 8 questions does not fit into memory: give a smaller --batch-size"


@pytest.mark.tiny
def test_a_model_in_memory_has_no_file_of_results(tmp_path: Path) -> None:
    from tiny_models import tiny_model

    with pytest.raises(ConfigError) as caught:
        evaluate(tiny_model(), tasks="a", results=tmp_path / "m.json")
    assert str(caught.value) == (
        "results is given with a model in memory: save the model and give its folder, or leave it out"
    )


def test_the_command_passes_on_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}

    def evaluated(model: str, **options: Any) -> Evaluation:
        given.update(options, model=model)
        return evaluation(result("a"))

    monkeypatch.setattr("adg_plugin.tools.evaluation.evaluate", evaluated)
    assert adg("eval", "org/m", "--name", "mine", "--revision", "v1", "--overwrite", "--limit", "3", "-q") == 0
    expected = {"name": "mine", "revision": "v1", "overwrite": True, "limit": 3, "results": Path("eval/mine.json")}
    assert given | expected == given


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["eval", "m"], "interrupted: re-run the same command to resume"),
        (["compare", "c"], "interrupted: re-run the same command to resume"),
        (["stability", "r"], "interrupted"),
    ],
)
def test_an_interrupted_command_promises_what_it_keeps(arguments: list[str], expected: str) -> None:
    assert _after_interruption(arguments) == expected


def test_one_process_at_a_time_has_the_cache(harness: None, tmp_path: Path) -> None:
    kept, one = Kept(tmp_path / "m.json"), evaluation(result("a"))
    about = {name: dict(getattr(one, name)) for name in ("model", "settings", "versions")}
    first, second = Asked(), Asked()
    with kept.responses(first, Remarks(), **about) as caching:
        caching.dbdict["prompt"] = [-1.5, True]
        with Kept(tmp_path / "m.json", overwrite=True).responses(second, Remarks(), **about) as other:
            assert other is second
        assert caching.dbdict["prompt"] == [-1.5, True]  # what the second one ended with took nothing away
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the harness's cache
def test_a_cache_that_cannot_be_read_is_replaced(harness: None, tmp_path: Path) -> None:
    kept, one = Kept(tmp_path / "m.json"), evaluation(result("a"))
    about = {name: dict(getattr(one, name)) for name in ("model", "settings", "versions")}
    with suppress(KeyboardInterrupt), kept.responses(Asked(), Remarks(), **about):
        raise KeyboardInterrupt
    (file,) = tmp_path.glob(".m.*.responses")
    file.write_bytes(b"no database" * 1000)
    with kept.responses(Asked(), Remarks(), **about) as caching:
        assert dict(caching.dbdict) == {}
