"""What a configuration asks for, and whether it is here: extras, the device, models, the data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from adg_plugin.config.schema import IN_MEMORY, ADGConfig, DatasetSpec
from adg_plugin.data.answer_file import texts_of
from adg_plugin.data.rows import Rejection, unique_rows
from adg_plugin.data.sources import iter_records, pool_fingerprint
from adg_plugin.demo import model as demo_model
from adg_plugin.errors import ADGError, DataError, ModelError, need
from adg_plugin.selectors.registry import selector
from adg_plugin.tools.doctor.checks import Check, Status, failures, guarded
from adg_plugin.tools.doctor.machine import gib, is_offline
from adg_plugin.tools.doctor.packages import describe, extra_lack, install_command, installed

_ROWS_READ = 1000
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")  # what transformers reads
_INDEX = "model.safetensors.index.json"


def check_settings(config: ADGConfig) -> Iterator[Check]:
    """Yield what the settings need beside the model and the data: extras, what the method asks, and a device."""
    from adg_plugin.engines.models.loading import pick_device

    for extra, why in _extras(config).items():
        if lacking := extra_lack(extra):
            status: Status = "failed" if None in lacking.values() else "warning"
            elsewhere = "; adg sample there, adg select here; or engine: hf" if extra == "vllm" else ""
            text = f"{why} needs the extra {extra}: {describe(lacking)}"
            yield Check("settings", status, text, install_command(extra) + elsewhere)
    if config.engine == "vllm":
        from adg_plugin.engines.vllm.in_process import quantization

        try:
            quantization(config)
        except ADGError as err:
            yield from failures("settings", err)
    method = selector(config.method)
    for key, configured in method.models(config).items():
        if key != "scar_model":
            yield from guarded(key, _check_other_model, config, key, configured)
        elif installed("scar-tool"):
            yield from guarded(key, _check_ranker, config)
    if config.label_vectors and "label_vectors" in method.settings:
        yield from guarded("label_vectors", _check_label_vectors, config.label_vectors)
    yield Check("device", "ok", f"device: {config.device} is {pick_device(config.device)} here")


def check_model(config: ADGConfig) -> Iterator[Check]:
    """Yield whether the model's config, tokenizer and weights can be read; of the hub, whether the cache has them."""
    from adg_plugin.engines.models.loading import Source
    from adg_plugin.engines.models.location import model_location

    if config.model == "demo" and not (converted := demo_model.model_folder()).is_dir():
        for module in ("accelerate", "gguf"):
            need(module, extra="demo", why="model: demo")
        yield Check("model", "note", f"demo: is converted on first use, into {converted} (0.3 GiB)")
        return
    location = model_location(config)
    folder = _folder(location, config.revision)
    if isinstance(folder, Check):
        yield folder
        return
    tokenizer = Source.configured(config).tokenizer  # raises where a part is missing, in the cache too
    size = gib(_check_weights(folder))
    if not Path(location).is_dir():
        yield Check("model", "ok", f"{location}: in the hub's cache, weights of {size}")
        return
    chat = "has a chat template" if getattr(tokenizer, "chat_template", None) else "has no chat template"
    name = f"demo ({location})" if config.model == "demo" else location
    yield Check("model", "ok", f"{name}: weights of {size}, whole; its tokenizer {chat}")


def check_data(specs: Sequence[DatasetSpec], *, layouts: bool = True) -> Iterator[Check]:
    """Yield whether the rows of each data set can be read, as far as the first thousand.

    Args:
        specs: the data sets.
        layouts: whether the rows must have a layout that `adg select` knows; Axolotl has types of its own.
    """
    for spec in specs:
        yield from guarded("data", _check_data_set, spec, layouts)


def check_answers(path: str) -> Iterator[Check]:
    """Yield whether the rows of a file of answers can be read, as far as the first thousand.

    Raises:
        DataError: they cannot.
    """
    rows = [texts_of(record) for record in islice(iter_records([DatasetSpec(path=path)]), _ROWS_READ)]
    yield Check("answers", "ok", f"{path}: {_how_many(rows)} read, each with answers")


def _extras(config: ADGConfig) -> dict[str, str]:
    """Return the extras that the settings need, each with the setting."""
    filters = config.filters
    wanted = {
        "filters": ("filters", filters.near_duplicates is not None or bool(filters.languages)),
        "vllm": ("engine: vllm", config.engine == "vllm"),
        "server": ("engine: vllm-server", config.engine == "vllm-server"),
        "ray": ("executor: ray", config.executor == "ray"),
        "quant": ("load_in_4bit", config.load_in_4bit),
    }
    if extra := selector(config.method).extra:
        wanted[extra] = (f"method: {config.method}", True)
    return {extra: why for extra, (why, needed) in wanted.items() if needed}


def _check_other_model(config: ADGConfig, key: str, configured: Callable[[], object]) -> Iterable[Check]:
    """Return what `check_model` finds of the model that `key` names.

    Raises:
        ADGError: it cannot be read, or, where all of it is here, `configured` finds that it cannot be asked.
    """
    from adg_plugin.engines.models.side_models import errors_under, other_model_settings

    with errors_under(config, key):
        found = [replace(check, name=key) for check in check_model(other_model_settings(config, key))]
    if all(check.status == "ok" for check in found):
        configured()
    return found


def _check_label_vectors(path: str) -> Iterator[Check]:
    from adg_plugin.selectors.mig.columns import read_label_vectors

    yield Check("label_vectors", "ok", f"{path}: vectors of {len(read_label_vectors(path)):,} labels")


def _check_ranker(config: ADGConfig) -> Iterator[Check]:
    """Yield whether the ranker of `scar` is here, without fetching it: `StyleRanker` would."""
    from adg_plugin.engines.judges.style_ranker import StyleRanker
    from adg_plugin.engines.models.side_models import errors_under

    name = config.scar_model
    folder = _folder(name, None)
    if isinstance(folder, Check):
        yield replace(folder, name="scar_model")
        return
    StyleRanker(name)
    with errors_under(config, "scar_model"):
        size = gib(_check_weights(folder))
    yield Check("scar_model", "ok", f"{name}: a ranker, weights of {size}")


def _folder(location: str, revision: str | None) -> Path | Check:
    """Return where a model is: a folder, or the cache where only that may be asked; else what is known of the name."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if Path(location).is_dir():
        return Path(location)
    try:
        cached = try_to_load_from_cache(location, "config.json", revision=revision or "main")
    except HFValidationError:
        text = f"{location}: no such folder (in {Path.cwd()}), and no name that the hub could have"
        return Check("model", "failed", text, "give a folder that save_pretrained wrote, or a hub name")
    if not is_offline():
        state = "in the hub's cache" if isinstance(cached, str) else "will be downloaded"
        return Check("model", "note", f"{location}: no folder here, so a name on the hub: {state}")
    if isinstance(cached, str):
        return Path(cached).parent
    text = f"{location}: no folder here, and the hub's cache does not have it; HF_HUB_OFFLINE is set"
    return Check("model", "failed", text, "download it once with HF_HUB_OFFLINE=0, or give a folder")


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


def _check_data_set(spec: DatasetSpec, layouts: bool) -> Iterator[Check]:
    if spec.path == IN_MEMORY.path:
        yield Check("data", "note", "memory: rows that a program passes, nothing to read here")
        return
    if pool_fingerprint([spec]) is None and ("://" in spec.path or not is_offline(for_data=True)):
        where = "a URL" if "://" in spec.path else "no file or folder here, so a name on the hub"
        yield Check("data", "note", f"{spec.path}: {where}: will be downloaded")
        return
    records = islice(iter_records([spec]), _ROWS_READ)
    rows: list[object] = list(unique_rows(records) if layouts else records)
    rejected = [row for row in rows if isinstance(row, Rejection)]
    if not rejected:
        yield Check("data", "ok", f"{spec.path}: {_how_many(rows)} read, each can be used")
        return
    first = f"{rejected[0].where}: {rejected[0].reason} ({rejected[0].detail})"
    if len(rejected) == len(rows):
        raise DataError(f"{spec.path}: none of {_how_many(rows)} can be used, such as {first}")
    text = f"{spec.path}: {_how_many(rows)} read, {len(rejected):,} will be rejected, such as {first}"
    yield Check("data", "note", text)


def _how_many(rows: Sequence[object]) -> str:
    return f"the first {len(rows):,} rows" if len(rows) == _ROWS_READ else f"{len(rows):,} rows"
