"""The variants: MedSegDiff (v1), MedSegDiff-V2 (v2) and the plain U-Net without diffusion (unet).

`build_model` builds one from the options.
"""

import torch
from torch import nn

from ..runtime.errors import UserError
from .condition import CoarseDecoder, ConditionUNet, Fusion, SSFormer, UncertainSpatialAttention
from .layers import depth_to_space, space_to_depth, timestep_embedding
from .outputs import ConditionV1, ConditionV2, ModelOutput, PlainCondition
from .pretrained import PretrainedEncoder
from .unet import Bottleneck, Head, UNetShape, build_decoder, build_encoder

FUSED_STAGES = 2  # as in MedSegDiff's figure
NBP_FACTORS = {"doubled": 2.0, "sigmoid": 1.0}  # the largest factor of the NBP-filter


class Variant(nn.Module):
    """The base of the variants: `encode(image)` runs once per image, for all time steps and members.

    mask_channels: K. image_size: the training size in pixels. shape: a `UNetShape`. num_labels: above 0, the number of
    class labels to condition on. Raises `UserError` for a size that the levels do not divide.
    """

    def __init__(self, mask_channels, image_size, shape, num_labels):
        super().__init__()
        check_size(image_size, shape)
        self.shape, self.mask_channels = shape, mask_channels
        self.embedding_channels = 4 * shape.channels
        self.label_embedding = nn.Embedding(num_labels, self.embedding_channels) if num_labels else None

    def _embed_label(self, image, label):
        """The class embedding [N, E], or None without labels. Checks the image's size and whether labels are due."""
        check_size(image.shape[-1], self.shape, height=image.shape[-2])
        if (label is None) != (self.label_embedding is None):
            raise ValueError("a class-conditional model needs labels, and only such a model takes them")
        return None if label is None else self.label_embedding(label)


class Denoiser(Variant):
    """A variant with diffusion: it embeds t and predicts eps, x0 or v and, with learn_sigma, a variance.

    head_width: channels of the decoder's output. block: side in pixels of the patches that are that output's pixels.
    """

    def __init__(self, mask_channels, image_size, shape, num_labels, learn_sigma, head_width, block):
        super().__init__(mask_channels, image_size, shape, num_labels)
        self.learn_sigma, self.block = learn_sigma, block
        self.time_embedding = nn.Sequential(
            nn.Linear(shape.channels, self.embedding_channels),
            nn.SiLU(),
            nn.Linear(self.embedding_channels, self.embedding_channels),
        )
        self.head = Head(head_width, block**2 * mask_channels * (2 if learn_sigma else 1), shape.head_padding)

    def _embed_time(self, t, label):
        """t: [N]; label: the class embedding [N, E] or None. Returns the sum of both embeddings, [N, E]."""
        sinusoids = timestep_embedding(t, self.shape.channels).to(self.time_embedding[0].weight.dtype)
        embedding = self.time_embedding(sinusoids)
        return embedding if label is None else embedding + label

    def _output(self, h, coarse):
        """The `ModelOutput` from the decoder's features h [N, D, H', W'] and the coarse logits [N, K, H, W]."""
        prediction, variance = depth_to_space(self.head(h), self.block), None
        if self.learn_sigma:
            prediction, variance = prediction.chunk(2, dim=1)  # [N, 2K, H, W] -> two of [N, K, H, W]
        return ModelOutput(prediction, variance, coarse)


class MedSegDiffV1(Denoiser):
    """MedSegDiff (arXiv 2211.00611): eps(x_t, I, t) = D(E_I + E_x, t), with dynamic conditional encoding.

    The mask encoder E_x sees x_t beside the image, the condition encoder E_I the image. After each of the first two
    stages a `Fusion` brings the mask features into the condition features. The features of both are added at the
    bottleneck. The decoder D takes the mask encoder's skips.

    image_channels, mask_channels: C and K. image_size: the FF-Parsers' size. learn_sigma: adds the variance.
    """

    def __init__(
        self,
        image_channels,
        mask_channels,
        image_size,
        shape,
        *,
        learn_sigma=False,
        num_labels=0,
    ):
        super().__init__(mask_channels, image_size, shape, num_labels, learn_sigma, shape.widths[0], shape.patch)
        seen = image_channels * shape.patch**2
        self.mask_encoder = build_encoder(seen + mask_channels * shape.patch**2, shape, self.embedding_channels)
        self.image_encoder = build_encoder(seen, shape)
        size = image_size // shape.patch
        self.fusions = nn.ModuleList(
            Fusion(width, size // 2**level) for level, width in enumerate(shape.widths[:FUSED_STAGES])
        )
        self.coarse_decoder = CoarseDecoder(shape, mask_channels)
        self.bottleneck = Bottleneck(shape, self.embedding_channels)
        self.decoder = build_decoder(shape, self.embedding_channels)

    def encode(self, image, label=None):
        """image: [N, C, H, W]; label: int [N] for a class-conditional model. Returns the `ConditionV1`.

        The condition encoder's later stages depend on x_t through the fusions, so only the first runs here.
        """
        label = self._embed_label(image, label)
        image = space_to_depth(image, self.block)  # [N, C p^2, H / p, W / p]
        features, _ = self.image_encoder[0](image)
        return ConditionV1(image, features, label)

    def forward(self, x_t, t, condition):
        """x_t: [N, K, H, W] in about [-1, 1] plus noise; t: [N], may be fractional. Returns a `ModelOutput`."""
        embedding = self._embed_time(t, condition.label)
        h = torch.cat([space_to_depth(x_t, self.block), condition.image], dim=1)  # [N, (K + C) p^2, H / p, W / p]
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
        return self._output(h, self.coarse_decoder(levels))


class MedSegDiffV2(Denoiser):
    """MedSegDiff-V2 (arXiv 2301.11798): a condition U-Net on the image, run once, conditions a diffusion U-Net.

    The condition decoder's features anchor the diffusion encoder's first levels (U-SA). The `SSFormer` joins the two
    bottlenecks, and the diffusion decoder takes its result. The condition model's own mask is `coarse`.

    image_channels, mask_channels: C and K. learn_sigma: adds the variance. num_labels: the condition model sees the
    class label too, by an embedding of its own, which is fixed with the condition model.
    anchor_levels: the number of anchored levels. concat_features: the diffusion encoder sees, beside x_t and the image,
    the condition decoder's features of its first level. diffusion_channels: c of the diffusion's widths c * multiplier;
    0: the condition model's. diffusion_level: the first level of the diffusion's U-Net, which works on patches of
    2^diffusion_level pixels of the image's first level. pretrained: a `PretrainedEncoder` of the condition model, or
    None. semantic: keywords of `SSFormer`.
    """

    def __init__(
        self,
        image_channels,
        mask_channels,
        image_size,
        shape,
        *,
        learn_sigma=False,
        num_labels=0,
        anchor_levels=1,
        concat_features=False,
        diffusion_channels=0,
        diffusion_level=0,
        pretrained=None,
        **semantic,
    ):
        own = shape.from_level(diffusion_level, diffusion_channels)
        block = shape.patch * 2**diffusion_level
        super().__init__(mask_channels, image_size, shape, num_labels, learn_sigma, own.widths[0], block)
        self.concat_features, self.level = concat_features, diffusion_level
        embedding_channels = self.embedding_channels if num_labels else None
        self.condition_model = ConditionUNet(
            image_channels, mask_channels, shape, embedding_channels, num_labels, pretrained
        )
        widths = shape.widths[diffusion_level:]
        self.anchors = nn.ModuleList(UncertainSpatialAttention(width) for width in widths[:anchor_levels])
        self.narrow = nn.Identity() if widths == own.widths else nn.Conv2d(widths[-1], own.widths[-1], 1)
        seen = (mask_channels + image_channels) * block**2 + widths[0] * concat_features
        self.encoder = build_encoder(seen, own, self.embedding_channels)
        self.bottleneck = Bottleneck(own, self.embedding_channels)
        self.semantic = SSFormer(own, self.embedding_channels, **semantic)
        self.decoder = build_decoder(own, self.embedding_channels)

    def encode(self, image, label=None):
        """image: [N, C, H, W]; label: int [N] for a class-conditional model. Returns the `ConditionV2`.

        The condition model and the anchors run here, because they do not depend on x_t or t.
        """
        embedded, own = self._embed_label(image, label), self.condition_model.label_embedding
        bottleneck, features, coarse = self.condition_model(image, None if own is None else own(label))
        features = features[self.level :]
        anchors = tuple(anchor(f) for anchor, f in zip(self.anchors, features, strict=False))  # the first levels
        visible = space_to_depth(image, self.block)
        if self.concat_features:
            visible = torch.cat([visible, features[0].to(image.dtype)], dim=1)
        return ConditionV2(visible, self.narrow(bottleneck), anchors, coarse, embedded)

    def forward(self, x_t, t, condition):
        """x_t: [N, K, H, W] in about [-1, 1] plus noise; t: [N], may be fractional. Returns a `ModelOutput`."""
        embedding = self._embed_time(t, condition.label)
        h = torch.cat([space_to_depth(x_t, self.block), condition.visible], dim=1)  # [N, K' + D', H', W']
        skips = []
        for level, stage in enumerate(self.encoder):
            h, stage_skips = stage(h, embedding)
            if level < len(condition.anchors):
                h = stage_skips[-1] = h * condition.anchors[level] + h  # f_d' = map f_d + f_d
            skips.append(stage_skips)
        h = self.bottleneck(h, embedding)
        h = self.semantic(condition.bottleneck, h, embedding)
        for stage in self.decoder:
            h = stage(h, skips.pop(), embedding)
        return self._output(h, condition.coarse)


class PlainUNet(Variant):
    """The baseline without diffusion: the same U-Net on the image alone.

    It predicts mask logits, the same for every x_t and t. As an x0 prediction that one step samples, it goes through
    the same trainer, sampler and evaluation.
    """

    def __init__(self, image_channels, mask_channels, image_size, shape, *, num_labels=0, pretrained=None):
        super().__init__(mask_channels, image_size, shape, num_labels)
        embedding_channels = self.embedding_channels if num_labels else None
        self.unet = ConditionUNet(image_channels, mask_channels, shape, embedding_channels, pretrained=pretrained)

    def encode(self, image, label=None):
        """image: [N, C, H, W]; label: int [N] for a class-conditional model. Returns the `PlainCondition`."""
        label = self._embed_label(image, label)
        return PlainCondition(self.unet(image, label)[2])

    def forward(self, x_t, t, condition):
        """Ignores x_t and t. Returns a `ModelOutput` without variance and coarse mask."""
        return ModelOutput(condition.logits, None, None)


def check_size(width, shape, height=None):
    """Raise `UserError`, with the nearest sizes that work, unless the levels of `shape` divide width and height.

    height: None for a square.
    """
    num_levels = len(shape.multipliers)
    factor = shape.patch * 2 ** (num_levels - 1)
    for size in (width, width if height is None else height):
        if size % factor or size < factor:
            below = max(size // factor, 1) * factor
            raise UserError(
                f"image size {size} does not work with {num_levels} levels"
                + (f" of patches of {shape.patch} pixels" if shape.patch > 1 else "")
                + f", which need a multiple of {factor}: use {below} or {below + factor}, or fewer levels "
                "(--channel_mult)"
            )


def default_multipliers(image_size):
    """The default channel multipliers for an image size: 3 to 7 levels, the coarsest of 4 to 16 pixels."""
    for limit, multipliers in ((48, (1, 2, 2)), (96, (1, 2, 3, 4)), (192, (1, 1, 2, 3, 4)), (384, (1, 1, 2, 2, 4, 4))):
        if image_size < limit:
            return multipliers
    return (0.5, 1, 1, 2, 2, 4, 4)


def unet_shape(options):
    """The `UNetShape` of the model options (`config.ModelOptions`).

    `attention_resolutions` are sizes of feature maps at the training image size; a size that no level has adds nothing.
    Raises `UserError` for a number of heads that does not divide a level's width.
    """
    size = options.image_size / options.patch_size
    multipliers = options.multipliers() or default_multipliers(size)
    attention = options.attention_sizes()
    shape = UNetShape(
        channels=options.num_channels,
        multipliers=multipliers,
        blocks=options.num_res_blocks,
        attention_levels=tuple(i for i in range(len(multipliers)) if size / 2**i in attention),
        heads=options.num_heads,
        head_channels=options.num_head_channels,
        dropout=options.dropout,
        scale_shift=options.use_scale_shift_norm,
        updown_blocks=options.resblock_updown,
        use_checkpoint=options.use_checkpoint,
        patch=options.patch_size,
        head_padding=options.head_padding,
    )
    check_heads(shape)
    return shape


def check_heads(shape):
    """Raise `UserError` for a number or width of heads that does not divide the width of a level with attention."""
    for level in {*shape.attention_levels, len(shape.multipliers) - 1}:
        width = shape.widths[level]
        if shape.head_channels > 0 and width % shape.head_channels:
            raise UserError(
                f"--num_head_channels {shape.head_channels} does not divide the {width} channels of an attention layer"
            )
        if width % shape.attention_heads(width):
            raise UserError(f"--num_heads {shape.heads} does not divide the {width} channels of an attention layer")


def build_model(options, image_channels, mask_channels, num_labels=0):
    """The variant that `options` (`config.ModelOptions`) name, for images of C and masks of K channels.

    num_labels: the data's class labels, which a class-conditional model embeds. Raises `UserError` for options that do
    not fit together.
    """
    shape = unet_shape(options)
    sizes = (image_channels, mask_channels, options.image_size, shape)
    num_labels = num_labels if options.class_cond else 0
    if options.version == "v1":
        return MedSegDiffV1(*sizes, learn_sigma=options.learn_sigma, num_labels=num_labels)
    check_size(options.image_size, shape)
    pretrained = None
    if options.encoder:
        pretrained = PretrainedEncoder(options.encoder, image_channels, options.image_size, shape)
    if options.version == "unet":
        return PlainUNet(*sizes, num_labels=num_labels, pretrained=pretrained)
    levels = len(shape.multipliers)
    if options.diffusion_level >= levels:
        raise UserError(f"--diffusion_level {options.diffusion_level}: the model has levels 0 to {levels - 1}")
    if options.anchor_levels > levels - options.diffusion_level:
        whose = "the model"
        if options.diffusion_level:
            whose = f"the diffusion, from --diffusion_level {options.diffusion_level} on,"
        raise UserError(
            f"--anchor_levels {options.anchor_levels}: {whose} has {levels - options.diffusion_level} levels"
        )
    check_heads(shape.from_level(options.diffusion_level, options.diffusion_channels))
    return MedSegDiffV2(
        *sizes,
        learn_sigma=options.learn_sigma,
        num_labels=num_labels,
        anchor_levels=options.anchor_levels,
        concat_features=options.concat_features,
        diffusion_channels=options.diffusion_channels,
        diffusion_level=options.diffusion_level,
        pretrained=pretrained,
        kind=options.ss_former,
        blocks=options.ss_blocks,
        nbp_filter=options.nbp_filter,
        largest_factor=NBP_FACTORS[options.nbp_factor],
    )
