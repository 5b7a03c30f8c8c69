"""Reading and writing of pictures, arrays and tables."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guided_diffusion.io.files import (
    atomic_path,
    list_files,
    read_csv,
    read_json,
    read_npz,
    read_npz_headers,
    remove_temporaries,
    split_suffix,
    write_json,
)
from guided_diffusion.io.images import read_picture, read_picture_mask, write_png
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.png", ("a", ".png")),
        ("a.b.PNG", ("a.b", ".PNG")),
        ("x_t1.nii.gz", ("x_t1", ".nii.gz")),
        ("x.nii", ("x", ".nii")),
    ],
)
def test_split_suffix(name, expected):
    assert split_suffix(name) == expected


def test_list_files_leaves_out_hidden_files_folders_and_other_kinds(tmp_path):
    for name in ("b.PNG", "a.png", "._a.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_files(tmp_path, (".png",))] == ["a.png", "b.PNG"]


# ---- pictures ----------------------------------------------------------------------------------------------------


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
    with pytest.raises(UserError, match="a.png: is truncated or damaged, or is no picture"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(UserError, match="b.png: no such file"):
        read_picture(tmp_path / "b.png")


def test_float_picture_and_page_stack_are_refused(tmp_path, save_picture):
    with pytest.raises(UserError, match="32-bit"):
        read_picture(save_picture(tmp_path / "a.tif", np.ones((4, 4), np.float32)))
    pages = [Image.fromarray(GREY)] * 3
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match="3 pages"):
        read_picture(tmp_path / "b.tif")


# ---- masks -------------------------------------------------------------------------------------------------------

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
        np.where(TRUTH, 140, 110).astype(np.uint8),
        np.repeat(TRUTH[..., None], 3, -1).astype(np.uint8) * 255,
        np.dstack([TRUTH.astype(np.uint8) * 255] * 3 + [np.full(TRUTH.shape, 255, np.uint8)]),
    ],
    ids=["0/255", "0/1", "1 bit", "16 bit", "255 in 16 bit", "1 in 16 bit", "grey edges", "rgb", "rgba"],
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


@pytest.mark.parametrize(
    "palette, indices, expected",
    [
        ([0, 0, 0, 90, 0, 0, 0, 0, 90], [[0, 1, 2]], [[False, True, True]]),
        ([255, 255, 255, 0, 0, 0], [[0, 1, 0]], [[True, False, True]]),
    ],
    ids=["class colours, all dark", "white first"],
)
def test_palette_masks(tmp_path, palette, indices, expected):
    picture = Image.fromarray(np.array(indices, np.uint8), mode="P")
    picture.putpalette(palette)
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_picture_mask(tmp_path / "m.png"), expected)


def test_class_numbers_are_refused_rather_than_read_as_empty(tmp_path, save_picture):
    with pytest.raises(UserError, match="m.png: its values reach from 0 to 3.*0 for background and 255"):
        read_picture_mask(save_picture(tmp_path / "m.png", np.array([[0, 1, 2, 3]], np.uint8)))


# ---- tables ------------------------------------------------------------------------------------------------------


def test_read_csv_and_json(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeffname, label\n\nx,1\n", encoding="utf-8")
    assert read_csv(tmp_path / "a.csv") == [(1, ["name", "label"]), (3, ["x", "1"])]
    (tmp_path / "a.json").write_text('{"a": [1, 2}')
    with pytest.raises(UserError, match="a.json: is no valid JSON"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="b.csv: is no valid CSV"):
        read_csv(tmp_path / "b.csv")


# ---- NumPy archives ----------------------------------------------------------------------------------------------


def test_npz_arrays_and_their_headers(tmp_path):
    arrays = {"a": RNG.random((3, 4)), "b.c": np.array(["x", "yz"]), "n": np.uint8(7)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    headers = read_npz_headers(tmp_path / "x.npz")
    assert headers == {name: (np.shape(value), np.asarray(value).dtype) for name, value in arrays.items()}
    for name, value in arrays.items():
        np.testing.assert_array_equal(read_npz(tmp_path / "x.npz", name), value)


def test_npz_files_that_cannot_be_read(tmp_path, truncate):
    path = tmp_path / "x.npz"
    for read in (read_npz_headers, lambda path: read_npz(path, "a")):
        path.unlink(missing_ok=True)
        with pytest.raises(UserError, match="x.npz: no such file"):
            read(path)
        path.write_bytes(b"PK no archive")
        with pytest.raises(UserError, match="x.npz: is truncated or damaged, or is no .npz file"):
            read(path)
    np.savez(path, a=np.array([{"of": "objects"}], dtype=object))
    with pytest.raises(UserError, match="allow_pickle=False"):
        read_npz(path, "a")
    with pytest.raises(UserError, match="x.npz: .*b is not a file in the archive"):
        read_npz(path, "b")


# ---- writing -----------------------------------------------------------------------------------------------------


def test_atomic_path_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "new" / "x_seg.nii.gz"
    for text in ("one", "two"):
        reader = target.open() if target.exists() else None
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent and temporary.name.startswith(".")
            assert temporary.name.endswith(".nii.gz") and str(os.getpid()) in temporary.name
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "one"
    with reader:
        assert reader.read() == "one"  # who has the old file open keeps it: it was replaced, not written over
    assert target.read_text() == "two"
    assert os.listdir(target.parent) == [target.name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_the_old_file_after_an_error(tmp_path, error):
    target = tmp_path / "x.png"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["x.png"]


def test_a_kill_leaves_the_old_file(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old")
    code = (
        "import os, sys; from guided_diffusion.io.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as p: p.write_text('half'); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, target], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -9 and target.read_text() == "old"
    others = [tmp_path / name for name in (".hidden.json", "y.12.json", "12.json", ".12.json")]
    for path in others:
        path.touch()
    assert len(list(tmp_path.iterdir())) == 6
    remove_temporaries(tmp_path, idle=100)  # it may be another run's
    assert len(list(tmp_path.iterdir())) == 6
    remove_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([target, *others])


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


def test_write_json_is_valid_json_for_what_metrics_hold(tmp_path):
    value = {"dice": float("nan"), "hd": np.float32(2.5), "n": np.int64(3), "path": Path("a/b"), "list": np.arange(2)}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "dice": None,
        "hd": 2.5,
        "n": 3,
        "path": "a/b",
        "list": [0, 1],
    }


# ---- text --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def opened_by_locale(path):
    """The lines of a file of code that open text without an encoding, which is then the machine's."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call) or any(word.arg == "encoding" for word in call.keywords):
            continue
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        mode = [one.value for one in call.args[1:2] if isinstance(one, ast.Constant)]
        is_opener = isinstance(call.func, ast.Name) and name == "open"  # not os.open, Image.open
        if name in ("read_text", "write_text") or (is_opener and "b" not in "".join(mode)):
            yield f"{path.name}:{call.lineno}"


def test_text_is_utf_8_whatever_the_machine_s_encoding_is():
    code = [*(ROOT / "guided_diffusion").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    assert len(code) > 50 and [line for path in code for line in opened_by_locale(path)] == []


def test_a_table_with_names_in_any_alphabet_is_written_where_the_locale_is_plain(tmp_path):
    """metrics.csv, as on a machine without UTF-8."""
    program = (
        "import sys; from pathlib import Path; from guided_diffusion.evaluation import evaluate as e;"
        "evaluation = e.Evaluation(('foreground',), e.EvaluationSettings(), 'pixels', 'pixels');"
        "evaluation.rows = [{'name': 'caf\\u00e9\\u4e2d', 'class': 'foreground', 'dice': 1.0}];"
        "e._write_csv(Path(sys.argv[1]), evaluation)"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(tmp_path / "metrics.csv")]
    subprocess.run(command, env={**os.environ, **plain}, check=True)
    assert "\ncafé中," in (tmp_path / "metrics.csv").read_text(encoding="utf-8")
