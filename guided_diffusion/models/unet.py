"""The U-Net: its blocks, and the encoder, bottleneck, decoder and head of every model variant."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from .layers import checkpointed, conv3x3, heads_of, map_of, pad_by_edges, without_autocast, without_tf32, zeroed
from .norm import group_norm


@dataclass(frozen=True)
class UNetShape:
    """The numbers that fix the layers of a U-Net.

    channels, multipliers: level i has int(channels * multipliers[i]) channels. blocks: residual blocks per level.
    attention_levels: levels whose blocks are followed by self-attention. heads: attention heads; head_channels: above
    0, their width, which then sets their number. dropout: probability, in each residual block.
    scale_shift: the embedding scales and shifts the normalised features instead of being added to them.
    updown_blocks: residual blocks resample instead of convolutions. use_checkpoint: activation checkpointing.
    patch: side in pixels of the patches that are the first level's pixels (see `layers.space_to_depth`). head_padding:
    see `Head`.
    """

    channels: int
    multipliers: tuple[float, ...]
    blocks: int
    attention_levels: tuple[int, ...] = ()
    heads: int = 1
    head_channels: int = -1
    dropout: float = 0.0
    scale_shift: bool = False
    updown_blocks: bool = False
    use_checkpoint: bool = False
    patch: int = 1
    head_padding: str = "edges"

    @property
    def widths(self):
        """Channels of each level, finest first."""
        return tuple(int(self.channels * multiplier) for multiplier in self.multipliers)

    def from_level(self, first_level, channels):
        """The shape of the levels from `first_level` on, with other `channels` unless they are 0."""
        attention = tuple(level - first_level for level in self.attention_levels if level >= first_level)
        multipliers = self.multipliers[first_level:]
        return replace(self, channels=channels or self.channels, multipliers=multipliers, attention_levels=attention)

    def attention_heads(self, width):
        """The number of heads for features of `width` channels."""
        return width // self.head_channels if self.head_channels > 0 else self.heads


class ResBlock(nn.Module):
    """Norm, SiLU and convolution, twice, with a skip around them.

    embedding_channels: D of the embedding that conditions the block, or None.
    resample: None, "up" (nearest, x2) or "down" (mean, /2), in both the branch and the skip.
    """

    def __init__(self, in_channels, out_channels, shape, embedding_channels=None, resample=None):
        super().__init__()
        self.scale_shift, self.resample, self.use_checkpoint = shape.scale_shift, resample, shape.use_checkpoint
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(shape.dropout)
        self.conv2 = zeroed(conv3x3(out_channels, out_channels))
        self.embed = None
        if embedding_channels is not None:
            self.embed = nn.Linear(embedding_channels, out_channels * (2 if shape.scale_shift else 1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, embedding=None):
        """x: [N, C_in, H, W]; embedding: [N, D] or None. Returns [N, C_out, H', W']."""
        return checkpointed(self._forward, x, embedding, enabled=self.use_checkpoint)

    def _forward(self, x, embedding):
        h = self.conv1(self._resample(self.norm1(x, silu=True)))
        h = self.conv2(self.dropout(self._condition(h, embedding)))
        return self.skip(self._resample(x)) + h

    def _condition(self, h, embedding):
        """SiLU of the normalised features, which the embedding shifts before the norm or scales and shifts after it."""
        if self.embed is None:
            return self.norm2(h, silu=True)
        e = self.embed(F.silu(embedding))[:, :, None, None]  # [N, C or 2C, 1, 1]
        if not self.scale_shift:
            return self.norm2(h + e, silu=True)
        scale, shift = e.chunk(2, dim=1)
        return F.silu(self.norm2(h) * (1 + scale) + shift)

    def _resample(self, x):
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x


class SelfAttention(nn.Module):
    """x + Attention(x): multi-head self-attention over all positions of a feature map."""

    def __init__(self, channels, heads, use_checkpoint=False):
        super().__init__()
        self.heads, self.use_checkpoint = heads, use_checkpoint
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        """x: [N, C, H, W]. Returns the same shape."""
        return checkpointed(self._forward, x, enabled=self.use_checkpoint)

    def _forward(self, x):
        q, k, v = heads_of(self.qkv(self.norm(x)), 3 * self.heads).chunk(3, dim=1)  # each [N, heads, HW, C / heads]
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(map_of(h, x.shape))


class Block(nn.Module):
    """A residual block and, with `attention`, self-attention after it."""

    def __init__(self, in_channels, out_channels, shape, embedding_channels, attention):
        super().__init__()
        self.residual = ResBlock(in_channels, out_channels, shape, embedding_channels)
        self.attention = None
        if attention:
            self.attention = SelfAttention(out_channels, shape.attention_heads(out_channels), shape.use_checkpoint)

    def forward(self, x, embedding=None):
        """x: [N, C_in, H, W]; embedding: [N, D] or None. Returns [N, C_out, H, W]."""
        h = self.residual(x, embedding)
        return h if self.attention is None else self.attention(h)


class Downsample(nn.Module):
    """A strided convolution that halves the size."""

    def __init__(self, channels):
        super().__init__()
        self.conv = conv3x3(channels, channels, stride=2)

    def forward(self, x, embedding=None):
        """x: [N, C, H, W]. Returns [N, C, H/2, W/2]."""
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to twice the size, then a convolution."""

    def __init__(self, channels):
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x, embedding=None):
        """x: [N, C, H, W]. Returns [N, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stem(nn.Module):
    """The first convolution, to the first level's width."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = conv3x3(in_channels, out_channels)

    def forward(self, x, embedding=None):
        """x: [N, C_in, H, W]. Returns [N, C_out, H, W]."""
        return self.conv(x)


class EncoderStage(nn.Module):
    """One level of an encoder: an entry, which is the stem or a downsampling, then the level's blocks."""

    def __init__(self, entry, blocks):
        super().__init__()
        self.entry = entry
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, embedding=None):
        """x: [N, C_in, H, W]. Returns the level's features [N, C, H', W'] and its skips, a list of blocks + 1."""
        skips = [self.entry(x, embedding)]
        for block in self.blocks:
            skips.append(block(skips[-1], embedding))
        return skips[-1], skips


class DecoderStage(nn.Module):
    """One level of a decoder: blocks that each take one skip, then, except at the finest level, an upsampling."""

    def __init__(self, blocks, exit):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.exit = exit

    def forward(self, x, skips, embedding=None):
        """skips: this level's from the encoder, in its order. Returns [N, C, 2H, 2W], or [N, C, H, W] at the finest."""
        return self.upsample(self.features(x, skips, embedding), embedding)

    def features(self, x, skips, embedding=None):
        """The output of the level's blocks, before the upsampling: [N, C, H, W]."""
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            x = block(torch.cat([x, skip], dim=1), embedding)
        return x

    def upsample(self, features, embedding=None):
        """The features at the next level's size."""
        return features if self.exit is None else self.exit(features, embedding)


def build_encoder(in_channels, shape, embedding_channels=None):
    """The encoder's levels, finest first: a ModuleList of `EncoderStage`."""
    stages, previous = [], None
    for level, width in enumerate(shape.widths):
        if level == 0:
            entry, previous = Stem(in_channels, width), width
        elif shape.updown_blocks:
            entry = ResBlock(previous, previous, shape, embedding_channels, resample="down")
        else:
            entry = Downsample(previous)
        blocks = []
        for _ in range(shape.blocks):
            blocks.append(Block(previous, width, shape, embedding_channels, level in shape.attention_levels))
            previous = width
        stages.append(EncoderStage(entry, blocks))
    return nn.ModuleList(stages)


def build_decoder(shape, embedding_channels=None):
    """The decoder's levels, coarsest first: a ModuleList of `DecoderStage` that mirrors `build_encoder`."""
    widths, stages, previous = shape.widths, [], shape.widths[-1]
    for level in reversed(range(len(widths))):
        entry_width = widths[max(level - 1, 0)]  # of the skip from the encoder's entry
        blocks = []
        for skip in [widths[level]] * shape.blocks + [entry_width]:
            attention = level in shape.attention_levels
            blocks.append(Block(previous + skip, widths[level], shape, embedding_channels, attention))
            previous = widths[level]
        exit = None
        if level > 0 and shape.updown_blocks:
            exit = ResBlock(previous, previous, shape, embedding_channels, resample="up")
        elif level > 0:
            exit = Upsample(previous)
        stages.append(DecoderStage(blocks, exit))
    return nn.ModuleList(stages)


class Bottleneck(nn.Module):
    """The coarsest level between encoder and decoder: residual block, self-attention, residual block."""

    def __init__(self, shape, embedding_channels=None):
        super().__init__()
        width = shape.widths[-1]
        self.first = Block(width, width, shape, embedding_channels, attention=True)
        self.second = Block(width, width, shape, embedding_channels, attention=False)

    def forward(self, x, embedding=None):
        """x: [N, C, H, W]. Returns the same shape."""
        return self.second(self.first(x, embedding), embedding)


class Head(nn.Module):
    """Norm, SiLU and the last convolution, whose weights start at zero.

    padding: what that convolution sees beyond the image: "edges", the outermost pixels again, or "zeros". The
    background's logit, about -7, is a sum over weights, since AdamW moves the bias by no more than each of many
    weights. Zeros leave a third of that sum out at an edge and five ninths at a corner: the logit rises towards 0.
    """

    def __init__(self, in_channels, out_channels, padding="edges"):
        super().__init__()
        self.padding = padding
        self.norm = group_norm(in_channels)
        self.conv = zeroed(nn.Conv2d(in_channels, out_channels, 3, padding=1 if padding == "zeros" else 0))

    def forward(self, x):
        """x: [N, C, H, W]. Returns float32 [N, C_out, H, W] under any autocast, float64 for a float64 model.

        The convolution itself is in float32: half precision of eps at the noisiest t is an error of 0.26 in x_0.
        """
        with without_autocast(x.device.type), without_tf32(x.device.type):
            h = self.norm(x, silu=True, float32=True)
            return self.conv(h if self.padding == "zeros" else pad_by_edges(h, 1))
