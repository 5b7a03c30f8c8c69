"""The lines about files in no case, and the kinds of files that are not read."""

import pytest

from guided_diffusion.data.left_over import DOCUMENT, FOREIGN, LINK, UNUSED, foreign, looks_like_a_part
from guided_diffusion.io.volume_formats import VOLUME_SUFFIXES


def test_a_line_names_three_files_and_counts_them():
    assert LINK.line(["a"]) == (
        "1 file is a link without a target: a; fetch it (git annex get, git lfs pull) or remove it"
    )
    assert UNUSED.line(["a", "b", "c", "d"]).startswith("4 files are in no case: a, b, c and 1 more; move them to ")
    assert DOCUMENT.line(["a"]) == "1 file is a table or document: a"


def test_the_short_form_names_one():
    assert LINK.short(["a"]) == "1 link without a target, as a"
    assert LINK.short(["a", "b"]) == "2 links without a target, as a"
    assert foreign(".mgz").short(["a.mgz"]) == "1 of a kind that is not read (.mgz), as a.mgz"


@pytest.mark.parametrize("suffix", [".mgz", ".mnc", ".raw", ".jp2", ".heic", ".svs", ".mp4", ".npy"])
def test_each_foreign_kind_has_its_remedy(suffix):
    assert foreign(suffix).line(["x", "y"]).endswith(FOREIGN[suffix]) and foreign(suffix).is_data


def test_what_is_read_is_not_foreign():
    assert not set(FOREIGN) & {*VOLUME_SUFFIXES, ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


@pytest.mark.parametrize(
    "name, expected",
    [
        *((name, True) for name in ("train2", "Test_old", "valid_images", "fold0", "TestImages", "trainval", "dev")),
        *((name, True) for name in ("images_train", "holdout", "test (copy)", "testset2", "2_validation")),
        *((name, False) for name in ("trainees", "test", "latest", "valve", "images", "TestSet")),
    ],
)
def test_folders_that_look_like_a_part(name, expected):
    assert looks_like_a_part(name) == expected
