"""What tells a model's weights from all others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from adg_plugin.config.groups import ModelSettings
from adg_plugin.engines.models.location import model_location, unreadable

_FORMATS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
# Of each file: read in a fraction of a second, and no change of a thousandth of it in one place stays unseen.
_PLACES, _PLACE_BYTES = 1024, 1 << 12


def fingerprint(config: ModelSettings) -> str:
    """Return what tells this model's weights from all others: a commit of the hub, or a digest of a folder.

    The digest covers the folder's config and, of each weight file, name, size, header and samples of its bytes.

    Raises:
        ModelError: the model cannot be found.
    """
    location = model_location(config)
    if not Path(location).is_dir():
        try:
            found = cached_file(location, "config.json", revision=config.revision or "main")
        except (OSError, ValueError) as err:
            raise unreadable("model", location, err) from err
        assert found is not None
        return f"{location}@{Path(found).parent.name}"
    digest = hashlib.blake2b(digest_size=16)
    folder = Path(location)
    weights = sorted(p for p in folder.iterdir() if p.suffix in _FORMATS)
    for path in [folder / "config.json", *weights]:
        if path.is_file():
            sample_file(digest, path)
    return digest.hexdigest()


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """Return a digest of a model in memory: names, types, shapes and samples of its weights, adapters left out."""
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 256)].float().cpu().numpy()
        shape = name.replace(".base_layer", ""), str(weight.dtype), list(weight.shape)
        digest.update(json.dumps(shape).encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()


def sample_file(digest: hashlib.blake2b, path: Path) -> None:
    """Add name, size and samples of a file's bytes to a digest."""
    size = path.stat().st_size
    digest.update(json.dumps([path.name, size]).encode())
    with path.open("rb") as file:
        if size <= _PLACES * _PLACE_BYTES:
            digest.update(file.read())
            return
        for place in range(_PLACES):
            file.seek(place * (size - _PLACE_BYTES) // (_PLACES - 1))
            digest.update(file.read(_PLACE_BYTES))
