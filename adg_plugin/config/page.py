"""The settings as a page, made from the schema so that it cannot be out of date."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adg_plugin.config.engines import ScaleSettings
from adg_plugin.config.filters import Filters
from adg_plugin.config.methods import MethodSettings
from adg_plugin.config.sampling import SamplingSettings
from adg_plugin.config.schema import ADGConfig, DatasetSpec


def settings_page() -> str:
    """Return docs/settings.md: every key with its default and meaning."""
    elsewhere = {*SamplingSettings.model_fields, *ScaleSettings.model_fields, *MethodSettings.model_fields}
    return "\n".join(
        [
            "# Settings",
            "",
            "Made by `adg settings` from the schema. Keys stand at the top of a YAML file or in its `adg:` block.",
            "",
            *_table({n: f for n, f in ADGConfig.model_fields.items() if n not in elsewhere}),
            "",
            "## Sampling",
            "",
            *_table(SamplingSettings.model_fields),
            "",
            "## Other selectors",
            "",
            "What they do, and their sources: [method](method.md#other-selectors).",
            "",
            *_table(MethodSettings.model_fields),
            "",
            "## Engines, servers, Ray",
            "",
            *_table(ScaleSettings.model_fields),
            "",
            "## Keys of `filters`",
            "",
            "All are off by default. Rows that they reject are in `rejected.jsonl`, each with value and limit. "
            "`underspecified`, `min_agreement` and `drop_least_agreeing` look at the sampled answers, and so are for "
            "`method: adg` alone; all others reject rows before they are sampled. A changed filter samples nothing "
            "again that is there, except that switching agreement on or off (`min_agreement`, `drop_least_agreeing`) "
            "samples rows with a reference response again; other values of the two do not. `adg score` scores every "
            "row it is given.",
            "",
            *_table(Filters.model_fields),
            "",
            "## An entry of `datasets`",
            "",
            "A path, or a mapping:",
            "",
            *_table(DatasetSpec.model_fields),
            "",
        ]
    )


def _table(fields: dict[str, FieldInfo]) -> list[str]:
    rows = ["| key | default | what |", "|---|---|---|"]
    for name, field in fields.items():
        what = (field.description or "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_shown(field)} | {what} |")
    return rows


def _shown(field: FieldInfo) -> str:
    if field.is_required():
        return "needed"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value == () or value == {} or isinstance(value, BaseModel):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
