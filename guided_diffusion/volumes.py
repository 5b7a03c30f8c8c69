"""Slices of NIfTI volumes: each volume is decoded once, normalised as a whole and kept in a bounded memory cache."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from .data import Case, Geometry
from .errors import UserError
from .files import nifti_grid, read_nifti_channels, read_nifti_header, read_nifti_labels

CLIP = 5.0  # z-scores beyond this are noise or bright vessels; the network does better without them


def zscore(values):
    """Normalise one channel, float32 of any shape: (x - mean) / std over its non-zero values, clipped to +-5.

    Zeros (the background of skull-stripped MRI) stay 0; a channel that is zero or constant gives zeros.
    """
    foreground = values != 0
    inside = values[foreground]
    if inside.size == 0:
        return np.zeros_like(values)
    mean, std = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    if std <= 1e-6 * abs(mean):  # constant, up to rounding
        return np.zeros_like(values)
    scores = (values - np.float32(mean)) / np.float32(std)
    return np.where(foreground, np.clip(scores, -CLIP, CLIP), np.float32(0))


@dataclass(frozen=True)
class CTWindow:
    """Normalises CT: HU from `low` to `high` become -1 to 1, what lies beyond is cut off."""

    low: float
    high: float

    def __call__(self, values):
        """float32 of any shape -> the same in [-1, 1]."""
        return (np.clip(values, self.low, self.high) - self.low) * np.float32(2 / (self.high - self.low)) - 1


class VolumeReader:
    """What a loader of NIfTI files needs: cases of slices, their normalised images, their labels, their geometry.

    A slice k is `volume[..., k]`, [X, Y], of the volume as `files.read_nifti` turns it, so stacking slices along the
    last axis gives that back. A file [X, Y] or [X, Y, 1] is a 2-D image: a case without volume and slice index.
    A 4-D file holds several channels.

    normalise: what is done with each channel of a volume, `zscore` or a `CTWindow`, or a tuple with one for each.

    cache_bytes: the memory that decoded volumes may take in each process. The default holds about 55 BraTS cases
    (240 x 240 x 155, four modalities at 71 MB); set `VolumeReader.cache_bytes` for more or less.
    """

    cache_bytes = 4 * 2**30

    def __init__(self, normalise=zscore):
        self.normalise = normalise
        self._cache = VolumeCache(self.cache_bytes)

    def cases(self, name, images, masks=(), label=None, *, check_masks=True):
        """Return the cases of one volume, `NAME_slice_KKK` for each slice, or [the one case `NAME`] of a 2-D image.

        images: one file per channel, or per several; masks: one label map per rater. Only headers are read.
        Raises `UserError` if the files of a volume differ in shape. Without `check_masks` those of the masks are left
        to `labels`: to sample, a damaged mask must not matter.
        """
        images, masks = tuple(images), tuple(masks)
        depth = _as_volume(read_nifti_header(images[0])[0])[2]
        if depth == 1:
            return [Case(name, images, masks, label)]  # the shapes are compared when the data are read
        checked = images + masks if check_masks else images
        _check_shapes({path: _as_volume(read_nifti_header(path, like=images[0])[0]) for path in checked})
        return [
            Case(f"{name}_slice_{index:03d}", images, masks, label, volume=name, slice_index=index)
            for index in range(depth)
        ]

    def image(self, case):
        """Return the case's slice as float32 [C, X, Y], each channel normalised over the whole volume."""
        slices = self._cache.get((case.images, self.normalise), _decode_images)
        return _slice_of(case, case.images[0], slices).astype(np.float32)

    def labels(self, case):
        """Return the case's label maps as integers [R, X, Y], one per file in `case.masks`."""
        image = None if case.volume is None else case.images[0]
        decoded = [(path, self._cache.get((path, image), _decode_labels)) for path in case.masks]
        return np.stack([_slice_of(case, path, slices) for path, slices in decoded])

    def geometry(self, case):
        """Return the `Geometry` of the case's volume, or None for a 2-D image."""
        if case.volume is None:
            return None
        shape, affine, spacing = read_nifti_header(case.images[0])
        return Geometry(affine, spacing, shape, *nifti_grid(case.images[0]))


class VolumeCache:
    """Decoded arrays by key, at most `limit_bytes` of them; the least recently used go first.

    The newest one always stays, so the slices of a volume larger than the limit are still decoded once.
    """

    def __init__(self, limit_bytes):
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._arrays = OrderedDict()

    def get(self, key, decode):
        """Return the array of `key`, made by `decode(key)` unless it is still here."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
            return self._arrays[key]
        array = decode(key)
        self._arrays[key] = array
        self.used_bytes += array.nbytes
        while self.used_bytes > self.limit_bytes and len(self._arrays) > 1:
            self.used_bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array

    def __reduce__(self):
        return VolumeCache, (self.limit_bytes,)  # a copy sent to another process starts empty


def _decode_images(key):
    """The files (their paths, how to normalise) as one array [Z, C, X, Y]: a slice lies in one piece, and half
    precision suffices within +-5."""
    paths, normalise = key
    channels, shapes = [], {}
    for path in paths:
        values = read_nifti_channels(path, like=paths[0])
        if not np.isfinite(values).all():
            raise UserError(f"{path}: holds values that are not finite; repair it or leave it out")
        shapes[path] = _as_volume(values.shape[:-1])
        channels += [values[..., k].reshape(shapes[path]) for k in range(values.shape[-1])]
    _check_shapes(shapes)
    steps = normalise if isinstance(normalise, tuple) else (normalise,) * len(channels)
    if len(steps) != len(channels):
        raise UserError(f"{paths[0]}: has {len(channels)} channels, the data set has {len(steps)}; leave it out")
    normalised = [step(values) for step, values in zip(steps, channels, strict=True)]
    return np.stack([values.astype(np.float16).transpose(2, 0, 1) for values in normalised], axis=1)


def _decode_labels(key):
    """The label map of (its path, an image of its volume or None) as [Z, X, Y], in bytes where the labels fit."""
    path, image = key
    labels = read_nifti_labels(path, like=image)
    if image is not None:
        _check_shapes({image: _as_volume(read_nifti_header(image)[0]), path: _as_volume(labels.shape)})
    if labels.min() >= 0 and labels.max() <= 255:
        labels = labels.astype(np.uint8)
    return np.ascontiguousarray(labels.reshape(_as_volume(labels.shape)).transpose(2, 0, 1))


def _slice_of(case, path, slices):
    """Slice of the decoded array [Z, ...] that belongs to the case."""
    index = case.slice_index or 0
    if index >= len(slices) or (case.slice_index is None and len(slices) != 1):
        wanted = "a 2-D slice" if case.slice_index is None else f"slice {index}"
        raise UserError(f"{path}: holds {len(slices)} slices where {wanted} is expected; check the file")
    return slices[index]


def _as_volume(shape):
    return (*shape, 1) if len(shape) == 2 else tuple(shape)


def _check_shapes(shapes):
    """Raise a `UserError` unless all files, a dict of path to shape, have one shape."""
    (first, expected), *others = shapes.items()
    for path, shape in others:
        if shape != expected:
            raise UserError(
                f"{path}: has {'x'.join(map(str, shape))} voxels, but {first.name} has "
                f"{'x'.join(map(str, expected))}; the files of a case must agree"
            )
