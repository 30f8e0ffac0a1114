import os

# Before anything imports transformers or datasets: no test may reach the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Several processes on few cores: threads that wait by spinning would keep the others from work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
from hypothesis import settings

# The cores may be shared with other work, so an example's time says nothing.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Folder of the real demo model; tests that use it carry the marker `model`."""
    from adg_plugin.demo import model_path

    return model_path()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model with its tokenizer; copy it before changing it."""
    from tiny_runs import save

    return save(tmp_path_factory.mktemp("models") / "tiny")
