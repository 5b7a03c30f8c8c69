"""Decoding pictures: odd encodings are read right, and what cannot be read is named by the true reason."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from guided_diffusion.io.images import read_picture, read_picture_labels, read_picture_mask
from guided_diffusion.io.pictures import LIMIT, allow_megapixels, read_pixels, turning_tag
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png(path, width, rows, depth, colour_type, extra=b""):
    """A PNG of packed rows (bytes), as Pillow does not write them."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = [chunk(b"IHDR", header), extra, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def write_tiff(path, width, height, bits, data):
    """A grey TIFF of packed rows."""
    values = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1), (278, height)]
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*values, (279, len(data))]]
    table = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + table)
    return path


# ---- encodings ---------------------------------------------------------------------------------------------------


def test_12_bits_in_a_tiff_of_12_bits(tmp_path):
    values = [0, 4095, 2048, 1]
    packed = int("".join(f"{value:012b}" for value in values), 2).to_bytes(6, "big")
    path = write_tiff(tmp_path / "a.tif", 4, 2, 12, packed * 2)
    np.testing.assert_allclose(read_picture(path)[0, 0], np.array(values) / 4095 * 255, rtol=1e-6)


def test_white_as_zero_in_16_bits(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", WIDE, photometric="miniswhite")
    np.testing.assert_allclose(read_picture(tmp_path / "a.tif")[0], (65535 - WIDE) / 257, rtol=1e-6)
    labels = np.array([[0, 1, 2]], np.uint8)
    for dtype in (np.uint8, np.uint16):
        tifffile.imwrite(tmp_path / "b.tif", labels.astype(dtype), photometric="miniswhite")
        np.testing.assert_array_equal(read_picture_labels(tmp_path / "b.tif"), labels)  # numbers, whatever their look


def test_types_that_pictures_seldom_have(tmp_path):
    for name, array in {"a": WIDE.astype(np.int16) & 0x7FFF, "b": WIDE.astype(np.uint32)}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", array)
        np.testing.assert_allclose(read_picture(tmp_path / f"{name}.tif")[0], array / 257, rtol=1e-6)
    tifffile.imwrite(tmp_path / "c.tif", WIDE, byteorder=">")
    np.testing.assert_allclose(read_picture(tmp_path / "c.tif")[0], WIDE / 257, rtol=1e-6)
    tifffile.imwrite(tmp_path / "d.tif", np.array([[-5, 3]], np.int16))
    with pytest.raises(UserError, match=r"d.tif: holds negative values \(-5 to 3"):
        read_picture(tmp_path / "d.tif")
    tifffile.imwrite(tmp_path / "e.tif", np.array([[-5, 3]], np.int8))
    with pytest.raises(UserError, match="e.tif: holds negative values .signed 8 bits"):
        read_picture(tmp_path / "e.tif")
    tifffile.imwrite(tmp_path / "f.tif", np.zeros((6, 7, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match="f.tif: is a TIFF file of 6x7x5 values of type uint8; save it in grey or RGB"):
        read_picture(tmp_path / "f.tif")
    tifffile.imwrite(tmp_path / "g.tif", np.ones((6, 7)))
    with pytest.raises(UserError, match="g.tif: is a picture of decimal numbers"):
        read_picture(tmp_path / "g.tif")


def test_16_bits_for_each_colour_keep_their_small_values(tmp_path):
    colours = np.dstack([WIDE, WIDE // 300, WIDE // 7])
    rows = [row.astype(">u2").tobytes() for row in colours]
    png = write_png(tmp_path / "a.png", 7, rows, 16, 2)
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", colours.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate")
    for path in (png, tmp_path / "a.tif", tmp_path / "b.tif"):
        np.testing.assert_allclose(read_picture(path), colours.transpose(2, 0, 1) / 257, rtol=1e-6)
    mask = np.repeat((WIDE > 30000)[..., None], 3, -1).astype(np.uint16)  # 0 and 1: Pillow would make it empty
    path = write_png(tmp_path / "m.png", 7, [row.astype(">u2").tobytes() for row in mask], 16, 2)
    np.testing.assert_array_equal(read_picture_mask(path), WIDE > 30000)


def test_labels_of_2_and_4_bits_are_not_stretched(tmp_path):
    path = write_png(tmp_path / "a.png", 4, [bytes([0b00011011])], 2, 0)
    np.testing.assert_array_equal(read_picture_labels(path), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(read_picture(path)[0], [[0, 85, 170, 255]])
    path = write_png(tmp_path / "b.png", 4, [bytes([0x01, 0x2F])], 4, 0)
    np.testing.assert_array_equal(read_picture_labels(path), [[0, 1, 2, 15]])


@pytest.mark.parametrize("is_upright", [False, True])
def test_bmp_of_two_greys_in_8_bits(tmp_path, is_upright):
    marked = np.random.default_rng(0).random((5, 7)) > 0.5
    picture = Image.frombytes("P", (7, 5), marked.astype(np.uint8).tobytes())
    picture.putpalette([0, 0, 0, 255, 255, 255])
    path = tmp_path / "a.bmp"
    picture.save(path)  # Pillow itself reads this file as one of 1 bit, all black
    if is_upright:
        data = bytearray(path.read_bytes())
        data[22:26] = (-5).to_bytes(4, "little", signed=True)
        path.write_bytes(data)
        marked = marked[::-1]
    np.testing.assert_array_equal(read_picture_mask(path), marked)
    np.testing.assert_array_equal(read_picture_labels(path), marked)
    np.testing.assert_array_equal(read_picture(path), marked[None] * 255)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB", "PA"])
def test_other_colour_spaces_become_rgb(tmp_path, mode):
    rgb = Image.fromarray(np.full((4, 4, 3), (200, 40, 90), np.uint8))
    if mode == "PA":
        picture, path = rgb.convert("P").convert("RGBA"), tmp_path / "a.png"
    elif mode == "LAB":
        picture, path = Image.fromarray(np.full((4, 4, 3), (115, 60, 10), np.uint8), "LAB"), tmp_path / "a.tif"
    else:
        picture, path = rgb.convert(mode), tmp_path / "a.tif"
    picture.save(path)
    red, green, blue = read_picture(path)[:, 0, 0]
    assert red > 150 > 120 > blue and green < 100


def test_previews_are_no_pages(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY)
        file.write(GREY[::2, ::2], subfiletype=1)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif")[0], GREY)
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (9, 90)]
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="b.png: holds 2 frames; save each as a file of its own"):
        read_picture(tmp_path / "b.png")


# ---- EXIF --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_is_applied_once(tmp_path, tag, suffix):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path, exif=exif)
    with Image.open(path) as picture:
        shown = np.asarray(ImageOps.exif_transpose(picture))
    pixels = read_pixels(path)
    np.testing.assert_array_equal(pixels.values, shown)
    assert pixels.turn == tag and turning_tag(path) == (tag, shown.shape)


def test_broken_metadata_do_not_make_a_picture_unreadable(tmp_path):
    rows = [row.tobytes() for row in GREY]
    for name, extra in {
        "exif": chunk(b"eXIf", b"garbage!!!"),
        "icc": chunk(b"iCCP", b"x\0\0garbage"),
        "text": chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 3_000_000)),
    }.items():
        path = write_png(tmp_path / f"{name}.png", 7, rows, 8, 0, extra)
        np.testing.assert_array_equal(read_picture(path)[0], GREY)
    info = PngInfo()
    info.add_text("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    Image.fromarray(GREY).save(tmp_path / "xmp.png", pnginfo=info)
    np.testing.assert_array_equal(read_picture(tmp_path / "xmp.png")[0], GREY)


# ---- limits and reasons ------------------------------------------------------------------------------------------


def test_the_limit_of_pixels_is_an_option(tmp_path, save_picture, monkeypatch):
    monkeypatch.setenv(LIMIT, "179")
    path = save_picture(tmp_path / "a.png", np.zeros((100, 200), np.uint8))
    read_picture(path)
    allow_megapixels(0.01)
    with pytest.raises(UserError, match=r"a.png: has 200x100 pixels, more than --max_megapixels 0.01 allows"):
        read_picture(path)
    assert Image.MAX_IMAGE_PIXELS is not None  # other programs' limit stays
    allow_megapixels(0.02)
    read_picture(path)


def test_memory_is_checked_before_decoding(tmp_path, save_picture, monkeypatch):
    monkeypatch.setattr("guided_diffusion.io.memory.free_memory", lambda: 2**27)
    monkeypatch.setattr("guided_diffusion.io.pictures._open", lambda path: Header())

    class Header(Image.Image):
        format, size, mode = "PNG", (9000, 9000), "RGB"

        def __init__(self):
            super().__init__()

    with pytest.raises(UserError, match="a.png: has 9000x9000 pixels, which need 4.1 GB of memory, and 0.1 GB are"):
        read_picture(save_picture(tmp_path / "a.png", GREY))


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "is empty .0 bytes."),
        (b"\n<!DOCTYPE html><html>404", "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer.*git lfs pull"),
        (b"/annex/objects/SHA256E-s1--00.png", "is a git-annex pointer.*git annex get"),
        (b'<?xml version="1.0"?><Error>', "is an XML text"),
        (b'{"message": "Not Found"}', "is a JSON text"),
        (b"404: Not Found", "is a text that begins '404: Not Found'"),
        (bytes(128) + b"DICM" + bytes(range(200)), "is a DICOM file"),
        (bytes(4000), "begins with zeros alone"),
        (b"PK\3\4" + bytes(range(200)), "is a ZIP archive.*unpack it"),
        (b"\0\0\0\x18ftypheic" + bytes(range(99)), "is a HEIC photograph"),
        (bytes(range(1, 255)), "is truncated or damaged, or is no picture"),
    ],
)
def test_what_is_no_picture_is_named(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=f"a.png: {words}") as error:
        read_picture(tmp_path / "a.png")
    assert "\n" not in str(error.value)


def test_links_folders_and_other_suffixes(tmp_path, save_picture):
    (tmp_path / "a.png").symlink_to("../.git/annex/objects/x.png")
    with pytest.raises(UserError, match="a.png: is a link to .*x.png, which is not there; fetch it with git annex get"):
        read_picture(tmp_path / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(UserError, match="b.png: is a folder"):
        read_picture(tmp_path / "b.png")
    path = save_picture(tmp_path / "c.jpg", GREY, quality=95).rename(tmp_path / "c.png")
    assert np.abs(read_picture(path)[0] - GREY).max() < 64 and read_pixels(path).is_lossy


def test_a_drawing_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, whatever the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("was run"))
    begin = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n"
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        (tmp_path / name).write_text(f"{begin}0 0 20 20 rectfill\n%%EOF\n")
        with pytest.raises(UserError, match=f"{name}: is a drawing .EPS., which would be run, not read; save it as"):
            read_pixels(tmp_path / name)
