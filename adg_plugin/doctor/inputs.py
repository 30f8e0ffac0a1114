"""What a configuration asks for, and whether it is here: extras, the device, the model, the data sets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from adg_plugin.config import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.demo import model as demo_model
from adg_plugin.doctor.checks import Check, Status, guarded
from adg_plugin.doctor.devices import gib, is_offline
from adg_plugin.doctor.packages import extra_lack, install_command, installed
from adg_plugin.errors import DataError, ModelError, need
from adg_plugin.rows import Rejection, unique_rows
from adg_plugin.sources import Record, iter_records, pool_fingerprint

_ROWS_READ = 1000
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # what transformers reads
_INDEX = "model.safetensors.index.json"


def check_settings(config: ADGConfig) -> Iterator[Check]:
    """Yield what the settings need beside the model and the data: extras and a device."""
    from adg_plugin.engines.loading import pick_device

    for extra, why in _extras(config).items():
        if lacking := extra_lack(extra):
            status: Status = "failed" if lacking.missing else "warning"
            yield Check("settings", status, f"{why} needs the extra {extra}: {lacking}", _way_out(extra))
    if config.load_in_4bit and config.engine == "vllm" and not installed("vllm-bnb-plugin"):
        text = "load_in_4bit with engine: vllm needs vllm-bnb-plugin: without it vLLM would load whole weights"
        yield Check("settings", "failed", text, "pip install vllm-bnb-plugin, or engine: hf")
    yield Check("device", "ok", f"device: {config.device} is {pick_device(config.device)} here")


def check_model(config: ADGConfig) -> Iterator[Check]:
    """Yield whether the model's config, tokenizer and weights can be read; of the hub, whether the cache has them."""
    from adg_plugin.engines.loading import Source
    from adg_plugin.engines.location import model_location

    if config.model == "demo" and not (folder := demo_model.model_folder()).is_dir():
        need("gguf", extra="demo", why="model: demo")
        yield Check("model", "note", f"demo: is converted on first use, into {folder} (0.3 GiB)")
        return
    location = model_location(config)
    if not Path(location).is_dir():
        yield from _check_hub_model(location, config)
        return
    tokenizer = Source.configured(config).tokenizer
    size = _check_weights(Path(location))
    chat = "has a chat template" if getattr(tokenizer, "chat_template", None) else "has no chat template"
    name = f"demo ({location})" if config.model == "demo" else location
    yield Check("model", "ok", f"{name}: weights of {gib(size)}, whole; its tokenizer {chat}")


def check_data(specs: Sequence[DatasetSpec], *, layouts: bool = True) -> Iterator[Check]:
    """Yield whether the rows of each data set can be read, as far as the first thousand.

    Args:
        specs: the data sets.
        layouts: whether the rows must have a layout that `adg select` knows; Axolotl has types of its own.
    """
    for spec in specs:
        yield from guarded("data", partial(_check_data_set, spec, layouts=layouts))


def _extras(config: ADGConfig) -> dict[str, str]:
    """Return the extras that the settings need, each with the setting."""
    filters = config.filters
    wanted = {
        "filters": ("filters", filters.near_duplicates is not None or bool(filters.languages)),
        "vllm": ("engine: vllm", config.engine == "vllm"),
        "server": ("engine: vllm-server", config.engine == "vllm-server"),
        "ray": ("executor: ray", config.executor == "ray"),
        "quant": ("load_in_4bit", config.load_in_4bit),
        "scar": ("method: scar", config.method == "scar"),
    }
    return {extra: why for extra, (why, needed) in wanted.items() if needed}


def _way_out(extra: str) -> str:
    if extra == "vllm":
        return f"{install_command(extra)}; adg sample there, adg select here; or engine: hf"
    return install_command(extra)


def _check_hub_model(location: str, config: ADGConfig) -> Iterator[Check]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    from adg_plugin.engines.loading import Source

    try:
        cached = try_to_load_from_cache(location, "config.json", revision=config.revision or "main")
    except HFValidationError:
        text = f"{location}: no such folder (in {Path.cwd()}), and no name that the hub could have"
        yield Check("model", "failed", text, "give a folder that save_pretrained wrote, or a hub name")
        return
    if not is_offline():
        told = "in the hub's cache" if isinstance(cached, str) else "will be downloaded"
        yield Check("model", "note", f"{location}: no folder here, so a name on the hub: {told}")
    elif isinstance(cached, str):
        _ = Source.configured(config)  # raises where the cache lacks a part
        size = _check_weights(Path(cached).parent)
        yield Check("model", "ok", f"{location}: in the hub's cache, weights of {gib(size)}")
    else:
        text = f"{location}: no folder here, and the hub's cache does not have it; HF_HUB_OFFLINE is set"
        yield Check("model", "failed", text, "download it once with HF_HUB_OFFLINE=0, or give a folder")


def _check_weights(folder: Path) -> int:
    """Return the bytes of the weight files, which are looked at but not loaded.

    Raises:
        ModelError: there is none, one that the index names is missing, or one is cut off.
    """
    from safetensors import SafetensorError, safe_open

    fix = "download it again, or give a folder that save_pretrained wrote"
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    if not files:
        raise ModelError(f"model is {str(folder)!r}: it holds no weights: {fix}")
    if (folder / _INDEX).is_file():
        named = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        if absent := sorted(named - {path.name for path in files}):
            raise ModelError(f"model is {str(folder)!r}: {len(absent)} weight files are missing ({absent[0]}): {fix}")
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, framework="numpy"):
                    pass
            except (SafetensorError, OSError) as err:
                raise ModelError(f"model is {str(folder)!r}: {path.name} is not whole ({err}): {fix}") from None
    return sum(path.stat().st_size for path in files)


def _check_data_set(spec: DatasetSpec, *, layouts: bool) -> Iterator[Check]:
    if spec.path == IN_MEMORY.path:
        yield Check("data", "note", "memory: rows that a program passes, nothing to read here")
    elif pool_fingerprint([spec]) is None and ("://" in spec.path or not is_offline(for_data=True)):
        where = "a URL" if "://" in spec.path else "no file or folder here, so a name on the hub"
        yield Check("data", "note", f"{spec.path}: {where}: will be downloaded")
    else:
        yield _read(spec, layouts=layouts)


def _read(spec: DatasetSpec, *, layouts: bool) -> Check:
    """Return what the first rows of a data set are.

    Raises:
        DataError: they cannot be read, or not one of them can be used.
    """
    records: Iterable[Record] = islice(iter_records([spec]), _ROWS_READ)
    rejected: list[Rejection] = []
    count = 0
    for row in unique_rows(records) if layouts else records:
        count += 1
        if isinstance(row, Rejection):
            rejected.append(row)
    read = f"the first {count:,} rows" if count == _ROWS_READ else f"{count:,} rows"
    if not rejected:
        return Check("data", "ok", f"{spec.path}: {read} read, each can be used")
    first = f"{rejected[0].where}: {rejected[0].reason} ({rejected[0].detail})"
    if len(rejected) == count:
        raise DataError(f"{spec.path}: none of {read} can be used, such as {first}")
    return Check("data", "note", f"{spec.path}: {read} read, {len(rejected):,} will be rejected, such as {first}")
