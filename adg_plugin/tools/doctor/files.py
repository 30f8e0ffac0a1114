"""A YAML of any kind, read as its own command would -> what is wrong with it, and whether what it names is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
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
from adg_plugin.tools.doctor.checks import Check, Look, failures, guarded
from adg_plugin.tools.doctor.devices import check_disk, is_offline
from adg_plugin.tools.doctor.inputs import check_answers, check_data, check_model, check_settings
from adg_plugin.tools.doctor.packages import extra_lack, install_command

_SCHEME = "adg://"
_PLACE_OF_ROWS = ("path", "ds_type", "data_files", "name", "split", "revision")


@dataclass(frozen=True, slots=True)
class Reading:
    """What a YAML names, as far as it is known.

    Attributes:
        kind: for people.
        problems: what is wrong with it.
        config: the settings of the selection; None where they are wrong.
        trained: the model that will be trained; None where nothing is.
        data: its data sets.
        layouts: whether their rows must be of a layout that `adg select` knows.
        out: where results go; None for a URL, and where it is not known.
        checks: further checks of the command's own, by name.
    """

    kind: str
    problems: tuple[Check, ...] = ()
    config: ADGConfig | None = None
    trained: str | None = None
    data: tuple[DatasetSpec, ...] = ()
    layouts: bool = True
    out: Path | None = None
    checks: Mapping[str, Look] = field(default_factory=dict)


def check_file(path: Path) -> Iterator[Check]:
    """Yield what is wrong with a YAML, and whether its extras, device, models, data sets and output folder are here.

    Raises:
        ConfigError: it cannot be read as YAML.
    """
    reading = _read(path)
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
    for name, check in reading.checks.items():
        yield from guarded(name, check)
    if reading.out is not None:
        yield from guarded("disk", partial(check_disk, reading.out))


def _read(path: Path) -> Reading:
    data = load_yaml(path)
    if axolotl_run.is_axolotl(path):
        return _read_axolotl(path, data)
    entries = data.get("datasets") or []
    files = [entry.get("data_files") for entry in entries if isinstance(entry, Mapping)]
    if urls := [file for file in files if isinstance(file, str) and file.startswith(_SCHEME)]:
        return Reading("a YAML for the unmodified trl sft", tuple(_of_url(url) for url in urls))
    if "model_name_or_path" in data or ("adg" in data and len(data) > 1):
        return _read_recipe(path, data)
    return _read_settings(path)


def _read_settings(path: Path) -> Reading:
    kind = "settings of a selection"
    try:
        config, out = load_selection(path)
    except ConfigError as err:
        # Where only the pool is missing, the rest of what they name is looked at.
        return Reading(kind, failures("settings", err), _unless_wrong(partial(load_config, path)))
    is_url = "://" in out
    checks = {
        "settings": partial(refuse_unfit, config, SingleProcess()),
        "output": partial(check_url if is_url else check_folder, out),
    }
    return Reading(kind, (), config, data=config.datasets, out=None if is_url else Path(out), checks=checks)


def _read_recipe(path: Path, data: Mapping[str, Any]) -> Reading:
    kind = "a recipe of TRL"
    try:
        plan = recipe_run.make_plan(path)
    except ADGError as err:
        block = data.get("adg")
        settings = {"model": data.get("model_name_or_path"), **(block if isinstance(block, Mapping) else {})}
        config = _unless_wrong(partial(ADGConfig.parse, settings))
        # A pool that cannot be read is what the error is about.
        pool = () if config is None or isinstance(err, DataError) else config.datasets
        return Reading(kind, failures("settings", err), config, data=pool)
    trained = str(plan.request.model.model_name_or_path)
    checks = {"output": partial(recipe_run.check_output, plan)}
    return Reading(kind, (), plan.config, trained, plan.config.datasets, out=plan.out, checks=checks)


def _read_axolotl(path: Path, data: Mapping[str, Any]) -> Reading:
    problems: list[Check] = []
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
    settings = {**data, "adg": {key: value for key, value in block.items() if key != "datasets"}}
    return Reading(
        "a YAML of Axolotl",
        tuple(problems),
        _unless_wrong(partial(selection_config, settings)) if data.get("base_model") else None,
        str(data["base_model"]) if data.get("base_model") else None,
        tuple(spec for entry in entries for spec in _axolotl_data(entry)) if isinstance(entries, list) else (),
        layouts=False,
        out=out,
    )


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
    config = _unless_wrong(partial(ADGConfig.parse, {"datasets": [place]}))
    return config.datasets if config else ()


def _unless_wrong(read_settings: Callable[[], ADGConfig]) -> ADGConfig | None:
    """Return the settings, or None where they are wrong, which the command's own reader reports."""
    try:
        return read_settings()
    except ConfigError:
        return None
