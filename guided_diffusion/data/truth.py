"""The truth of a case: the masks of its raters, their majority, and the folders in which several raters' masks lie.

In layouts of folders each rater has a sub-folder of the mask folder: masks/RATER/NAME.png.
"""

import re

import numpy as np

from ..io.files import list_files, split_suffix
from ..io.images import PICTURE_SUFFIXES
from ..io.nifti import NIFTI_SUFFIXES
from ..runtime.errors import UserError

SUFFIXES = PICTURE_SUFFIXES + NIFTI_SUFFIXES


class RaterFolders:
    """The mask files below `folder`: of one rater in it, or of each in a sub-folder; of none if it is not there.

    complete: whether each rater's mask is needed where one has marked an image, as training needs it.
    Raises `UserError` where masks lie in the folder as well as in its sub-folders.
    """

    def __init__(self, folder, complete=False):
        self.complete = complete
        own = files_by_name(folder)
        below = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
        self.raters = {path: masks for path in below if (masks := files_by_name(path))}
        if own and self.raters:
            raise UserError(
                f"{folder}: holds masks and folders of masks ({min(self.raters).name}/); with several raters put each "
                "one's into a folder of its own"
            )
        self.is_one = not self.raters
        self.raters = self.raters or {folder: own}

    def masks_of(self, image, names):
        """An image's mask files, one of each rater in the order of their names.

        image: its file name, for messages. names: what a mask may be called, without its suffix.
        Raises `UserError` for two masks of one rater, and for a rater without a mask where that is needed.
        """
        found = {folder: self._mask(folder, image, names) for folder in self.raters}
        marked = [path for path in found.values() if path]
        lacking = [folder for folder, path in found.items() if not path]
        if self.complete and marked and lacking:
            raise UserError(
                f"{lacking[0]}: has no mask of {image}, which {marked[0].parent.name}/ has; training needs one of each "
                "rater: add it (an empty one says that there is nothing) or remove the image"
            )
        return tuple(marked)

    def names_of(self, masks):
        """The raters' names of an image's masks, see `data.Case`; none where all masks are one rater's."""
        return () if self.is_one else tuple(path.parent.name for path in masks)

    def _mask(self, folder, image, names):
        masks = [path for name in names for path in self.raters[folder].get(name, ())]
        if len(masks) > 1:
            raise UserError(f"{masks[1]}: is a second mask of {image} beside {masks[0].name}; keep one")
        return masks[0] if masks else None


def raters_of(dataset, cases, k=0):
    """The masks of class k by each rater: bool [R, H, W], or [R, X, Y, Z] of a volume's slices; None if any mask is
    missing."""
    if not all(case.masks for case in cases):
        return None
    slices = [dataset.load_mask(case)[:, k] for case in cases]  # [R, K, H, W] -> [R, H, W]
    return slices[0] if cases[0].volume is None else np.stack(slices, axis=-1)


def majority(raters):
    """What more than half of the raters marked: bool [R, ...] -> bool [...]; None -> None."""
    return None if raters is None else raters.mean(axis=0) > 0.5


def truths_of(dataset, cases, read_raters=raters_of):
    """The truth of each class, see `majority`: bool [K, ...], or None. read_raters: called as `raters_of` is."""
    truths = []
    for k in range(len(dataset.classes)):
        raters = read_raters(dataset, cases, k)
        if raters is None:
            return None
        truths.append(majority(raters))
    return np.stack(truths)


def on_grid(mask, shape):
    """The mask on a grid of this shape, by nearest neighbour; unchanged where the shapes agree. Raises `UserError` for
    another number of axes."""
    if mask.ndim != len(shape):
        raise UserError(f"a mask of shape {mask.shape} cannot be compared with one of shape {tuple(shape)}")
    for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True)):
        if have != want:
            mask = mask.take(((np.arange(want) + 0.5) * have / want).astype(int), axis=axis)
    return mask


def rater_names(cases):
    """The names of all raters of these `data.Case`s, "rater2" before "rater10"; () where not all that have masks name
    theirs."""
    named = [case.raters for case in cases if case.masks]
    return tuple(sorted(set().union(*named), key=_by_number)) if all(named) else ()


def _by_number(name):
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", name))]


def files_by_name(folder):
    """{name without suffix: its picture and NIfTI files}, empty if there is no such folder."""
    files = {}
    for path in list_files(folder, SUFFIXES) if folder.is_dir() else ():
        files.setdefault(split_suffix(path)[0], []).append(path)
    return files


MASK_ENDINGS = ("", "_mask", "_seg", "_segmentation", "_Segmentation")
