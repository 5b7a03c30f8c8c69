"""Pictures and masks in files: encodings, palettes, what is refused, and what is written."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from guided_diffusion.io.files import split_suffix
from guided_diffusion.io.images import (
    PICTURE_SUFFIXES,
    read_picture,
    read_picture_labels,
    read_picture_mask,
    write_png,
)
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_colour_picture_is_channels_first(tmp_path, save_picture, suffix):
    image = read_picture(save_picture(tmp_path / f"a.{suffix}", COLOUR))
    assert image.dtype == np.float32 and image.shape == (3, 5, 7)
    np.testing.assert_array_equal(image, COLOUR.transpose(2, 0, 1))


def test_grey_picture_has_one_channel(tmp_path, save_picture):
    np.testing.assert_array_equal(read_picture(save_picture(tmp_path / "a.png", GREY)), GREY[None])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_255(tmp_path, save_picture, suffix):
    image = read_picture(save_picture(tmp_path / f"a.{suffix}", np.array([[0, 257 * 100, 65535]], np.uint16)))
    np.testing.assert_allclose(image, [[[0, 100, 255]]])


def test_1_bit_is_0_and_255(tmp_path, save_picture):
    image = read_picture(save_picture(tmp_path / "a.png", np.array([[True, False]])))
    np.testing.assert_array_equal(image, [[[255, 0]]])


def test_palette_becomes_rgb(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png")[:, 0], [[10, 40], [20, 50], [30, 60]])


def test_alpha_is_dropped_not_blended(tmp_path, save_picture):
    transparent = np.dstack([COLOUR, np.zeros_like(GREY)])
    np.testing.assert_array_equal(
        read_picture(save_picture(tmp_path / "a.png", transparent)), COLOUR.transpose(2, 0, 1)
    )


def test_exif_orientation_is_applied_to_image_and_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: shown after a quarter turn clockwise
    mask = np.zeros((5, 7), np.uint8)
    mask[0, :3] = 255
    Image.fromarray(mask).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png")[0], np.rot90(mask, -1))
    np.testing.assert_array_equal(read_picture_mask(tmp_path / "a.png"), np.rot90(mask, -1) > 0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("read", [read_picture, read_picture_mask])
def test_truncated_picture_is_one_line_with_its_name(tmp_path, save_picture, truncate, suffix, read):
    noise = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = truncate(save_picture(tmp_path / f"a.{suffix}", noise))
    with pytest.raises(UserError, match="truncated or damaged.*copy it again") as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("<html>404</html>")
    with pytest.raises(UserError, match="a.png: is an HTML page, such as .*, no picture; download the file again"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="b.png: no such file"):
        read_picture(tmp_path / "b.png")


def test_values_without_a_white_are_named(tmp_path, save_picture):
    with pytest.raises(UserError, match=r"a.tif: holds negative values \(-5 to 300, signed 32-bit\).*save it as NIfTI"):
        read_picture(save_picture(tmp_path / "a.tif", np.array([[-5, 300]], np.int32)))
    with pytest.raises(UserError, match=r"b.tif: is a 32-bit picture \(0 to 4000000000\)"):
        tifffile.imwrite(tmp_path / "b.tif", np.array([[0, 4_000_000_000]], np.uint32))
        read_picture(tmp_path / "b.tif")


def test_float_picture_and_page_stack_are_refused(tmp_path, save_picture):
    with pytest.raises(UserError, match="32-bit"):
        read_picture(save_picture(tmp_path / "a.tif", np.ones((4, 4), np.float32)))
    pages = [Image.fromarray(GREY)] * 3
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="3 pages"):
        read_picture(tmp_path / "b.tif")


TRUTH = np.array([[True, False, True], [False, False, True]])


@pytest.mark.parametrize(
    "array",
    [
        TRUTH.astype(np.uint8) * 255,
        TRUTH.astype(np.uint8),
        TRUTH,
        TRUTH.astype(np.uint16) * 65535,
        TRUTH.astype(np.uint16) * 255,
        TRUTH.astype(np.uint16),
        TRUTH.astype(np.uint8) * 7,
        TRUTH.astype(np.uint16) * 4095,
        TRUTH.astype(np.uint8)[..., None] * np.array([0, 128, 0], np.uint8),
        np.repeat(TRUTH[..., None], 3, -1).astype(np.uint8) * 255,
        np.dstack([TRUTH.astype(np.uint8) * 255] * 3 + [np.full(TRUTH.shape, 255, np.uint8)]),
    ],
    ids="0/255,0/1,1 bit,16 bit,255 in 16 bit,1 in 16 bit,0/7,12 in 16 bit,green,rgb,rgba".split(","),
)
def test_mask_encodings(tmp_path, save_picture, array):
    mask = read_picture_mask(save_picture(tmp_path / "m.png", array))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, TRUTH)


def test_empty_and_full_masks(tmp_path, save_picture):
    assert not read_picture_mask(save_picture(tmp_path / "a.png", np.zeros((4, 4), np.uint8))).any()
    assert read_picture_mask(save_picture(tmp_path / "b.png", np.full((4, 4), 255, np.uint8))).all()


def test_jpeg_mask_is_cut_at_half(tmp_path, save_picture):
    disc = (np.hypot(*np.mgrid[-16:16, -16:16]) < 9).astype(np.uint8) * 255
    path = save_picture(tmp_path / "m.jpg", disc, quality=75)
    assert len(np.unique(np.asarray(Image.open(path)))) > 2
    assert (read_picture_mask(path) != (disc > 0)).mean() < 0.01


def test_labels_are_the_numbers_in_the_file(tmp_path, save_picture, save_palette):
    labels = np.array([[0, 1, 3], [2, 0, 1]], np.uint8)
    for name, array in {"a": labels, "b": labels.astype(np.uint16) * 300, "c": np.dstack([labels] * 3)}.items():
        read = read_picture_labels(save_picture(tmp_path / f"{name}.png", array))
        assert read.dtype == np.int32
        np.testing.assert_array_equal(read, array if array.ndim == 2 else labels)
    path = save_palette(tmp_path / "p.png", labels, [[9, 9, 9], [255, 0, 0], [0, 255, 0], [0, 0, 255]])
    np.testing.assert_array_equal(read_picture_labels(path), labels)
    one_bit = save_picture(tmp_path / "d.png", np.array([[True, False]]))
    np.testing.assert_array_equal(read_picture_labels(one_bit), [[1, 0]])
    whole = save_picture(tmp_path / "e.tif", labels.astype(np.float32))
    np.testing.assert_array_equal(read_picture_labels(whole), labels)


def test_what_is_no_label_map(tmp_path, save_picture):
    labels = np.array([[0, 1], [2, 0]], np.uint8)
    jpeg = save_picture(tmp_path / "a.jpg", labels).rename(tmp_path / "a.png")  # what it is, not what it is called
    with pytest.raises(UserError, match="a.png: is a JPEG file, and JPEG changes label values; save label maps"):
        read_picture_labels(jpeg)
    with pytest.raises(UserError, match="b.png: is in colour"):
        read_picture_labels(save_picture(tmp_path / "b.png", COLOUR))
    with pytest.raises(UserError, match=r"c.tif: holds the label values 0.5 \(25 %.*nearest neighbour"):
        read_picture_labels(save_picture(tmp_path / "c.tif", labels.astype(np.float32) * 0.5))
    with pytest.raises(UserError, match="d.tif: holds the label values -2.*0 .background. or more"):
        read_picture_labels(save_picture(tmp_path / "d.tif", -labels.astype(np.int32)))
    only_alpha = np.dstack([np.zeros((2, 2, 3), np.uint8), labels])
    with pytest.raises(UserError, match="e.png: has an alpha channel besides its labels"):
        read_picture_labels(save_picture(tmp_path / "e.png", only_alpha))


@pytest.mark.parametrize("array", [GREY, COLOUR, GREY.astype(np.uint16) * 257 + 3], ids=["grey", "rgb", "16 bit"])
def test_write_png_round_trip(tmp_path, array):
    write_png(tmp_path / "a.png", array)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), array)


@pytest.mark.parametrize("array", [GREY / 255, GREY > 3, COLOUR.astype(np.uint16), np.zeros((4, 4, 2), np.uint8)])
def test_write_png_refuses_other_arrays(tmp_path, array):
    with pytest.raises(ValueError, match="write_png takes"):
        write_png(tmp_path / "a.png", array)
    assert os.listdir(tmp_path) == []


# ---- GIF, WebP and JPEG 2000 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.WEBP", "a.jp2"])
def test_images_and_masks_of_other_formats(tmp_path, save_picture, name):
    values = np.zeros((12, 16), np.uint8)
    values[3:9, 4:12] = 255
    options = {} if name != "a.webp" else {"lossless": True}
    path = save_picture(tmp_path / name, values, **options)
    np.testing.assert_array_equal(read_picture_mask(path), values > 0)
    assert split_suffix(path)[1].lower() in PICTURE_SUFFIXES
    np.testing.assert_allclose(read_picture(path)[0], values, atol=20)


def test_a_mask_in_a_gif_of_two_colours(tmp_path):
    """As DRIVE's 21_manual1.gif: a palette of black and white."""
    values = np.zeros((12, 16), np.uint8)
    values[3:9, 4:12] = 1
    picture = Image.fromarray(values)
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a.gif")
    np.testing.assert_array_equal(read_picture_mask(tmp_path / "a.gif"), values > 0)
    assert read_picture(tmp_path / "a.gif").max() == 255
