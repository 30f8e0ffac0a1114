"""Tokens that a model has no embedding for reject their rows; a generation config that cannot be read ends the run."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
from tiny_models import save_tiny_model, tiny_tokenizer
from tiny_runs import choose, pool_rows, read_jsonl

from adg_plugin.errors import DataError, ModelError

pytestmark = pytest.mark.tiny


@pytest.fixture(scope="module")
def smaller_than_its_tokenizer(tmp_path_factory):
    """A model whose tokenizer has learnt one more token than it has embeddings."""
    from transformers import AddedToken

    folder = save_tiny_model(tmp_path_factory.mktemp("smaller"))
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.add_tokens([AddedToken("<extra>", normalized=False)])
    tokenizer.save_pretrained(folder)
    return folder


def rejections(
    rows: list[dict[str, object]], model: Path, run: Path, **settings: object
) -> dict[str, dict[str, object]]:
    """Return the rejected rows by id. By `ifd` and the like, a random model may choose none."""
    with contextlib.suppress(DataError):
        choose(rows, model, run, budget=2, **settings)
    return {row["id"]: row for row in read_jsonl(run / "rejected.jsonl")}


@pytest.mark.parametrize(
    "settings", [{}, {"filters": {"min_agreement": -1}}, {"method": "ifd"}, {"method": "longest"}], ids=str
)
def test_a_token_that_the_model_has_no_embedding_for_rejects_the_row(smaller_than_its_tokenizer, tmp_path, settings):
    rows = [
        *pool_rows(4),
        {"id": "asked", "instruction": "What does <extra> mean?", "output": "Nothing."},
        {"id": "answered", "instruction": "What does it say?", "output": "It says <extra> here"},
    ]
    found = rejections(rows, smaller_than_its_tokenizer, tmp_path / "run", **settings)
    assert {id for id, row in found.items() if row["reason"] == "unknown_token"} == {"asked", "answered"}
    end = "has '<extra>', token 260, and the model has embeddings for 260 tokens: "
    assert str(found["asked"]["detail"]).startswith(f"the prompt {end}")
    assert str(found["answered"]["detail"]).startswith(f"the reference response {end}")


def test_a_small_model_that_lacks_a_token_rejects_the_row(smaller_than_its_tokenizer, model, tmp_path):
    rows = [*pool_rows(4), {"id": "asked", "instruction": "What does <extra> mean?", "output": "Nothing."}]
    settings = {"method": "superfiltering", "small_model": str(smaller_than_its_tokenizer)}
    assert rejections(rows, model, tmp_path / "run", **settings)["asked"]["reason"] == "unknown_token"


@pytest.mark.parametrize("text", ["{", "", "[]"])
def test_a_generation_config_that_cannot_be_read_is_an_error(tmp_path, text):
    folder = save_tiny_model(tmp_path / "model")
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=r"its generation_config.json cannot be read .*: mend it, or delete it"):
        choose(pool_rows(3), folder, tmp_path / "run", budget=1)
