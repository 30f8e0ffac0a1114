"""Why a selection runs on the CPU where torch is built for a GPU."""

from __future__ import annotations

import logging
import os
import shutil
from functools import cache

import torch

from adg_plugin.errors import first_line

logger = logging.getLogger(__name__)

_HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def why_no_gpu() -> tuple[str, str] | None:
    """Return why a torch that is built for GPUs uses none, and the fix; None where it is not, or uses one."""
    cuda, rocm = torch.version.cuda, torch.version.hip
    if torch.accelerator.is_available() or not (cuda or rocm):
        return None
    built = f"CUDA {cuda}" if cuda else f"ROCm {rocm}"
    text = f"torch is built for {built} and sees no GPU, so a selection runs on the CPU, slowly"
    for name in _HIDING:
        if os.environ.get(name, "0").strip() in ("", "-1"):
            return f"{text}: {name} is {os.environ[name]!r}", f"unset {name}"
    text = f"{text}: {_cause()}"
    if cuda and shutil.which("nvidia-smi") is None:
        return f"{text}; there is no nvidia-smi", "if there is a GPU, install its driver"
    if cuda:
        fix = (
            f"if nvidia-smi shows a CUDA version below {cuda}: update the driver, or install a torch for an older CUDA"
        )
        return text, fix
    return text, "if rocm-smi shows a GPU: install a torch for its version of ROCm"


def _cause() -> str:
    """Return what torch says when it is asked for a GPU; it keeps that to itself while it is only asked for any."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as err:
        return first_line(err)
    return "no reason is known"


@cache
def warn_of_cpu() -> None:
    """Warn, once in a process, where `device: auto` is the CPU though torch is built for GPUs."""
    if found := why_no_gpu():
        logger.warning("%s (%s; with device: cpu, this is not said)", *found)
