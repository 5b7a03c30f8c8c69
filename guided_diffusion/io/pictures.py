"""Decoding a picture file: its values as stored, what the file says about them, and the true reason if it cannot."""

import os
import struct
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..runtime.errors import UserError
from .files import decoding
from .memory import check_room

# Text in a PNG is harmless, and editing programs write megabytes of it; Pillow's own limits are 1 MB and 64 MB.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 64 * 2**20)
PngImagePlugin.MAX_TEXT_MEMORY = max(PngImagePlugin.MAX_TEXT_MEMORY, 256 * 2**20)

ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # by its value: how the stored pixels [H, W, ...] become those to show
    2: ("mirrored", lambda a: a[:, ::-1]),
    3: ("turned by 180 degrees", lambda a: a[::-1, ::-1]),
    4: ("mirrored top to bottom", lambda a: a[::-1]),
    5: ("turned by 90 degrees and mirrored", lambda a: a.swapaxes(0, 1)),
    6: ("turned by 90 degrees", lambda a: np.rot90(a, -1)),
    7: ("turned by 90 degrees and mirrored", lambda a: a[::-1, ::-1].swapaxes(0, 1)),
    8: ("turned by 90 degrees", lambda a: np.rot90(a)),
}
QUARTERS = (5, 6, 7, 8)  # the turns that swap width and height

# ---- the limit of pixels -------------------------------------------------------------------------------------------

VALUE_BYTES = 18  # for each value of a picture: as decoded, in other forms, as float32, normalised
MAX_MEGAPIXELS = 179  # the size at which Pillow refuses a picture
LIMIT = "MEDSEGDIFF_MAX_MEGAPIXELS"  # in the environment, so that every worker process has it


def allow_megapixels(number):
    """Let this process, and those that it starts, read pictures of up to `number` million pixels."""
    os.environ[LIMIT] = f"{number:g}"


def _check_size(path, size, channels):
    """Raise `UserError` for a picture (width, height) above the limit, or larger than the free memory."""
    pixels, limit = size[0] * size[1], float(os.environ.get(LIMIT, MAX_MEGAPIXELS))
    if pixels > limit * 1e6:
        needed = np.ceil(pixels / 1e6)
        raise UserError(
            f"{path}: has {size[0]}x{size[1]} pixels, more than --max_megapixels {limit:g} allows; read it with "
            f"--max_megapixels {needed:g}, or make it smaller"
        )
    check_room(path, f"{size[0]}x{size[1]} pixels", pixels * channels * VALUE_BYTES)


PROGRAMS = ("EPS", "WMF", "EMF")  # formats of drawings that another program draws

# ---- what a file holds ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pixels:
    """The decoded pixels of a file, upright.

    values: [H, W] grey or [H, W, 3] colours, of the type in the file; black is 0 and white is `white`. Palettes and
    other colour spaces are RGB. alpha: [H, W] from 0 to `white`, None if every pixel is opaque. indices: [H, W] of a
    palette picture, else None. stored: what turns a grey value into the number in the file. turn: the value of the
    EXIF tag that was applied, 1 without one. is_lossy: the format changes values, as JPEG does.
    """

    path: object
    values: np.ndarray
    white: int = 255
    alpha: np.ndarray | None = None
    indices: np.ndarray | None = None
    stored: object = None
    turn: int = 1
    is_lossy: bool = False

    def as_stored(self):
        """The numbers in the file of a grey or palette picture, [H, W]; 1 bit gives 0 and 1."""
        if self.indices is not None:
            return self.indices
        return self.values if self.stored is None else self.stored(self.values)

    def palette(self):
        """{number: "#ff0000"} of the numbers in a palette picture, without colours that two numbers share."""
        if self.indices is None:
            return {}
        numbers, places = np.unique(self.indices, return_index=True)
        colours = ["#" + bytes(colour.astype(np.uint8)).hex() for colour in self.values.reshape(-1, 3)[places]]
        return {int(n): colour for n, colour in zip(numbers, colours, strict=True) if colours.count(colour) == 1}


def read_pixels(path):
    """The `Pixels` of a PNG, JPEG, TIFF, BMP or other picture file.

    Raises `UserError` for a missing or damaged file, for one of several pages or frames, and for one above the limit
    of pixels.
    """
    with decoding(path, "picture"):
        try:
            picture = _open(path)
        except UnidentifiedImageError:
            if _starts(path) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
                return _by_tifffile(path)
            raise
        with picture:
            _check_size(path, picture.size, len(picture.getbands()))
            with _no_limit_of_pillow():
                _check_frames(path, picture)
            tag = _orientation(picture)
            if _has_wide_colours(path, picture):
                found = _wide_colours(path, picture)
            elif picture.format == "BMP" and picture.mode == "1" and _bmp_bits(path) > 1:
                found = _bmp_of_two_greys(path, picture)
            else:
                picture.load()
                found = _pixels(path, picture)
                if picture.format == "TIFF" and _orientation(picture) == 1:
                    return replace(found, turn=tag)  # Pillow has turned it
    return _turned(found, tag)


@contextmanager
def _no_limit_of_pillow():
    """Within, Pillow's own limit of pixels is off: ours is checked."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _open(path):
    """`Image.open` without Pillow's limit, which is ours to check. Raises `UserError` for a drawing that is a program:
    Pillow would have it run by Ghostscript or by Windows, whatever the file's suffix is."""
    with _no_limit_of_pillow():
        picture = Image.open(path)
    if picture.format in PROGRAMS:
        picture.close()
        raise UserError(f"{path}: is a drawing ({picture.format}), which would be run, not read; save it as PNG")
    return picture


def _starts(path, count=4):
    with open(path, "rb") as file:
        return file.read(count)


def _orientation(picture):
    """The EXIF orientation, 1 to 8; 1 also where the metadata cannot be read."""
    try:
        tag = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # broken metadata raise nearly anything, and say nothing about the pixels
        return 1
    return tag if tag in TURNS else 1


def _turned(pixels, tag):
    if tag == 1:
        return pixels
    arrays = {name: getattr(pixels, name) for name in ("values", "alpha", "indices")}
    turned = {name: None if array is None else TURNS[tag][1](array) for name, array in arrays.items()}
    return replace(pixels, turn=tag, **turned)


def _check_frames(path, picture):
    """Raise `UserError` for several pages or frames. A photograph's previews, and smaller copies, do not count."""
    count = getattr(picture, "n_frames", 1)
    if count > 1 and picture.format == "TIFF":
        kinds = []
        for page in range(count):
            picture.seek(page)
            kinds.append(picture.tag_v2.get(254, 0) & 1)
        picture.seek(0)
        count = len(kinds) - sum(kinds)
    if count > 1 and picture.format != "MPO":
        what = "pages" if picture.format == "TIFF" else "frames"
        raise UserError(f"{path}: holds {count} {what}; save each as a file of its own")


def _tiff_tag(picture, tag, default):
    """The first value of a TIFF tag, which may have one for each channel."""
    value = picture.tag_v2.get(tag, default) if picture.format == "TIFF" else default
    return value[0] if isinstance(value, tuple) else value


def _pixels(path, picture):
    """The `Pixels` of a loaded Pillow image, not turned."""
    mode, lossy = picture.mode, _is_lossy(path, picture)
    if mode == "F" or mode.startswith("I"):
        return _wide_grey(path, picture)
    if mode == "1":
        values = np.asarray(picture).astype(np.uint8) * 255
        return Pixels(path, values, stored=lambda shown: shown // 255, alpha=_key_alpha(picture, values))
    if mode == "L":
        values = np.asarray(picture)
        if _tiff_tag(picture, 339, 1) == 2 and (values > 127).any():
            raise UserError(f"{path}: holds negative values (signed 8 bits); save it without a sign")
        alpha = _key_alpha(picture, values)
        return Pixels(path, values, alpha=alpha, stored=_grey_as_stored(path, picture), is_lossy=lossy)
    if mode in ("LA", "La"):
        values = np.asarray(picture.convert("LA"))
        return Pixels(path, values[..., 0], alpha=_unless_opaque(values[..., 1], 255), is_lossy=lossy)
    has_alpha = mode in ("RGBA", "RGBa", "PA") or picture.info.get("transparency") is not None
    indices = None
    if mode in ("P", "PA"):
        indices = np.asarray(picture) if mode == "P" else np.asarray(picture)[..., 0]
    values = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"))
    alpha = _unless_opaque(values[..., 3], 255) if has_alpha else None
    return Pixels(path, values[..., :3], alpha=alpha, indices=indices, is_lossy=lossy)


def _unless_opaque(alpha, white):
    return None if (alpha == white).all() else alpha


def _key_alpha(picture, values):
    """The alpha of a grey picture in which one value is transparent (PNG's tRNS), 0 to 255."""
    key = picture.info.get("transparency")
    return _unless_opaque(np.where(values == key, 0, 255).astype(np.uint8), 255) if isinstance(key, int) else None


def _is_lossy(path, picture):
    """Whether the format changed the values that were saved."""
    if picture.format == "TIFF":
        return "jpeg" in str(picture.info.get("compression", ""))
    if picture.format == "WEBP":
        return b"VP8L" not in _starts(path, 64)
    return picture.format in ("JPEG", "MPO", "JPEG2000", "AVIF")


def _grey_as_stored(path, picture):
    """What undoes Pillow's changes of a grey value: PNG's 2 and 4 bits are stretched, TIFF's white as 0 is inverted."""
    if picture.format == "PNG":
        depth = _starts(path, 25)[24]
        step = {2: 85, 4: 17}.get(depth)
        return (lambda shown: shown // step) if step else None
    if picture.format == "TIFF" and picture.tag_v2.get(262) == 0:
        bits = _tiff_tag(picture, 258, 8)
        step = 255 // (2**bits - 1)
        return lambda shown: (255 - shown) // step
    return None


def _wide_grey(path, picture):
    """The `Pixels` of a grey picture of more than 8 bits: uint16, uint32, or as they are int32 and float32."""
    values, white = np.asarray(picture), 65535
    if picture.mode == "F":
        return Pixels(path, values, white=1)
    values = values.astype(values.dtype.newbyteorder("="))
    if picture.format == "TIFF":
        bits, is_signed = _tiff_tag(picture, 258, 16), _tiff_tag(picture, 339, 1) == 2
        if values.dtype == np.int32 and bits == 32 and not is_signed:
            values = values.view(np.uint32)
        white = 2**bits - 1 if bits < 16 else white
        if picture.tag_v2.get(262) == 0 and not is_signed and bits <= 16:  # Pillow inverts 8 bits only
            values = (white - values.astype(np.int32)).astype(np.uint16)
            return Pixels(path, values, white=white, stored=lambda shown: white - shown.astype(np.int32))
    alpha = _key_alpha(picture, values)
    alpha = None if alpha is None else alpha.astype(np.uint16) * 257
    return Pixels(path, values, white=white, alpha=alpha)


def _bmp_bits(path):
    """The bits for each pixel of a BMP file."""
    head = _starts(path, 30)
    return int.from_bytes(head[24:26] if head[14] == 12 else head[28:30], "little")


def _bmp_of_two_greys(path, picture):
    """The `Pixels` of a BMP file with black and white as its palette, but 8 bits for each pixel: Pillow takes 1 bit."""
    data = Path(path).read_bytes()
    if _bmp_bits(path) != 8 or (data[14] != 12 and any(data[30:34])):
        raise UserError(f"{path}: is a BMP file of two greys in {_bmp_bits(path)} bits or packed; save it as PNG")
    (width, height), start = picture.size, int.from_bytes(data[10:14], "little")
    stride = (width + 3) // 4 * 4
    rows = np.frombuffer(data, np.uint8, stride * height, start).reshape(height, stride)[:, :width]
    if rows.max() > 1:
        raise UserError(f"{path}: has values up to {rows.max()}, and its palette 2 colours; save it as PNG")
    is_upright = data[14] != 12 and data[25] == 0xFF  # a negative height
    values = (rows if is_upright else rows[::-1]) * np.uint8(255)
    return Pixels(path, values, stored=lambda shown: shown // 255)


# ---- 16 bits for each colour, of which Pillow keeps 8 --------------------------------------------------------------


def _has_wide_colours(path, picture):
    if picture.format == "PNG":
        header = _starts(path, 26)
        return header[24] == 16 and header[25] in (2, 4, 6)
    if picture.format == "TIFF":
        bits = picture.tag_v2.get(258, (8,))
        return len(bits) > 1 and max(bits) > 8
    return False


def _wide_colours(path, picture):
    """The `Pixels` of a PNG or TIFF file of several channels with 16 bits each."""
    if picture.format == "TIFF":
        return _by_tifffile(path)
    with _open(path) as low:  # Pillow's decoder of the other byte order gives the other byte
        if any(tile[3] not in ("RGB;16B", "RGBA;16B") for tile in low.tile):
            raise UserError(f"{path}: is grey with an alpha channel, of 16 bits each; save it without the channel")
        low.tile = [(*tile[:3], tile[3].replace("16B", "16L")) for tile in low.tile]
        return _of_channels(path, np.asarray(picture).astype(np.uint16) << 8 | np.asarray(low))


def _by_tifffile(path):
    """The `Pixels` of a TIFF file of types that Pillow does not read. Raises `UserError` with the type otherwise."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if not page.is_reduced]
        page = pages[0]
        text = f"{'x'.join(map(str, page.shape))} values of type {page.dtype}"
        if len(pages) > 1:
            raise UserError(f"{path}: holds {len(pages)} pages; save each as a file of its own")
        _check_size(path, (page.imagewidth, page.imagelength), page.samplesperpixel)
        if page.dtype is None or page.dtype.kind not in "uif" or page.photometric.name not in KNOWN:
            raise UserError(f"{path}: is a TIFF file of {text} ({page.photometric.name}); save it as PNG")
        values, inverted = page.asarray(), page.photometric.name == "MINISWHITE"
        if page.planarconfig == 2 and values.ndim == 3:
            values = values.transpose(1, 2, 0)
    if values.ndim == 2 and not inverted:
        return Pixels(path, values, white=65535 if values.dtype.kind != "f" else 1)
    if values.ndim == 3 and values.shape[2] in (2, 3, 4) and values.dtype == np.uint16 and not inverted:
        return _of_channels(path, values)
    raise UserError(f"{path}: is a TIFF file of {text}; save it in grey or RGB with 8 or 16 bits per pixel")


KNOWN = ("MINISBLACK", "MINISWHITE", "RGB")  # photometric tags


def _of_channels(path, values):
    """The `Pixels` of uint16 [H, W, C]: grey with alpha, RGB, or RGB with alpha."""
    colours = values[..., 0] if values.shape[2] == 2 else values[..., :3]
    alpha = _unless_opaque(values[..., -1], 65535) if values.shape[2] in (2, 4) else None
    return Pixels(path, colours, white=65535, alpha=alpha)


# ---- the EXIF tag, without the pixels ------------------------------------------------------------------------------


def turning_tag(path):
    """(EXIF orientation of a picture, 1 without one; its (height, width) as shown), from the header; (1, None) for a
    file that is no picture."""
    try:
        stat = os.stat(path)
    except OSError:
        return 1, None
    return _cached_tag(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=65536)
def _cached_tag(path, _size, _time):
    try:
        with _open(path) as picture:
            width, height = picture.size
            if picture.format == "PNG":  # Pillow decodes the pixels to look for a tag behind them
                _check_size(path, picture.size, len(picture.getbands()))
            tag = _orientation(picture) if picture.format != "PNG" or _may_have_tag(path) else 1
    except (UserError, OSError, ValueError, SyntaxError, struct.error):
        return 1, None
    return tag, (width, height) if tag in QUARTERS else (height, width)


def _may_have_tag(path):
    """Whether a PNG has a chunk that may hold an orientation, before or after its pixels, which are not read."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            begins = file.read(min(length, 32))
            if kind == b"eXIf" or (kind.endswith(b"Xt") and begins.startswith((b"XML:com.adobe", b"Raw profile"))):
                return True
            file.seek(length - len(begins) + 4, os.SEEK_CUR)
    return False


# ---- what was read, for those who compare files --------------------------------------------------------------------


@dataclass(frozen=True)
class MaskNote:
    """What a mask file was found to hold.

    foreground: how the file writes it, "255", "1", "#ff0000" or "transparency"; None if nothing is marked. is_soft:
    whether greys between were cut at half. counts: {grey value: number of pixels}. turn: see `Pixels`. colours:
    {number: "#ff0000"} of the numbers in a label map with a palette, without colours that two numbers share.
    """

    path: object
    foreground: str | None
    is_soft: bool = False
    counts: dict | None = None
    turn: int = 1
    colours: dict = field(default_factory=dict)


class _Listeners(threading.local):
    """The lists of those who listen in this thread, the innermost last."""

    def __init__(self):
        self.lists = []


_LISTENERS = _Listeners()


@contextmanager
def noted_masks():
    """A list that receives a `MaskNote` for each binary mask that is read inside the block, whoever reads it."""
    notes = []
    _LISTENERS.lists.append(notes)
    try:
        yield notes
    finally:
        _LISTENERS.lists.pop()
        for outer in _LISTENERS.lists[-1:]:
            outer.extend(notes)


def note_mask(note):
    """Hand a `MaskNote` to `noted_masks`."""
    for notes in _LISTENERS.lists[-1:]:
        notes.append(note)
