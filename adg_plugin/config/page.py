"""The settings as a page, made from the schema so that it cannot be out of date."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adg_plugin.config.engines import EngineSettings
from adg_plugin.config.groups import Filters, ModelSettings, SamplingSettings, ScoreSettings, VectorSettings
from adg_plugin.config.methods import MethodSettings
from adg_plugin.config.schema import ADGConfig, DatasetSpec
from adg_plugin.config.values import Settings

_FILTERS = (
    "All are off by default. Rows that they reject are in `rejected.jsonl`, each with value and limit. "
    "`underspecified`, `min_agreement` and `drop_least_agreeing` look at the sampled answers, and so are for "
    "`method: adg` alone; all others reject rows before they are sampled. A changed filter samples nothing "
    "again that is there, except that switching agreement on or off (`min_agreement`, `drop_least_agreeing`) "
    "samples rows with a reference response again; other values of the two do not. `adg score` scores every "
    "row it is given."
)
_PARTS: tuple[tuple[str, type[Settings], str], ...] = (
    ("Pool and run folder", ADGConfig, ""),
    ("Model", ModelSettings, ""),
    ("Sampling", SamplingSettings, ""),
    ("Vectors", VectorSettings, ""),
    ("Scores and choice", ScoreSettings, ""),
    ("Other selectors", MethodSettings, "What they do, and their sources: [method](method.md#other-selectors)."),
    ("Engines, servers, Ray", EngineSettings, ""),
    ("Keys of `filters`", Filters, _FILTERS),
    ("An entry of `datasets`", DatasetSpec, "A path, or a mapping:"),
)


def settings_page() -> str:
    """Return docs/settings.md: every key with its default and meaning."""
    lines = [
        "# Settings",
        "",
        "Made by `adg settings` from the schema. Keys stand at the top of a YAML file or in its `adg:` block.",
        "",
    ]
    for title, group, text in _PARTS:
        lines += [f"## {title}", "", *([text, ""] if text else [])]
        lines += ["| key | default | what |", "|---|---|---|"]
        own = [name for name in group.model_fields if name in group.__annotations__]
        for name in [*own, "seed"] if group is SamplingSettings else own:
            field = group.model_fields[name]
            what = (field.description or "").replace("|", "\\|")
            lines.append(f"| `{name}` | {_shown(field)} | {what} |")
        lines.append("")
    return "\n".join(lines)


def _shown(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == () or value == {} or isinstance(value, BaseModel):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
