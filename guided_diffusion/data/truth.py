"""The truth of a case: the masks of its raters, their majority, and the folders that hold them."""

import re

import numpy as np

from ..io.files import list_files, split_suffix
from ..io.images import PICTURE_SUFFIXES
from ..io.nifti import NIFTI_SUFFIXES
from ..runtime.errors import UserError

SUFFIXES = PICTURE_SUFFIXES + NIFTI_SUFFIXES
MASK_ENDINGS = ("", "_mask", "_seg", "_segmentation", "_Segmentation")  # what a mask's name may add to its image's


class RaterFolders:
    """The mask files below `folder`: one rater's in the folder itself (masks/NAME.png), or several raters', each in a
    sub-folder (masks/RATER/NAME.png).

    The folder need not exist. complete: an image with one rater's mask needs every rater's, as in training.
    Raises `UserError` if masks lie both in the folder and in its sub-folders.
    """

    def __init__(self, folder, complete=False):
        self.complete = complete
        own = files_by_name(folder)
        below = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
        self.raters = {path: masks for path in below if (masks := files_by_name(path))}
        if own and self.raters:
            raise UserError(
                f"{folder}: holds masks and folders of masks ({min(self.raters).name}/); with several raters give "
                "each a folder"
            )
        self.is_one = not self.raters
        self.raters = self.raters or {folder: own}

    def masks_of(self, image, names):
        """An image's mask files, at most one for each rater, in the order of the raters' names.

        image: its file name, for messages. names: the names, without suffix, that a mask may have.
        Raises `UserError` for two masks of one rater, and with `complete` for a rater without one.
        """
        found = {folder: self._mask(folder, image, names) for folder in self.raters}
        marked = [path for path in found.values() if path]
        lacking = [folder for folder, path in found.items() if not path]
        if self.complete and marked and lacking:
            raise UserError(
                f"{lacking[0]}: has no mask of {image}, which {marked[0].parent.name}/ has; training needs one of each "
                "rater: add it (empty if the rater saw nothing) or remove the image"
            )
        return tuple(marked)

    def names_of(self, masks):
        """The rater's name for each mask of an image (see `Case`); () if there is only one rater."""
        return () if self.is_one else tuple(path.parent.name for path in masks)

    def _mask(self, folder, image, names):
        masks = [path for name in names for path in self.raters[folder].get(name, ())]
        if len(masks) > 1:
            raise UserError(f"{masks[1]}: is a second mask of {image} beside {masks[0].name}; keep one")
        return masks[0] if masks else None


def raters_of(dataset, cases, k=0):
    """Each rater's mask of class k: bool [R, H, W], or [R, X, Y, Z] for the slices of a volume; None if a case has no
    mask."""
    if not all(case.masks for case in cases):
        return None
    slices = [dataset.load_mask(case)[:, k] for case in cases]  # [R, K, H, W] -> [R, H, W]
    return slices[0] if cases[0].volume is None else np.stack(slices, axis=-1)


def majority(raters):
    """The pixels that more than half of the raters marked: bool [R, ...] -> bool [...]; None -> None."""
    return None if raters is None else raters.mean(axis=0) > 0.5


def truths_of(dataset, cases, read_raters=raters_of):
    """The raters' majority in each class: bool [K, ...], or None without masks. read_raters: a stand-in for
    `raters_of`."""
    truths = []
    for k in range(len(dataset.classes)):
        raters = read_raters(dataset, cases, k)
        if raters is None:
            return None
        truths.append(majority(raters))
    return np.stack(truths)


def on_grid(mask, shape):
    """The mask resampled to this shape by nearest neighbour. Raises `UserError` for another number of axes."""
    if mask.ndim != len(shape):
        raise UserError(f"a mask of shape {mask.shape} cannot be compared with one of shape {tuple(shape)}")
    for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True)):
        if have != want:
            mask = mask.take(((np.arange(want) + 0.5) * have / want).astype(int), axis=axis)
    return mask


def rater_names(cases):
    """The names of all raters of these `Case`s, "rater2" before "rater10"; () if a case with masks names no raters."""
    named = [case.raters for case in cases if case.masks]
    return tuple(sorted(set().union(*named), key=_by_number)) if all(named) else ()


def _by_number(name):
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", name))]


def files_by_name(folder):
    """{name without suffix: list of picture and NIfTI files} of a folder; {} if it does not exist."""
    files = {}
    for path in list_files(folder, SUFFIXES) if folder.is_dir() else ():
        files.setdefault(split_suffix(path)[0], []).append(path)
    return files
