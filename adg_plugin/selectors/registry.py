"""The selectors by name: those of this package, and those that other packages bring as entry points."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from adg_plugin.config.methods import ENTRY_POINTS, unknown_method
from adg_plugin.errors import ConfigError
from adg_plugin.selectors.base import Selector

# Loaded when they are asked for, as entry points are.
_BUILT_IN = {
    "adg": "adg:ADG",
    "random": "baselines:Random",
    "longest": "baselines:Longest",
    "ifd": "likelihood.selectors:IFD",
    "superfiltering": "likelihood.selectors:SuperFiltering",
    "zip": "zip.selector:ZIP",
    "mig": "mig.selector:MIG",
    "scar": "scar:SCAR",
}


@cache
def selector(name: str) -> Selector:
    """Return the selector that `method` names; a ConfigError where there is none, or what a package brings is none."""
    if name in _BUILT_IN:
        module, _, of = _BUILT_IN[name].partition(":")
        built_in: type[Selector] = getattr(import_module(f"{__package__}.{module}"), of)
        return built_in(name)
    point = _entry_point(name)
    if point is None:
        raise ConfigError([unknown_method(name)])
    try:
        found = point.load()
    except (ImportError, AttributeError) as err:
        raise ConfigError([f"method is {name!r}: {point.value} of {_package(point)} cannot be loaded ({err})"]) from err
    if not (isinstance(found, type) and issubclass(found, Selector)):
        raise ConfigError([f"method is {name!r}: {point.value} of {_package(point)} is no Selector class"])
    return found(name)


def built_in_selectors() -> tuple[Selector, ...]:
    """Return the selectors of this package."""
    return tuple(map(selector, _BUILT_IN))


def choice_settings() -> tuple[str, ...]:
    """Return the settings that decide over a choice from one staged pool, apart from the filters on agreement."""
    return ("budget", *dict.fromkeys(key for one in built_in_selectors() for key in one.settings))


def package_of(name: str) -> dict[str, str]:
    """Return name and version of the package that brings a selector; nothing of one that is built in."""
    point = None if name in _BUILT_IN else _entry_point(name)
    return {} if point is None or point.dist is None else {point.dist.name: point.dist.version}


def _entry_point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=ENTRY_POINTS, name=name)), None)


def _package(point: EntryPoint) -> str:
    return "a package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
