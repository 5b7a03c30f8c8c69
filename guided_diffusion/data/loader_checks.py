"""Checks of what a loader returns, with messages for the mistakes of whoever writes one."""

from inspect import getsourcefile

import numpy as np

from ..runtime.errors import UserError
from .cases import Case, Geometry


def loader_place(loader):
    """The file and name of a loader's class for messages: "my_loader.py: Polyps"."""
    try:
        return f"{getsourcefile(loader)}: {loader.__name__}"
    except (TypeError, OSError):  # a class that was made in an interactive session
        return loader.__name__


def check_methods(loader, base, needed):
    """Raise `UserError` if a loader's class lacks one of the `needed` methods, which `base` leaves to it.

    `read_labels` may stand for `read_mask`.
    """
    standing = {"read_mask": ("read_mask", "read_labels")}
    lacking = [
        "find_cases(self)" if name == "find_cases" else f"{name}(self, case)"
        for name in needed
        if all(getattr(loader, other) is getattr(base, other) for other in standing.get(name, (name,)))
    ]
    if lacking:
        raise UserError(f"{loader_place(loader)} must define {' and '.join(lacking)}; docs/custom_dataset.md shows how")


def checked_cases(found, loader):
    """The list of cases that `find_cases` returned. Raises `UserError` for anything but `Case`s."""
    if found is None:
        raise UserError(
            f"{loader_place(loader)}: find_cases returned None, not a list of cases; does it lack return cases?"
        )
    cases = list(found)
    for case in cases:
        if not isinstance(case, Case):
            raise UserError(
                f"{loader_place(loader)}: find_cases returned a {type(case).__name__}, {str(case)[:60]}, among its "
                "cases; each must be a Case(name, images, masks)"
            )
    return cases


def check_class_names(names, loader):
    """Raise `UserError` for class names that are one text: its letters would be classes."""
    if isinstance(names, str):
        raise UserError(
            f'{loader_place(loader)}: class_names is the text {names!r}; for one class write ("{names}",), with the '
            "comma"
        )


def checked_image(image, case, channels, loader):
    """An image as float32 [C, H, W]. Raises `UserError` for None, another shape, and values that are not finite.

    channels: the number of channels of the data set's images.
    """
    where = case.images[0]
    if image is None:
        raise UserError(f"{where}: read_image of {loader.__name__} returned None, not an array; does it lack return?")
    image = np.asarray(image, dtype=np.float32)
    shape = image.shape
    if len(shape) == 2:
        raise UserError(f"{where}: the loader gave an image of shape {shape}, not [C, H, W]; return image[None]")
    if len(shape) == 3 and shape[0] != channels and shape[2] == channels:
        raise UserError(
            f"{where}: the loader gave an image of shape {shape}, with its channels last; return "
            "image.transpose(2, 0, 1)"
        )
    if len(shape) != 3 or not image.size:
        raise UserError(f"{where}: the loader gave an image of shape {shape}, not [C, H, W]")
    if shape[0] != channels:
        raise UserError(f"{where}: has {shape[0]} channels, the data set has {channels}; convert it or leave it out")
    share = 1 - np.isfinite(image).mean()
    if share:
        raise UserError(
            f"{where}: {100 * share:.3g} % of its values are not finite (NaN or infinite); repair it or leave it out"
        )
    return image


def checked_mask(mask, case, classes, loader):
    """A mask as bool [R, K, H, W]. Raises `UserError` for None, another shape, and values other than two.

    classes: the number K of classes.
    """
    where = case.masks[0]
    if mask is None:
        raise UserError(f"{where}: read_mask of {loader.__name__} returned None, not an array; does it lack return?")
    mask = np.asarray(mask)
    shape = mask.shape
    if len(shape) != 4 or shape[1] != classes:
        remedy = ""
        if len(shape) == 2 and classes == 1:
            remedy = "; return mask[None, None]"
        elif len(shape) == 3 and shape[0] == classes:
            remedy = "; return mask[None]"
        elif len(shape) == 3 and shape[2] == classes:
            remedy = ", with its classes last; return mask.transpose(2, 0, 1)[None]"
        elif len(shape) == 4 and shape[0] == classes:
            remedy = ", with the classes first; return mask.swapaxes(0, 1)"
        raise UserError(f"{where}: the loader gave a mask of shape {shape}, not [raters, {classes}, H, W]{remedy}")
    if mask.dtype != bool:
        top = mask.max(initial=0)
        others = mask[(mask != 0) & (mask != top)]
        if others.size or not 0 <= top < np.inf:
            value = others[0] if others.size else top
            raise UserError(
                f"{where}: the loader gave a mask with the value {value:g} beside 0 and {top:g}; return True where a "
                "class is, as mask > 127 (for label maps define read_labels instead)"
            )
    return mask.astype(bool)


def check_geometry(geometry, case, loader):
    """Raise `UserError` for a geometry that is neither None nor a `Geometry`."""
    if geometry is not None and not isinstance(geometry, Geometry):
        raise UserError(
            f"{case.images[0]}: geometry of {loader.__name__} returned a {type(geometry).__name__}, not a "
            "guided_diffusion.data.cases.Geometry(affine, spacing, shape)"
        )
