"""GroupNorm with SiLU against torch's own operations: values, gradients, types, and what is kept in memory."""

import pytest
import torch
import torch.nn.functional as F

from guided_diffusion.models import norm as norm_module
from guided_diffusion.models.layers import is_channels_last
from guided_diffusion.models.norm import GroupNorm, group_norm

ORDERS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize(
    ("channels", "group_size", "groups"),
    [(128, 1, 32), (96, 1, 32), (48, 1, 24), (33, 1, 11), (37, 1, 1), (8, 1, 8), (1, 1, 1)]
    + [(128, 4, 32), (256, 4, 32), (64, 4, 16), (24, 4, 6), (33, 4, 3), (3, 4, 1)],
)
def test_group_norm_takes_the_most_groups_that_part_the_channels(channels, group_size, groups):
    norm = group_norm(channels, group_size)
    assert norm.num_groups == groups
    assert norm(torch.randn(2, channels, 4, 4)).shape == (2, channels, 4, 4)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("chunk", [7, 100, 2**19])  # smaller than a pixel, several passes, torch's own kernel
def test_values_and_gradients_are_those_of_the_formula(silu, order, chunk, monkeypatch):
    monkeypatch.setattr(norm_module, "CHUNK", chunk)
    norm = GroupNorm(2, 8).double()
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = (torch.randn(3, 8, 5, 4, dtype=torch.float64) + 1).contiguous(memory_format=order).requires_grad_()
    grouped = x.reshape(3, 2, -1)
    mean, variance = grouped.mean(dim=2, keepdim=True), grouped.var(dim=2, keepdim=True, unbiased=False)
    expected = ((grouped - mean) / (variance + norm.eps).sqrt()).reshape(x.shape)
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    expected = expected * torch.sigmoid(expected) if silu else expected
    result = norm(x, silu=silu)
    torch.testing.assert_close(result, expected)
    assert is_channels_last(result) == (order == torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(norm(x, silu=silu), expected)
    weight = torch.randn_like(expected)
    inputs = (x, norm.weight, norm.bias)
    torch.testing.assert_close(
        torch.autograd.grad(result, inputs, weight), torch.autograd.grad(expected, inputs, weight)
    )


@pytest.mark.parametrize("order", ORDERS)
def test_half_precision_is_wrong_by_its_rounding_alone(order, monkeypatch):
    monkeypatch.setattr(norm_module, "CHUNK", 512)
    norm = GroupNorm(4, 16)
    x = (torch.randn(2, 16, 24, 24) + 3).bfloat16().contiguous(memory_format=order).requires_grad_()
    exact, weight = x.detach().double().requires_grad_(), torch.randn(2, 16, 24, 24)
    expected = F.silu(F.group_norm(exact, 4))
    result = norm(x, silu=True)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, atol=0.02, rtol=2**-7)
    in_float32 = norm(x, silu=True, float32=True)
    torch.testing.assert_close(in_float32.double(), expected, atol=2e-4, rtol=1e-4)
    (gradient,) = torch.autograd.grad(in_float32, x, weight)
    (of_exact,) = torch.autograd.grad(expected, exact, weight.double(), retain_graph=True)
    assert (gradient - of_exact).norm() < 0.005 * of_exact.norm()
    gradient = torch.autograd.grad(result, x, weight.bfloat16())[0]
    of_exact = torch.autograd.grad(expected, exact, weight.bfloat16().double())[0]
    assert gradient.dtype == torch.bfloat16
    assert (gradient - of_exact).norm() < 0.005 * of_exact.norm()


@pytest.mark.parametrize("order", ORDERS)
def test_a_norm_without_learned_parameters_of_its_own_still_passes_gradients(order, monkeypatch):
    monkeypatch.setattr(norm_module, "CHUNK", 64)
    norm = GroupNorm(2, 8).requires_grad_(False)
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=order).requires_grad_()
    norm(x, silu=True).square().sum().backward()
    assert x.grad.norm() > 0 and norm.weight.grad is None


def test_only_the_input_is_kept_for_the_backward_pass():
    norm, x, kept = GroupNorm(2, 8), torch.randn(2, 8, 16, 16, requires_grad=True), []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x, silu=True)
    large = [tensor for tensor in kept if tensor.numel() >= x.numel()]
    assert [tensor.data_ptr() for tensor in large] == [x.data_ptr()]
