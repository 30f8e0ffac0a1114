"""YAML files -> plain mappings, and `--set key=value` on top of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adg_plugin.errors import ConfigError

_KINDS = {type(None): "nothing", list: "a list", str: "text"}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which plain YAML settles in silence for the last."""

    # While composing: later, merge keys (`<<`) have put the keys of other mappings into this one.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`{key.value}` is given twice: keep one", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; a ConfigError where it is missing, no YAML, no mapping, or has a key twice."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            data = yaml.load(file, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except FileNotFoundError:
        raise ConfigError([f"no such file: give the path of a YAML file (in {Path.cwd()})"], source=str(path)) from None
    except OSError as err:
        problem = f"cannot be read ({err.strerror}): give the path of a YAML file"
        raise ConfigError([problem], source=str(path)) from None
    except (yaml.YAMLError, ValueError) as err:  # ValueError: not UTF-8, no such date, a number without end
        raise ConfigError([f"not valid YAML: {err}"], source=str(path)) from None
    if not isinstance(data, dict):
        kind = _KINDS.get(type(data), repr(data))
        raise ConfigError([f"holds {kind}, not a mapping: write `key: value` lines"], source=str(path))
    return data


def override(block: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return `block` after one `key=value` (YAML value, dotted key); a ValueError says what is wrong with `text`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError("write key=value")
    try:
        parsed = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as err:
        raise ValueError(f"not YAML: {err}") from None
    changed: dict[str, Any] = _with_value(block, key.removeprefix("adg.").split("."), parsed)
    return changed


def _with_value(block: Any, way: list[str], value: Any) -> Any:
    if not way:
        return value
    head, rest = way[0], way[1:]
    if isinstance(block, list | tuple) or (block is None and head.isdecimal()):
        entries = list(block or [])
        if not head.isdecimal() or int(head) > len(entries):
            raise ValueError(f"`{head}` is no place in a list of {len(entries)}: use 0 to {len(entries)}")
        place = slice(int(head), int(head) + 1)  # one past the end: a further entry
        entries[place] = [_with_value(next(iter(entries[place]), None), rest, value)]
        return entries
    if not isinstance(block, Mapping | None):
        raise ValueError(f"{block!r} has nothing named `{head}`: set the whole of it")
    block = block or {}
    return {**block, head: _with_value(block.get(head), rest, value)}
