"""What a mask's pixels mean: each kind of file that has one reading, and the message for each kind that has several."""

import io

import numpy as np
import pytest
import tifffile
from conftest import write_folder
from PIL import Image, ImageFilter
from scipy.ndimage import binary_dilation, binary_erosion

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.io.images import read_picture_mask
from guided_diffusion.io.masks import check_whole, classes_advice, differ, read_as_mask, read_label_array
from guided_diffusion.io.pictures import Pixels, noted_masks
from guided_diffusion.runtime.errors import UserError

DISC = np.hypot(*np.mgrid[-20:20, -24:24]) < 11
RING = binary_dilation(DISC) & ~DISC
WHITE = DISC.astype(np.uint8) * 255
BLACK_RGB, RED = np.zeros(3, np.uint8), np.array([255, 0, 0], np.uint8)


def reading(values, lossy=False, **options):
    return read_as_mask(Pixels("m.png", np.asarray(values), is_lossy=lossy, **options))


def message(values, lossy=False, **options):
    with pytest.raises(UserError) as error:
        reading(values, lossy, **options)
    assert str(error.value).startswith("m.png: ") and "\n" not in str(error.value)
    return str(error.value)


def as_jpeg(array, quality):
    data = io.BytesIO()
    Image.fromarray(array).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


# ---- one reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2, 128, 254, 255])
def test_zero_and_any_other_value(value):
    found = reading(DISC.astype(np.uint8) * value)
    assert found.foreground == str(value) and not found.is_soft
    assert found.counts == {0: (~DISC).sum(), value: DISC.sum()}
    np.testing.assert_array_equal(found.mask, DISC)


def test_empty_and_full():
    assert not reading(np.zeros((4, 4), np.uint8)).mask.any() and reading(np.zeros((4, 4), np.uint8)).foreground is None
    for value in (1, 255):
        assert reading(np.full((4, 4), value, np.uint8)).mask.all()
    assert reading(np.full((4, 4), 65535, np.uint16), white=65535).mask.all()
    assert "one value everywhere is background or foreground" in message(np.full((4, 4), 128, np.uint8))


@pytest.mark.parametrize("size", [32, 256])
def test_jpeg_and_smooth_edges_are_cut_at_half(size):
    truth = phantom.isic_case(1, size=size)[1]
    mask = truth.astype(np.uint8) * 255
    picture = Image.fromarray(mask)
    for quality in (5, 10, 50, 75, 95):
        for lossy in (True, quality == 5):  # a JPEG file that was saved again as PNG keeps the ringing
            found = reading(as_jpeg(mask, quality), lossy)
            assert found.is_soft and found.foreground == "255" and (found.mask != truth).mean() < 0.01
    dim = reading(as_jpeg(mask // 255 * 140, 75), lossy=True)
    assert 135 < int(dim.foreground) < 145 and (dim.mask != truth).mean() < 0.01
    blurred = reading(np.asarray(picture.filter(ImageFilter.GaussianBlur(size / 64))))
    assert (blurred.mask != truth).mean() < 0.01
    for factor, method in ((4, Image.Resampling.BICUBIC), (3, Image.Resampling.BILINEAR), (0.5, Image.Resampling.BOX)):
        shape = (int(mask.shape[1] * factor), int(mask.shape[0] * factor))
        found = reading(np.asarray(picture.resize(shape, method)))
        nearest = np.asarray(picture.resize(shape, Image.Resampling.NEAREST)) > 0
        assert found.is_soft and (found.mask != nearest).mean() < 0.1


def test_one_hue_on_black():
    red = np.where(DISC[..., None], RED, BLACK_RGB)
    assert reading(red).foreground == "#ff0000"
    np.testing.assert_array_equal(reading(red).mask, DISC)
    lossy = reading(as_jpeg(red, 90), lossy=True)
    assert lossy.is_soft and (lossy.mask != DISC).mean() < 0.02
    smooth = np.asarray(Image.fromarray(red).resize((96, 80), Image.Resampling.BILINEAR))
    assert (reading(smooth).mask != DISC.repeat(2, 0).repeat(2, 1)).mean() < 0.05


def test_a_palette_is_read_by_its_colours(tmp_path, save_palette):
    for colours in ([[255, 0, 0], [0, 0, 0]], [[255, 255, 255], [0, 0, 0]], [[0, 90, 0], [0, 0, 0]]):
        np.testing.assert_array_equal(read_picture_mask(save_palette(tmp_path / "a.png", ~DISC, colours)), DISC)
    for colours in ([[0, 0, 0], [128, 0, 0]], [[0, 0, 0], [1, 1, 1]]):
        np.testing.assert_array_equal(read_picture_mask(save_palette(tmp_path / "b.png", DISC, colours)), DISC)


def test_alpha_over_one_colour_is_the_mask(tmp_path, save_picture):
    for colour in (0, 255):
        path = save_picture(tmp_path / "a.png", np.dstack([np.full((*DISC.shape, 3), colour, np.uint8), WHITE]))
        np.testing.assert_array_equal(read_picture_mask(path), DISC)
    path = save_picture(tmp_path / "b.png", np.dstack([WHITE, WHITE, WHITE, WHITE]))  # both say the same
    np.testing.assert_array_equal(read_picture_mask(path), DISC)
    path = save_picture(tmp_path / "c.png", np.dstack([np.zeros_like(WHITE), WHITE]))  # grey and alpha
    np.testing.assert_array_equal(read_picture_mask(path), DISC)
    path = tmp_path / "d.png"
    Image.fromarray(WHITE).save(path, transparency=0)  # PNG's tRNS: black is transparent
    np.testing.assert_array_equal(read_picture_mask(path), DISC)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_white_as_zero_is_inverted(tmp_path, dtype):
    white = 1 if dtype is bool else np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "m.tif", (~DISC * white).astype(dtype), photometric="miniswhite")
    np.testing.assert_array_equal(read_picture_mask(tmp_path / "m.tif"), DISC)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint64, np.float32, np.float64])
def test_0_and_1_in_any_type(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "m.tif", DISC.astype(dtype))
    np.testing.assert_array_equal(read_picture_mask(tmp_path / "m.tif"), DISC)


# ---- several readings --------------------------------------------------------------------------------------------


def test_void_beside_small_values():
    text = message(np.where(RING, 255, DISC).astype(np.uint8))
    assert "its values 0 (7" in text and "255 (" in text and "255 beside small values is void" in text
    assert "--classes foreground=1 takes it as background" in text
    two = np.where(RING, 255, DISC.astype(np.uint8) + binary_erosion(DISC, iterations=4))
    assert "object=1+2 reads them as one class" in message(two) and "255 is void" in message(two)


def test_void_is_found_after_loss_too(tmp_path):
    large = np.kron(np.where(RING, 255, DISC), np.ones((4, 4))).astype(np.uint8)
    for quality in (75, 95):
        assert "JPEG changes label values" in message(as_jpeg(large, quality), lossy=True)
    ring = np.where(np.kron(RING, np.ones((4, 4))) > 0, 255, 0).astype(np.uint8)
    assert reading(as_jpeg(ring, 75), lossy=True).is_soft  # a mask with a hole
    Image.fromarray(WHITE).convert("RGB").save(tmp_path / "m.webp", quality=60)
    assert (read_picture_mask(tmp_path / "m.webp") != DISC).mean() < 0.01


@pytest.mark.parametrize("at", [(4, 4), (40, 60)], ids=["apart", "inside"])
def test_a_small_object_of_another_colour_in_a_jpeg(at):
    colours = np.zeros((128, 160, 3), np.uint8)
    colours[30:90, 40:120] = RED
    one = reading(as_jpeg(colours, 75), lossy=True)
    assert one.is_soft and one.mask.sum() == 60 * 80
    y, x = at
    colours[y : y + 10, x : x + 10] = (255, 255, 0) if y == 40 else (0, 255, 0)  # 0.5 % of the pixels
    assert "are no mask of one class, black and one other colour" in message(as_jpeg(colours, 75), lossy=True)


def test_values_without_0_have_no_background():
    disc = DISC.astype(np.uint8)
    for base in (1, 126):  # 126 and 127 are no smooth edges of a white mask
        advice = message(base + disc)
        assert f"none is 0, the background; if {base} is: --classes foreground={base + 1} reads {base + 1}" in advice
    assert "if 1 is: --classes foreground=255 reads 255" in message(np.where(DISC, 255, 1).astype(np.uint8))
    assert "if 1 is: --classes object=2+3 reads them as one class" in message(1 + disc + RING * np.uint8(2))
    fundus = np.full(DISC.shape, 255, np.uint8)  # REFUGE: the cup is 0, the disc 128
    fundus[DISC], fundus[18:22, 22:26] = 128, 0
    assert "0 always means background here; if 255 is the background, save it as 0" in message(fundus)


def test_lossy_masks_of_close_values_are_refused():
    assert "lie so close together that lossy compression (JPEG) changes them" in message(DISC * np.uint8(1), lossy=True)
    assert reading(DISC * np.uint8(200), lossy=True).mask.sum() == DISC.sum()


def test_label_maps_and_instances():
    labels = DISC.astype(np.uint8) + binary_erosion(DISC, iterations=4)
    text = message(labels)
    assert "--classes object=1+2 reads them as one class (instances), --classes class_1=1,class_2=2 as 2" in text
    for values in (labels * 85, np.where(RING, 128, WHITE), labels.astype(np.int32) * 300):
        assert "are no mask of one class" in message(values)
    many = np.kron(np.arange(36).reshape(6, 6), np.ones((6, 6))).astype(np.uint8)
    assert "if they number 35 instances of one class: --classes object=1-35" in message(many)
    assert "JPEG changes label values" in message(as_jpeg(np.kron(labels, np.ones((8, 8), np.uint8)) * 127, 90), True)


def test_several_colours(tmp_path, save_picture, save_palette):
    inner = binary_erosion(DISC, iterations=4)
    colours = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    path = save_palette(tmp_path / "p.png", DISC.astype(np.uint8) + inner, colours)
    with pytest.raises(
        UserError, match="0: #000000 .* 1: #ff0000 .*--classes class_1=1,class_2=2 reads the numbers in"
    ):
        read_picture_mask(path)
    edges = np.where(DISC & ~inner, 255, inner)  # as Pascal VOC marks pixels that nobody annotated
    void = save_palette(tmp_path / "v.png", edges.astype(np.uint8), colours + [[9, 9, 9]] * 252 + [[224, 224, 192]])
    with pytest.raises(UserError, match="--classes class_1=1 reads .*; 255 is void .* unless --ignore_label 255"):
        read_picture_mask(void)
    with Image.open(path) as picture:
        rgb = np.asarray(picture.convert("RGB"))
    assert "#0000ff" in message(rgb) and "save one class as white on black" in message(rgb)
    assert "are no mask of one class" in message(
        np.where(DISC[..., None], [253, 231, 36], [68, 1, 84]).astype(np.uint8)
    )
    assert "are no mask" in message(np.full((4, 4, 3), RED))
    large = np.kron(rgb, np.ones((4, 4, 1), np.uint8))
    assert "JPEG changes colours; save a grey or palette PNG" in message(as_jpeg(large, 90), lossy=True)


def test_colours_and_alpha_that_disagree():
    alpha = np.full(DISC.shape, 255, np.uint8)
    alpha[:, :10] = 0
    assert "its colours show one mask and its transparency another" in message(WHITE, alpha=alpha)
    assert "is transparent all over" in message(WHITE, alpha=np.zeros_like(alpha))


def test_fractions_negative_values_and_photographs():
    assert "fractions may be probabilities" in message(np.where(DISC, 0.7, 0.1).astype(np.float32), white=1)
    assert "NaN means nothing" in message(np.where(DISC, np.nan, 0).astype(np.float32), white=1)
    assert "negative values mean nothing" in message(DISC.astype(np.int32) * 2 - 1)
    grey = np.asarray(Image.fromarray(phantom.isic_case(0, size=64)[0]).convert("L"))
    assert "many greys of a photograph" in message(grey)
    on_black = np.where(np.hypot(*np.mgrid[-1 : 1 : grey.shape[0] * 1j, -1 : 1 : grey.shape[1] * 1j]) < 0.7, grey, 0)
    assert "many greys of a photograph" in message(on_black.astype(np.uint8))


# ---- label maps, and files beside each other ---------------------------------------------------------------------


def test_label_arrays_of_one_class():
    assert read_label_array(DISC * 3, "s.nii.gz").foreground == "3"
    assert read_label_array(DISC * 0, "s.nii.gz").foreground is None
    with pytest.raises(UserError, match=r"s.nii.gz: its values 0 .* --classes object=1\+2 reads them"):
        read_label_array(DISC.astype(int) + RING * 2, "s.nii.gz")


def test_labels_are_whole_numbers():
    check_whole(np.array([0, 1.0001, 3]), "a")
    with pytest.raises(UserError, match=r"a: holds the label values 0.25, 0.5 \(50 %.*nearest neighbour"):
        check_whole(np.array([0, 0.25, 0.5, 2]), "a")
    with pytest.raises(UserError, match="a: holds the label values nan "):
        check_whole(np.array([0, np.nan]), "a")
    with pytest.raises(UserError, match="a: holds the label values -1 "):
        check_whole(np.array([0, -1]), "a")


@pytest.mark.parametrize(
    "one, other, expected",
    [
        ("1", "255", False),
        ("255", "65535", False),
        ("#ffffff", "1", False),
        ("transparency", "255", False),
        ("#ff0000", "#fa0503", False),
        ("255", None, False),
        ("1", "2", True),
        ("128", "255", True),
        ("#ff0000", "#00ff00", True),
        ("#ff0000", "255", True),
    ],
)
def test_which_files_could_be_slices_of_a_label_map(one, other, expected):
    assert differ(one, other) is expected and differ(other, one) is expected


def test_what_is_advised():
    assert classes_advice([1, 2, 3]).startswith("--classes object=1+2+3 reads them as one class")
    assert "void" not in classes_advice([128, 255])


def test_who_listens_learns_what_was_read(tmp_path):
    write_folder(tmp_path, 2)
    with noted_masks() as outer:
        with noted_masks() as inner:
            read_picture_mask(tmp_path / "masks/case0.png")
        read_picture_mask(tmp_path / "masks/case1.png")
    assert [note.foreground for note in inner] == ["255"]
    assert [note.path.name for note in outer] == ["case0.png", "case1.png"]
