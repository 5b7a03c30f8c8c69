"""The memory of tensors without values is that of tensors with them."""

import pytest
import torch

from guided_diffusion.runtime.live_memory import CODE, followed_on, gigabytes, with_overhead, without_values


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])  # no GPU is needed for either
def test_each_storage_counts_until_its_last_view_is_gone(device):
    device = torch.device(device)
    with without_values(device) as memory:
        one = torch.zeros(1000, device=device)
        view = one.view(10, 100)[2:]
        assert memory.now == 4000
        other = (view + 1).half()
        assert memory.now == 4000 + 1600 and memory.peak == 4000 + 3200 + 1600
        del one
        assert memory.now == 4000 + 1600
        del view, other
        assert memory.now == 0 and memory.peak == 8800
        torch.zeros(10**9, device="cpu" if device.type == "cuda" else "meta")  # another device
        assert memory.peak == 8800


def test_what_is_kept_for_the_gradient_counts():
    with without_values(torch.device("cpu")) as memory:
        x = torch.zeros(1000, requires_grad=True)
        kept = x.sin().cos()
        assert memory.now == 3 * 4000  # the sine is kept beside x and the result
        del kept
        assert memory.now == 4000


def test_overheads_and_messages():
    cpu = torch.device("cpu")
    assert with_overhead(10**9, cpu) == 1_120_000_000 + CODE["cpu"] < with_overhead(10**9, cpu, recomputes=True)
    assert followed_on(torch.device("mps")) == cpu and followed_on(torch.device("cuda", 1)).index == 1
    assert gigabytes(1.5 * 2**30) == "1.5 GB"
