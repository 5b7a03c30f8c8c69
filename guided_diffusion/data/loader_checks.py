"""A loader of the user's own: its exceptions, and checks of what it returns, each with a message of one line."""

import sys
from contextlib import contextmanager
from inspect import getsourcefile

import numpy as np

from ..runtime.errors import UserError, in_one_line, innermost_place
from .cases import Case, Geometry

# ---- Exceptions in a loader of the user's own ------------------------------------------------------------------------

OURS = {__name__.partition(".")[0]}
REMEDY = "; python scripts/check_data.py tries every case"


@contextmanager
def own_errors(loader, method, case=None):
    """Turn an exception in a user's own loader into a `UserError` with the case or the method, the file and the line.

    loader: the class. method: the name of the method that is called.
    Three kinds of exception pass unchanged: a `UserError`, an error of the operating system (no permission, a failing
    disk), and an exception in a loader of this package, which is a bug of ours.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything
        if isinstance(error, OSError) and error.errno is not None:  # a decoder such as Pillow's sets no errno
            raise
        libraries = {"builtins", "typing", "torch"}
        own = {cls.__module__ for cls in loader.__mro__ if cls.__module__.partition(".")[0] not in libraries | OURS}
        place = innermost_place(error, own)
        if place is not None:
            where = "{}, line {}, {}".format(*place)
        else:  # no line of the loader failed: its result could not be used
            definer = next(cls for cls in loader.__mro__ if method in vars(cls))
            if is_ours(definer):
                raise
            where = f"{getattr(sys.modules.get(definer.__module__), '__file__', definer.__name__)}, {method}"
        message = f"{where}: {in_one_line(error)}"
        raise UserError(f"{method}: {message}" if case is None else f"case {case.name}: {message}{REMEDY}") from error


def is_ours(cls):
    """Whether a class belongs to this package."""
    return cls.__module__.partition(".")[0] in OURS


# ---- What a loader returns -------------------------------------------------------------------------------------------


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
