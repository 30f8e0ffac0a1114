"""The settings of the model that samples, and of how it is held."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from adg_plugin.config.values import Dtype, Int, PathText, Settings


class ModelSettings(Settings):
    """Which model is sampled from, in which numbers, and where."""

    model: PathText | None = Field(
        None,
        min_length=1,
        description="Backbone: folder, hub name, or `demo`. It should be the model that will be trained.",
    )
    revision: str | None = Field(None, description="Revision of the backbone on the hub.")
    trust_remote_code: bool = Field(False, description="Let transformers run code that comes with the model.")
    eos_token: str | None = Field(None, description="End-of-answer token, for a model that names none.")
    dtype: Dtype = Field(
        "auto",
        description="Dtype of the weights; `auto`: the checkpoint's, or in a trainer the precision of the training.",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?|mps|xpu(:\d+)?)$",
        description="`auto`, `cpu`, `cuda`, `cuda:1`, ...",
        json_schema_extra={"fix": "use auto, cpu, cuda, cuda:N, mps or xpu"},
    )
    load_in_4bit: bool = Field(False, description="Load the backbone in 4-bit (bitsandbytes).")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format.")
    bnb_4bit_use_double_quant: bool = Field(False, description="Quantise the quantisation constants too.")
    bnb_4bit_compute_dtype: Dtype = Field("auto", description="Type the 4-bit products are computed in.")
    batch_tokens: Int | None = Field(
        None,
        ge=1,
        description="Tokens held in the cache at once. Default: from free memory.",
        json_schema_extra={"fix": "use a whole number, 1 or more, or leave it out"},
    )
