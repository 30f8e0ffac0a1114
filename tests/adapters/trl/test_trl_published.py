"""What `push_to_hub` uploads of a training's output folder: the model and the chosen ids, and nothing else of ours."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects
from trl import SFTTrainer
from trl_runs import SELECTION, WORDS, lora, pool, sft_config, tiny

from adg_plugin import ADGSelectionCallback, ADGSFTTrainer
from adg_plugin.adapters.trl.checks import check_settings
from adg_plugin.config.run_folder import private_path, publication_problems, run_folder
from adg_plugin.errors import ConfigError

__all__ = ["tiny"]

IDS = "adg_selection.json"


class Hub:
    """The hub's API as the trainer calls it: notes which files each upload would take, and takes none."""

    def __init__(self):
        self.taken = set()

    def create_repo(self, name, **_):
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, *, folder_path, ignore_patterns=None, path_in_repo="", run_as_future=False, **_):
        files = [path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()]
        kept = filter_repo_objects(files, ignore_patterns=ignore_patterns)
        self.taken |= {(Path(path_in_repo, name).as_posix(), Path(folder_path, name)) for name in kept}
        done = Future()
        done.set_result(None)
        return done if run_as_future else None


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    return hub


def trainer(kind, tiny, out, **settings):
    args = sft_config(out, push_to_hub=True, hub_strategy="checkpoint", hub_always_push=True, save_steps=2, **settings)
    args.save_strategy = "steps"
    made = {"model": str(tiny), "args": args, "train_dataset": pool(), "peft_config": lora()}
    if kind is ADGSFTTrainer:
        return kind(**made, selection_config=SELECTION)
    stock = SFTTrainer(**made)
    kind(stock, train_dataset=pool(), config=SELECTION)
    return stock


@pytest.mark.parametrize("kind", [ADGSFTTrainer, ADGSelectionCallback])
def test_of_ours_only_the_chosen_ids_are_uploaded(kind, tiny, tmp_path, hub):
    out = tmp_path / "out"
    made = trainer(kind, tiny, out, hub_token="hf_secret")
    made.train()
    made.push_to_hub()
    assert (out / "_adg" / "selection" / "manifest.json").is_file()
    names = {name for name, _ in hub.taken}
    assert {"adapter_model.safetensors", "last-checkpoint/trainer_state.json"} <= names
    assert {name for name in names if "adg" in name or "selection" in name} == {IDS}
    for name, path in hub.taken:
        content = path.read_bytes()
        assert not [word for word in WORDS if f"All {word}!".encode() in content], name
        if name.rpartition("/")[2] != "training_args.bin":  # transformers' own
            assert str(tmp_path).encode() not in content, name


@pytest.mark.parametrize(
    ("run", "is_uploaded"),
    [
        ("out", True),
        ("out/mine", True),
        ("out/selection", True),
        ("out/_adg/selection", False),
        ("out/_mine/deep", False),
        ("out/checkpoint-3/run", False),
        ("elsewhere", False),
        ("out-too", False),
    ],
)
def test_a_run_folder_that_would_be_uploaded_is_refused(run, is_uploaded, tmp_path):
    args = sft_config(tmp_path / "out", push_to_hub=True)
    config = SELECTION.updated(output_dir=str(tmp_path / run))
    if not is_uploaded:
        check_settings(config, args)
        return
    with pytest.raises(
        ConfigError, match=r"holds the whole pool: move it to .*out/_adg/selection, or name a folder out"
    ):
        check_settings(config, args)
    args.push_to_hub = False
    check_settings(config, args)


def test_through_a_link_the_place_counts(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert publication_problems(tmp_path / "link" / "run", tmp_path / "out")


def test_what_version_0_2_left_in_an_output_folder_is_found(tmp_path):
    older = tmp_path / "selection"
    assert run_folder(training=tmp_path) == str(tmp_path / "_adg" / "selection")
    older.mkdir()
    assert run_folder(training=tmp_path) == str(tmp_path / "_adg" / "selection")  # not one of ours
    (older / "config.json").write_text("{}")
    assert run_folder(training=tmp_path) == str(older)
    with pytest.raises(ConfigError, match="move it to"):
        check_settings(SELECTION, sft_config(tmp_path, push_to_hub=True))
    (tmp_path / "_adg").mkdir()
    older.rename(tmp_path / "_adg" / "selection")
    assert run_folder(training=tmp_path) == str(tmp_path / "_adg" / "selection")
    check_settings(SELECTION, sft_config(tmp_path, push_to_hub=True))
    (tmp_path / IDS).write_text("{}")
    assert private_path(tmp_path, IDS) == tmp_path / IDS
