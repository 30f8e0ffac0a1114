"""YAML files -> plain mappings, and `--set key=value` on top of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import yaml

from adg_plugin.errors import ConfigError

_KINDS = {type(None): "nothing", list: "a list", str: "text"}

# Far above every recipe, far below what exhausts memory or the stack.
_MOST_BYTES = 10_000_000
_MOST_LEVELS = 50
_MOST_VALUES = 100_000


class BoundedLoader(yaml.SafeLoader):
    """A SafeLoader that refuses what is too deep or too much, and a scalar that its tag cannot read, naming the line.

    An alias (`*name`) counts as all that it stands for: ten lines can stand for a billion values.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = self._deepest = self._values = 0
        self._sizes: dict[yaml.Node | None, tuple[int, int]] = {}  # levels below a node, values in it

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Return the next node; a ConstructorError beyond a limit, or where an alias stands within its own anchor."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        before, outer = self._values, self._deepest
        self._level += 1
        self._reach(event, 0, 1)
        node = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent):
            self._sizes[node] = self._deepest - self._level, self._values - before
        elif node in self._sizes:
            self._reach(event, *self._sizes[node])
        else:
            raise _refusal(f"`*{event.anchor}` stands within itself: write it out", event)
        self._level -= 1
        self._deepest = max(outer, self._deepest)
        return node

    def _reach(self, event: yaml.Event, levels: int, values: int) -> None:
        self._deepest = self._level + levels
        self._values += values
        if self._deepest > _MOST_LEVELS:
            raise _refusal(f"more than {_MOST_LEVELS} levels deep: write it flatter", event)
        if self._values > _MOST_VALUES:
            raise _refusal(f"more than {_MOST_VALUES:,} values, an alias counted as what it stands for", event)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; a ConstructorError where PyYAML has others: `!!bool x`, 30 February."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int):
                str(value)  # hexadecimal may have more digits than Python prints
        except (ArithmeticError, AttributeError, LookupError, ValueError) as err:
            kind = node.tag.rpartition(":")[2]
            raise _refusal(f"{str(node.value)[:50]!r} cannot be read as {kind}", node) from err
        return value


class _UniqueKeyLoader(BoundedLoader):
    """One that refuses a key given twice, which plain YAML settles in silence for the last."""

    # While composing: later, merge keys (`<<`) have put the keys of other mappings into this one.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise _refusal(f"`{key.value}` is given twice: keep one", key)
            seen.add((key.tag, key.value))
        return node


def _refusal(problem: str, place: yaml.Event | yaml.Node) -> yaml.constructor.ConstructorError:
    mark: Any = place.start_mark  # PyYAML's stubs name two classes for it
    return yaml.constructor.ConstructorError(None, None, problem, mark)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: it is missing, above 10 MB, no YAML, no mapping, has a key twice, or is too deep or too much.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            problem = f"holds {size:,} bytes, more than the {_MOST_BYTES:,} of settings: give the path of a YAML file"
            raise ConfigError([problem], source=str(path))
        with path.open(encoding="utf-8") as file:
            data = yaml_value(file)
    except FileNotFoundError:
        raise ConfigError([f"no such file: give the path of a YAML file (in {Path.cwd()})"], source=str(path)) from None
    except OSError as err:
        problem = f"cannot be read ({err.strerror}): give the path of a YAML file"
        raise ConfigError([problem], source=str(path)) from None
    except ValueError as err:
        raise ConfigError([f"not valid YAML: {err}"], source=str(path)) from None
    if not isinstance(data, dict):
        kind = _KINDS.get(type(data), repr(data))
        raise ConfigError([f"holds {kind}, not a mapping: write `key: value` lines"], source=str(path))
    return data


def yaml_value(source: str | IO[str]) -> Any:
    """Return the value that a text or an open file is in YAML; a ValueError where it is none that settings may have."""
    try:
        return yaml.load(source, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, OverflowError) as err:  # OverflowError: no such character
        raise ValueError(str(err)) from None


def override(block: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return `block` after one `key=value` (YAML value, dotted key); a ValueError says what is wrong with `text`."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError("write key=value")
    try:
        parsed = yaml_value(value)
    except ValueError as err:
        raise ValueError(f"not YAML: {err}") from None
    way = key.removeprefix("adg.").split(".")
    if len(way) > _MOST_LEVELS:
        raise ValueError(f"a key of {len(way):,} parts: use at most {_MOST_LEVELS}")
    changed: dict[str, Any] = _with_value(block, way, parsed)
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
