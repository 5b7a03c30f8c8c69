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
        places = _places_in(windows, len(image))
        conditions = []
        for part in _parts(len(places), self.rows):
            crops = torch.stack([image[place] for place in places[part]])
            _, images = _numbers(part, len(image), image.device)
            conditions.append(self.model.encode(crops, None if label is None else label[images]))
        rows = torch.arange(len(image), device=image.device)
        weights = window_weights(self.size, image.device)
        total = torch.zeros(tuple(image.shape[-2:]), device=image.device)
        for window in windows:
            total[window] += weights
        return TiledCondition(join_conditions(conditions), windows, len(image), rows, weights, total)

    def forward(self, x_t, t, condition):
        """x_t: [M, K, H, W]; t: [M]; condition: of M rows. Returns the `ModelOutput` of the whole images."""
        sums, places = {}, _places_in(condition.windows, len(x_t))
        for part in _parts(len(places), self.rows):
            windows, rows = _numbers(part, len(x_t), x_t.device)
            crops = torch.stack([x_t[place] for place in places[part]])
            output = self.model(crops, t[rows], condition.of_windows(windows, rows))
            for name, values in output._asdict().items():
                if values is not None:
                    shape = (len(x_t), values.shape[1], *x_t.shape[-2:])
                    whole = sums.setdefault(name, x_t.new_zeros(shape, dtype=torch.float32))
                    condition.add(whole, places[part], values)
        return ModelOutput(*(sums[name] / condition.total if name in sums else None for name in ModelOutput._fields))


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
    slices (rows, columns). images: N. image_of_row: int [M], each row's image. weights: see `window_weights`. total:
    float32 [H, W], the sum of the windows' weights at each pixel.
    """

    conditions: object
    windows: list
    images: int
    image_of_row: torch.Tensor
    weights: torch.Tensor
    total: torch.Tensor

    def rows(self, which):
        """The condition of the rows `which`, int [M], which may repeat."""
        return self._replace(image_of_row=self.image_of_row[which])

    def of_windows(self, windows, rows):
        """The model's own condition of R crops: window windows[i] of row rows[i]; both int [R]."""
        return self.conditions.rows(windows * self.images + self.image_of_row[rows])

    def blended(self, values):
        """The values [W * N, K, S, S] of all windows, in the order of `conditions`, as [N, K, H, W] in float32."""
        whole = values.new_zeros((self.images, values.shape[1], *self.total.shape), dtype=torch.float32)
        self.add(whole, _places_in(self.windows, self.images), values)
        return whole / self.total

    def add(self, whole, places, values):
        """Add each window's values, weighted, at its place of `whole`, in float32."""
        for place, value in zip(places, values, strict=True):
            whole[place] += self.weights * value.float()


def windows_of(shape, size, overlap):
    """The windows of an image of `shape` (H, W): pairs of slices of `size` pixels, the last flush with the borders."""
    interval = max(1, int(size * (1 - overlap)))

    def starts(length):
        last = max(0, length - size)
        return [*range(0, last, interval), last]

    return [tuple(slice(start, start + size) for start in corner) for corner in product(*map(starts, shape))]


def window_weights(size, device=None):
    """The weights of a window's pixels, float32 [size, size]: a Gaussian about the centre, at least `LEAST_WEIGHT`."""
    offset = torch.arange(size, dtype=torch.float32, device=device) - (size - 1) / 2
    along = torch.exp(offset**2 / (-2 * (SIGMA * size) ** 2))
    return (along[:, None] * along).clamp(min=LEAST_WEIGHT)


def _places_in(windows, count):
    """The index of each window in each of `count` rows [count, C, H, W], window by window."""
    return [(row, slice(None), *window) for window in windows for row in range(count)]


def _numbers(part, count, device):
    """The window and the row of each place in a slice of `_places_in`, both int [n]. The device counts them itself."""
    place = torch.arange(part.start, part.stop, device=device)
    return place // count, place % count


def _parts(count, rows):
    """Slices of at most `rows` of `count` places; of all without `rows`."""
    rows = rows or count
    return [slice(low, min(low + rows, count)) for low in range(0, count, rows)]
