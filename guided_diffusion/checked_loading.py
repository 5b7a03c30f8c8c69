"""What the framework calls on a loader instead of its methods: the results are checked, and what a loader of the
user's own raises is told in one line."""

import sys
from contextlib import contextmanager

import numpy as np
import torch

from .runtime.errors import UserError, in_one_line, innermost_place

REMEDY = "; python scripts/check_data.py tries every case"


@contextmanager
def own_errors(loader, method, case=None):
    """Turn what a loader of the user's own raises into a `UserError` that says where: the case or method, file, line.

    loader: the class; method: the name of what is called. `UserError`, what the system says (no permission, a failing
    disk) and whatever the program's own methods raise pass as they are: the former say it themselves, the last are bugs
    of ours.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # it may be anything
        if isinstance(error, OSError) and error.errno is not None:  # without: a decoder's, such as Pillow's
            raise
        own = [cls for cls in loader.__mro__ if issubclass(cls, CheckedLoading) and not _is_ours(cls)]
        place = innermost_place(error, {cls.__module__ for cls in own})
        if place is not None:
            told = "{}, line {}, {}".format(*place)
        else:  # what it gave could not be used
            definer = next(cls for cls in loader.__mro__ if method in vars(cls))
            if _is_ours(definer):
                raise
            told = f"{getattr(sys.modules.get(definer.__module__), '__file__', definer.__name__)}, {method}"
        told += f": {in_one_line(error)}"
        raise UserError(f"{method}: {told}" if case is None else f"case {case.name}: {told}{REMEDY}") from error


def _is_ours(cls):
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


class CheckedLoading:
    """The doors to a `data.SegmentationDataset`: each method `load_X` gives what its `read_X`, or the like, gives.

    All raise `UserError` for what is wrong with that, and see `own_errors`.
    """

    def load_item(self, index):
        """The item of case `index`."""
        with own_errors(type(self), "__getitem__", self.cases[index]):
            return self[index]

    def load_normalised(self, case):
        """The case's own image, normalised, at its own size: float32 [C, H, W]."""
        raw = torch.from_numpy(np.ascontiguousarray(self.load_image(case)))
        with own_errors(type(self), "normalise", case):
            return torch.as_tensor(self.normalise(raw), dtype=torch.float32)

    def load_image(self, case):
        """`read_image`, checked: float32 [C, H, W] with a case's `case_channels` and finite values."""
        with own_errors(type(self), "read_image", case):
            image = np.asarray(self.read_image(case), dtype=np.float32)
        if image.ndim != 3:
            raise UserError(f"{case.images[0]}: the loader gave an image of shape {image.shape}, not [C, H, W]")
        if image.shape[0] != self.case_channels:
            raise UserError(
                f"{case.images[0]}: has {image.shape[0]} channels, the data set has {self.case_channels}; "
                "convert it or leave it out"
            )
        if not np.isfinite(image).all():
            raise UserError(f"{case.images[0]}: holds values that are not finite; repair it or leave it out")
        return image

    def load_mask(self, case, image_size=None):
        """`read_mask`, checked: bool [R, K, H, W], of the image's size (H, W) when that is given.

        Only for a case whose `masks` are set, whatever `need_masks` is.
        """
        with own_errors(type(self), "read_mask", case):
            mask = np.asarray(self.read_mask(case))
        if mask.ndim != 4 or mask.shape[1] != len(self.class_names):
            raise UserError(
                f"{case.masks[0]}: the loader gave a mask of shape {mask.shape}, "
                f"not [raters, {len(self.class_names)}, H, W]"
            )
        if case.raters and len(set(case.raters)) != len(mask):
            names = ", ".join(case.raters)
            raise UserError(f"{case.masks[0]}: the loader gave {len(mask)} masks; the case names the raters {names}")
        if self.classes.is_exclusive and mask.shape[1] > 1 and (mask.sum(axis=1) > 1).any():
            raise UserError(
                f"{case.masks[0]}: the loader marked a pixel as two of {', '.join(self.class_names)}; where classes "
                "overlap, class_values must have a label value that both share"
            )
        if image_size is not None and tuple(mask.shape[-2:]) != tuple(image_size):
            raise UserError(
                f"{case.masks[0]}: the mask has {mask.shape[-2]}x{mask.shape[-1]} pixels, its image "
                f"{case.images[0].name} has {image_size[0]}x{image_size[1]}; they must agree"
            )
        return mask.astype(bool)

    def load_labels(self, case):
        """`read_labels`: integers [R, H, W]; only of loaders that have it, and of a case whose `masks` are set."""
        with own_errors(type(self), "read_labels", case):
            return np.asarray(self.read_labels(case))

    def load_geometry(self, case):
        """`geometry`: the `data.Geometry` of the case's volume, or None."""
        with own_errors(type(self), "geometry", case):
            return self.geometry(case)

    def load_shared(self):
        """`preload`."""
        with own_errors(type(self), "preload"):
            self.preload()
