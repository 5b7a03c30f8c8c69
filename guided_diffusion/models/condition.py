"""Condition branches: how the image's features meet those of the noisy mask, and their own coarse mask.

V1 has `Fusion` and `CoarseDecoder`; V2 has `ConditionUNet`, `UncertainSpatialAttention` and `SSFormer`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .fourier import FFParser, FourierAffinity, NBPFilter
from .layers import at_least_float32, checkpointed, conv3x3, group_norm, patches, pixels, position_embedding, zeroed
from .unet import Bottleneck, Head, ResBlock, build_decoder, build_encoder


class Fusion(nn.Module):
    """A(m_I, m_x) = LN(m_I) (x) LN(m_x) (x) m_I (MedSegDiff eq. 3), with m_x filtered by the FF-Parser first.

    The layer norms are taken over a whole feature map, with a scale and shift per channel, so that any image size
    works. Their shifts start at 1: the product then keeps some of m_I, which zero-mean factors would scramble.
    """

    def __init__(self, channels, size):
        super().__init__()
        self.parser = FFParser(channels, size)
        self.norm_image = nn.GroupNorm(1, channels)
        self.norm_mask = nn.GroupNorm(1, channels)
        for norm in (self.norm_image, self.norm_mask):
            nn.init.ones_(norm.bias)

    def forward(self, image_features, mask_features):
        """image_features m_I and mask_features m_x: [N, C, H, W]. Returns the fused m_I, same shape."""
        mask_features = self.parser(mask_features)
        return self.norm_image(image_features) * self.norm_mask(mask_features) * image_features


class CoarseDecoder(nn.Module):
    """A light decoder from the condition encoder's levels to a mask: upsample, add the finer level, refine.

    Every level is brought to the first level's width by a 1x1 convolution, so that the decoder costs little beside
    the two encoders; the papers leave its form open.
    """

    def __init__(self, shape, out_channels):
        super().__init__()
        width = shape.widths[0]
        self.laterals = nn.ModuleList(nn.Conv2d(level_width, width, 1) for level_width in shape.widths)
        self.refine = nn.ModuleList(ResBlock(width, width, shape) for _ in shape.widths)
        self.smooth = nn.ModuleList(conv3x3(width, width) for _ in shape.widths[1:])
        self.patch = shape.patch
        self.head = Head(width, out_channels * self.patch**2)

    def forward(self, features):
        """features: one [N, C_i, H_i, W_i] a level, finest first. Returns mask logits [N, K, H, W]."""
        h = self.refine[-1](self.laterals[-1](features[-1]))
        for level in reversed(range(len(features) - 1)):
            h = self.smooth[level](F.interpolate(h, scale_factor=2, mode="nearest"))
            h = self.refine[level](h + self.laterals[level](features[level]))
        return pixels(self.head(h), self.patch)


class ConditionUNet(nn.Module):
    """A U-Net on the image alone: V2's condition model and, by itself, the baseline without diffusion.

    embedding_channels: of the embedding that its blocks see beside the image; None: they see none.
    num_labels: > 0 for `label_embedding`, an embedding of class labels that is the U-Net's own.
    """

    def __init__(self, image_channels, mask_channels, shape, embedding_channels=None, num_labels=0):
        super().__init__()
        self.label_embedding = nn.Embedding(num_labels, embedding_channels) if num_labels else None
        self.patch = shape.patch
        self.encoder = build_encoder(image_channels * self.patch**2, shape, embedding_channels)
        self.bottleneck = Bottleneck(shape, embedding_channels)
        self.decoder = build_decoder(shape, embedding_channels)
        self.head = Head(shape.widths[0], mask_channels * self.patch**2)

    def forward(self, image, embedding=None):
        """image: [N, C, H, W]; embedding: [N, D] or None.

        Returns the bottleneck's embedding c0 [N, D, h, w], the decoder's features f_c of each level, finest first,
        and mask logits float32 [N, K, H, W].
        """
        h, skips = patches(image, self.patch), []
        for stage in self.encoder:
            h, stage_skips = stage(h, embedding)
            skips.append(stage_skips)
        bottleneck = h = self.bottleneck(h, embedding)
        features = []
        for stage in self.decoder:
            features.insert(0, stage.features(h, skips.pop(), embedding))
            h = stage.leave(features[0], embedding)
        return bottleneck, features, pixels(self.head(h), self.patch)


class UncertainSpatialAttention(nn.Module):
    """U-SA, V2's anchor condition: where the condition model's own features say that the diffusion should look.

        f_anc = max(f_c * k, f_c),   f_d' = sigmoid(Conv1x1(f_anc)) f_d + f_d

    k is a Gaussian of learned mean and variance, one a channel, on a window of 7 pixels and of sum 1: the anchor may be
    wrong by a few pixels, and the maximum keeps what the smoothing would wash out. The convolution gives one map,
    as in spatial attention. Only f_d depends on x_t: `forward` gives the map, which multiplies f_d by 1 + map.
    """

    def __init__(self, channels, radius=3):
        super().__init__()
        self.radius = radius
        self.mean = nn.Parameter(torch.zeros(channels, 2))
        self.log_deviation = nn.Parameter(torch.zeros(channels))
        self.out = nn.Conv2d(channels, 1, 1)

    def kernel(self):
        """The Gaussian kernels, float32 [C, 2 * radius + 1, 2 * radius + 1], each of sum 1."""
        steps = torch.arange(-self.radius, self.radius + 1, device=self.mean.device, dtype=self.mean.dtype)
        away = (steps - self.mean[..., None]) ** 2  # [C, 2, 2 * radius + 1], squared distance along each axis
        squared = away[:, 0, :, None] + away[:, 1, None, :]
        exponent = -squared / (2 * torch.exp(2 * self.log_deviation)[:, None, None])
        return exponent.flatten(1).softmax(dim=1).reshape(squared.shape)

    def forward(self, features):
        """features f_c: [N, C, H, W]. Returns the attention map, [N, 1, H, W] in (0, 1)."""
        padded = pad_by_edges(features, self.radius)
        smooth = F.conv2d(padded, self.kernel()[:, None].to(features.dtype), groups=features.shape[1])
        return torch.sigmoid(self.out(torch.maximum(smooth, features)))


def pad_by_edges(x, radius):
    """x: [N, C, H, W] with its outermost pixels repeated `radius` times on each side.

    torch's own padding is not used: compiled, its gradient fails where feature maps have their channels last.
    """
    for dim in (2, 3):
        first, last = x.narrow(dim, 0, 1), x.narrow(dim, -1, 1)
        x = torch.cat([first] * radius + [x] + [last] * radius, dim=dim)
    return x


class CrossAttention(nn.Module):
    """One cross-attention module: tokens of one map look at those of another, then an MLP that sees the time step.

    q and k are normalised and told their positions. The attention's output is added to `residual`, and so is that of
    the MLP, whose input the time embedding scales and shifts. Both start at zero, so the module starts as a no-op.

    affinity: a `FourierAffinity`, or None for plain scaled dot-product attention.
    """

    def __init__(self, channels, heads, embedding_channels, affinity):
        super().__init__()
        self.heads, self.affinity = heads, affinity
        self.norm_query, self.norm_context, self.norm_mlp = (group_norm(channels) for _ in range(3))
        # A bias of the keys adds the same to all weights of a query, which the softmax takes out again.
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
        q = self._heads(self.query(self.norm_query(query) + positions))
        k, v = self._heads(self.key(context + positions)), self._heads(self.value(context))
        if self.affinity is None:
            attended = F.scaled_dot_product_attention(q, k, v)  # [N, heads, L, d]
        else:
            attended = self.affinity(q, k, size, embedding) @ at_least_float32(v)
        x = residual + self.out(attended.transpose(-1, -2).reshape(query.shape).to(q.dtype))
        scale, shift = self.modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)  # [N, C, 1, 1]
        return x + self.mlp(self.norm_mlp(x) * (1 + scale) + shift)

    def _heads(self, x):
        return x.flatten(2).unflatten(1, (self.heads, -1)).transpose(-1, -2)  # [N, C, h, w] -> [N, heads, L, d]


class SSFormerBlock(nn.Module):
    """Two symmetric cross-attentions (V2's figure): the condition is read with the diffusion's queries, and back.

    c~ = c + A1(q = e, k = v = c),   c' = c~ + A2(q = c~, k = v = e)
    """

    def __init__(self, channels, heads, embedding_channels, nbp_filter):
        super().__init__()

        def module():
            filter = NBPFilter(heads, embedding_channels) if nbp_filter else None
            return CrossAttention(channels, heads, embedding_channels, FourierAffinity(filter))

        self.read, self.write = module(), module()

    def forward(self, condition, features, embedding):
        """condition c, features e: [N, C, h, w]; embedding: [N, D]. Returns c'."""
        condition = self.read(features, condition, condition, embedding)
        return self.write(condition, features, condition, embedding)


class PlainBlock(nn.Module):
    """The SS-Former's ablation: one plain cross-attention with the diffusion's queries."""

    def __init__(self, channels, heads, embedding_channels):
        super().__init__()
        self.read = CrossAttention(channels, heads, embedding_channels, affinity=None)

    def forward(self, condition, features, embedding):
        """condition c, features e: [N, C, h, w]; embedding: [N, D]. Returns c'."""
        return self.read(features, condition, condition, embedding)


class SSFormer(nn.Module):
    """V2's semantic condition: N blocks carry the condition embedding c0 to the diffusion's bottleneck e.

    The result is e + c_N. Blocks start as no-ops, so it starts as e + c0, V1's addition; without blocks it stays that.

    kind: "fourier" (`SSFormerBlock`, with the NBP-filter or not), "cross" (`PlainBlock`) or "add" (no blocks).
    """

    def __init__(self, shape, embedding_channels, kind="fourier", blocks=2, nbp_filter=True):
        super().__init__()
        self.use_checkpoint = shape.use_checkpoint
        width = shape.widths[-1]
        heads = shape.attention_heads(width)
        build = {
            "fourier": lambda: SSFormerBlock(width, heads, embedding_channels, nbp_filter),
            "cross": lambda: PlainBlock(width, heads, embedding_channels),
        }
        self.blocks = nn.ModuleList(build[kind]() for _ in range(0 if kind == "add" else blocks))

    def forward(self, condition, features, embedding):
        """condition c0, features e: [N, C, h, w]; embedding: [N, D]. Returns e + c_N."""
        for block in self.blocks:
            condition = checkpointed(block, condition, features, embedding, enabled=self.use_checkpoint)
        return features + condition
