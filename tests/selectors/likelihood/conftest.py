"""The models that are asked."""

from __future__ import annotations

import pytest
from tiny_models import tiny_model, tiny_tokenizer
from tiny_runs import save


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    return save(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    tiny_model("gpt2", seed=3).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
