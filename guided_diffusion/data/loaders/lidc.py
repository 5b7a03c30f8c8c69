"""Lung nodules: CT patches of LIDC-IDRI in one .npz file, each outlined by several readers."""

from functools import cached_property

import numpy as np

from ...io.files import list_files, read_npz, read_npz_headers
from ...runtime.console import counted
from ...runtime.errors import UserError
from ..cases import Case
from ..dataset import SegmentationDataset
from ..layouts import innermost

KEYS = ("images", "masks", "patient", "is_test")
LAZY = ("_images", "_packed_masks")  # the attributes that hold the large arrays


def _holds_patches(path):
    """Whether an .npz file has images and masks, or is damaged, so that it may have them."""
    try:
        return {"images", "masks"} <= set(read_npz_headers(path))
    except UserError:
        return True


class LIDCDataset(SegmentationDataset):
    """Lung nodules: CT patches [1, H, W] in [-1, 1], each with the masks of R readers.

    data_dir, or the folder of its name in it, holds one .npz file of N patches:

        images   uint8 [N, H, W]
        masks    uint8 [N, R, H, W / 8], eight pixels per byte: `numpy.packbits(masks, axis=-1)`
        patient  text or integers [N]; a case's `group`
        is_test  bool (or 0 and 1) [N]; `split` picks by it, and None uses all patches

    The case `lidc_0012` is patch 12 of the file, whatever the split. Finding the cases reads only the small arrays.
    Images and masks are decompressed on first use and kept as bytes, masks packed.
    """

    data_name = "LIDC"
    image_channels = 1
    class_names = ("nodule",)
    orientation = "any"
    other_files = ("README*", "*metadata*.csv", "*metadata*.xlsx")

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, or the one of its name in it, holds an .npz file of images and masks."""
        return any(map(_holds_patches, list_files(innermost(data_dir, (".npz",)), (".npz",))))

    def find_cases(self):
        found = list_files(innermost(self.data_dir, (".npz",)), (".npz",))
        found = list(filter(_holds_patches, found)) or found  # others are left over
        if len(found) > 1:
            raise UserError(
                f"{self.data_dir}: holds {len(found)} .npz files ({found[0].name}, {found[1].name}, ...); "
                "keep each in a folder of its own"
            )
        if not found:
            return []
        self.path = found[0]
        self.shape = self._checked_shape()
        self.layout = f"LIDC patches in {self.path.name}, {counted(self.shape[1], 'rater')}"
        is_test, patient = self._read_tests(), [str(value) for value in read_npz(self.path, "patient")]
        if self.split is not None:
            self._check_split(is_test, patient)
        files, readers = (self.path,), (self.path,) * self.shape[1]
        return [
            Case(f"lidc_{index:04d}", files, readers, group=patient[index])
            for index in range(self.shape[0])
            if self.split is None or is_test[index] == (self.split == "test")
        ]

    def read_image(self, case):
        return self._images[_index(case)][None].astype(np.float32)

    def read_mask(self, case):
        packed = self._packed_masks[_index(case)]  # [R, H, W / 8]
        return np.unpackbits(packed, axis=-1, count=self.shape[-1]).astype(bool)[:, None]

    def preload(self):
        for name in LAZY:
            getattr(self, name)

    def expected_layout(self):
        return f"it must hold one .npz file with {', '.join(KEYS)}"

    @cached_property
    def _images(self):
        return read_npz(self.path, "images")

    @cached_property
    def _packed_masks(self):
        return read_npz(self.path, "masks")

    def __getstate__(self):
        """Leave out the large arrays: another process reads them itself."""
        return {name: value for name, value in self.__dict__.items() if name not in LAZY}

    # ---- checks of the file ------------------------------------------------------------------------------------

    def _checked_shape(self):
        """(N, R, H, W). Raises `UserError` unless all arrays are there and their shapes and types fit."""
        headers = read_npz_headers(self.path)
        missing = [key for key in KEYS if key not in headers]
        if missing:
            raise UserError(f"{self.path}: has no array {' or '.join(missing)}; it needs {', '.join(KEYS)}")
        (images, image_type), (masks, mask_type) = headers["images"], headers["masks"]
        if len(images) != 3 or image_type != np.uint8:
            raise UserError(f"{self.path}: images is {image_type} {list(images)}; it must be uint8 [N, H, W]")
        count, height, width = images
        if len(masks) != 4 or mask_type != np.uint8 or masks[1] == 0:
            raise UserError(f"{self.path}: masks is {mask_type} {list(masks)}; it must be uint8 [N, R, H, W / 8]")
        if (masks[0], *masks[2:]) != (count, height, -(-width // 8)):
            raise UserError(
                f"{self.path}: masks is {list(masks)}, which does not go with images {list(images)}; "
                "pack it by numpy.packbits(masks, axis=-1)"
            )
        for key, kinds in (("patient", "USiu"), ("is_test", "biu")):
            shape, dtype = headers[key]
            if shape != (count,) or dtype.kind not in kinds:
                raise UserError(f"{self.path}: {key} is {dtype} {list(shape)}; it must have one value for each image")
        return count, masks[1], height, width

    def _read_tests(self):
        """`is_test`, checked: bool [N]."""
        values = read_npz(self.path, "is_test")
        if not np.isin(values, (0, 1)).all():
            raise UserError(f"{self.path}: is_test holds other values than 0 and 1; correct it")
        return values.astype(bool)

    def _check_split(self, is_test, patient):
        """Raise `UserError` for a patient with patches in both splits."""
        sides = [{name for name, test in zip(patient, is_test, strict=True) if test == side} for side in (False, True)]
        both = sorted(sides[0] & sides[1])
        if both:
            raise UserError(f"{self.path}: patient {both[0]} is in training and in testing; correct is_test")


def _index(case):
    return int(case.name.removeprefix("lidc_"))
