"""Slices of volumes: each volume is decoded once, normalised as a whole and cached on disk or in memory."""

from collections import Counter
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np

from ..io.images import stacked
from ..io.nifti import (
    as_3d,
    nifti_channels,
    nifti_geometry,
    nifti_notes,
    read_nifti_channels,
    read_nifti_header,
    read_nifti_labels,
)
from ..io.volume_formats import is_volume_path
from ..runtime.console import counted
from ..runtime.errors import UserError, reason_of
from ..runtime.program import command
from .cases import Case, Geometry
from .intensities import CTWindow as CTWindow  # loaders of version 0.2.0 import it from here
from .intensities import doubt_of, normalisation_text, normalised, ranges_of, spread, zscore
from .volume_cache import Entry, VolumeCache

FILES_ONLY = ContextVar("whether only the files of the cases are of interest", default=False)

DECODED = "3"  # the version of the decoding; a new one makes caches on disk stale


class VolumeReader:
    """Gives a loader of volumes its cases, one per slice, and their normalised images, labels and geometry.

    Slice k is `volume[..., k]`, [X, Y], of the volume as `nifti.read_nifti` turns it. A file [X, Y] or [X, Y, 1] is a
    2-D image: a case without volume and slice index. A 4-D file holds several channels.

    normalise: `zscore` or a `CTWindow` for all channels, or a tuple of one for each.
    store: the `volume_cache.VolumeStore` that keeps decoded volumes on disk. None: each process keeps up to
    `cache_bytes` of them in memory. The default is enough for about 55 BraTS cases (240 x 240 x 155 voxels, four
    modalities, 71 MB). 2-D images are cached in memory only.
    is_chosen: whether the user chose `zscore`, so that no values speak against it.
    unreadable: {name: message} of the volumes whose headers cannot be read. Each of them still has a case, which fails
    when it is read, so that a check of the data finds them all and the other volumes are sampled.
    """

    cache_bytes = 4 * 2**30

    def __init__(self, normalise=zscore, is_chosen=False):
        self.normalise, self.is_chosen = normalise, is_chosen
        self.store, self.unreadable = None, {}
        self._found = []  # the image files of each volume
        self._cache = VolumeCache(self.cache_bytes)

    def cases(self, name, images, masks=(), label=None, *, raters=(), check_masks=True):
        """Return the cases of one volume, `NAME_slice_KKK` for each slice, or of a 2-D image the single case `NAME`.

        images: files of one or more channels each. masks: one label map per rater. raters: their names. Only headers
        are read. A header that cannot be read, and files that differ in shape, go to `unreadable`.
        check_masks: False leaves the masks' shapes to `labels`, so that sampling does not fail on a damaged mask.
        """
        images, masks = tuple(images), tuple(masks)
        if FILES_ONLY.get():  # a header of each of a thousand volumes on a network drive takes minutes
            return [Case(name, images, masks, label, raters=raters)]
        try:
            found = self._cases(name, images, masks, label, raters, check_masks)
        except (UserError, OSError) as error:
            self.unreadable[name] = reason_of(error)
            return [Case(f"{name}_slice_000", images, masks, label, name, 0, raters=raters)]
        self._found.append(images)
        return found

    def _cases(self, name, images, masks, label, raters, check_masks):
        depth = as_3d(read_nifti_header(images[0])[0])[2]
        if depth == 1:
            return [Case(name, images, masks, label, raters=raters)]  # shapes are compared when the data are read
        checked = images + masks if check_masks else images
        _check_shapes({path: as_3d(read_nifti_header(path, like=images[0])[0]) for path in checked})
        return [
            Case(f"{name}_slice_{index:03d}", images, masks, label, name, index, raters=raters)
            for index in range(depth)
        ]

    def forget(self):
        """Free the decoded volumes in memory. A loop over whole volumes calls it after each of them, so that its memory
        does not grow with their number."""
        self._cache = VolumeCache(self.cache_bytes)

    def check_readable(self):
        """Raise `UserError` with the first of the `unreadable` volumes and their number."""
        if self.unreadable:
            count = len(self.unreadable)
            more = f" ({count} volumes in all cannot be read: {command('check')} names them)"
            raise UserError(next(iter(self.unreadable.values())) + (more if count > 1 else ""))

    def channels(self, paths):
        """The number of channels of the first of these files that can be read; 1 where none can."""
        for path in paths:
            with suppress(UserError, OSError):
                return nifti_channels(path)
        return 1

    def notes(self):
        """Lines on units, forms and values of the volumes found that users should know; see `nifti_notes`."""
        first, counts = {}, Counter()
        for images in self._found:
            for kind, text in nifti_notes(images[0]).items():
                first.setdefault(kind, text)
                counts[kind] += 1
        texts = [text + (f" ({counts[kind]} such files)" if counts[kind] > 1 else "") for kind, text in first.items()]
        for images in spread(self._found):
            channels = [(path, found) for path in images for found in ranges_of(path)]
            steps = self.normalise if isinstance(self.normalise, tuple) else (self.normalise,) * len(channels)
            doubts = [doubt_of(*channel, step, self.is_chosen) for channel, step in zip(channels, steps, strict=False)]
            if any(doubts):
                return (*texts, next(filter(None, doubts)))
        return tuple(texts)

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
        """The approximate size of an entry in a store, in bytes, from the headers of its files; 0 if one cannot be
        read."""
        with suppress(UserError, OSError):
            return self._stored_bytes(entry)
        return 0

    def _stored_bytes(self, entry):
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
        return None if case.volume is None else self.file_geometry(case)

    def file_geometry(self, case):
        """The `Geometry` of the case's first file, also of a 2-D image."""
        return Geometry(*nifti_geometry(case.images[0]))


def image_geometry(dataset, case):
    """Where the case's image lies: `load_geometry`, and for a 2-D image in a volume's format its file's `Geometry`;
    None for a picture."""
    if case.volume is None and dataset.volumes is not None and is_volume_path(case.images[0]):
        return dataset.volumes.file_geometry(case)
    return dataset.load_geometry(case)


def _labels_of(case):
    """An `Entry` for each rater. Its files are the label map and the image over which it lies."""
    return [Entry(case.volume or case.name, (path, *case.images[:1]), _decode_labels, DECODED) for path in case.masks]


@dataclass(frozen=True)
class ImageDecoder:
    """Decodes the image files of a volume and normalises its channels. normalise: see `VolumeReader`."""

    normalise: object

    def __call__(self, paths):
        """The files as one float16 array [Z, C, X, Y], so that a slice is contiguous."""
        channels = self._channels(paths)
        steps = self.normalise if isinstance(self.normalise, tuple) else (self.normalise,) * len(channels)
        if len(steps) != len(channels):
            raise UserError(
                f"{paths[0]}: has {counted(len(channels), 'channel')}, dataset.json names {len(steps)}; correct it, "
                "or leave the file out"
            )
        (x, y, z), count = channels[0].shape, len(channels)
        decoded = np.empty((z, count, x, y), np.float16)
        for c, step in enumerate(steps):
            normalised(channels[c], step, out=decoded[:, c].transpose(1, 2, 0))
            channels[c] = None  # frees it, unless it is a part of a file of several channels
        return decoded

    def _channels(self, paths):
        """The channels of all files, a list of float32 [X, Y, Z]."""
        channels, shapes = [], {}
        for path in paths:
            values = read_nifti_channels(path, like=paths[0])
            shapes[path] = as_3d(values.shape[:-1])
            channels += [values[..., k].reshape(shapes[path]) for k in range(values.shape[-1])]
        _check_shapes(shapes)
        return channels


def _decode_labels(files):
    """The label map of `files` (see `_labels_of`) as [Z, X, Y]: uint8 if the labels fit, else int32."""
    path, *images = files
    labels = read_nifti_labels(path, *images, compact=True)
    for image in images:
        shape = as_3d(read_nifti_header(image)[0])
        if shape[2] > 1:  # the sizes of 2-D images are compared when both are read
            _check_shapes({image: shape, path: as_3d(labels.shape)})
    if labels.dtype != np.uint8 and labels.min() >= 0 and labels.max() <= 255:
        labels = labels.astype(np.uint8)
    return np.ascontiguousarray(labels.reshape(as_3d(labels.shape)).transpose(2, 0, 1))


def _slice_of(case, path, slices):
    """The case's slice of a decoded array [Z, ...]. path: the file, for messages."""
    index = case.slice_index or 0
    if index >= len(slices) or (case.slice_index is None and len(slices) != 1):
        wanted = "a 2-D slice" if case.slice_index is None else f"slice {index}"
        raise UserError(f"{path}: holds {len(slices)} slices where {wanted} is expected; check the file")
    return slices[index]


def _check_shapes(shapes):
    """Raise `UserError` unless all files have the same shape. shapes: {path: shape}."""
    (first, expected), *others = shapes.items()
    for path, shape in others:
        if shape != expected:
            raise UserError(
                f"{path}: has {'x'.join(map(str, shape))} voxels, but {first.name} has "
                f"{'x'.join(map(str, expected))}; the files of a case must agree"
            )
