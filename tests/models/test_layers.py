"""Primitives of the networks: each against its formula written out, or against the plain way of doing the same."""

import math

import pytest
import torch
from torch import nn

from guided_diffusion.models.layers import (
    checkpointed,
    conv3x3,
    heads_of,
    map_of,
    pad_by_edges,
    timestep_embedding,
    without_autocast,
    zeroed,
)


@pytest.mark.parametrize("channels", [2, 8, 9, 33])
def test_timestep_embedding_follows_the_formula(channels):
    times = [0.0, 1.0, 12.5, 999.0]
    half = channels // 2
    expected = torch.zeros(len(times), channels, dtype=torch.float64)
    for row, t in enumerate(times):
        for i in range(half):
            expected[row, i] = math.cos(t / 10000 ** (i / half))
            expected[row, half + i] = math.sin(t / 10000 ** (i / half))
    embedding = timestep_embedding(torch.tensor(times), channels)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.double(), expected, atol=2e-4, rtol=0)


def test_timestep_embedding_takes_whole_times_and_distinguishes_neighbours():
    whole = timestep_embedding(torch.arange(1000), 64)
    torch.testing.assert_close(whole, timestep_embedding(torch.arange(1000.0), 64), atol=0, rtol=0)
    assert (whole[1:] - whole[:-1]).norm(dim=1).min() > 0.5


def test_conv3x3_keeps_or_halves_the_size():
    x = torch.randn(1, 3, 12, 8)
    assert conv3x3(3, 5)(x).shape == (1, 5, 12, 8)
    assert conv3x3(3, 5, stride=2)(x).shape == (1, 5, 6, 4)


def test_zeroed_clears_weight_and_bias_and_returns_the_layer():
    layer = nn.Conv2d(3, 4, 1)
    assert zeroed(layer) is layer
    assert not layer.weight.any() and not layer.bias.any()
    assert layer.weight.requires_grad


class Counted(nn.Module):
    """A layer with dropout that counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.calls = nn.Linear(6, 6), nn.Dropout(0.5), 0

    def forward(self, x, extra):
        self.calls += 1
        return self.dropout(torch.tanh(self.linear(x))) * (1 if extra is None else extra)


def test_checkpointing_recomputes_and_changes_neither_values_nor_gradients():
    torch.manual_seed(0)
    layer, x = Counted(), torch.randn(4, 6)
    results = []
    for enabled in (False, True):
        layer.zero_grad()
        layer.calls = 0
        torch.manual_seed(1)
        out = checkpointed(layer, x, None, enabled=enabled)
        out.square().sum().backward()
        results.append((out.detach(), layer.linear.weight.grad.clone(), layer.calls))
    (plain, plain_grad, plain_calls), (kept, kept_grad, kept_calls) = results
    torch.testing.assert_close(kept, plain, atol=0, rtol=0)
    torch.testing.assert_close(kept_grad, plain_grad, atol=0, rtol=0)
    assert (plain_calls, kept_calls) == (1, 2)


def test_checkpointing_does_nothing_without_gradients():
    layer = Counted()
    with torch.no_grad():
        assert checkpointed(layer, torch.randn(2, 6), None, enabled=True).grad_fn is None
    assert layer.calls == 1


def test_without_autocast_keeps_the_precision():
    a = torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with without_autocast("cpu"):
            assert (a @ a).dtype == torch.float32
        assert (a @ a).dtype == torch.bfloat16


def test_without_autocast_accepts_a_device_that_has_none():
    with without_autocast("meta"):
        assert torch.ones(2, device="meta").device.type == "meta"


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_heads_are_tokens_with_their_channels_side_by_side_in_memory(order):
    x = torch.randn(2, 6, 3, 4).contiguous(memory_format=order)
    tokens = heads_of(x, 2)
    for head, row, column in ((0, 0, 0), (1, 2, 3), (0, 1, 2)):
        expected = x[:, 3 * head : 3 * head + 3, row, column]
        assert torch.equal(tokens[:, head, row * 4 + column], expected)
    assert tokens.stride(-1) == 1
    assert torch.equal(map_of(tokens, x.shape), x)


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_edges_are_repeated_for_the_compiler_as_torch_does(radius, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    ours, theirs = pad_by_edges(x, radius), torch.nn.functional.pad(x, [radius] * 4, mode="replicate")
    assert torch.equal(ours, theirs)
    weight = torch.randn_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(padded, x, weight)[0] for padded in (ours, theirs)))
