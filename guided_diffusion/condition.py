"""Condition branch of MedSegDiff: how the image's features meet those of the noisy mask, and its own coarse mask."""

import torch.nn.functional as F
from torch import nn

from .nn import conv3x3
from .spectrum import FFParser
from .unet import Head, ResBlock


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
        self.head = Head(width, out_channels)

    def forward(self, features):
        """features: one [N, C_i, H_i, W_i] a level, finest first. Returns mask logits [N, K, H, W]."""
        h = self.refine[-1](self.laterals[-1](features[-1]))
        for level in reversed(range(len(features) - 1)):
            h = self.smooth[level](F.interpolate(h, scale_factor=2, mode="nearest"))
            h = self.refine[level](h + self.laterals[level](features[level]))
        return self.head(h)
