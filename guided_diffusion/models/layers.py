"""The networks' primitives: embeddings, norms, convolutions, space to depth, and how layers are computed."""

import math
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint


def timestep_embedding(timesteps, channels, max_period=10000):
    """Sinusoidal embedding of time steps, as in DDPM (arXiv 1706.03762 sec. 3.5): float32 [N, channels].

    It holds the cosines and then the sines of t max_period^(-i / half), i < half = channels // 2, and a zero more when
    `channels` is odd. timesteps: [N], whole or fractional.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=timesteps.device) / max(half, 1))
    angles = timesteps.float()[:, None] * frequencies[None]  # [N, half]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)  # [N, 2 * half]
    return nn.functional.pad(embedding, (0, channels - 2 * half))


def position_embedding(height, width, channels, device=None):
    """Sinusoidal embedding of a map's positions: float32 [channels, height, width], half of it for each axis."""
    half = channels // 2
    rows = timestep_embedding(torch.arange(height, device=device), half)  # [height, half]
    columns = timestep_embedding(torch.arange(width, device=device), channels - half)
    rows, columns = rows.T[:, :, None].expand(-1, -1, width), columns.T[:, None].expand(-1, height, -1)
    return torch.cat([rows, columns])


def conv3x3(in_channels, out_channels, stride=1):
    """A 3x3 convolution that keeps the size (or halves it with stride 2)."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)


def pad_by_edges(x, radius):
    """x [N, C, H, W] with its outermost pixels repeated `radius` times on each side.

    The compiled gradient of torch's own padding fails for feature maps in channels-last order.
    """
    if not torch.compiler.is_compiling():
        return F.pad(x, [radius] * 4, mode="replicate")
    for dim in (2, 3):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, -1, 1)
        x = torch.cat([first] * radius + [x] + [last] * radius, dim=dim)
    return x


def zeroed(layer):
    """The layer with its parameters set to zero, so that the branch that it ends starts as a no-op."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def is_channels_last(x):
    """Whether x [N, C, H, W] lies in channels-last order, and not in the usual one too."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def space_to_depth(x, size):
    """Patches of size x size pixels become the channels of one: [N, D, H, W] -> [N, D size^2, H / size, W / size]."""
    return F.pixel_unshuffle(x, size) if size > 1 else x


def depth_to_space(x, size):
    """The inverse of `space_to_depth`: [N, D size^2, h, w] -> [N, D, h size, w size]."""
    return F.pixel_shuffle(x, size) if size > 1 else x


def heads_of(x, heads):
    """The tokens of a feature map for attention: [N, C, H, W] -> [N, heads, H W, C / heads].

    A token's channels lie side by side in memory, without which torch takes its slow attention.
    """
    tokens = x.flatten(2).transpose(1, 2).contiguous()  # [N, H W, C]
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def map_of(tokens, shape):
    """The inverse of `heads_of`: a feature map of this shape (N, C, H, W)."""
    return tokens.transpose(-1, -2).reshape(shape)


def checkpointed(function, *inputs, enabled):
    """`function(*inputs)`; when enabled, only the inputs are kept and the backward pass computes the rest again."""
    if enabled and torch.is_grad_enabled():
        return torch_checkpoint(function, *inputs, use_reentrant=False)
    return function(*inputs)


def without_autocast(device_type):
    """A context in which operations keep the precision of their inputs."""
    if torch.compiler.is_exporting() or not torch.amp.is_autocast_available(device_type):
        return nullcontext()  # an exported graph is in float32, and would keep the context as an operation
    return torch.autocast(device_type, enabled=False)


def without_tf32(device_type):
    """A context in which a GPU's float32 convolutions keep all bits of their inputs; by default torch drops 13 of 23.

    A compiled network cannot change this as it runs: see `parallel.compiled`.
    """
    is_graph = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return nullcontext() if device_type != "cuda" or is_graph else _without_tf32()


@contextmanager
def _without_tf32():
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def at_least_float32(x):
    """`x` in float32, or float64 if it has that. Sums over many values overflow in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
