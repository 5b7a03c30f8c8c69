"""Condition branches: they bring the image's features into the diffusion, and predict a coarse mask of their own.

V1's parts are `Fusion` and `CoarseDecoder`; V2's are `ConditionUNet`, `UncertainSpatialAttention` and `SSFormer`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .fourier import FFParser, FourierAffinity, NBPFilter
from .layers import (
    at_least_float32,
    checkpointed,
    conv3x3,
    depth_to_space,
    heads_of,
    map_of,
    pad_by_edges,
    position_embedding,
    space_to_depth,
    zeroed,
)
from .norm import GroupNorm, group_norm
from .unet import Bottleneck, Head, ResBlock, build_decoder, build_encoder


class Fusion(nn.Module):
    """A(m_I, m_x) = LN(m_I) (x) LN(m_x) (x) m_I (MedSegDiff, arXiv 2211.00611 eq. 3), with m_x from the FF-Parser.

    LN runs over a whole feature map and has a scale and a shift per channel, so any image size works. The shifts start
    at 1: the product of zero-mean factors would scramble m_I.
    """

    def __init__(self, channels, size):
        super().__init__()
        self.parser = FFParser(channels, size)
        self.norm_image = GroupNorm(1, channels)
        self.norm_mask = GroupNorm(1, channels)
        for norm in (self.norm_image, self.norm_mask):
            nn.init.ones_(norm.bias)

    def forward(self, image_features, mask_features):
        """image_features m_I and mask_features m_x: [N, C, H, W]. Returns the fused m_I, [N, C, H, W]."""
        mask_features = self.parser(mask_features)
        return self.norm_image(image_features) * self.norm_mask(mask_features) * image_features


class CoarseDecoder(nn.Module):
    """A light decoder from the condition encoder's levels to a mask: upsample, add the finer level, refine.

    1x1 convolutions bring every level to the first level's width, so it costs little beside the two encoders. The
    papers leave its form open.
    """

    def __init__(self, shape, out_channels):
        super().__init__()
        width = shape.widths[0]
        self.laterals = nn.ModuleList(nn.Conv2d(level_width, width, 1) for level_width in shape.widths)
        self.refine = nn.ModuleList(ResBlock(width, width, shape) for _ in shape.widths)
        self.smooth = nn.ModuleList(conv3x3(width, width) for _ in shape.widths[1:])
        self.patch = shape.patch
        self.head = Head(width, out_channels * self.patch**2, shape.head_padding)

    def forward(self, features):
        """features: [N, C_i, H_i, W_i] of each level, finest first. Returns mask logits [N, K, H, W]."""
        h = self.refine[-1](self.laterals[-1](features[-1]))
        for level in reversed(range(len(features) - 1)):
            h = self.smooth[level](F.interpolate(h, scale_factor=2, mode="nearest"))
            h = self.refine[level](h + self.laterals[level](features[level]))
        return depth_to_space(self.head(h), self.patch)


class ConditionUNet(nn.Module):
    """A U-Net on the image alone: V2's condition model and, by itself, the baseline without diffusion.

    embedding_channels: D of an embedding that its blocks see beside the image, or None.
    num_labels: above 0, it has a `label_embedding` of its own for that many class labels.
    pretrained: a `PretrainedEncoder`, whose features are added to those of the same size, or None. The layers between
    start at zero, so at first it changes nothing.
    """

    def __init__(self, image_channels, mask_channels, shape, embedding_channels=None, num_labels=0, pretrained=None):
        super().__init__()
        self.label_embedding = nn.Embedding(num_labels, embedding_channels) if num_labels else None
        self.patch = shape.patch
        self.encoder = build_encoder(image_channels * self.patch**2, shape, embedding_channels)
        self.bottleneck = Bottleneck(shape, embedding_channels)
        self.decoder = build_decoder(shape, embedding_channels)
        self.head = Head(shape.widths[0], mask_channels * self.patch**2, shape.head_padding)
        self.pretrained, joins = pretrained, {}
        if pretrained is not None:
            joins = {str(k): zeroed(nn.Conv2d(width, shape.widths[k], 1)) for k, width in pretrained.levels.items()}
        self.joins = nn.ModuleDict(joins)

    def forward(self, image, embedding=None):
        """image: [N, C, H, W]; embedding: [N, D] or None.

        Returns the bottleneck's features c0 [N, C, h, w], the decoder's features f_c [N, C_i, H_i, W_i] of each level,
        finest first, and mask logits float32 [N, K, H, W].
        """
        further = {} if self.pretrained is None else self.pretrained(image)
        h, skips = space_to_depth(image, self.patch), []
        for level, stage in enumerate(self.encoder):
            h, stage_skips = stage(h, embedding)
            if level in further:
                h = stage_skips[-1] = h + self.joins[str(level)](further[level])
            skips.append(stage_skips)
        bottleneck = h = self.bottleneck(h, embedding)
        features = []
        for stage in self.decoder:
            features.insert(0, stage.features(h, skips.pop(), embedding))
            h = stage.upsample(features[0], embedding)
        return bottleneck, features, depth_to_space(self.head(h), self.patch)


class UncertainSpatialAttention(nn.Module):
    """Uncertain spatial attention (U-SA), V2's anchor condition (arXiv 2301.11798):

        f_anc = max(f_c * k, f_c),   f_d' = sigmoid(Conv1x1(f_anc)) f_d + f_d

    f_c are the condition decoder's features, f_d the diffusion encoder's. k is a Gaussian of learned mean and variance
    for each channel, on 2 radius + 1 pixels, of sum 1. The convolution gives one map, as in spatial attention. Only f_d
    depends on x_t, so `forward` gives the map alone.
    """

    def __init__(self, channels, radius=3):
        super().__init__()
        self.radius = radius
        self.mean = nn.Parameter(torch.zeros(channels, 2))
        self.log_deviation = nn.Parameter(torch.zeros(channels))
        self.out = nn.Conv2d(channels, 1, 1)

    def kernels(self):
        """The Gaussians down and across, each of sum 1, whose outer product is k: float32 [2, C, 2 radius + 1]."""
        steps = torch.arange(-self.radius, self.radius + 1, device=self.mean.device, dtype=self.mean.dtype)
        squared = (steps - self.mean.T[..., None]) ** 2  # [2, C, 2 radius + 1]
        return (-squared / (2 * torch.exp(2 * self.log_deviation)[:, None])).softmax(dim=-1)

    def forward(self, features):
        """features f_c: [N, C, H, W]. Returns the attention map [N, 1, H, W], in (0, 1)."""
        down, across = self.kernels()[:, :, None].to(features.dtype)  # each [C, 1, 2 radius + 1]
        smooth = pad_by_edges(features, self.radius)
        smooth = F.conv2d(smooth, down[..., None], groups=features.shape[1])
        smooth = F.conv2d(smooth, across[:, :, None], groups=features.shape[1])
        # `where`, because the gradient of `maximum` takes six times as long.
        return torch.sigmoid(self.out(torch.where(smooth > features, smooth, features)))


class CrossAttention(nn.Module):
    """Cross-attention from one feature map to another, then an MLP modulated by the time embedding:

        x = residual + Attention(q = query, k = v = context),   result = x + MLP(scale(t) Norm(x) + shift(t))

    q and k are normalised and get a position embedding. The last layers of attention and MLP start at zero, so the
    module starts as a no-op on `residual`.

    affinity: a `FourierAffinity`, or None for plain scaled dot-product attention.
    """

    def __init__(self, channels, heads, embedding_channels, affinity):
        super().__init__()
        self.heads, self.affinity = heads, affinity
        self.norm_query, self.norm_context, self.norm_mlp = (group_norm(channels) for _ in range(3))
        # The keys need no bias: it would add the same to all affinities of a query, and the softmax would cancel it.
        self.query, self.value = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1, bias=False)
        self.out = zeroed(nn.Conv2d(channels, channels, 1))
        self.modulation = nn.Linear(embedding_channels, 2 * channels)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), nn.SiLU(), zeroed(nn.Conv2d(2 * channels, channels, 1))
        )

    def forward(self, query, context, residual, embedding):
        """query, context, residual: [N, C, h, w]; embedding: [N, D]. Returns [N, C, h, w]."""
        size = query.shape[-2:]
        positions = position_embedding(*size, query.shape[1], query.device).to(query.dtype)
        context = self.norm_context(context)
        q = heads_of(self.query(self.norm_query(query) + positions), self.heads)
        k, v = (heads_of(x, self.heads) for x in (self.key(context + positions), self.value(context)))
        if self.affinity is None:
            attended = F.scaled_dot_product_attention(q, k, v)  # [N, heads, L, d]
        else:
            attended = self.affinity(q, k, size, embedding) @ at_least_float32(v)
        x = residual + self.out(map_of(attended, query.shape).to(q.dtype))
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)  # [N, C, 1, 1]
        return x + self.mlp(self.norm_mlp(x) * (1 + scale) + shift)


class SSFormerBlock(nn.Module):
    """Two symmetric cross-attentions in the Fourier domain (the SS-Former figure of V2, arXiv 2301.11798):

    c~ = c + A1(q = e, k = v = c),   c' = c~ + A2(q = c~, k = v = e)
    """

    def __init__(self, channels, heads, embedding_channels, nbp_filter, largest_factor):
        super().__init__()

        def cross_attention():
            filter = NBPFilter(heads, embedding_channels, largest_factor) if nbp_filter else None
            return CrossAttention(channels, heads, embedding_channels, FourierAffinity(filter))

        self.read, self.write = cross_attention(), cross_attention()

    def forward(self, condition, features, embedding):
        """condition c, features e: [N, C, h, w]; embedding: [N, D]. Returns c' [N, C, h, w]."""
        condition = self.read(features, condition, condition, embedding)
        return self.write(condition, features, condition, embedding)


class PlainBlock(nn.Module):
    """The SS-Former's ablation: one plain cross-attention, c' = c + A(q = e, k = v = c)."""

    def __init__(self, channels, heads, embedding_channels):
        super().__init__()
        self.read = CrossAttention(channels, heads, embedding_channels, affinity=None)

    def forward(self, condition, features, embedding):
        """condition c, features e: [N, C, h, w]; embedding: [N, D]. Returns c' [N, C, h, w]."""
        return self.read(features, condition, condition, embedding)


class SSFormer(nn.Module):
    """Spectrum-space transformer (SS-Former), V2's semantic condition: e + c_N, where c_i = Block_i(c_{i-1}, e).

    c0 are the condition model's bottleneck features, e the diffusion's. Blocks start as no-ops, so the result starts as
    e + c0, V1's addition.

    kind: "fourier" (`SSFormerBlock`, with or without the NBP-filter), "cross" (`PlainBlock`) or "add" (no blocks).
    largest_factor: of the `NBPFilter`.
    """

    def __init__(self, shape, embedding_channels, kind="fourier", blocks=2, nbp_filter=True, largest_factor=2.0):
        super().__init__()
        self.use_checkpoint = shape.use_checkpoint
        width = shape.widths[-1]
        heads = shape.attention_heads(width)

        def block():
            if kind == "cross":
                return PlainBlock(width, heads, embedding_channels)
            return SSFormerBlock(width, heads, embedding_channels, nbp_filter, largest_factor)

        self.blocks = nn.ModuleList(block() for _ in range(0 if kind == "add" else blocks))

    def forward(self, condition, features, embedding):
        """condition c0, features e: [N, C, h, w]; embedding: [N, D]. Returns e + c_N [N, C, h, w]."""
        for block in self.blocks:
            condition = checkpointed(block, condition, features, embedding, enabled=self.use_checkpoint)
        return features + condition
