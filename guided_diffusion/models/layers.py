"""Primitives of the networks: embeddings, norms, zero-initialised layers and activation checkpointing."""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint


def timestep_embedding(timesteps, channels, max_period=10000):
    """Sinusoidal embedding of the time step (Transformer eq. in sec. 3.5, as DDPM uses it).

    timesteps: float or int [N], may be fractional. Returns float32 [N, channels]: cosines, then sines, of
    t * max_period^(-i / half); an odd `channels` is padded with a zero.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=timesteps.device) / max(half, 1))
    angles = timesteps.float()[:, None] * frequencies[None]  # [N, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)  # [N, 2 * half]
    return nn.functional.pad(embedding, (0, channels - 2 * half))


def position_embedding(height, width, channels, device=None):
    """Sinusoidal embedding of the positions of a map: float32 [channels, height, width], half for each axis."""
    half = channels // 2
    rows = timestep_embedding(torch.arange(height, device=device), half)  # [height, half]
    columns = timestep_embedding(torch.arange(width, device=device), channels - half)
    rows, columns = rows.T[:, :, None].expand(-1, -1, width), columns.T[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns])


def group_norm(channels, smallest_group=4):
    """GroupNorm with 32 groups, or the most below that which part the channels evenly into `smallest_group` or more.

    Groups of a single channel would cancel whatever is constant over a channel and comes before the norm, such as an
    added time embedding or a bias, and cannot normalise a map of one pixel.
    """
    most = max(min(32, channels // smallest_group), 1)
    groups = next(g for g in range(most, 0, -1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def silu_of_temporary(x):
    """SiLU of a tensor that nobody else holds: in its own memory while no gradients are wanted."""
    return nn.functional.silu(x, inplace=not torch.is_grad_enabled())


def conv3x3(in_channels, out_channels, stride=1):
    """A 3x3 convolution that keeps the size (or halves it with stride 2)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def zeroed(layer):
    """Set a layer's parameters to zero, so that the branch it closes starts as a no-op."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def patches(x, size):
    """Space to depth: [N, D, H, W] -> [N, D size^2, H / size, W / size], each patch of pixels as channels of one."""
    return F.pixel_unshuffle(x, size) if size > 1 else x


def pixels(x, size):
    """Depth to space, the inverse of `patches`: [N, D size^2, h, w] -> [N, D, h size, w size]."""
    return F.pixel_shuffle(x, size) if size > 1 else x


def checkpointed(function, *inputs, enabled):
    """Call `function(*inputs)`; when enabled, keep only its inputs and recompute it in the backward pass."""
    if enabled and torch.is_grad_enabled():
        return torch_checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def without_autocast(device_type):
    """A context in which operations keep the precision of their inputs (devices without autocast need none)."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def at_least_float32(x):
    """`x` in float32, or float64 if it has that; half precision overflows in sums over many values."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
