"""What tells a model's weights from all others."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from adg_plugin.config.groups import ModelSettings
from adg_plugin.digests import files_digest
from adg_plugin.engines.models.location import model_location, unreadable

_FORMATS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_CONFIGS = ("config.json", "adapter_config.json")
_VIEWS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of elements by their size in bytes
_CHUNK = 1 << 22  # elements at once: their sums take eight times as many bytes, and more


def fingerprint(config: ModelSettings) -> str:
    """Return what tells this model's weights from all others: a commit of the hub, or a digest of a folder.

    The digest covers every byte of the folder's config, weights with their index, and Python code.

    Raises:
        ModelError: the model cannot be found, or a file of it not be read.
    """
    location = model_location(config)
    if not Path(location).is_dir():
        try:
            found = cached_file(location, "config.json", revision=config.revision or "main")
        except (OSError, ValueError) as err:
            raise unreadable("model", location, err) from err
        assert found is not None
        return f"{location}@{Path(found).parent.name}"
    folder = Path(location)
    top = [p for p in folder.iterdir() if p.suffix in _FORMATS or p.name in _CONFIGS or p.name.endswith(".index.json")]
    try:
        return files_digest(sorted(p for p in {*top, *folder.rglob("*.py")} if p.is_file()))
    except OSError as err:
        raise unreadable("model", location, err) from err


@torch.no_grad()
def weights_digest(model: PreTrainedModel) -> str:
    """Return a digest of a model in memory: names, types, shapes and all elements of its weights, adapters left out.

    The elements are summed up where they are, as integers times odd numbers that depend on their places, so a weight
    of which one element differs has another digest.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        scales = getattr(getattr(weight, "quant_state", None), "absmax", None)  # of weights in 4-bit
        for tensor in (weight.detach(), *([] if scales is None else [scales])):
            about = name.replace(".base_layer", ""), str(tensor.dtype), list(tensor.shape), _checksum(tensor)
            digest.update(json.dumps(about).encode())
    return digest.hexdigest()


def _checksum(tensor: Tensor) -> list[int]:
    """Return two sums over a tensor's elements, as integers modulo 2**64."""
    flat = tensor.contiguous().view(-1).view(_VIEWS[tensor.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=flat.device)
    for start in range(0, len(flat), _CHUNK):
        values = flat[start : start + _CHUNK].long()
        places = torch.arange(start, start + len(values), device=flat.device)
        for number, (factor, shift) in enumerate(((-7046029254386353131, 29), (-4417276706812531889, 31))):
            weights = places * factor
            weights = ((weights ^ (weights >> shift)) * factor) | 1
            sums[number] += (values * weights).sum()
    return sums.tolist()
