"""Reading PNG, JPEG, TIFF and BMP files as images, masks and label maps; writing PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime.errors import UserError
from .files import atomic_path
from .masks import check_whole, read_as_mask
from .pictures import MaskNote, note_mask, read_pixels

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")


def read_picture(path):
    """Read a PNG, JPEG, TIFF or BMP file as float32 [C, H, W] in 0..255: C is 1 for grey pictures, 3 for all others.

    White is 255, whatever the number of bits: 16-bit values are divided by 257. Palettes and other colour spaces become
    RGB. An alpha channel is dropped, and the EXIF orientation is applied.
    Raises `UserError` for a missing, damaged or unsupported file.
    """
    pixels = read_pixels(path)
    values = pixels.values
    if values.dtype != np.uint8:
        values = _checked_range(path, values) / np.float32(pixels.white / 255)
    channels = values[None] if values.ndim == 2 else values.transpose(2, 0, 1)
    return np.ascontiguousarray(channels, dtype=np.float32)


def _checked_range(path, values):
    """Values of more than 8 bits as float32. Raises `UserError` unless they lie in 0..65535."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        raise UserError(
            f"{path}: is a picture of decimal numbers (32-bit, from {low:.4g} to {high:.4g}), which has no white; save "
            "it with 8 or 16 bits per pixel, or as NIfTI"
        )
    if low < 0:
        raise UserError(
            f"{path}: holds negative values ({low} to {high}, signed {8 * values.itemsize}-bit), which a picture of "
            "0..65535 has not; add an offset, or save it as NIfTI, which --ct_window reads as CT"
        )
    if high > 65535:
        raise UserError(f"{path}: is a 32-bit picture ({low} to {high}); save it with 8 or 16 bits per pixel")
    return values.astype(np.float32)


def read_picture_mask(path):
    """Read a binary mask as bool [H, W]; True is foreground.

    The file decides what its pixels mean (see `masks.read_as_mask`): 0 and any other value, with JPEG's ringing or
    smooth edges cut at half; black and one other colour, also in a palette; or the alpha channel over one colour. White
    is foreground where the file says that 0 is white. The EXIF orientation is applied.
    Raises `UserError` for a missing or damaged file, and with the values and their shares for one that can be read in
    another way, such as a label map.
    """
    pixels = read_pixels(path)
    found = read_as_mask(pixels)
    note_mask(MaskNote(path, found.foreground, found.is_soft, found.counts, pixels.turn))
    return found.mask


def read_picture_labels(path):
    """Read a label map, a picture of class numbers, as int32 [H, W]: the numbers in the file, of a palette picture its
    indices.

    Raises `UserError` for a missing or damaged file, for colours, for negative numbers and fractions, and for JPEG,
    which changes values.
    """
    pixels = read_pixels(path)
    if pixels.is_lossy:
        kind = "lossy WebP" if Path(path).suffix.lower() == ".webp" else "JPEG"
        raise UserError(f"{path}: is a {kind} file, and {kind} changes label values; save label maps as PNG")
    values = pixels.values
    if values.ndim == 3 and pixels.indices is None:
        if (values[..., :1] != values).any():
            raise UserError(f"{path}: is in colour; save label maps in grey or with a palette, a value for each class")
        values = values[..., 0]
    else:
        values = pixels.as_stored()
    if pixels.alpha is not None and len(np.unique(pixels.alpha)) > 1 and pixels.indices is None:
        if values[pixels.alpha == 0].any() or not values.any():
            raise UserError(f"{path}: has an alpha channel besides its labels; save label maps without one")
    if values.dtype.kind in "if":
        check_whole(values, path)
        values = np.rint(values)
    note_mask(MaskNote(path, None, turn=pixels.turn, colours=pixels.palette()))
    return values.astype(np.int32)


def stacked(paths, arrays):
    """The arrays of these files stacked along a new first axis. Raises `UserError` for a file of another size."""
    for path, array in zip(paths, arrays, strict=True):
        if array.shape != arrays[0].shape:
            sizes = ["x".join(map(str, shape)) for shape in (array.shape, arrays[0].shape)]
            raise UserError(f"{path}: has {sizes[0]} pixels, but {paths[0]} has {sizes[1]}; they must agree")
    return np.stack(arrays)


def write_png(path, array):
    """Write uint8 [H, W] (grey) or [H, W, 3] (RGB), or uint16 [H, W] (16-bit grey), as a PNG."""
    array = np.asarray(array)
    form = (array.dtype.name, array.ndim)
    if form not in (("uint8", 2), ("uint8", 3), ("uint16", 2)) or array.shape[2:] not in ((), (3,)):
        raise ValueError(f"write_png takes uint8 [H, W] or [H, W, 3] or uint16 [H, W], not {form[0]} {array.shape}")
    with atomic_path(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def write_label_png(path, labels, colours):
    """Write a label map as a PNG: uint8 [H, W] with a palette, so that classes are visible, uint16 [H, W] as 16-bit
    grey.

    colours: {value: (red, green, blue)}; other values are black.
    """
    labels = np.asarray(labels)
    if labels.dtype != np.uint8:
        return write_png(path, labels)
    palette = np.zeros((256, 3), np.uint8)
    for value, colour in colours.items():
        palette[value] = colour
    picture = Image.fromarray(labels)
    picture.putpalette(palette.tobytes())
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
