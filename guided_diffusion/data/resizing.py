"""How the network sees a case: resized or cut from, and of a volume's slice with its neighbours."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..runtime.errors import UserError
from ..runtime.seeds import seeded_generator

FOREGROUND_CROPS = 1 / 3  # of the crops hold a marked pixel for sure, where there is one: small objects are rare


@dataclass(frozen=True)
class View:
    """What is shown of each case.

    neighbours: slices on either side of a volume's slice, as further channels; where there is none, as beyond the
    outermost, the one next to it stands in. keep_size: images with a side longer than the network's keep their size,
    for crops and tiles; a side that is shorter is filled up by the image's reflection.
    """

    neighbours: int = 0
    keep_size: bool = False

    @property
    def slices(self):
        """How many slices an image is made of."""
        return 2 * self.neighbours + 1

    def slices_of(self, cases):
        """{(volume, slice index): case}, where neighbours are shown. Raises `UserError` for cases that have none."""
        if not self.neighbours:
            return {}
        for case in cases:
            if case.volume is None:
                raise UserError(
                    f"{case.images[0]}: is no slice of a volume, which --neighbours {self.neighbours} needs; leave the "
                    "flag out"
                )
        return {(case.volume, case.slice_index): case for case in cases}

    def around(self, case, slices):
        """The cases whose images make up the case's, in order: itself amid its neighbours. slices: see `slices_of`."""
        shown = [case]
        for step in range(1, self.neighbours + 1):
            before, after = (slices.get((case.volume, case.slice_index + k), None) for k in (-step, step))
            shown = [before or shown[0], *shown, after or shown[-1]]
        return shown

    def with_neighbours(self, slices):
        """Each of a volume's slices [C, X, Y], all in order, amid its neighbours: a list of [(2N + 1) C, X, Y]."""
        last, reach = len(slices) - 1, range(-self.neighbours, self.neighbours + 1)
        return [torch.cat([slices[min(max(k + step, 0), last)] for step in reach]) for k in range(len(slices))]

    def image(self, image, size):
        """An image [C, H, W] as the network takes it: [C, size, size], or with `keep_size` larger."""
        if self.keeps(image.shape[-2:], size):
            return at_least(image, size)
        return resize_image(image, size)

    def mask(self, mask, size):
        """Masks [..., H, W] likewise; values in {0, 1} stay in {0, 1}."""
        if self.keeps(mask.shape[-2:], size):
            return at_least(mask, size)
        return resize_mask(mask, size)

    def keeps(self, shape, size):
        """Whether an image of this (H, W) keeps its size."""
        return self.keep_size and max(shape) > size


WHOLE = View()  # the whole image, made as large as the network takes it


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
    """Values [..., H, W], a side shorter than `size` filled up to it by their reflection, at the bottom or right."""
    height, width = values.shape[-2:]
    if min(height, width) >= size:
        return values
    rows, columns = (np.pad(np.arange(n), (0, max(0, size - n)), mode="symmetric") for n in (height, width))
    return values[..., torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]


def crop(item, size, seed, position):
    """The item with a square of `size` pixels cut from its image and masks, where they are larger.

    Where it is cut follows from (seed, position), the item's place in the run, alone: anywhere, but for a share
    `FOREGROUND_CROPS` of the items around a pixel that is marked in any mask, if there is one.
    """
    height, width = item["image"].shape[-2:]
    if (height, width) == (size, size):
        return item
    generator = seeded_generator("crop", seed, position)
    share, *places = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    marked = item["mask"].flatten(0, -3).any(dim=0).nonzero() if share < FOREGROUND_CROPS else ()
    if len(marked):
        pixel = marked[int(places[2] * len(marked))].tolist()
        lowest, highest = ([p + 1 - size for p in pixel], pixel)
    else:
        lowest, highest = (0, 0), (height, width)
    corner = []
    for place, low, high, side in zip(places, lowest, highest, (height, width), strict=False):
        low, high = max(0, low), min(high, side - size)
        corner.append(low + int(place * (high - low + 1)))
    window = (..., slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size))
    return {**item, "image": item["image"][window].contiguous(), "mask": item["mask"][window].contiguous()}
