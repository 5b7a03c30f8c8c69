"""What the network sees of a case: the resized image, or the image at its own size."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

ROUNDING = 1e-4  # of shares of a pixel in single precision


@dataclass(frozen=True)
class View:
    """What an item shows of a case.

    keep_size: an image with a side longer than the network's keeps its size, for crops and tiles. Its shorter side is
    padded by reflection if it is below the network's.
    soft_masks: masks shrink by area, and augmentation warps them bilinearly, into the share of each pixel that is
    marked. False: by nearest neighbour, as up to version 0.6.0.
    """

    keep_size: bool = False
    soft_masks: bool = True

    def image(self, image, size):
        """An image [C, H, W] for a network of this size: [C, size, size], or larger with `keep_size`."""
        if self.keeps(image.shape[-2:], size):
            return at_least(image, size)
        return resize_image(image, size)

    def mask(self, mask, size):
        """Masks float32 [..., H, W] in {0, 1} in the shape that `image` gives.

        With `soft_masks` the values are in [0, 1] where a side shrinks, else in {0, 1}.
        """
        if self.keeps(mask.shape[-2:], size):
            return at_least(mask, size)
        return resize_mask(mask, size, self.soft_masks)

    def known(self, known, size):
        """The same for the pixels with truth, in {0, 1}: a pixel is known only if all of its area is."""
        return (self.mask(known, size) > 1 - ROUNDING).float()

    def keeps(self, shape, size):
        """Whether an image of this (H, W) keeps its size."""
        return self.keep_size and max(shape) > size


WHOLE = View()  # the whole image, resized


def resize_image(image, size):
    """Resize [C, H, W] smoothly (antialiased bilinear) to [C, size, size]."""
    if image.shape[-2:] == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True, align_corners=False)[0]


def resize_mask(mask, size, soft=True):
    """Resize masks float32 [..., H, W] to [..., size, size].

    soft: a side shrinks by the mean over the area of each pixel, so that the marked area stays the same: values in
    {0, 1} become shares in [0, 1], and classes that exclude one another sum to at most 1. A side that grows, and
    without `soft` each side, is resized by nearest neighbour: values in {0, 1} stay in {0, 1}.
    """
    height, width = mask.shape[-2:]
    if (height, width) == (size, size):
        return mask
    shrinks = [soft and side > size for side in (height, width)]
    # Nearest neighbour first: it commutes with the mean along the other side.
    between = tuple(side if shrink else size for side, shrink in zip((height, width), shrinks, strict=True))
    if between != (height, width):
        flat = mask.reshape(1, -1, height, width)
        mask = F.interpolate(flat, between, mode="nearest-exact").reshape(*mask.shape[:-2], *between)
    if shrinks[0]:
        mask = pixel_shares(height, size) @ mask
    if shrinks[1]:
        mask = mask @ pixel_shares(width, size).T
    return mask.clamp(0, 1)


def pixel_shares(side, size):
    """float32 [size, side]: the share of each of `side` pixels in each of `size` larger ones of the same extent."""
    edges = np.arange(size + 1) * (side / size)
    pixels = np.arange(side)
    low, high = np.maximum(edges[:-1, None], pixels), np.minimum(edges[1:, None], pixels + 1)
    return torch.from_numpy((np.maximum(high - low, 0) * (size / side)).astype(np.float32))


def resize_maps(maps, size):
    """Maps in [0, 1] at the `size` (H, W) of an image, bilinear and antialiased, as sampling writes them.

    [E, K, h, w] -> float32 [E, K, H, W] on the CPU.
    """
    maps = maps.float().cpu()
    if tuple(maps.shape[-2:]) != tuple(size):
        maps = F.interpolate(maps, tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return maps.clamp(0, 1)


def round_trip(masks, size):
    """The overlap of masks with their own round trip through the network's size x size pixels.

    A mask shrinks by area, is enlarged as sampling enlarges a probability, and is cut at 0.5.
    masks: bool [..., H, W]. Returns int64 [2, ...]: twice the pixels in both, and the sum of the pixels in each. Their
    ratio is the Dice that a network of this size reaches if it predicts every share exactly.
    """
    shape, size_of_image = masks.shape[:-2], masks.shape[-2:]
    masks = torch.as_tensor(masks).reshape(1, -1, *size_of_image)
    back = resize_maps(resize_mask(masks.float(), size), size_of_image) > 0.5
    both, total = (2 * (back & masks)).sum(dim=(-2, -1)), (back.sum(dim=(-2, -1)) + masks.sum(dim=(-2, -1)))
    return torch.stack([both, total]).reshape(2, *shape).numpy()


def at_least(values, size):
    """Values [..., H, W], padded by reflection at the bottom and right until no side is below `size`."""
    height, width = values.shape[-2:]
    if min(height, width) >= size:
        return values
    rows, columns = (np.pad(np.arange(n), (0, max(0, size - n)), mode="symmetric") for n in (height, width))
    return values[..., torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]
