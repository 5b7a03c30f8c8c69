"""The device and the precision the network runs in."""

import pytest
import torch

from guided_diffusion import dist_util
from guided_diffusion.dist_util import autocast, pick_device, pick_precision
from guided_diffusion.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def gpus(monkeypatch):
    """A function (count) after which torch seems to see that many GPUs."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_without_a_gpu_the_cpu_is_used(gpus):
    gpus(0)
    assert pick_device("0") == pick_device("cpu") == pick_device("3") == CPU


def test_the_gpu_asked_for(gpus):
    gpus(2)
    assert pick_device("1") == torch.device("cuda", 1)
    assert pick_device("cpu") == CPU
    with pytest.raises(UserError, match="--gpu_dev 2: there are 2 GPUs, numbered from 0"):
        pick_device("2")


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    pick_device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        pick_device("cpu")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_precision_on_a_cpu(monkeypatch, has_bf16):
    monkeypatch.setattr(dist_util, "_cpu_has_bf16", lambda: has_bf16)
    assert pick_precision("auto", CPU) == ("bf16" if has_bf16 else "fp32")
    assert pick_precision("fp16", CPU) == "bf16"
    assert pick_precision("fp32", CPU) == "fp32" and pick_precision("bf16", CPU) == "bf16"


@pytest.mark.parametrize("has_bf16", [True, False])
def test_precision_on_a_gpu(monkeypatch, has_bf16):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert pick_precision("auto", gpu) == ("bf16" if has_bf16 else "fp32")
    assert pick_precision("fp16", gpu) == "fp16"


def test_a_torch_without_the_private_functions_computes_in_fp32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert pick_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision, dtype):
    with autocast(precision, CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
