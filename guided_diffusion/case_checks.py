"""Whether the cases that a loader found can be told apart, written, and trained on, and their masks are masks."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from .io.files import check_encodable, split_suffix
from .io.images import PICTURE_SUFFIXES, read_picture
from .runtime.errors import UserError

# Grey values well between background and foreground: beyond are a mask's own and the noise that JPEG adds to them. A
# photograph has nearly all of its pixels there (a head on black a third), a mask those at its smoothed edges, and one
# in grey instead of white has a value or two.
BETWEEN = (32, 223)


PHOTOGRAPH_PIXELS = 1 / 4


PHOTOGRAPH_VALUES = 32


def check_cases(dataset):
    """Raise `UserError` for a case of a `data.SegmentationDataset` whose name is another's or no file name, or, where
    masks are needed, which has none."""
    seen = {}
    for case in dataset.cases:
        check_encodable(*case.images, case.name)
        if case.name in seen:
            raise UserError(
                f"{case.images[0]}: its case name {case.name!r} is also that of {seen[case.name]}; "
                "rename one or keep only one of them"
            )
        if not case.name or Path(case.name).name != case.name or case.name.startswith("."):
            raise UserError(f"{case.images[0]}: its case name {case.name!r} cannot be a file name; rename it")
        if dataset.need_masks and not case.masks:
            told = f"{case.images[0]}: has no mask; add {dataset.expected_mask(case)} or remove the image"
            raise UserError(told + _others_lacking(dataset))
        seen[case.name] = case.images[0]


def _others_lacking(dataset):
    """What is to be added where more than one case has no mask."""
    count, lacking = len(dataset.cases), sum(not case.masks for case in dataset.cases)
    if lacking == count > 1:
        return f" (none of {count} has one: is {dataset.data_dir} the folder that holds the masks too?)"
    return f" ({lacking} of {count} have none; python scripts/check_data.py names them)" if lacking > 1 else ""


def mask_pictures(case):
    """The masks of a case that are picture files of their own, as `files.read_picture` gives them.

    One that cannot be read so is left out: a loader of the user's own may read its files otherwise.
    """
    pictures = []
    for path in case.masks:
        if split_suffix(path)[1].lower() in PICTURE_SUFFIXES and path not in case.images:
            with suppress(UserError):
                pictures.append(read_picture(path))
    return pictures


def like_photograph(picture):
    """Whether a picture [C, H, W] of 0 to 255 has the many grey values of a photograph rather than those of a mask."""
    grey = picture.mean(axis=0).round()
    between = grey[(grey > BETWEEN[0]) & (grey < BETWEEN[1])]
    return between.size >= PHOTOGRAPH_PIXELS * grey.size and len(np.unique(between)) >= PHOTOGRAPH_VALUES
