"""A YAML of any kind, read as its own command would -> what is wrong with it, and whether what it names is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adg_plugin.adapters.axolotl import run as axolotl_run
from adg_plugin.adapters.axolotl.args import selection_config
from adg_plugin.adapters.trl import run as recipe_run
from adg_plugin.config.files import load_yaml
from adg_plugin.config.run_folder import load_selection
from adg_plugin.config.schema import ADGConfig, DatasetSpec, load_config
from adg_plugin.errors import ADGError, ConfigError, DataError
from adg_plugin.pipeline.checks import refuse_unfit
from adg_plugin.pipeline.ranks import SingleProcess
from adg_plugin.store.folder import check_folder
from adg_plugin.store.mirror import check_url
from adg_plugin.tools.doctor.checks import Check, failures, guarded
from adg_plugin.tools.doctor.inputs import check_answers, check_data, check_model, check_settings
from adg_plugin.tools.doctor.machine import check_disk, is_offline
from adg_plugin.tools.doctor.packages import describe, extra_lack, install_command

_SCHEME = "adg://"
_PLACE_OF_ROWS = ("path", "ds_type", "data_files", "name", "split", "revision")


def check_file(path: Path) -> Iterator[Check]:
    """Yield what is wrong with a YAML, and whether its extras, device, models, data sets and output folder are here.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    data = load_yaml(path)
    files = [entry.get("data_files") for entry in data.get("datasets") or [] if isinstance(entry, Mapping)]
    urls = [file for file in files if isinstance(file, str) and file.startswith(_SCHEME)]
    if axolotl_run.is_axolotl(path):
        yield from _check_axolotl(path, data)
    elif urls:
        yield from _mistakes(path, "a YAML for the unmodified trl sft", [_of_url(url) for url in urls])
    elif "model_name_or_path" in data or ("adg" in data and len(data) > 1):
        yield from _check_recipe(path, data)
    else:
        yield from _check_selection(path)


def _check_selection(path: Path) -> Iterator[Check]:
    try:
        config, out = load_selection(path)
    except ConfigError as err:
        yield from failures("settings", err)
        # Where only the pool is missing, the rest of what they name is looked at.
        yield from _check_named(_unless_wrong(load_config, path))
        return
    yield from _mistakes(path, "settings of a selection")
    yield from _check_named(config, config.datasets)
    yield from guarded("settings", refuse_unfit, config, SingleProcess())
    if "://" in out:
        yield from guarded("output", check_url, out)
    else:
        yield from guarded("output", check_folder, out)
        yield from guarded("disk", check_disk, Path(out))


def _check_recipe(path: Path, data: Mapping[str, Any]) -> Iterator[Check]:
    try:
        plan = recipe_run.make_plan(path)
    except ADGError as err:
        yield from failures("settings", err)
        block = data.get("adg")
        settings = {"model": data.get("model_name_or_path"), **(block if isinstance(block, Mapping) else {})}
        config = _unless_wrong(ADGConfig.parse, settings)
        # A pool that cannot be read is what the error is about.
        yield from _check_named(config, () if config is None or isinstance(err, DataError) else config.datasets)
        return
    yield from _mistakes(path, "a recipe of TRL")
    yield from _check_named(plan.config, plan.config.datasets, trained=str(plan.request.model.model_name_or_path))
    yield from guarded("output", recipe_run.check_output, plan)
    yield from guarded("disk", check_disk, plan.out)


def _check_axolotl(path: Path, data: Mapping[str, Any]) -> Iterator[Check]:
    problems: list[Check] = []
    out = None
    try:
        out = axolotl_run.make_plan(path).out
    except ADGError as err:
        problems += failures("settings", err)
    if lacking := extra_lack("axolotl"):
        text = f"a YAML of Axolotl needs Axolotl: {describe(lacking)}"
        problems.append(Check("settings", "failed", text, install_command("axolotl")))
    if data.get("datasets"):
        text = "the pool stands under datasets: without the line plugins Axolotl trains on every row"
        problems.append(Check("pool", "warning", text, "move it under adg.datasets (docs/axolotl.md)"))
    yield from _mistakes(path, "a YAML of Axolotl", problems)
    given = data.get("adg")
    block = given if isinstance(given, Mapping) else {}
    entries = data.get("datasets") or block.get("datasets") or []
    pool = [spec for entry in entries for spec in _axolotl_data(entry)] if isinstance(entries, list) else []
    if model := data.get("base_model"):
        settings = {**data, "adg": {key: value for key, value in block.items() if key != "datasets"}}
        config = _unless_wrong(selection_config, settings)
        yield from _check_named(config, pool, trained=str(model), layouts=False)
    else:
        yield from check_data(pool, layouts=False)
    if out is not None:
        yield from guarded("disk", check_disk, out)


def _mistakes(path: Path, kind: str, problems: Sequence[Check] = ()) -> Iterator[Check]:
    yield from problems
    if not any(check.status == "failed" for check in problems):
        yield Check("settings", "ok", f"{path}: {kind}, no mistakes")


def _check_named(
    config: ADGConfig | None, data: Sequence[DatasetSpec] = (), *, trained: str | None = None, layouts: bool = True
) -> Iterator[Check]:
    """Yield whether what a YAML names is here.

    Args:
        config: the settings of the selection; None where they are wrong.
        data: the data sets.
        trained: the model that will be trained; None where nothing is.
        layouts: whether their rows must be of a layout that `adg select` knows.
    """
    if config is not None:
        yield from guarded("settings", check_settings, config)
        yield from guarded("model", check_model, config)
        if trained not in (None, config.model):
            yield from guarded("model", check_model, config.updated(model=trained, revision=None))
        if config.answers is not None:
            yield from guarded("answers", check_answers, config.answers)
    yield from check_data(data, layouts=layouts)


def _of_url(url: str) -> Check:
    if is_offline(for_data=True):
        text = f"{url}: under HF_HUB_OFFLINE or HF_DATASETS_OFFLINE `datasets` opens no such path"
        return Check("data", "failed", text, "adg select first, and give the run folder as dataset_name (docs/trl.md)")
    settings = url.removeprefix(_SCHEME).rpartition("/")[0]
    return Check("data", "note", f"{url}: selected when it is opened", f"adg doctor {settings}")


def _axolotl_data(entry: Any) -> tuple[DatasetSpec, ...]:
    """Return where the rows of an entry are; nothing for what is neither a mapping nor `demo`: the plan refuses it."""
    named = entry if isinstance(entry, Mapping) else {"path": entry}
    place = {key: named[key] for key in _PLACE_OF_ROWS if named.get(key)}
    if "[" in str(place.get("split")):  # a part of a split, in the notation of `datasets`
        place["split"] = place["split"].partition("[")[0]
    config = _unless_wrong(ADGConfig.parse, {"datasets": [place]})
    return config.datasets if config else ()


def _unless_wrong(read: Callable[[Any], ADGConfig], given: Any) -> ADGConfig | None:
    """Return the settings, or None where they are wrong, which the command's own reader reports."""
    try:
        return read(given)
    except ConfigError:
        return None
