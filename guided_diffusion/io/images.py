"""Reading PNG, JPEG, TIFF and BMP files as images, masks and label maps; writing PNG files."""

import numpy as np
from PIL import Image, ImageOps

from ..runtime.errors import UserError
from .files import atomic_path, decoding, split_suffix

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")


def read_picture(path):
    """Read a PNG, JPEG, TIFF or BMP file as float32 [C, H, W] in 0..255: C is 1 for grey pictures, 3 for all others.

    16-bit grey is scaled to 0..255 and 1-bit becomes 0 and 255. Palettes and other colour spaces become RGB. An alpha
    channel is dropped, and the EXIF orientation is applied.
    Raises `UserError` for a missing, damaged or unsupported file.
    """
    picture = _open_picture(path)
    if _is_wide(picture):
        return _wide_values(path, picture)[None] / np.float32(257)
    mode = "L" if picture.mode in ("1", "L", "LA") else "RGB"
    with decoding(path, "picture"):
        values = np.asarray(picture.convert(mode), dtype=np.float32)
    return values[None] if mode == "L" else np.ascontiguousarray(values.transpose(2, 0, 1))


def read_picture_mask(path):
    """Read a binary mask as bool [H, W]; True is foreground.

    0/255 and 16-bit 0/65535 masks are cut at half of the range, since JPEG and resizing leave grey edges. A file with
    maximum 1 is a 0/1 mask. Colours count by their brightness. A palette picture counts by its index (0 is background),
    unless its colours are only black and white.
    Raises `UserError` for a missing or damaged file, and for a maximum between 1 and half of the range: such a file
    holds something else, for example class numbers.
    """
    picture = _open_picture(path)
    if _is_wide(picture):
        values = _wide_values(path, picture)
        return _cut_mask(path, values, 255 if values.max() <= 255 else 65535)
    with decoding(path, "picture"):
        grey = np.asarray(picture.convert("L"))
        if picture.mode == "P" and not np.isin(grey, (0, 255)).all():
            return np.asarray(picture) > 0
    return _cut_mask(path, grey, 255)


def read_picture_labels(path):
    """Read a label map, a picture of class numbers, as int32 [H, W]. A palette picture gives its indices.

    Raises `UserError` for a missing or damaged file, for colours, and for JPEG, which changes values.
    """
    picture = _open_picture(path)
    if split_suffix(path)[1].lower() in (".jpg", ".jpeg"):
        raise UserError(f"{path}: is a JPEG file, and JPEG changes label values; save label maps as PNG")
    with decoding(path, "picture"):
        if _is_wide(picture):
            values = _wide_values(path, picture)
        else:
            values = np.asarray(picture)
    if values.ndim == 3:
        if values.shape[2] >= 3 and (values[..., :1] != values[..., :3]).any():
            raise UserError(f"{path}: is in colour; save label maps in grey or with a palette, a value for each class")
        values = values[..., 0]
    return values.astype(np.int32)


def _cut_mask(path, values, full):
    """Values [H, W] in 0..1 or 0..full as a mask, bool [H, W]."""
    top = values.max()
    if 1 < top <= full / 2:
        raise UserError(
            f"{path}: its values reach from 0 to {top:g}, which is neither a 0/1 nor a 0/{full} mask; "
            f"save the mask with 0 for background and {full} for foreground"
        )
    return values > (0 if top <= 1 else full / 2)


def _open_picture(path):
    """The decoded PIL image, upright. Raises `UserError` for a TIFF file of several pages."""
    with decoding(path, "picture"), Image.open(path) as picture:
        pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
        picture.load()
        picture = ImageOps.exif_transpose(picture)
    if pages > 1:
        raise UserError(f"{path}: holds {pages} pages; save each as a file of its own")
    return picture


def _is_wide(picture):
    """Whether a picture is grey with more than 8 bits per pixel."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _wide_values(path, picture):
    """The values of a wide picture, float32 [H, W] in 0..65535. Raises `UserError` for 32-bit values."""
    values = np.asarray(picture, dtype=np.float32)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UserError(f"{path}: is a 32-bit picture; save it with 8 or 16 bits per pixel")
    return values


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
