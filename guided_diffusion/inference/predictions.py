"""Predictions read from a results folder, or from any folder of masks."""

import os
import re
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.classes import BINARY
from ..data.truth import MASK_ENDINGS, NearNames, files_by_name, near_key
from ..io.files import split_suffix
from ..io.images import read_picture, read_picture_labels, read_picture_mask
from ..io.nifti import as_labels, read_nifti, read_nifti_labels, read_nifti_onto
from ..io.volume_formats import is_volume_path
from ..runtime.errors import UserError
from .manifest import read_manifest
from .results import soft_files

PICTURE_MEMBER = re.compile(r"(.+)_[0-9]{2,}\.png", re.DOTALL)
VOLUME_MEMBER = re.compile(r"(.+)_sample_[0-9]{2,}\.nii\.gz", re.DOTALL)


def _by_case(folder, pattern):
    """{case: the sorted paths of its members} of a folder, from one listing; {} where there is no folder."""
    found = {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        match = pattern.fullmatch(name)
        if match:
            found.setdefault(match[1], []).append(folder / name)
    return found


class Predictions:
    """Reads the predictions in a results folder, or in any folder of masks that have their cases' names.

    names: those of all cases. In a folder that sampling did not write, a case's mask is the picture (the file of
    a volume) of its name, or of its name and one of `truth.MASK_ENDINGS` unless another case has that name; else one
    whose name differs in Unicode form or case, unless another case's name does not differ more.
    classes: the `Classes` of the masks; every method reads one class, k. geometry_of(name): the `data.Geometry` of a
    volume or of a 2-D NIfTI image, onto whose voxels its files are brought (see `nifti.read_nifti_onto`); None for a
    picture, and for a volume without one: its files are read as by `nifti.read_nifti`.
    num_ensemble: the number of members in the manifest, or of checkpoints that answered in one pass; 0 for one such
    answer, or None. used: the paths of the
    masks read so far. elsewhere: {name: text} of the masks that lie on another grid than their image. assumed: {name:
    path} of the masks that are taken to lie voxel for voxel over their image, since one of the two has lost its affine.
    unknown: {label value that no class has: the path of the first mask with it}.
    Raises `UserError` without the folder, and for files that do not fit.
    """

    def __init__(self, folder, names=(), classes=BINARY, geometry_of=lambda name: None):
        self.folder, self.names, self.classes = Path(folder), frozenset(names), classes
        self.geometry_of = geometry_of
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: no such folder; --pred_dir must name a folder of predicted masks")
        self.masks = self.folder / "masks" if (self.folder / "masks").is_dir() else self.folder
        recorded = read_manifest(self.folder)
        settings = recorded.get("settings", {})
        self.num_ensemble = sum(settings.get("shares", ())) or settings.get("num_ensemble")
        self.is_ours = "checkpoint_sha256" in recorded
        self._labels = (None, {})  # the last case's name and its label maps by path, since each class reads them
        self.used, self.elsewhere, self.assumed, self.unknown = set(), {}, {}, {}

    def take_notes(self):
        """(used, elsewhere, assumed, unknown) since the last call, for `add_notes` of the same folder's `Predictions`
        in another process."""
        notes = (self.used, self.elsewhere, self.assumed, self.unknown)
        self.used, self.elsewhere, self.assumed, self.unknown = set(), {}, {}, {}
        return notes

    def add_notes(self, notes):
        """Add what `take_notes` returned; the first text on a case or value stays."""
        used, *texts = notes
        self.used |= used
        for own, new in zip((self.elsewhere, self.assumed, self.unknown), texts, strict=True):
            for key, text in new.items():
                own.setdefault(key, text)

    def mask(self, name, is_volume, k=0):
        """The mask of a case's class, bool [H, W] or [X, Y, Z], or None without a prediction."""
        path = self.mask_file(name, is_volume)
        if path is None:
            return None
        self.used.add(path)
        return self._read_mask(name, path, is_volume, k)

    def _read_mask(self, name, path, is_volume, k):
        if self.classes.is_binary:
            return self._read_labels(name, path, is_volume) > 0 if is_volume_path(path) else read_picture_mask(path)
        if self._labels[0] != name:
            self._labels = (name, {})
        maps = self._labels[1]
        if path not in maps:
            read = self._read_labels if is_volume_path(path) else lambda *_: read_picture_labels(path)
            maps[path] = read(name, path, is_volume)
            values, known = np.unique(maps[path]).tolist(), {0, *sum(self.classes.values, ())}
            if any(values) and not known.intersection(values) - {0}:
                raise UserError(
                    f"{path}: holds the values {', '.join(map(str, values[:5]))} and none of the "
                    f"classes {self.classes}; give its values by --classes"
                )
            for value in set(values) - known:
                self.unknown.setdefault(value, path)
        return self.classes.mask_of(maps[path], k)

    def _read_values(self, name, path, is_volume, labels=False):
        """The values of a volume's file on its image's grid, [X, Y, Z], or [X, Y] of a 2-D image.

        They are float32, or with `labels` what `nifti.as_labels` takes.
        """
        geometry = self.geometry_of(name)
        if geometry is None:
            return read_nifti_labels(path, compact=True) if labels else read_nifti(path)[0]
        found = read_nifti_onto(path, geometry, labels)
        for known, text in ((self.elsewhere, found.resampled), (self.assumed, found.assumed)):
            if text:
                known.setdefault(name, text)
        return found.values if is_volume else found.values.reshape(found.values.shape[:2])

    def _read_labels(self, name, path, is_volume):
        """`_read_values` of a label map, as integers; see `nifti.as_labels`."""
        return as_labels(self._read_values(name, path, is_volume, labels=True), path)

    def unmatched(self):
        """The mask files that `mask` has not read, sorted."""
        if self.is_ours:
            files = [*self.folder.glob("masks/*.png"), *self.folder.glob("*_seg.nii.gz")]
            files = [path for path in files if not path.name.startswith(".")]  # temporary ones
            # a 2-D image's mask is written twice, as a picture and as NIfTI
            files = [p for p in files if p.suffix == ".png" or not (self.masks / f"{p.name[:-11]}.png").exists()]
        else:
            files = [path for paths in self._files.values() for path in paths]
        return sorted(set(files) - self.used)

    def mask_file(self, name, is_volume):
        """The path of a case's mask, or None without a prediction."""
        if self.is_ours:
            path = self.folder / f"{name}_seg.nii.gz" if is_volume else self.masks / f"{name}.png"
            return path if os.path.exists(path) else None  # also where the name is too long for a file
        stems = [name + ending for ending in MASK_ENDINGS if not ending or name + ending not in self.names]
        named = [path for stem in stems for path in self._files.get(stem, ())]
        if not named and self._near_keys[near_key(name)] < 2:
            near = [path for stem in stems for path in self._near_names.find(stem)]
            named = [path for path in dict.fromkeys(near) if split_suffix(path)[0] not in self._exact_names]
        found = [path for path in named if is_volume_path(path) == is_volume]
        if not found and not is_volume and self.geometry_of(name) is not None:  # a 2-D image in a NIfTI file
            found = named
        if len(found) > 1:
            raise UserError(f"{found[1]}: is a second mask of {name} beside {found[0].name}; keep one")
        return found[0] if found else None

    @cached_property
    def _files(self):
        return files_by_name(self.masks)

    @cached_property
    def _near_names(self):
        return NearNames([(stem, path) for stem, paths in self._files.items() for path in paths])

    @cached_property
    def _near_keys(self):
        return Counter(map(near_key, self.names))

    @cached_property
    def _exact_names(self):
        return {name + ending for name in self.names for ending in MASK_ENDINGS}

    def members(self, name, is_volume, k=0):
        """The members' masks of a class, a list of bool arrays; empty if none were saved."""
        paths = (self._volume_members if is_volume else self._picture_members).get(name, ())
        return [self._read_mask(name, path, is_volume, k) for path in paths]

    @cached_property
    def _picture_members(self):
        return _by_case(self.folder / "samples", PICTURE_MEMBER)

    @cached_property
    def _volume_members(self):
        return _by_case(self.folder, VOLUME_MEMBER)

    def probability(self, name, is_volume, k=0):
        """A class's probability, float32 in [0, 1], or None if it was not saved."""
        return self._soft_map(name, "probability", is_volume, k)

    def uncertainty(self, name, is_volume, k=0):
        """A class's uncertainty, float32 in [0, 0.5], or None if it was not saved."""
        values = self._soft_map(name, "uncertainty", is_volume, k)
        return values if values is None or is_volume else values / 2

    def coarse(self, name, is_volume, k=0):
        """A class's coarse mask, float32 in [0, 1], or None if it was not saved."""
        return self._soft_map(name, "coarse", is_volume, k)

    def _soft_map(self, name, what, is_volume, k):
        path = self.folder / soft_files(self.classes, name, is_volume, what)[k]
        if not os.path.exists(path):
            return None
        values = self._read_values(name, path, is_volume) if is_volume else read_picture(path)[0] / 255
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is refused too
            raise UserError(
                f"{path}: holds values outside 0 to 1, which are not probabilities; remove it or save it again"
            )
        return values
