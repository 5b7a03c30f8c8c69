"""Images larger than the network's size: it looks at overlapping windows, and what it predicts in them is blended."""

from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from ..models.outputs import ModelOutput, join_conditions

SIGMA = 0.125  # of the weights within a window, in parts of its side


LEAST_WEIGHT = 1e-3  # so that a corner which only one window covers has a weight


class Tiled(nn.Module):
    """Stands for `model` where masks of larger images are sampled: it predicts in windows of the image, at each step.

    Where windows overlap, predictions are averaged with weights that fall towards a window's borders. What samplers
    see is one field of the whole image: its noise, too, is drawn for the whole image, so overlapping windows share it,
    and a member of an ensemble is one mask rather than a patchwork of several.

    size: a window's side in pixels, no larger than the image. overlap: of neighbouring windows, in parts of their side,
    below 1. rows: how many windows go through the network in one pass, of all images and members; what is predicted
    does not depend on it but for rounding; None: all of them.
    """

    def __init__(self, model, size, overlap, rows):
        super().__init__()
        self.model, self.size, self.overlap, self.rows = model, size, overlap, rows

    @property
    def mask_channels(self):
        """K, of the model."""
        return self.model.mask_channels

    def encode(self, image, label=None):
        """image: [N, C, H, W], both sides at least `size`; label: int [N] or None. Returns the `TiledCondition`."""
        windows = windows_of(image.shape[-2:], self.size, self.overlap)
        pairs = [(window, n) for window in windows for n in range(len(image))]
        parts = []
        for some in _in_parts(pairs, self.rows):
            which = torch.tensor([n for _, n in some], device=image.device)
            views = torch.stack([image[(n, slice(None), *window)] for window, n in some])
            parts.append(self.model.encode(views, None if label is None else label[which]))
        return TiledCondition(
            join_conditions(parts), windows, len(image), torch.arange(len(image), device=image.device)
        )

    def forward(self, x_t, t, condition):
        """x_t: [M, K, H, W]; t: [M]; condition: of M rows. Returns the `ModelOutput` of the whole field."""
        weights = window_weights(self.size).to(x_t.device)
        total = x_t.new_zeros(x_t.shape[-2:], dtype=torch.float32)
        for window in condition.windows:
            total[window] += weights
        fields = {}
        pairs = [(w, row) for w in range(len(condition.windows)) for row in range(len(x_t))]
        for some in _in_parts(pairs, self.rows):
            places = [(row, slice(None), *condition.windows[w]) for w, row in some]
            windows, rows = torch.tensor(some, device=x_t.device).T
            views = torch.stack([x_t[place] for place in places])
            output = self.model(views, t[rows], condition.of_windows(windows, rows))
            for name, values in output._asdict().items():
                if values is not None:
                    shape = (len(x_t), values.shape[1], *x_t.shape[-2:])
                    field = fields.setdefault(name, x_t.new_zeros(shape, dtype=torch.float32))
                    for place, value in zip(places, values, strict=True):
                        field[place] += weights * value
        return ModelOutput(*(fields[name] / total if name in fields else None for name in ModelOutput._fields))


def in_tiles(model, image, size, overlap, rows):
    """The model, `Tiled` if the image [N, C, H, W] is not `size` x `size`; rows: see there, None for all at once."""
    if tuple(image.shape[-2:]) == (size, size):
        return model
    return Tiled(model, size, overlap, rows)


def cut(members, size):
    """`sampling.Members` of an image (H, W) = `size` without what a shorter side was filled up by."""
    height, width = size
    return type(members)(*(None if x is None else x[..., :height, :width] for x in members))


class TiledCondition(NamedTuple):
    """The conditions of all windows of N images, row w * N + n that of window w of image n.

    windows: pairs of slices (rows, columns). which: int [M], the image that each row of the work belongs to.
    """

    parts: object
    windows: list
    images: int
    which: torch.Tensor

    def rows(self, which):
        """The condition of these images, which may repeat: `which` is int [M]."""
        return self._replace(which=self.which[which])

    def of_windows(self, windows, rows):
        """The model's own condition of window windows[i] of row rows[i] of the work; both int [R]."""
        return self.parts.rows(windows * self.images + self.which[rows])


def windows_of(shape, size, overlap):
    """The windows of an image (H, W): pairs of slices of `size` pixels, the last ones flush with the borders."""
    interval = max(1, int(size * (1 - overlap)))

    def starts(length):
        last = max(0, length - size)
        return [*range(0, last, interval), last]

    return [tuple(slice(start, start + size) for start in corner) for corner in product(*map(starts, shape))]


def window_weights(size):
    """The weight of a prediction at each pixel of a window, float32 [size, size], at least `LEAST_WEIGHT`: a Gaussian
    around the centre, of standard deviation `SIGMA` of the side."""
    offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    along = torch.exp(offset**2 / (-2 * (SIGMA * size) ** 2))
    return (along[:, None] * along).clamp(min=LEAST_WEIGHT)


def _in_parts(pairs, rows):
    rows = rows or len(pairs)
    return [pairs[low : low + rows] for low in range(0, len(pairs), rows)]
