"""Slices of NIfTI volumes: each volume is decoded once, normalised as a whole and kept, on disk or in memory."""

import numpy as np

from .data import Case, Geometry
from .errors import UserError
from .files import read_nifti, read_nifti_header, read_nifti_labels
from .volume_store import Entry, VolumeCache

DECODED = "1"  # to be counted up whenever volumes are decoded differently: it makes caches on disk stale
CLIP = 5.0  # z-scores beyond this are noise or bright vessels; the network does better without them


class VolumeReader:
    """What a loader of NIfTI files needs: cases of slices, their normalised images, their labels, their geometry.

    A slice k is `volume[..., k]` as it lies in the file, [X, Y], so stacking slices along the last axis gives the
    volume back. A file [X, Y] or [X, Y, 1] is a 2-D image: a case without volume and slice index.

    store: the `volume_store.VolumeStore` that keeps decoded volumes on disk, or None: then each process keeps them in
    memory, at most `cache_bytes` of them. The default holds about 55 BraTS cases (240 x 240 x 155, four modalities at
    71 MB); set `VolumeReader.cache_bytes` for more or less. 2-D images are kept in memory alone.
    """

    cache_bytes = 4 * 2**30

    def __init__(self):
        self.store = None
        self._cache = VolumeCache(self.cache_bytes)

    def cases(self, name, images, masks=(), label=None, *, check_masks=True):
        """Return the cases of one volume, `NAME_slice_KKK` for each slice, or [the one case `NAME`] of a 2-D image.

        images: one file per channel; masks: one label map per rater. Only headers are read.
        Raises `UserError` if the files of a volume differ in shape. Without `check_masks` those of the masks are left
        to `labels`: to sample, a damaged mask must not matter.
        """
        images, masks = tuple(images), tuple(masks)
        depth = _as_volume(read_nifti_header(images[0])[0])[2]
        if depth == 1:
            return [Case(name, images, masks, label)]  # the shapes are compared when the data are read
        checked = images + masks if check_masks else images
        _check_shapes({path: _as_volume(read_nifti_header(path)[0]) for path in checked})
        return [
            Case(f"{name}_slice_{index:03d}", images, masks, label, volume=name, slice_index=index)
            for index in range(depth)
        ]

    def image(self, case):
        """Return the case's slice as float32 [C, X, Y]: per file a z-score over the whole volume (see `zscore`)."""
        return _slice_of(case, case.images[0], self._array(case, _images_of(case))).astype(np.float32)

    def labels(self, case):
        """Return the case's label maps as integers [R, X, Y], one per file in `case.masks`."""
        decoded = [(entry.files[0], self._array(case, entry)) for entry in _labels_of(case)]
        return np.stack([_slice_of(case, path, slices) for path, slices in decoded])

    def entries(self, case, masks):
        """What a store keeps of a case's volume, a list of `Entry`s; with `masks` also its label maps."""
        return [_images_of(case), *(_labels_of(case) if masks else ())]

    def stored_bytes(self, entry):
        """About how many bytes of a store an entry takes, from the headers of its files."""
        voxels = int(np.prod(read_nifti_header(entry.files[0])[0]))
        return voxels * (2 * len(entry.files) if entry.decode is _decode_images else 1)

    def _array(self, case, entry):
        if self.store is None or case.volume is None:
            return self._cache.get(entry, lambda entry: entry.decode(entry.files))
        return self.store.get(entry)

    def geometry(self, case):
        """Return the `Geometry` of the case's volume, or None for a 2-D image."""
        if case.volume is None:
            return None
        shape, affine, spacing = read_nifti_header(case.images[0])
        return Geometry(affine, spacing, shape)


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


def normalised(values):
    """A channel's z-scores (see `zscore`) as float16, which suffices within +-5: how they are kept in memory."""
    return zscore(values).astype(np.float16)


def normalised_channels(raw):
    """`normalised` of each channel of an image or volume [C, ...] from elsewhere, as float32."""
    raw = np.asarray(raw, dtype=np.float32)
    return np.stack([normalised(channel) for channel in raw]).astype(np.float32)


def _images_of(case):
    return Entry(case.volume or case.name, case.images, _decode_images, DECODED)


def _labels_of(case):
    """An entry for each rater: (the label map[, an image of the volume, which it must fit])."""
    image = () if case.volume is None else case.images[:1]
    return [Entry(case.volume or case.name, (path, *image), _decode_labels, DECODED) for path in case.masks]


def _decode_images(paths):
    """The files as one array [Z, C, X, Y]: a slice lies in one piece."""
    channels, shapes = [], {}
    for path in paths:
        values = read_nifti(path)[0]
        if not np.isfinite(values).all():
            raise UserError(f"{path}: holds values that are not finite; repair it or leave it out")
        values = values.reshape(_as_volume(values.shape))
        shapes[path] = values.shape
        channels.append(normalised(values).transpose(2, 0, 1))
    _check_shapes(shapes)
    return np.stack(channels, axis=1)


def _decode_labels(files):
    """The label map of (its path[, an image of its volume]) as [Z, X, Y], in bytes where the labels fit."""
    path, *images = files
    labels = read_nifti_labels(path)
    for image in images:
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
