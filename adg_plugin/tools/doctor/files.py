"""A YAML of any kind, read as its own command would -> what is wrong with it, and whether what it names is here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adg_plugin.adapters.axolotl import run as axolotl_run
from adg_plugin.adapters.axolotl.args import selection_config
from adg_plugin.adapters.trl import run as recipe_run
from adg_plugin.config.files import load_yaml
from adg_plugin.config.schema import ADGConfig, DatasetSpec, load_config
from adg_plugin.errors import ADGError, ConfigError, DataError
from adg_plugin.tools.doctor.checks import Check, failures, guarded
from adg_plugin.tools.doctor.devices import check_disk, is_offline
from adg_plugin.tools.doctor.inputs import check_answers, check_data, check_model, check_settings
from adg_plugin.tools.doctor.packages import extra_lack, install_command

_SCHEME = "adg://"
_PLACE_OF_ROWS = ("path", "ds_type", "data_files", "name", "split", "revision")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a YAML names, as far as it can be told.

    Attributes:
        kind: for people.
        problems: what is wrong with it.
        config: the settings of the selection; None where they are wrong.
        trained: the model that will be trained; None where nothing is.
        data: its data sets.
        layouts: whether their rows must be of a layout that `adg select` knows.
        out: where results go; None for a URL, and where it cannot be told.
    """

    kind: str
    problems: tuple[Check, ...] = ()
    config: ADGConfig | None = None
    trained: str | None = None
    data: tuple[DatasetSpec, ...] = ()
    layouts: bool = True
    out: Path | None = None


def check_file(path: Path) -> Iterator[Check]:
    """Yield what is wrong with a YAML, and whether its extras, device, models, data sets and output folder are here.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    reading = read(path)
    yield from reading.problems
    if not any(check.status == "failed" for check in reading.problems):
        yield Check("settings", "ok", f"{path}: {reading.kind}, no mistakes")
    if reading.config is not None:
        yield from guarded("settings", partial(check_settings, reading.config))
        yield from guarded("model", partial(check_model, reading.config))
        if reading.trained not in (None, reading.config.model):
            trained = reading.config.updated(model=reading.trained, revision=None)
            yield from guarded("model", partial(check_model, trained))
        if reading.config.answers is not None:
            yield from guarded("answers", partial(check_answers, reading.config.answers))
    yield from check_data(reading.data, layouts=reading.layouts)
    if reading.out is not None:
        yield from guarded("disk", partial(check_disk, reading.out))


def read(path: Path) -> Reading:
    """Return what a YAML names: settings of a selection, a recipe of TRL, or a YAML of Axolotl.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    data = load_yaml(path)
    if axolotl_run.is_axolotl(path) or _names_the_plugin(data):
        return _read_axolotl(path, data)
    if urls := _adg_urls(data):
        return Reading("a YAML for the unmodified trl sft", tuple(_of_url(url) for url in urls))
    if "model_name_or_path" in data or ("adg" in data and len(data) > 1):
        return _read_recipe(path, data)
    return _read_settings(path)


def _names_the_plugin(data: Mapping[str, Any]) -> bool:
    plugins = data.get("plugins")
    return isinstance(plugins, list) and any("ADGPlugin" in str(name) for name in plugins)


def _read_settings(path: Path) -> Reading:
    kind = "settings of a selection"
    try:
        config = load_config(path)
    except ConfigError as err:
        return Reading(kind, failures("settings", err))
    out = config.output_dir or f"runs/{path.stem}"
    without_data = Check("data", "failed", "datasets is missing", "give a pool, such as datasets: [pool.jsonl]")
    return Reading(
        kind,
        () if config.datasets else (without_data,),
        config,
        data=config.datasets,
        out=None if "://" in out else Path(out),
    )


def _read_recipe(path: Path, data: Mapping[str, Any]) -> Reading:
    kind = "a recipe of TRL"
    try:
        plan = recipe_run.make_plan(path)
    except ADGError as err:
        block = data.get("adg")
        config = _parsed({"model": data.get("model_name_or_path"), **(block if isinstance(block, Mapping) else {})})
        # A pool that cannot be read is what the error tells.
        pool = () if config is None or isinstance(err, DataError) else config.datasets
        return Reading(kind, failures("settings", err), config, data=pool)
    trained = str(plan.request.model.model_name_or_path)
    return Reading(kind, (), plan.config, trained, plan.config.datasets, out=plan.out)


def _read_axolotl(path: Path, data: Mapping[str, Any]) -> Reading:
    problems: list[Check] = []
    trained = str(data["base_model"]) if data.get("base_model") else None
    if trained is None:
        text = "base_model is missing: plugins names adg_plugin.ADGPlugin, so this is a YAML of Axolotl"
        problems.append(Check("settings", "failed", text, "base_model: the model to train, a folder or a hub name"))
    out = None
    try:
        out = axolotl_run.make_plan(path).out
    except ADGError as err:
        problems += failures("settings", err)
    if lacking := extra_lack("axolotl"):
        text = f"a YAML of Axolotl needs Axolotl: {lacking}"
        problems.append(Check("settings", "failed", text, install_command("axolotl")))
    if data.get("datasets"):
        text = "the pool stands under datasets: without the line plugins Axolotl trains on every row"
        problems.append(Check("pool", "warning", text, "move it under adg.datasets (docs/axolotl.md)"))
    given = data.get("adg")
    block = given if isinstance(given, Mapping) else {}
    entries = data.get("datasets") or block.get("datasets") or []
    return Reading(
        "a YAML of Axolotl",
        tuple(problems),
        _axolotl_config({**data, "adg": {key: value for key, value in block.items() if key != "datasets"}}),
        trained,
        tuple(spec for entry in entries for spec in _axolotl_data(entry)) if isinstance(entries, list) else (),
        layouts=False,
        out=out,
    )


def _adg_urls(data: Mapping[str, Any]) -> list[str]:
    """Return the `adg://` paths among the data files of `trl sft`."""
    entries = data.get("datasets")
    files = [entry.get("data_files") for entry in entries if isinstance(entry, Mapping)] if entries else []
    return [file for file in files if isinstance(file, str) and file.startswith(_SCHEME)]


def _of_url(url: str) -> Check:
    if is_offline(for_data=True):
        text = f"{url}: under HF_HUB_OFFLINE or HF_DATASETS_OFFLINE `datasets` opens no such path"
        return Check("data", "failed", text, "adg select first, and give the run folder as dataset_name (docs/trl.md)")
    settings = url.removeprefix(_SCHEME).rpartition("/")[0]
    return Check("data", "note", f"{url}: selected when it is opened", f"adg doctor {settings}")


def _axolotl_config(data: Mapping[str, Any]) -> ADGConfig | None:
    if not data.get("base_model"):
        return None
    try:
        return selection_config(data)
    except ConfigError:  # told by the plan
        return None


def _axolotl_data(entry: Any) -> tuple[DatasetSpec, ...]:
    """Return where the rows of an entry are; nothing for one that is no mapping and not `demo`, as the plan tells."""
    named = entry if isinstance(entry, Mapping) else {"path": entry}
    place = {key: named[key] for key in _PLACE_OF_ROWS if named.get(key)}
    if "[" in str(place.get("split")):  # a part of a split, in the notation of `datasets`
        place["split"] = place["split"].partition("[")[0]
    config = _parsed({"datasets": [place]})
    return config.datasets if config else ()


def _parsed(settings: Mapping[str, Any]) -> ADGConfig | None:
    """Return the settings, or None where they are wrong, which the command's own reader has told."""
    try:
        return ADGConfig.parse(settings)
    except ConfigError:
        return None
