"""Slices of NIfTI volumes: each volume is decoded once, normalised as a whole and cached on disk or in memory."""

from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from ..io.images import stacked
from ..io.nifti import nifti_channels, nifti_grid, read_nifti_channels, read_nifti_header, read_nifti_labels
from ..runtime.errors import UserError
from .cases import Case, Geometry
from .volume_cache import Entry, VolumeCache

# ---- normalisation: z-scores for MRI, windows for CT -------------------------------------------------------------

CLIP = 5.0  # z-scores beyond it are noise or bright vessels


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
    """Normalises CT: HU from `low` to `high` become -1 to 1, and values beyond are clipped."""

    low: float
    high: float

    def __call__(self, values):
        """Float32 of any shape, in HU -> the same shape in [-1, 1]."""
        return (np.clip(values, self.low, self.high) - self.low) * np.float32(2 / (self.high - self.low)) - 1


def normaliser(window):
    """The `CTWindow` of (low, high), or `zscore` without a window."""
    return CTWindow(*window) if window else zscore


def normalised(values, normalise=zscore):
    """A normalised channel as float16, the type of the caches; it is exact enough within +-5."""
    return normalise(values).astype(np.float16)


def normalised_channels(raw, normalise=zscore):
    """An image or volume [C, ...] with raw values, normalised by channel as `VolumeReader` does: float32 [C, ...].

    normalise: a function for all channels, or a tuple of one for each.
    """
    raw = np.asarray(raw, dtype=np.float32)
    steps = normalise if isinstance(normalise, tuple) else (normalise,) * len(raw)
    return np.stack([normalised(channel, step) for channel, step in zip(raw, steps, strict=True)]).astype(np.float32)


def normalisation_text(normalise):
    """Text that identifies a normalisation in the cache's keys."""
    if isinstance(normalise, tuple):
        return " ".join(map(normalisation_text, normalise))
    return getattr(normalise, "__name__", repr(normalise))


# ---- reading -----------------------------------------------------------------------------------------------------

FILES_ONLY = ContextVar("whether only the files of the cases are of interest", default=False)
DECODED = "3"  # the version of the decoding; a new one makes caches on disk stale


class VolumeReader:
    """Gives a loader of NIfTI files its cases, one per slice, and their normalised images, labels and geometry.

    Slice k is `volume[..., k]`, [X, Y], of the volume as `nifti.read_nifti` turns it. A file [X, Y] or [X, Y, 1] is a
    2-D image: a case without volume and slice index. A 4-D file holds several channels.

    normalise: `zscore` or a `CTWindow` for all channels, or a tuple of one for each.
    store: the `volume_cache.VolumeStore` that keeps decoded volumes on disk. None: each process keeps up to
    `cache_bytes` of them in memory. The default is enough for about 55 BraTS cases (240 x 240 x 155 voxels, four
    modalities, 71 MB). 2-D images are cached in memory only.
    """

    cache_bytes = 4 * 2**30

    def __init__(self, normalise=zscore):
        self.normalise = normalise
        self.store = None
        self._cache = VolumeCache(self.cache_bytes)

    def cases(self, name, images, masks=(), label=None, *, raters=(), check_masks=True):
        """Return the cases of one volume, `NAME_slice_KKK` for each slice, or of a 2-D image the single case `NAME`.

        images: files of one or more channels each. masks: one label map per rater. raters: their names. Only headers
        are read. Raises `UserError` if the files of a volume differ in shape.
        check_masks: False leaves the masks' shapes to `labels`, so that sampling does not fail on a damaged mask.
        """
        images, masks = tuple(images), tuple(masks)
        if FILES_ONLY.get():  # a header of each of a thousand volumes on a network drive takes minutes
            return [Case(name, images, masks, label, raters=raters)]
        depth = _as_volume(read_nifti_header(images[0])[0])[2]
        if depth == 1:
            return [Case(name, images, masks, label, raters=raters)]  # shapes are compared when the data are read
        checked = images + masks if check_masks else images
        _check_shapes({path: _as_volume(read_nifti_header(path, like=images[0])[0]) for path in checked})
        return [
            Case(f"{name}_slice_{index:03d}", images, masks, label, name, index, raters=raters)
            for index in range(depth)
        ]

    def image(self, case):
        """Return the case's slice as float32 [C, X, Y], each channel normalised over the whole volume."""
        return _slice_of(case, case.images[0], self._array(case, self._images_of(case))).astype(np.float32)

    def labels(self, case):
        """Return the case's label maps as integers [R, X, Y], one for each file in `case.masks`."""
        decoded = [(entry.files[0], self._array(case, entry)) for entry in _labels_of(case)]
        return stacked(case.masks, [_slice_of(case, path, slices) for path, slices in decoded])

    def entries(self, case, masks):
        """The `Entry`s of a case's volume in a store: its images and, with `masks`, each label map."""
        return [self._images_of(case), *(_labels_of(case) if masks else ())]

    def stored_bytes(self, entry):
        """The approximate size of an entry in a store, in bytes, from the headers of its files."""
        voxels = int(np.prod(read_nifti_header(entry.files[0])[0]))
        is_image = isinstance(entry.decode, ImageDecoder)
        return voxels * (2 * sum(nifti_channels(path) for path in entry.files) if is_image else 1)

    def _images_of(self, case):
        settings = f"{DECODED} {normalisation_text(self.normalise)}"
        return Entry(case.volume or case.name, case.images, ImageDecoder(self.normalise), settings)

    def _array(self, case, entry):
        if self.store is None or case.volume is None:
            return self._cache.get(entry, lambda entry: entry.decode(entry.files))
        return self.store.get(entry)

    def geometry(self, case):
        """Return the `Geometry` of the case's volume, or None for a 2-D image."""
        if case.volume is None:
            return None
        shape, affine, spacing = read_nifti_header(case.images[0])
        return Geometry(affine, spacing, shape, *nifti_grid(case.images[0]))


def _labels_of(case):
    """An `Entry` for each rater. Its files are the label map and, for a volume, an image whose shape it must have."""
    image = () if case.volume is None else case.images[:1]
    return [Entry(case.volume or case.name, (path, *image), _decode_labels, DECODED) for path in case.masks]


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes the image files of a volume and normalises its channels. normalise: see `VolumeReader`."""

    normalise: object

    def __call__(self, paths):
        """The files as one float16 array [Z, C, X, Y], so that a slice is contiguous."""
        channels = self._channels(paths)
        steps = self.normalise if isinstance(self.normalise, tuple) else (self.normalise,) * len(channels)
        if len(steps) != len(channels):
            raise UserError(f"{paths[0]}: has {len(channels)} channels, the data set has {len(steps)}; leave it out")
        parts = [normalised(values, step) for step, values in zip(steps, channels, strict=True)]
        return np.stack([part.transpose(2, 0, 1) for part in parts], axis=1)

    def _channels(self, paths):
        """The channels of all files, a list of float32 [X, Y, Z]."""
        channels, shapes = [], {}
        for path in paths:
            values = read_nifti_channels(path, like=paths[0])
            if not np.isfinite(values).all():
                raise UserError(f"{path}: holds values that are not finite; repair it or leave it out")
            shapes[path] = _as_volume(values.shape[:-1])
            channels += [values[..., k].reshape(shapes[path]) for k in range(values.shape[-1])]
        _check_shapes(shapes)
        return channels


def _decode_labels(files):
    """The label map of `files` (see `_labels_of`) as [Z, X, Y]: uint8 if the labels fit, else int32."""
    path, *images = files
    labels = read_nifti_labels(path, *images)
    for image in images:
        _check_shapes({image: _as_volume(read_nifti_header(image)[0]), path: _as_volume(labels.shape)})
    if labels.min() >= 0 and labels.max() <= 255:
        labels = labels.astype(np.uint8)
    return np.ascontiguousarray(labels.reshape(_as_volume(labels.shape)).transpose(2, 0, 1))


def _slice_of(case, path, slices):
    """The case's slice of a decoded array [Z, ...]. path: the file, for messages."""
    index = case.slice_index or 0
    if index >= len(slices) or (case.slice_index is None and len(slices) != 1):
        wanted = "a 2-D slice" if case.slice_index is None else f"slice {index}"
        raise UserError(f"{path}: holds {len(slices)} slices where {wanted} is expected; check the file")
    return slices[index]


def _as_volume(shape):
    """The shape (X, Y) or (X, Y, Z) as (X, Y, Z)."""
    return (*shape, 1) if len(shape) == 2 else tuple(shape)


def _check_shapes(shapes):
    """Raise `UserError` unless all files have the same shape. shapes: {path: shape}."""
    (first, expected), *others = shapes.items()
    for path, shape in others:
        if shape != expected:
            raise UserError(
                f"{path}: has {'x'.join(map(str, shape))} voxels, but {first.name} has "
                f"{'x'.join(map(str, expected))}; the files of a case must agree"
            )
