"""The model variants, assembled from encoders, decoder and condition branch: MedSegDiff (v1)."""

from typing import NamedTuple

import torch
from torch import nn

from .condition import CoarseDecoder, Fusion
from .errors import UserError
from .nn import timestep_embedding
from .unet import Bottleneck, Head, UNetShape, build_decoder, build_encoder

FUSED_STAGES = 2  # MedSegDiff's figure fuses after the first two stages


class ModelOutput(NamedTuple):
    """What every variant returns.

    prediction: float32 [N, K, H, W], eps, x0 or v by the diffusion's objective (before its activation).
    variance: float32 [N, K, H, W], the learned interpolation in about [-1, 1], or None.
    coarse: float32 [N, K, H, W], the condition branch's own mask logits, or None.
    """

    prediction: torch.Tensor
    variance: torch.Tensor | None
    coarse: torch.Tensor | None


class Condition(NamedTuple):
    """What v1 knows of an image before it sees x_t: the image [N, C, H, W], the condition encoder's first-level
    features [N, D, H, W], and the class embedding [N, E] or None."""

    image: torch.Tensor
    features: torch.Tensor
    label: torch.Tensor | None

    def expand(self, members):
        """Repeat for `members` ensemble members, member-major: row e * N + n is member e of image n."""
        return Condition(*(None if x is None else x.repeat(members, *[1] * (x.ndim - 1)) for x in self))


class MedSegDiffV1(nn.Module):
    """MedSegDiff (arXiv 2211.00611): eps(x_t, I, t) = D(E_I + E_x, t), with dynamic conditional encoding.

    A segmentation encoder sees x_t beside the image; a condition encoder sees the image. After each of the first
    two stages the segmentation features pass an FF-Parser and fuse into the condition features, which go on from
    there; the two embeddings are added at the bottleneck, and the decoder takes the segmentation encoder's skips.

    image_channels, mask_channels: C and K. image_size: the training size, which the FF-Parsers' maps are stored for.
    num_labels: > 0 for class conditioning. learn_sigma: a second output for the variance.
    """

    def __init__(self, image_channels, mask_channels, image_size, shape, *, learn_sigma=False, num_labels=0):
        super().__init__()
        check_size(image_size, len(shape.multipliers))
        self.shape, self.mask_channels, self.learn_sigma = shape, mask_channels, learn_sigma
        embedding_channels = 4 * shape.channels
        self.time_embedding = nn.Sequential(
            nn.Linear(shape.channels, embedding_channels), nn.SiLU(), nn.Linear(embedding_channels, embedding_channels)
        )
        self.label_embedding = nn.Embedding(num_labels, embedding_channels) if num_labels else None
        self.mask_encoder = build_encoder(image_channels + mask_channels, shape, embedding_channels)
        self.image_encoder = build_encoder(image_channels, shape)
        self.fusions = nn.ModuleList(
            Fusion(width, image_size // 2**level) for level, width in enumerate(shape.widths[:FUSED_STAGES])
        )
        self.coarse_decoder = CoarseDecoder(shape, mask_channels)
        self.bottleneck = Bottleneck(shape, embedding_channels)
        self.decoder = build_decoder(shape, embedding_channels)
        self.head = Head(shape.widths[0], mask_channels * (2 if learn_sigma else 1))

    def encode(self, image, label=None):
        """image: [N, C, H, W]; label: int [N] for a class-conditional model. Returns the `Condition`.

        Only the condition encoder's first stage is independent of x_t, so only that is done here.
        """
        check_size(image.shape[-1], len(self.shape.multipliers), height=image.shape[-2])
        if (label is None) != (self.label_embedding is None):
            raise ValueError("a class-conditional model needs labels, and only such a model takes them")
        features, _ = self.image_encoder[0](image)
        return Condition(image, features, None if label is None else self.label_embedding(label))

    def forward(self, x_t, t, condition):
        """x_t: [N, K, H, W] in about [-1, 1] plus noise; t: [N], may be fractional. Returns a `ModelOutput`."""
        embedding = self.time_embedding(timestep_embedding(t, self.shape.channels))  # [N, E]
        if condition.label is not None:
            embedding = embedding + condition.label
        h = torch.cat([x_t, condition.image], dim=1)  # [N, K + C, H, W]
        c = condition.features
        skips, levels = [], []
        for level, (mask_stage, image_stage) in enumerate(zip(self.mask_encoder, self.image_encoder, strict=True)):
            h, stage_skips = mask_stage(h, embedding)
            skips.append(stage_skips)
            if level > 0:
                c, _ = image_stage(c)
            if level < len(self.fusions):
                c = self.fusions[level](c, h)
            levels.append(c)
        h = self.bottleneck(h + c, embedding)
        for stage in self.decoder:
            h = stage(h, skips.pop(), embedding)
        prediction, variance = self.head(h), None
        if self.learn_sigma:
            prediction, variance = prediction.chunk(2, dim=1)  # [N, 2K, H, W] -> two of [N, K, H, W]
        return ModelOutput(prediction, variance, self.coarse_decoder(levels))


def check_size(width, num_levels, height=None):
    """Raise `UserError`, naming the nearest sizes that work, unless the levels divide the image size."""
    factor = 2 ** (num_levels - 1)
    for size in (width, width if height is None else height):
        if size % factor or size < factor:
            below = max(size // factor, 1) * factor
            raise UserError(
                f"image size {size} does not work with {num_levels} levels, which need a multiple of {factor}: "
                f"use {below} or {below + factor}, or fewer levels (--channel_mult)"
            )


def default_multipliers(image_size):
    """The channel multipliers for an image size when none are given: 3 to 7 levels, coarsest 4 to 16 pixels."""
    for limit, multipliers in ((48, (1, 2, 2)), (96, (1, 2, 3, 4)), (192, (1, 1, 2, 3, 4)), (384, (1, 1, 2, 2, 4, 4))):
        if image_size < limit:
            return multipliers
    return (0.5, 1, 1, 2, 2, 4, 4)


def unet_shape(options):
    """The `UNetShape` that the model options stand for.

    `attention_resolutions` are feature-map sizes at the training image size; one that no level has adds nothing.
    Raises `UserError` for head numbers that do not divide a level's width.
    """
    multipliers = options.multipliers() or default_multipliers(options.image_size)
    attention = options.attention_sizes()
    shape = UNetShape(
        channels=options.num_channels,
        multipliers=multipliers,
        blocks=options.num_res_blocks,
        attention_levels=tuple(i for i in range(len(multipliers)) if options.image_size / 2**i in attention),
        heads=options.num_heads,
        head_channels=options.num_head_channels,
        dropout=options.dropout,
        scale_shift=options.use_scale_shift_norm,
        updown_blocks=options.resblock_updown,
        use_checkpoint=options.use_checkpoint,
    )
    for level in {*shape.attention_levels, len(multipliers) - 1}:
        width = shape.widths[level]
        if shape.head_channels > 0 and width % shape.head_channels:
            raise UserError(f"--num_head_channels {shape.head_channels} does not divide the {width} channels there are")
        if width % shape.attention_heads(width):
            raise UserError(f"--num_heads {shape.heads} does not divide the {width} channels of an attention layer")
    return shape


def build_model(options, image_channels, mask_channels, num_labels=0):
    """Build the variant that `options` (`config.ModelOptions`) names, for data with C image and K mask channels."""
    return MedSegDiffV1(
        image_channels,
        mask_channels,
        options.image_size,
        unet_shape(options),
        learn_sigma=options.learn_sigma,
        num_labels=num_labels if options.class_cond else 0,
    )
