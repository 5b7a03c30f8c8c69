"""What the network sees of a case: the resized image, or the image at its own size."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class View:
    """What an item shows of a case.

    keep_size: an image with a side longer than the network's keeps its size, for crops and tiles. Its shorter side is
    padded by reflection if it is below the network's.
    """

    keep_size: bool = False

    def image(self, image, size):
        """An image [C, H, W] for a network of this size: [C, size, size], or larger with `keep_size`."""
        if self.keeps(image.shape[-2:], size):
            return at_least(image, size)
        return resize_image(image, size)

    def mask(self, mask, size):
        """Masks [..., H, W] in {0, 1} in the shape that `image` gives; the values stay in {0, 1}."""
        if self.keeps(mask.shape[-2:], size):
            return at_least(mask, size)
        return resize_mask(mask, size)

    def keeps(self, shape, size):
        """Whether an image of this (H, W) keeps its size."""
        return self.keep_size and max(shape) > size


WHOLE = View()  # the whole image, resized


def resize_image(image, size):
    """Resize [C, H, W] smoothly (antialiased bilinear) to [C, size, size]."""
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def resize_mask(mask, size):
    """Resize [..., H, W] by nearest neighbour to [..., size, size]; values in {0, 1} stay in {0, 1}."""
    if mask.shape[-2:] == (size, size):
        return mask
    flat = mask.reshape(1, -1, *mask.shape[-2:])
    return F.interpolate(flat, (size, size), mode="nearest-exact").reshape(*mask.shape[:-2], size, size)


def at_least(values, size):
    """Values [..., H, W], padded by reflection at the bottom and right until no side is below `size`."""
    height, width = values.shape[-2:]
    if min(height, width) >= size:
        return values
    rows, columns = (np.pad(np.arange(n), (0, max(0, size - n)), mode="symmetric") for n in (height, width))
    return values[..., torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]
