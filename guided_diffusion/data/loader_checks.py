"""A loader of the user's own: its exceptions, and checks of what it returns, each with a message of one line."""

import sys
from contextlib import contextmanager
from inspect import getsourcefile
from numbers import Integral
from pathlib import Path

import numpy as np

from ..runtime.console import listed
from ..runtime.errors import UserError, in_one_line, innermost_place
from ..runtime.program import command
from .cases import Case, Geometry

BACKGROUND_NAMES = ("background", "bg", "back ground")
SAME_LENGTH = 0.01  # of a voxel's size: a larger difference is no rounding

# ---- Exceptions in a loader of the user's own ------------------------------------------------------------------------

OURS = {__name__.partition(".")[0]}


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
        text = f"{method}: {message}" if case is None else f"case {case.name}: {message}{case_remedy()}"
        raise UserError(text) from error


def case_remedy():
    """What to do about a case that cannot be used, at the end of a message."""
    return f"; {command('check')} tries every case"


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


def check_attributes(dataset):
    """Raise `UserError` for `class_names`, `class_values` or `image_channels` of another type than the contract's."""
    place, names, values = loader_place(type(dataset)), dataset.class_names, dataset.class_values
    if isinstance(names, str):
        raise UserError(f'{place}: class_names is the text {names!r}; for one class write ("{names}",), with the comma')
    if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{place}: class_names is {names!r}, no tuple of texts; write ("liver", "tumour") or the like')
    if dataset.reads_labels and len(names) > 1 and not len(values) and names[0].lower() in BACKGROUND_NAMES:
        raise UserError(
            f"{place}: class_names begins with {names[0]!r}, which would be the label value 1; leave it out: 0 is the "
            "background"
        )
    for value in values:
        if not all(isinstance(one, Integral) for one in (value if isinstance(value, (tuple, list)) else (value,))):
            raise UserError(f"{place}: class_values has {value!r}, no whole number or tuple of such; write (1, 2)")
    if not isinstance(dataset.image_channels, Integral):
        raise UserError(f"{place}: image_channels is {dataset.image_channels!r}, no whole number; write 3 or the like")


def check_volume_name(case):
    """Raise `UserError` for a volume whose name would place its results outside the folder of results."""
    if case.volume is not None and (Path(case.volume).is_absolute() or ".." in Path(case.volume).parts):
        raise UserError(
            f"{case.images[0]}: its volume's name {case.volume!r} cannot be a file name; name it as its folder or file"
        )


def checked_image(image, case, channels, loader):
    """An image as float32 [C, H, W]. Raises `UserError` for None, another shape, and values that are not finite.

    channels: the number of channels of the data set's images.
    """
    where = case.images[0]
    if image is None:
        raise UserError(f"{where}: read_image of {loader.__name__} returned None, not an array; does it lack return?")
    if np.iscomplexobj(image):
        raise UserError(f"{where}: the loader gave complex numbers; return their magnitude, np.abs(image)")
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
        elif len(shape) == 4 and abs(shape[1] - classes) == 1:
            remedy = "; the background is no class: it has neither a mask nor a name in class_names"
        raise UserError(f"{where}: the loader gave a mask of shape {shape}, not [raters, {classes}, H, W]{remedy}")
    if mask.dtype != bool:
        values = np.unique(mask)
        others = values[values != 0]
        if len(others) > 1 or not all(0 < value < np.inf for value in others):
            raise UserError(
                f"{where}: the loader gave a mask with the values {listed([f'{value:g}' for value in values])}; return "
                "True where a class is, as mask > 127 (for label maps define read_labels instead)"
            )
    return mask.astype(bool)


def checked_labels(labels, case, loader):
    """Label maps as an array [R, H, W]. Raises `UserError` for None and for another number of axes."""
    where = case.masks[0]
    if labels is None:
        raise UserError(f"{where}: read_labels of {loader.__name__} returned None, not an array; does it lack return?")
    labels = np.asarray(labels)
    if labels.ndim != 3:
        remedy = "; return labels[None]" if labels.ndim == 2 else ""
        raise UserError(f"{where}: the loader gave labels of shape {labels.shape}, not [raters, H, W]{remedy}")
    return labels


def check_geometry(geometry, case, loader):
    """Raise `UserError` for anything but None or a `Geometry` whose fields fit each other."""
    if geometry is None or (isinstance(geometry, Geometry) and geometry.placement is not None):  # of a NIfTI file
        return
    where = f"{case.images[0]}: geometry of {loader.__name__}"
    if not isinstance(geometry, Geometry):
        raise UserError(
            f"{where} returned a {type(geometry).__name__}, not a "
            "guided_diffusion.data.Geometry(affine, spacing, shape)"
        )
    affine, spacing, shape = geometry.affine, np.asarray(geometry.spacing, float), tuple(geometry.shape)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError(f"{where}: its affine is no invertible matrix [4, 4] from voxels to mm; correct it")
    if not shape or len(shape) > 3 or not all(isinstance(n, Integral) and n > 0 for n in shape):
        raise UserError(f"{where}: its shape is {shape}, not (X, Y, Z); correct it")
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.shape not in ((3,), (len(shape),)) or (abs(sizes[: len(spacing)] / spacing - 1) > SAME_LENGTH).any():
        text = [" x ".join(f"{size:.3g}" for size in each) for each in (spacing.ravel(), sizes)]
        raise UserError(
            f"{where}: its spacing is {text[0]} mm, the voxels of its affine have {text[1]} mm; distances would be "
            "wrong: take numpy.linalg.norm(affine[:3, :3], axis=0)"
        )
