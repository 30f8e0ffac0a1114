"""A build of torch for GPUs that finds none says so."""

import pytest
import torch

from adg_plugin.engines.models.device import warn_of_cpu
from adg_plugin.engines.models.loading import pick_device

pytestmark = pytest.mark.tiny


@pytest.mark.parametrize(
    ("built", "hidden", "said"),
    [
        (
            {"cuda": "12.9"},
            {},
            "torch is built for CUDA 12.9 and sees no GPU, so a selection runs on the CPU, slowly: ",
        ),
        ({"cuda": "12.9"}, {"CUDA_VISIBLE_DEVICES": ""}, "slowly: CUDA_VISIBLE_DEVICES is '' (unset CUDA_VISIBLE"),
        ({"hip": "7.1"}, {"ROCR_VISIBLE_DEVICES": "-1"}, "ROCm 7.1 and sees no GPU, so a selection runs on the CPU"),
        ({}, {}, None),
    ],
)
def test_a_build_for_gpus_that_falls_back_to_the_cpu_says_why_once(monkeypatch, caplog, built, hidden, said):
    if torch.accelerator.is_available():
        pytest.skip("there is one")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hidden.items():
        monkeypatch.setenv(name, value)
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, built.get(name))
    warn_of_cpu.cache_clear()
    try:
        assert pick_device("cpu") == torch.device("cpu")
        assert not caplog.messages  # asked for
        assert [pick_device("auto") for _ in range(2)] == 2 * [torch.device("cpu")]
    finally:
        warn_of_cpu.cache_clear()
    if said is None:
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert said in message
