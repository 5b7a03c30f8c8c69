"""Tiled sampling of images larger than the network's size: predictions in overlapping windows are blended."""

from itertools import product
from typing import NamedTuple

import torch
from torch import nn

from ..models.outputs import ModelOutput, join_conditions

SIGMA = 0.125  # standard deviation of a window's weights, as a fraction of its side
LEAST_WEIGHT = 1e-3  # a corner that only one window covers needs a weight


class Tiled(nn.Module):
    """A model that predicts in windows of the image and blends them, at each step of sampling.

    Where windows overlap, predictions are averaged with `window_weights`. Samplers see x_t of the whole image, with
    noise that overlapping windows share, so a member is one coherent mask.

    model: a variant of the network. size: a window's side in pixels, at most the image's. overlap: of neighbouring
    windows, as a fraction of their side, below 1. rows: the windows in one pass through the network, of all images and
    members together; None: all. Results do not depend on it except for rounding.
    """

    def __init__(self, model, size, overlap, rows):
        super().__init__()
        self.model, self.size, self.overlap, self.rows = model, size, overlap, rows

    @property
    def mask_channels(self):
        """K."""
        return self.model.mask_channels

    def encode(self, image, label=None):
        """image: [N, C, H, W], both sides at least `size`; label: int [N] or None. Returns the `TiledCondition`."""
        windows = windows_of(image.shape[-2:], self.size, self.overlap)
        pairs = [(window, n) for window in windows for n in range(len(image))]
        conditions = []
        for chunk in _chunks(pairs, self.rows):
            crops = torch.stack([image[(n, slice(None), *window)] for window, n in chunk])
            images = torch.tensor([n for _, n in chunk], device=image.device)
            conditions.append(self.model.encode(crops, None if label is None else label[images]))
        rows = torch.arange(len(image), device=image.device)
        return TiledCondition(join_conditions(conditions), windows, len(image), rows)

    def forward(self, x_t, t, condition):
        """x_t: [M, K, H, W]; t: [M]; condition: of M rows. Returns the `ModelOutput` of the whole images."""
        sums = {}
        pairs = [(w, row) for w in range(len(condition.windows)) for row in range(len(x_t))]
        for chunk in _chunks(pairs, self.rows):
            places = [(row, slice(None), *condition.windows[w]) for w, row in chunk]
            windows, rows = torch.tensor(chunk, device=x_t.device).T
            crops = torch.stack([x_t[place] for place in places])
            output = self.model(crops, t[rows], condition.of_windows(windows, rows))
            for name, values in output._asdict().items():
                if values is not None:
                    shape = (len(x_t), values.shape[1], *x_t.shape[-2:])
                    whole = sums.setdefault(name, x_t.new_zeros(shape, dtype=torch.float32))
                    self._add(whole, places, values)
        total = self._total(condition.windows, x_t.shape[-2:], x_t.device)
        return ModelOutput(*(sums[name] / total if name in sums else None for name in ModelOutput._fields))

    def blended(self, condition, values, size):
        """The values [W * N, K, S, S] of all windows of N images, in the order of `TiledCondition`, as [N, K, H, W].

        size: (H, W) of the images.
        """
        places = [(n, slice(None), *window) for window in condition.windows for n in range(condition.images)]
        whole = values.new_zeros((condition.images, values.shape[1], *size), dtype=torch.float32)
        self._add(whole, places, values)
        return whole / self._total(condition.windows, size, values.device)

    def _add(self, whole, places, values):
        """Add each window's values, weighted, at its place of `whole`, in float32."""
        weights = window_weights(self.size).to(whole.device)
        for place, value in zip(places, values, strict=True):
            whole[place] += weights * value.float()

    def _total(self, windows, size, device):
        """The sum of the windows' weights at each pixel, float32 [H, W]."""
        total = torch.zeros(tuple(size), device=device)
        for window in windows:
            total[window] += window_weights(self.size).to(device)
        return total


def in_tiles(model, image, size, overlap, rows):
    """The model, wrapped in `Tiled` unless the image [N, C, H, W] is `size` x `size`; overlap, rows: see there."""
    if tuple(image.shape[-2:]) == (size, size):
        return model
    return Tiled(model, size, overlap, rows)


def crop_members(members, size):
    """The `members.Members` without the padding of a short side; size: (H, W) of the image."""
    height, width = size
    return type(members)(*(None if x is None else x[..., :height, :width] for x in members))


class TiledCondition(NamedTuple):
    """The condition of M rows of x_t, whose images have several windows.

    conditions: the model's, of all windows of N images, in row w * N + n that of window w of image n. windows: pairs of
    slices (rows, columns). images: N. image_of_row: int [M], each row's image.
    """

    conditions: object
    windows: list
    images: int
    image_of_row: torch.Tensor

    def rows(self, which):
        """The condition of the rows `which`, int [M], which may repeat."""
        return self._replace(image_of_row=self.image_of_row[which])

    def of_windows(self, windows, rows):
        """The model's own condition of R crops: window windows[i] of row rows[i]; both int [R]."""
        return self.conditions.rows(windows * self.images + self.image_of_row[rows])


def windows_of(shape, size, overlap):
    """The windows of an image of `shape` (H, W): pairs of slices of `size` pixels, the last flush with the borders."""
    interval = max(1, int(size * (1 - overlap)))

    def starts(length):
        last = max(0, length - size)
        return [*range(0, last, interval), last]

    return [tuple(slice(start, start + size) for start in corner) for corner in product(*map(starts, shape))]


def window_weights(size):
    """The weights of a window's pixels, float32 [size, size]: a Gaussian about the centre, at least `LEAST_WEIGHT`."""
    offset = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    along = torch.exp(offset**2 / (-2 * (SIGMA * size) ** 2))
    return (along[:, None] * along).clamp(min=LEAST_WEIGHT)


def _chunks(pairs, rows):
    rows = rows or len(pairs)
    return [pairs[low : low + rows] for low in range(0, len(pairs), rows)]
