"""The fingerprint of training data, against masks made by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from guided_diffusion.data.cases import Case
from guided_diffusion.data.fingerprint import Fingerprint, _Measured, data_fingerprint, fingerprint_rows
from guided_diffusion.data.registry import build_dataset


@pytest.fixture
def found(tmp_path, save_picture):
    """A function (masks) that returns the fingerprint of a FOLDER data set with these masks, bool [H, W]."""

    def find(*masks):
        for k, mask in enumerate(masks):
            save_picture(tmp_path / f"images/{k:02d}.png", np.add.outer(*map(np.arange, mask.shape)).astype(np.uint8))
            save_picture(tmp_path / f"masks/{k:02d}.png", mask.astype(np.uint8) * 255)
        return data_fingerprint(build_dataset("FOLDER", tmp_path, 64, split="train", need_masks=True))

    return find


def disc(side, radius, centre=None):
    centre = centre or (side // 2, side // 2)
    rows, columns = np.mgrid[:side, :side]
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


def test_a_disc_survives_the_grid_and_lines_do_not(found):
    blob, lines = disc(256, 70), np.tile(np.arange(256) % 8 == 0, (256, 1))
    one = found(blob)
    assert one.round_trip(128) > 0.99 and one.objects == 1 and one.smallest == blob.sum()
    assert one.shares == (pytest.approx(blob.mean()),) and one.coverage == pytest.approx(0.38, abs=0.1)
    thin = found(lines)
    assert thin.round_trip(128) < 0.8 and thin.coverage == 1 and thin.objects == 32
    assert thin.round_trip(256) == 1 and thin.round_trip(512) == 1  # no image is larger


def test_sizes_values_and_empty_masks(found):
    small, large = disc(40, 9), np.zeros((90, 60), bool)
    both = small | disc(40, 3, (4, 4))
    one = found(small, both, large)
    assert one.sides == ((40, 40), (40, 40), (90, 60)) and one.side == 40 and (one.cases, one.images) == (3, 3)
    assert one.empty == pytest.approx(1 / 3) and one.present == (pytest.approx(2 / 3),) and one.seen == 2
    assert (one.channels, one.values, one.low, one.orientation) == (1, "8 bit", 0, "upright")
    assert one.smallest < small.sum() and one.read_seconds > 0
    assert one == found(small, both, large)  # whatever the reading took
    rows = dict(fingerprint_rows(one))
    assert rows["size in pixels"] == "40 x 40 (median), 40 x 40 to 60 x 90" and rows["nothing marked"].startswith("33%")


@pytest.mark.parametrize(
    ("scale", "kind"), [(1 / 257, "16 bit, with white as 255"), (1 / 7, "real numbers"), (3, "whole numbers of more")]
)
def test_kinds_of_values(scale, kind):
    dataset = Many(
        cases=[Case("a", ("a.png",), ("a.png",))],
        class_names=("a",),
        load_image=lambda case: np.arange(60_000, 64_096, dtype=np.float32).reshape(1, 64, 64) * np.float32(scale),
        normalised=lambda image, case: image,
        load_mask=lambda case, size: disc(64, 9)[None, None],
        image_channels=1,
        orientation="any",
        kept_values=dict,
    )
    assert data_fingerprint(dataset).values.startswith(kind)


@pytest.mark.parametrize(
    ("modality", "kind"), [("CT", "CT, cut to -160 to 240 HU"), ("MRI", "z-scores of each volume")]
)
def test_only_ct_has_a_window(modality, kind):
    kept = {"modalities": [modality], "window": (-160, 240), "is_picture": False}
    assert _Measured(1)._kind(SimpleNamespace(kept_values=lambda: kept), True, 0, 1) == kind


def test_without_anything_marked_nothing_is_known_of_the_grid(found):
    nothing = found(np.zeros((200, 200), bool))
    assert not nothing.is_marked and math.isnan(nothing.round_trip(128)) and math.isnan(nothing.round_trip(512))
    assert nothing.empty == 1 and nothing.smallest == 0 and "components" not in dict(fingerprint_rows(nothing))


def test_volumes_classes_and_raters(tmp_path, save_nifti):
    ball = np.zeros((48, 40, 10), np.uint8)
    ball[10:30, 10:30, 4:8], ball[12:14, 12:14, 5] = 1, 2
    for number in range(2):
        image = np.random.default_rng(number).integers(1, 900, ball.shape).astype(np.int16)
        save_nifti(tmp_path / f"images/v{number}.nii.gz", image, np.diag([0.5, 0.5, 3, 1]))
        save_nifti(tmp_path / f"masks/v{number}.nii.gz", ball, np.diag([0.5, 0.5, 3, 1]))
    settings = {"split": "train", "need_masks": True, "classes": "organ=1,lesion=2"}
    one = data_fingerprint(build_dataset("FOLDER", tmp_path, 64, **settings))
    assert (one.cases, one.images, one.is_volumes, one.classes) == (2, 20, True, ("organ", "lesion"))
    assert one.spacing == (0.5, 0.5, 3) and one.values == "z-scores of each volume"
    assert one.empty == pytest.approx(0.6) and one.present == (pytest.approx(0.4), pytest.approx(0.1))
    assert one.shares[1] == pytest.approx(4 / 48 / 40) and one.read_seconds == 0
    rows = dict(fingerprint_rows(one))
    assert rows["volumes"] == "2, 20 slices" and rows["spacing in mm"] == "0.5 x 0.5 x 3"
    assert rows["class lesion"] == "0.21% of an image that has it; in 10% of images"


class Many(SimpleNamespace):
    """500 pictures that are read from nowhere."""

    def __len__(self):
        return len(self.cases)


def test_of_many_pictures_a_spread_sample_is_read(monkeypatch):
    read = []
    dataset = Many(
        cases=[Case(str(k), (f"{k}.png",), (f"{k}.png",)) for k in range(500)],
        class_names=("a",),
        load_image=lambda case: np.zeros((1, 64, 64), np.float32),
        normalised=lambda image, case: image,
        load_mask=lambda case, size: read.append(int(case.name)) or disc(64, 9)[None, None],
        image_channels=1,
        orientation="any",
        kept_values=dict,
    )
    one = data_fingerprint(dataset)
    assert len(read) == 48 == len(set(read)) and (read[0], read[-1]) == (0, 499) and one.images == 500
    monkeypatch.setattr("guided_diffusion.data.fingerprint.MOST_PIXELS", 64 * 64 * 20)
    read.clear()
    data_fingerprint(dataset)
    assert len(read) == 20  # of large pictures fewer


def test_the_worst_class_counts():
    trips = {128: (0.99, math.nan, 0.9)}
    one = Fingerprint(1, 1, 1, ((300, 200),) * 3, 1, ("a", "b", "c"), present=(1.0, 0.0, 0.5), round_trips=trips)
    assert one.round_trip(128) == 0.9 and one.round_trip(512) == 1 and math.isnan(one.round_trip(256))
