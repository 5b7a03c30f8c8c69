"""check_data.py: what it counts, what it calls an error or a warning, its exit status and its contact sheet."""

import re
import shutil

import nibabel
import numpy as np
import pytest
from conftest import LOADER, TINY, write_folder
from helpers import write_task
from PIL import Image

from guided_diffusion.data import phantoms as phantom
from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.check import findings
from guided_diffusion.data.inspection import find_parts, inspect_unit
from guided_diffusion.data.phantoms import write_lidc
from guided_diffusion.io.drawing import CAPTION, MASK_COLOUR
from guided_diffusion.io.images import write_label_png


@pytest.fixture
def check(script, tmp_path, capsys):
    """A function (folder, flags) that checks it; returns the exit status and what was said, as text."""

    def run(folder, flags=""):
        capsys.readouterr()
        line = ["--data_dir", folder, "--out_dir", tmp_path / "checked", "--num_workers 0", flags]
        status = script("check_data", line)
        return status, capsys.readouterr().out

    return run


def cells(text, label):
    """The cells of a row of the table."""
    return re.search(rf"(?m)^{re.escape(label)}  +(.*)$", text)[1].split()


def lines(text, level):
    return [line.removeprefix(f"{level}: ") for line in text.splitlines() if line.startswith(f"{level}: ")]


@pytest.fixture
def divided(tmp_path):
    """Phantom pictures in train/ (4: case0 to case3) and test/ (2: case4, case5), which tests spoil."""
    folder = tmp_path / "data"
    write_folder(tmp_path / "all", 6)
    for index in range(6):
        for part in ("images", "masks"):
            target = folder / ("train" if index < 4 else "test") / part
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(tmp_path / "all" / part / f"case{index}.png", target)
    return folder


# ---- what is counted ---------------------------------------------------------------------------------------------


def test_a_sound_data_set(check, divided, tmp_path):
    status, text = check(divided)
    assert status == 0 and "--data_name FOLDER" in text and "0 errors, 0 warnings" in text
    assert "layout (train): folder of 4 pictures, divided into folders" in text
    expected = {"cases": ["4", "2"], "without a mask": ["0", "0"], "channels": ["3", "3"], "raters": ["1", "1"]}
    assert {label: cells(text, label) for label in expected} == expected
    assert cells(text, "sizes, most often (H x W)") == ["32x40", "32x40"]
    assert cells(text, "values in masks") == ["0", "255", "0", "255"]
    shares = [phantom.isic_case(index, size=32)[1].mean() for index in range(4)]
    line = f"foreground: train {100 * np.mean(shares):.3g} % ({100 * min(shares):.2g} to {100 * max(shares):.3g})"
    assert line in text
    sheet = np.asarray(Image.open(tmp_path / "checked" / "contact_sheet.png"))
    assert sheet.shape == (160 + CAPTION, 6 * 162 - 2, 3)  # four and two cases in a row
    for tile in range(6):  # each mask is outlined
        assert (sheet[CAPTION:, 162 * tile : 162 * tile + 160] == MASK_COLOUR).all(axis=-1).sum() > 50


def test_validation_cases_without_masks_are_a_warning_and_training_says_so(check, divided, script, tmp_path, capsys):
    """As challenges publish their validation part. One mask that lacks among others is an error."""
    (divided / "test").rename(divided / "val")
    (divided / "val" / "masks" / "case4.png").unlink()
    status, text = check(divided)
    assert status == 1 and lines(text, "error") == ["val: 1 case without a mask: case4"]
    (divided / "val" / "masks" / "case5.png").unlink()
    status, text = check(divided)
    assert status == 0
    assert lines(text, "warning") == ["val: no case has a mask (2 cases): training will not validate on them"]
    flags = f"{TINY.replace('--sample_interval 0', '--sample_interval 1')} --dry_run"
    script("segmentation_train", ["--data_name FOLDER --data_dir", divided, "--out_dir", tmp_path / "o", flags])
    assert f"# {divided}: its 2 validation cases have no masks and are not used in training" in capsys.readouterr().out


def test_thin_structures_are_a_warning_where_the_network_s_grid_is_too_coarse(check, tmp_path, save_picture, script):
    rows, columns = np.mgrid[0:64, 0:80]
    for k in range(4):
        save_picture(tmp_path / "data" / "images" / f"{k}.png", (rows * 3 + columns + k).astype(np.uint8))
        labels = np.where(columns % 16 < 2, 1, np.where(np.hypot(rows - 30, columns - 40) < 20, 2, 0))
        save_picture(tmp_path / "data" / "masks" / f"{k}.png", labels.astype(np.uint8))
    flags = "--classes vessel=1,disc=2 --val_fraction 0.25"
    status, text = check(tmp_path / "data", f"{flags} --image_size 32")
    (warning,) = [line for line in lines(text, "warning") if "coarse" in line]
    dice = cells(text, "Dice of masks, resized and back")
    assert status == 0 and warning.startswith("train: --image_size 32 is coarse for these masks: ")
    assert f"a Dice of {float(dice[0]):.2f} (vessel) with themselves" in warning and "--crop True" in warning
    assert float(dice[0]) < 0.8 and float(dice[1]) > 0.95 and dice[2:4] == ["at", "32"]
    status, text = check(tmp_path / "data", flags)
    assert "coarse" not in text and cells(text, "Dice of masks, resized and back")[:4] == [
        "1.000",
        "1.000",
        "at",
        "256",
    ]


def test_workers_see_the_same(check, divided):
    assert check(divided, "--num_workers 2") == check(divided)


def test_several_raters_and_patients(check, tmp_path):
    write_lidc(tmp_path / "data", num_train=4, num_test=2, size=32)
    status, text = check(tmp_path / "data")
    assert status == 0 and cells(text, "patients or groups") == ["2", "1"] and cells(text, "raters") == ["4", "4"]


def test_volumes(check, brats):
    status, text = check(brats)
    assert status == 0 and cells(text, "cases") == ["2", "1"] and cells(text, "slices") == ["6", "3"]
    assert cells(text, "values in masks") == ["0", "1", "2", "4", "0", "1", "2", "4"]
    assert cells(text, "channels") == ["4", "4"]


def test_undivided_data_and_a_share_held_out(check, pictures):
    status, text = check(pictures)
    assert status == 0 and cells(text, "cases") == ["4"]
    assert lines(text, "warning") == [
        "the data are not divided: all are trained on and sampled; hold some out, as --val_fraction 0.2"
    ]
    status, text = check(pictures, "--val_fraction 0.3")
    counts = [int(cell) for cell in cells(text, "cases")]
    assert status == 0 and len(counts) == 2 and sum(counts) == 4 and not lines(text, "warning")


# ---- what is wrong -----------------------------------------------------------------------------------------------


def test_what_training_would_trip_over(check, divided, truncate, save_picture):
    (divided / "train/masks/case0.png").unlink()
    truncate(divided / "train/images/case1.png")
    save_picture(divided / "train/masks/case2.png", np.zeros((40, 32), np.uint8))
    save_picture(divided / "test/masks/case4.png", np.full((32, 40), 7, np.uint8))
    shutil.copy(divided / "train/images/case3.png", divided / "test/images/copy.png")
    status, text = check(divided)
    errors = lines(text, "error")
    assert status == 1 and "5 errors, 1 warning" in text and len(errors) == 5
    for words in (
        f"train: {divided}/train/images/case1.png: is truncated or damaged",
        f"train: {divided}/train/masks/case2.png: the mask has 40x32 pixels, its image case2.png has 32x40",
        f"test: {divided}/test/masks/case4.png: its values 7 (100 %) are no mask of one class; one value everywhere is",
        "train: 1 case without a mask: case0",
        "1 image in two splits, so that what is trained on is also tested on: case3 (train) = copy (test); keep each",
    ):
        assert any(error.startswith(words) for error in errors), words
    assert lines(text, "warning") == ["test: 1 case without a mask, which cannot be scored: copy"]
    assert cells(text, "cannot be read") == ["2", "1"] and cells(text, "without a mask") == ["1", "1"]


def test_what_may_be_intended(check, divided, save_picture):
    save_picture(divided / "train/masks/case0.png", np.zeros((32, 40), np.uint8))
    soft = np.asarray(Image.open(divided / "train/masks/case1.png")).copy()
    soft[:, -2:] = (60, 90)  # as a smooth edge is cut off at the border
    soft[0, :5] = (30, 90, 120, 180, 220)
    save_picture(divided / "train/masks/case1.png", soft)
    save_picture(divided / "train/images/case2.png", np.full((32, 40, 3), 9, np.uint8))
    save_picture(divided / "train/masks/case3.png", np.full((32, 40), 255, np.uint8))
    shutil.copy(divided / "test/images/case4.png", divided / "test/images/case5.png")
    save_picture(divided / "train/images/black.png", np.eye(32, 40, dtype=np.uint8)[..., None].repeat(3, -1))
    save_picture(divided / "train/masks/black.png", soft // 255 * 255)
    status, text = check(divided)
    assert status == 0 and lines(text, "warning") == [
        "train: 1 case with nothing marked: case0",
        "train: 1 case marked all over: case3",
        "train: 1 mask with greys between background and foreground, which are cut at half: case1",
        "train: 1 image of one value alone: case2",
        "train: nearly black, with values from 0 to 1: black; save them as 0-255",
        "1 image more than once in a split: case4 (test) = case5 (test)",
    ]


def test_raters_of_one_image_each(check, tmp_path, save_picture):
    for k, rater in enumerate(("anna", "ben")):
        save_picture(tmp_path / f"images/{k}.png", np.arange(80, dtype=np.uint8).reshape(8, 10) + k)
        save_picture(tmp_path / f"masks/{rater}/{k}.png", np.eye(8, 10, dtype=np.uint8) * 255)
    status, text = check(tmp_path)
    assert status == 1 and lines(text, "error") == ["all: 2 cases not masked by each of anna, ben: 0, 1"]


def test_raters_who_mark_nothing_in_common_may_be_classes(check, tmp_path, save_picture):
    for k in range(2):
        save_picture(tmp_path / f"images/{k}.png", np.arange(80, dtype=np.uint8).reshape(8, 10) + k)
        for shift, organ in enumerate(("liver", "spleen")):
            save_picture(tmp_path / f"masks/{organ}/{k}.png", np.eye(8, 10, shift, dtype=np.uint8) * 255)
    warning = "all: the raters (liver, spleen) mark no pixel in common in any of 2 images: are they classes?"
    assert any(line.startswith(warning) for line in lines(check(tmp_path)[1], "warning"))
    save_picture(tmp_path / "masks/spleen/1.png", np.eye(8, 10, dtype=np.uint8) * 255)
    assert "are they classes" not in check(tmp_path)[1]


def test_a_few_images_of_12_bits_among_16(check, tmp_path, save_picture):
    for k in range(5):
        image = np.arange(80, dtype=np.uint16).reshape(8, 10) * (50 if k == 1 else 800) + k
        save_picture(tmp_path / f"images/{k}.png", image)
        save_picture(tmp_path / f"masks/{k}.png", np.eye(8, 10, dtype=np.uint8) * 255)
    (warning,) = (line for line in lines(check(tmp_path)[1], "warning") if "black" in line)
    assert warning.startswith("all: 1 image nearly black") and warning.endswith("in 16 bits: 1")
    save_picture(tmp_path / "images/1.png", np.arange(80, dtype=np.uint8).reshape(8, 10) // 2)  # a dark one of 8 bits
    for k in (0, 2, 3, 4):
        save_picture(tmp_path / f"images/{k}.png", np.arange(80, dtype=np.uint8).reshape(8, 10) * 3)
    assert "black" not in check(tmp_path)[1]


def test_masks_of_nothing_and_a_rater_who_lacks(check, divided, save_picture):
    for path in (divided / "train/masks").iterdir():
        save_picture(path, np.zeros((32, 40), np.uint8))
    status, text = check(divided)
    assert status == 1 and "error: train: all masks are empty: there is nothing to learn" in text
    for rater in ("anna", "ben"):
        shutil.copytree(divided / "test/masks", divided / "train" / "raters" / rater)
        for name in ("case0", "case1", "case2", "case3"):
            shutil.copy(divided / "test/masks/case4.png", divided / "train" / "raters" / rater / f"{name}.png")
    shutil.rmtree(divided / "train/masks")
    (divided / "train/raters").rename(divided / "train/masks")
    (divided / "train/masks/ben/case2.png").unlink()
    status, text = check(divided)
    assert status == 1 and "error: train: not masked by 2 raters as the others: case2" in text
    assert cells(text, "raters") == ["1", "to", "2", "1"]


@pytest.mark.parametrize("hold_out", ["", "--val_fraction 0.3"])
def test_one_patient_on_both_sides(check, divided, hold_out):
    for part in ("images", "masks"):
        (divided / "train" / part / "case0.png").rename(divided / "train" / part / "case4_left.png")
    status, text = check(divided, f"{hold_out} --group_key ^case[0-9]")
    assert status == 1
    assert (
        "error: 1 patient (or other group) in two splits, so that what is trained on is also tested on: case4" in text
    )


def test_names_that_begin_anew_in_each_split_are_no_patients(check, divided):
    for part in ("images", "masks"):
        (divided / "test" / part / "case4.png").rename(divided / "test" / part / "case0.png")
        shutil.copy(divided / "train" / part / "case1.png", divided / "test" / part)
    status, text = check(divided)
    assert status == 1 and lines(text, "error") == [
        "1 image in two splits, so that what is trained on is also tested on: case1 (train) = case1 (test); keep each "
        "in one"
    ]
    assert lines(text, "warning") == [
        "1 name in two splits, of different images: case0; if that is one patient, keep each in one"
    ]
    for part in ("images", "masks"):
        (divided / "test" / part / "case1.png").unlink()
    assert check(divided)[0] == 0


def test_label_maps_are_read_as_sampling_writes_them(check, divided):
    """Palettes, and in one file 16 bits, are the values themselves; those of the training cases are the classes."""
    colours = {1: (250, 60, 40), 2: (64, 160, 255), 3: (90, 200, 90)}
    for path in sorted(divided.glob("*/masks/*.png")):
        labels = np.zeros((32, 40), np.uint8)
        labels[4:12], labels[14:20], labels[22:30] = 1, 2, 3
        write_label_png(path, labels, colours)
    status, text = check(divided, "--classes auto")
    assert status == 0 and "0 errors, 0 warnings" in text
    assert cells(text, "values in masks") == [*"0123", *"0123"]
    assert "class_1, class_2, class_3" in text
    write_label_png(divided / "train/masks/case0.png", labels.astype(np.uint16) * 300, {})
    status, text = check(divided, "--classes a=1+300,b=2+600,c=3")
    assert lines(text, "warning") == ["train: no class has the label value 900: it counts as background"]
    write_label_png(divided / "train/masks/case0.png", labels, colours)
    write_label_png(divided / "test/masks/case4.png", np.where(labels == 3, 7, labels), colours)
    (divided / "test/masks/case5.png").unlink()
    status, text = check(divided, "--classes auto")
    assert status == 0 and lines(text, "warning") == [
        "test: 1 case without a mask, which cannot be scored: case5",
        "test: no pixel is class_3",
        "test: no class has the label value 7: it counts as background",
    ]
    for path in (divided / "test/masks").iterdir():
        path.unlink()  # the test cases have no truth: the classes are those of the training cases
    assert check(divided, "--classes auto")[0] == 0


def test_files_of_a_volume_that_lie_elsewhere(check, brats, tmp_path):
    shutil.copytree(brats, tmp_path / "data")
    path = next((tmp_path / "data").glob("training/*/*_seg.nii.gz"))
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 0] *= 1.2
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    status, text = check(tmp_path / "data")
    assert status == 0 and f"warning: train: a file lies elsewhere in space than its image: {path} (its corner" in text


def test_a_mask_that_is_shifted_against_its_image(check, brats, tmp_path):
    shutil.copytree(brats, tmp_path / "data")
    path = next((tmp_path / "data").glob("training/*/*_seg.nii.gz"))
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[2, 3] += 40
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
    status, text = check(tmp_path / "data")
    assert status == 0 and f"{path} (its corner is 40.0 mm from that of " in text


def test_a_loader_of_ones_own(check, tmp_path, save_picture):
    (tmp_path / "my_loader.py").write_text(
        LOADER.replace("return read_picture(", "1 / (case.name != 'p2'); return read_picture(")
    )
    for name in ("p1", "p2", "p3"):
        save_picture(
            tmp_path / "data" / name / "photo.png", np.random.default_rng(3).integers(0, 255, (24, 40, 3), np.uint8)
        )
        save_picture(tmp_path / "data" / name / "truth.png", np.eye(24, 40, dtype=np.uint8) * 255)
    status, text = check(tmp_path / "data", f"--data_name {tmp_path}/my_loader.py:Polyps")
    assert status == 1 and "read by Polyps" in text and "1 class: polyp" in text
    where = f"{tmp_path}/my_loader.py, line 17, read_image"
    assert lines(text, "error") == [f"all: case p2: {where}: ZeroDivisionError: division by zero"]
    assert "1 image more than once in a split: p1 (all) = p3 (all)" in text


def test_masks_that_a_loader_of_ones_own_reads_as_classes_hold_no_label_values(check, tmp_path, save_picture):
    loader = LOADER.replace('("polyp",)', '("polyp", "tool")').replace(
        "[None, None]", "[None, None].repeat(2, 1) * [[[[True]], [[False]]]]"
    )
    (tmp_path / "my_loader.py").write_text(loader)
    save_picture(tmp_path / "data/p/photo.png", np.random.default_rng(3).integers(0, 255, (24, 40, 3), np.uint8))
    save_picture(tmp_path / "data/p/truth.png", np.eye(24, 40, dtype=np.uint8) * 255)
    _, text = check(tmp_path / "data", f"--data_name {tmp_path}/my_loader.py:Polyps")
    assert "no class has the label value" not in text and cells(text, "values in masks") == ["0", "255"]


# ---- what masks and images hold ----------------------------------------------------------------------------------


@pytest.fixture
def findings_of(tmp_path, save_picture):
    """A function (masks, images, flags) that writes a FOLDER data set of arrays and returns its findings as text."""

    def find(masks=(), images=(), **settings):
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        for k in range(max(len(masks), len(images))):
            mask = masks[k] if len(masks) else DISC.astype(np.uint8) * 255
            image = (
                images[k] if len(images) else np.add.outer(np.arange(32) * 4, np.arange(32) * 3 + k).astype(np.uint8)
            )
            save_picture(tmp_path / f"data/images/{k}.png", image)
            save_picture(tmp_path / f"data/masks/{k}.png", mask)
        parts = find_parts("FOLDER", tmp_path / "data", **settings)
        for part in parts:
            part.inspections += [inspect_unit(part.dataset, unit) for unit in group_cases(part.dataset.cases)]
        return [str(finding) for finding in findings(parts) if "not divided" not in finding.text]

    return find


DISC = np.hypot(*np.mgrid[-16:16, -16:16]) < 9
ONES = DISC.astype(np.uint8)


def test_the_foreground_s_value_over_all_files(findings_of):
    (error,) = findings_of([ONES, ONES, ONES * 2])
    assert error.startswith("error: the foreground of masks is 1 in 2 cases (as ") and "2 in 1 case (as " in error
    assert error.endswith("--classes class_1=1,class_2=2 as 2")
    (warning,) = findings_of([ONES, ONES * 255, ONES * 255])
    assert warning.startswith("warning: the foreground of masks is 255 in 2 cases") and "all are read as" in warning
    assert findings_of([ONES * 255, ONES * np.uint16(65535)])[0].startswith("warning: ")
    assert findings_of([ONES, ONES * 2], classes="a=1,b=2") == []


def test_masks_inside_out_are_warned_of(findings_of):
    (warning,) = findings_of([255 - ONES * 255] * 3)
    assert warning.startswith("warning: all: 3 masks with the foreground all along the border: 0, 1, 2; are background")
    assert findings_of([255 - ONES * 255, ONES * 255, ONES * 255]) == []


def test_values_that_no_class_has(findings_of):
    (warning,) = findings_of([np.where(DISC, 1, np.where(np.eye(32), 255, 0)).astype(np.uint8)], classes="a=1")
    assert warning == (
        "warning: all: no class has the label value 255 (usually void: not annotated; --ignore_label 255 leaves it "
        "out): it counts as background"
    )


def test_values_that_dataset_json_does_not_declare(tmp_path, save_nifti):
    truth = np.zeros((6, 6, 2), np.uint8)
    truth[2:4, 2:4], truth[4, 4] = 1, 7
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver"}}
    write_task(tmp_path, description, {"a": truth.astype(np.int16) + 3}, {"a": truth})
    (part,) = find_parts("MSD", tmp_path)
    part.inspections += [inspect_unit(part.dataset, unit) for unit in group_cases(part.dataset.cases)]
    texts = [finding.text for finding in findings([part])]
    assert "all: the label value 7 is none of those declared (1): it counts as foreground" in texts


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
def test_fewer_bits_than_the_file_has(findings_of, bits):
    ramp = np.linspace(0, 2**bits - 1, 32 * 32).reshape(32, 32).astype(np.uint16)
    (warning,) = findings_of(images=[ramp, ramp.T])
    assert warning.startswith("warning: all: 2 images nearly black: 99 % of pixels are below ") and "0, 1" in warning
    assert findings_of(images=[ramp << (16 - bits), ramp.T << (16 - bits)]) == []


def test_one_bright_outlier(findings_of):
    ramp = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint16)
    spoilt = ramp.copy()
    spoilt[3, 3] = 60000
    (warning,) = findings_of(images=[spoilt, ramp * 900, ramp.T * 800])
    assert warning.startswith("warning: all: 1 image with a few outliers, which leave little contrast to the rest (0: ")


@pytest.mark.parametrize(
    ("result", "read", "warned"),
    [
        ("image", "read_picture(case.images[0])", "the network sees values from 0 to 2"),  # 0..255 as they are
        ("image / 255", "read_picture(case.images[0])", None),
        ("image * 2 - 1", "read_picture(case.images[0]) / 255", None),  # no black pictures: 0 to 1 is their range
        (None, "read_picture(case.images[0]) / 255", "nearly black, with values from 0 to 1"),
        (None, "read_picture(case.images[0]) * 100", "the network sees values from "),
    ],
)
def test_the_range_that_the_network_sees(check, tmp_path, save_picture, result, read, warned):
    own = f"\n\n    def normalise(self, image):\n        return {result}\n" if result else "\n"
    loader = LOADER.replace("read_picture(case.images[0])", read).rstrip() + own
    (tmp_path / "own.py").write_text(loader)
    image = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    for name in ("p0", "p1"):
        save_picture(tmp_path / "data" / name / "photo.png", image + np.uint8(name == "p1"))
        save_picture(tmp_path / "data" / name / "truth.png", np.eye(32, 40, dtype=np.uint8) * 255)
    status, text = check(tmp_path / "data", f"--data_name {tmp_path}/own.py:Polyps")
    assert status == 0 and "values that the network sees" in text
    found = [line for line in lines(text, "warning") if "divided" not in line]
    assert found == [] if warned is None else len(found) == 1 and warned in found[0]
