"""BraTS layouts, volumes, and files that are decoded once."""

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from guided_diffusion.data.batches import sampling_batches
from guided_diffusion.data.loaders.brats import MODALITIES, BraTSDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.splits import HoldOut
from guided_diffusion.data.volumes import VolumeReader
from guided_diffusion.runtime.errors import NoTruthError, UserError

KINDS = (*MODALITIES, "seg")
AFFINE = np.diag([-1.0, -1.0, 3.0, 1.0])


def content(kind, shape, seed=0):
    """A volume or slice of one modality, with a background of zeros, or its labels 0, 1, 2, 4."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    if kind == "seg":
        return rng.choice([0, 0, 0, 1, 2, 4], shape).astype(np.uint8)
    values = rng.normal(300 * (1 + KINDS.index(kind)), 50, shape).clip(1).astype(np.int16)
    values[: shape[0] // 4] = 0
    return values


def turned(values):
    """A volume that was saved with AFFINE (x and y grow to the left and to the back) turned to right and front."""
    return values[::-1, ::-1]


@pytest.fixture
def put(tmp_path, save_nifti):
    """A function (pattern, shape) that writes the kinds of one case below tmp_path, `{}` being the kind."""

    def write(pattern, shape, kinds=KINDS, seed=0):
        for kind in kinds:
            save_nifti(tmp_path / pattern.format(kind), content(kind, shape, seed), AFFINE)

    return write


def load(folder, **keywords):
    return build_dataset("BRATS", folder, 16, **{"need_masks": True, **keywords})


def names(dataset):
    return [case.name for case in dataset.cases]


# ---- layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 24), (20, 24, 1)])
@pytest.mark.parametrize(
    "pattern, name",
    [
        ("s1/brats_train_001_{}_123_w.nii.gz", "brats_train_001_123"),
        ("s1/{}.nii.gz", "s1"),
        ("s1/{}.nii", "s1"),
    ],
)
def test_slice_folders(tmp_path, put, pattern, name, shape):
    put(pattern, shape)
    dataset = load(tmp_path)
    item = dataset[0]
    assert names(dataset) == [name] and item.keys() == {"image", "mask", "name", "size"}
    assert item["image"].shape == (4, 16, 16) and item["mask"].shape == (1, 1, 16, 16) and item["size"] == (20, 24)
    np.testing.assert_array_equal(dataset.load_mask(dataset.cases[0])[0, 0], content("seg", (20, 24)) > 0)
    assert dataset.geometry(dataset.cases[0]) is None


@pytest.mark.parametrize(
    "pattern, name",
    [
        ("BraTS2021_00000/BraTS2021_00000_{}.nii.gz", "BraTS2021_00000"),
        ("HGG/Brats18_2013_0_1/Brats18_2013_0_1_{}.nii", "Brats18_2013_0_1"),
        ("P7/{}.nii.gz", "P7"),
    ],
)
@pytest.mark.parametrize("depth", [2, 156])
def test_volumes_of_any_number_of_slices(tmp_path, put, pattern, name, depth):
    put(pattern, (6, 8, depth))
    dataset = load(tmp_path)
    assert names(dataset) == [f"{name}_slice_{k:03d}" for k in range(depth)]
    item = dataset[1]
    assert (item["volume"], item["slice_index"], item["size"]) == (name, 1, (6, 8))
    truth = np.stack([dataset.load_mask(case)[0, 0] for case in dataset.cases], axis=-1)
    np.testing.assert_array_equal(truth, turned(content("seg", (6, 8, depth))) > 0)
    geometry = dataset.geometry(dataset.cases[0])
    assert geometry.shape == (6, 8, depth) and geometry.spacing == (1.0, 1.0, 3.0)
    np.testing.assert_array_equal(geometry.affine, [[1, 0, 0, -5], [0, 1, 0, -7], [0, 0, 3, 0], [0, 0, 0, 1]])
    array, affine = geometry.as_in_file(truth)
    np.testing.assert_array_equal(array, content("seg", (6, 8, depth)) > 0)
    np.testing.assert_array_equal(affine, AFFINE)


def test_modality_names_in_other_cases_and_of_2023(tmp_path, put, save_nifti):
    put("a/A_{}.nii.gz", (6, 8, 2))
    for kind in KINDS:
        (tmp_path / f"a/A_{kind}.nii.gz").rename(tmp_path / f"a/A_{kind.upper()}.nii.gz")
    published = ("t1n", "t1c", "t2w", "t2f", "seg")
    for kind, new in zip(KINDS, published, strict=True):
        save_nifti(tmp_path / f"b/BraTS-GLI-00002-000-{new}.nii.gz", content(kind, (6, 8, 2)), AFFINE)
    dataset = load(tmp_path)
    assert names(dataset)[::2] == ["A_slice_000", "BraTS-GLI-00002-000_slice_000"]
    np.testing.assert_array_equal(dataset.load_image(dataset.cases[0]), dataset.load_image(dataset.cases[2]))


def test_a_loader_of_ones_own_may_take_some_of_the_modalities(tmp_path, put):
    put("BraTS2021_00000/BraTS2021_00000_{}.nii.gz", (12, 16, 2))

    class Two(BraTSDataset):
        image_channels = 2

        def find_cases(self):
            return [dataclasses.replace(case, images=case.images[:2]) for case in super().find_cases()]

    assert Two(tmp_path, 16, need_masks=True)[0]["image"].shape == (2, 16, 16)


def test_split_and_sampling_without_truth(tmp_path, put):
    put("training/A/A_{}.nii.gz", (6, 8, 3))
    put("testing/B/B_{}.nii.gz", (6, 8, 2), kinds=MODALITIES)
    assert {case.volume for case in load(tmp_path, split="train").cases} == {"A"}
    dataset = load(tmp_path, split="test", need_masks=False)
    assert names(dataset) == names(load(tmp_path / "testing", need_masks=False)) == ["B_slice_000", "B_slice_001"]
    both = load(tmp_path, need_masks=False)
    batch = next(iter(sampling_batches(both, [[2, 3]])))
    assert "mask" not in batch and batch["volume"] == ["A", "B"] and batch["slice_index"] == [2, 0]


def test_channel_order_is_t1_t1ce_t2_flair(tmp_path, put):
    put("A/{}.nii.gz", (8, 8, 3))
    case = load(tmp_path).cases[0]
    assert [path.name for path in case.images] == [f"{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair")]


def test_the_label_3_of_2023_is_tumour_and_the_layout_says_so(tmp_path, save_nifti):
    for kind in ("t1n", "t1c", "t2w", "t2f"):
        save_nifti(tmp_path / f"P/BraTS-GLI-00002-000-{kind}.nii.gz", np.ones((6, 8, 2), np.int16))
    labels = np.zeros((6, 8, 2), np.uint8)
    labels[1, 2], labels[3, 4] = 3, 1
    save_nifti(tmp_path / "P/BraTS-GLI-00002-000-seg.nii.gz", labels)
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.load_mask(dataset.cases[0])[0, 0], labels[..., 0] > 0)
    assert dataset.layout == "1 volume with the names of BraTS 2023 and later"


def test_what_is_of_one_patient_stays_together(tmp_path, put):
    for patient in ("001", "002"):
        for z in (70, 80):
            put(f"2d/s{patient}_{z}/brats_train_{patient}_{{}}_{z}_w.nii.gz", (6, 8))
        for time in ("000", "001"):
            put(f"3d/{patient}{time}/BraTS-GLI-00{patient}-{time}-{{}}.nii.gz", (6, 8, 2))
    for folder, groups in (
        ("2d", ["brats_train_001", "brats_train_002"]),
        ("3d", ["BraTS-GLI-00001", "BraTS-GLI-00002"]),
    ):
        assert sorted({case.group for case in load(tmp_path / folder).cases}) == groups
    put("old/P/BraTS2021_00000_{}.nii.gz", (6, 8, 2))
    assert {case.group for case in load(tmp_path / "old").cases} == {None}  # the volume is the group


def test_several_raters(tmp_path, put, save_nifti):
    put("A/A_{}.nii.gz", (6, 8, 3), kinds=MODALITIES)
    for number in (10, 2, 1):
        save_nifti(tmp_path / f"A/A_seg{number}.nii.gz", np.full((6, 8, 3), number == 2, np.uint8), AFFINE)
    dataset = load(tmp_path)
    assert [path.name for path in dataset.cases[0].masks] == ["A_seg1.nii.gz", "A_seg2.nii.gz", "A_seg10.nii.gz"]
    assert {case.raters for case in dataset.cases} == {("seg1", "seg2", "seg10")}
    assert dataset.load_mask(dataset.cases[2]).any(axis=(1, 2, 3)).tolist() == [False, True, False]


# ---- the folders of each year, as published ------------------------------------------------------------------------

OLD, NEW = ("t1", "t1ce", "t2", "flair"), ("t1n", "t1c", "t2w", "t2f")
YEARS = {  # folders of training and validation cases, a case of each, the modalities' names, the separator
    2017: ("Brats17TrainingData/HGG", "Brats17ValidationData", "Brats17_TCIA_1_1", "Brats17_TCIA_2_1", OLD, "_"),
    2018: (
        "MICCAI_BraTS_2018_Data_Training/LGG",
        "MICCAI_BraTS_2018_Data_Validation",
        "Brats18_CBICA_AAB_1",
        "Brats18_CBICA_AAM_1",
        OLD,
        "_",
    ),
    2019: (
        "MICCAI_BraTS_2019_Data_Training/HGG",
        "MICCAI_BraTS_2019_Data_Validation",
        "BraTS19_2013_10_1",
        "BraTS19_CBICA_AAM_1",
        OLD,
        "_",
    ),
    2020: (
        "MICCAI_BraTS2020_TrainingData",
        "MICCAI_BraTS2020_ValidationData",
        "BraTS20_Training_001",
        "BraTS20_Validation_001",
        OLD,
        "_",
    ),
    "2020 of Kaggle": (
        "brats20-dataset-training-validation/BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData",
        "brats20-dataset-training-validation/BraTS2020_ValidationData/MICCAI_BraTS2020_ValidationData",
        "BraTS20_Training_001",
        "BraTS20_Validation_001",
        OLD,
        "_",
    ),
    2021: (
        "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021",
        "RSNA_ASNR_MICCAI_BraTS2021_ValidationData",
        "BraTS2021_00000",
        "BraTS2021_00001",
        OLD,
        "_",
    ),
    2023: (
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-ValidationData",
        "BraTS-GLI-00000-000",
        "BraTS-GLI-00001-000",
        NEW,
        "-",
    ),
    "2023 Africa": (
        "ASNR-MICCAI-BraTS2023-SSA-Challenge-TrainingData_V2",
        "ASNR-MICCAI-BraTS2023-SSA-Challenge-ValidationData",
        "BraTS-SSA-00002-000",
        "BraTS-SSA-00126-000",
        NEW,
        "-",
    ),
    2024: (
        "BraTS2024-BraTS-GLI-TrainingData/training_data1_v2",
        "BraTS2024-BraTS-GLI-ValidationData/validation_data",
        "BraTS-GLI-02064-100",
        "BraTS-GLI-02065-100",
        NEW,
        "-",
    ),
    "2024 GoAT": (
        "MICCAI2024-BraTS-GoAT-TrainingData-With-GroundTruth",
        "MICCAI2024-BraTS-GoAT-ValidationData",
        "BraTS-GoAT-00000",
        "BraTS-GoAT-00003",
        NEW,
        "-",
    ),
    "2024 MEN-RT": (
        "BraTS-MEN-RT-Train-v2",
        "BraTS-MEN-RT-Val-v1",
        "BraTS-MEN-RT-0001-1",
        "BraTS-MEN-RT-0002-1",
        ("t1c",),
        "_",
    ),
}


@pytest.mark.parametrize("year", YEARS)
def test_the_folders_of_each_year(tmp_path, save_nifti, year):
    training, validation, first, second, kinds, separator = YEARS[year]
    for kind in kinds:
        values = content(OLD[(NEW if kind in NEW else OLD).index(kind)], (4, 5, 2))
        save_nifti(tmp_path / training / first / f"{first}{separator}{kind}.nii.gz", values)
        save_nifti(tmp_path / validation / second / f"{second}{separator}{kind}.nii.gz", values)
    truth = tmp_path / training / first / f"{first}{separator}{'gtv' if len(kinds) == 1 else 'seg'}.nii.gz"
    save_nifti(truth, np.ones((4, 5, 2), np.uint8))
    (tmp_path / training / "name_mapping.csv").touch()

    def found(split, **keywords):
        return [case.volume for case in load(tmp_path, split=split, **keywords).cases][::2]

    train = load(tmp_path, split="train")
    assert train.image_channels == len(kinds) and train.load_image(train.cases[0]).shape == (len(kinds), 4, 5)
    assert found("train") == [first] and train.load_mask(train.cases[0]).all()
    assert found("test", need_masks=False) == found("val", need_masks=False) == [second]
    assert build_dataset("AUTO", tmp_path, 16, split="train").data_name == "BRATS"
    with pytest.raises(NoTruthError, match="its 1 validation case has no mask and is not used in training"):
        found("val")
    held = HoldOut(0.5)  # a validation part without masks is none
    with pytest.raises(UserError, match="all 2 cases are of one group"):
        found("train", hold_out=held)


def test_folders_that_stand_for_files(tmp_path, put):
    """x_flair.nii/FILE.nii, as copies of 2021 and 2023 have it; what the file itself is called means nothing."""
    put("P/BraTS2021_00000_{}.nii/00000057_brain_x.nii", (4, 5, 2))
    put("Q/{}.nii.gz/a file.nii", (4, 5, 2), kinds=MODALITIES)
    dataset = load(tmp_path, need_masks=False)
    assert [case.volume for case in dataset.cases] == ["BraTS2021_00000"] * 2 + ["Q"] * 2
    assert dataset.layout == "2 volumes with the names of BraTS to 2021"
    assert dataset.load_mask(dataset.cases[0]).shape == (1, 1, 4, 5)
    assert dataset.expected_mask(dataset.cases[2]) == "seg.nii.gz"


@pytest.mark.parametrize("name", ["W39_1998.09.19_Segm.nii", "x_final_seg.nii.gz", "P_ManuallyCorrected.nii.gz"])
def test_a_truth_of_another_name(tmp_path, put, save_nifti, name):
    put("P/P_{}.nii.gz", (4, 5, 2), kinds=MODALITIES)
    put("Q/Q_{}.nii.gz", (4, 5, 2))
    save_nifti(tmp_path / "P" / name, np.ones((4, 5, 2), np.uint8), AFFINE)
    save_nifti(tmp_path / "P" / "P_brainmask.nii.gz", np.ones((4, 5, 2), np.uint8), AFFINE)
    dataset = load(tmp_path)
    assert dataset.load_mask(dataset.cases[0]).all() and dataset.notes == (f"P: {name} is taken as its seg",)
    save_nifti(tmp_path / "P" / "other_segmentation.nii.gz", np.ones((4, 5, 2), np.uint8), AFFINE)
    with pytest.raises(UserError, match="has no mask; add P_seg.nii.gz"):
        load(tmp_path)  # two such files: which one is not guessed


def test_cases_outside_the_folders_of_the_splits_are_not_taken(tmp_path, put):
    put("copy/training/A/A_{}.nii.gz", (4, 5, 2))
    put("copy/extra/B/B_{}.nii.gz", (4, 5, 2))
    assert {case.volume for case in load(tmp_path).cases} == {"A"}
    with pytest.raises(UserError, match="holds copy/training/ but no test/ or testing/; name the folder"):
        load(tmp_path, split="test")


@pytest.mark.parametrize(
    "odd",
    ["A/A_t1_copy.nii.gz", "A/x_seg.nii.gz", "A/brain.nii.gz", "masks/A_seg.nii.gz", "A/validation/a.png", "A/t1.png"],
)
def test_an_odd_file_does_not_change_what_is_read(tmp_path, put, save_nifti, odd):
    put("A/A_{}.nii.gz", (4, 5, 2))
    put("B/B_{}.nii.gz", (4, 5, 2))
    before = load(tmp_path).cases
    save_nifti(tmp_path / odd, np.ones((4, 5, 2), np.uint8)) if ".nii" in odd else None
    (tmp_path / odd).parent.mkdir(exist_ok=True)
    (tmp_path / odd).touch()
    assert load(tmp_path).cases == load(tmp_path, split="train").cases == before


def test_a_link_to_a_folder_above_is_not_followed(tmp_path, put):
    put("A/A_{}.nii.gz", (4, 5, 2))
    (tmp_path / "A" / "again").symlink_to(tmp_path)
    assert len(load(tmp_path)) == 2


def labelled(tmp_path, save_nifti, name, labels=(1, 2, 3, 4)):
    for kind in NEW:
        save_nifti(tmp_path / name / f"{name}-{kind}.nii.gz", np.ones((4, 5, 2), np.int16))
    values = np.zeros((4, 5, 2), np.uint8)
    values[: len(labels), 0] = np.array(labels)[:, None]
    save_nifti(tmp_path / name / f"{name}-seg.nii.gz", values)
    return values[..., 0]


def test_the_cavity_of_2024_is_no_tumour(tmp_path, save_nifti):
    labels = labelled(tmp_path, save_nifti, "BraTS-GLI-02064-100")
    dataset = load(tmp_path)
    np.testing.assert_array_equal(dataset.load_mask(dataset.cases[0])[0, 0], (labels > 0) & (labels < 4))
    assert "the label 4 of BraTS-GLI files of 2024, the resection cavity, is no tumour here" in dataset.notes[0]
    regions = load(tmp_path, classes="regions")
    assert str(regions.classes) == "WT=1+2+3,TC=1+3,ET=3,RC=4" and regions.notes == ()
    assert regions.load_mask(regions.cases[0])[0, :, 3, 0].tolist() == [False, False, False, True]
    assert str(load(tmp_path, classes="labels").classes) == "NCR=1,ED=2,ET=3,RC=4"


def test_labels_that_depend_on_the_year_are_not_guessed(tmp_path, save_nifti):
    labelled(tmp_path / "a", save_nifti, "BraTS-PED-00001-000")
    with pytest.raises(UserError, match=r"labels of BraTS-PED files depend on their year; write .*TC=1\+2\+3,ET=1 for"):
        load(tmp_path / "a", classes="regions")
    labelled(tmp_path / "b", save_nifti, "BraTS-MET-00002-000")
    dataset = load(tmp_path / "b", classes="regions")
    with pytest.raises(UserError, match="holds the label 4, which files of these names do not have"):
        dataset.load_mask(dataset.cases[0])


def test_classes_of_other_years_are_refused(tmp_path, save_nifti, put):
    """As those of a checkpoint that was trained on BraTS 2021 where its masks are compared with the truth of 2023."""
    labelled(tmp_path / "new", save_nifti, "BraTS-GLI-00002-000", (1, 2, 3))
    put("old/A_{}.nii.gz", (6, 8, 2))
    for folder, classes, words in (
        (
            "new",
            "WT=1+2+4,ET=4",
            "the label 3, the enhancing tumour in .* 4 in its place: write --classes WT=1.2.3,ET=3",
        ),
        ("old", "NCR=1,ED=2,ET=3", "holds the label 4, the enhancing tumour in .*write --classes NCR=1,ED=2,ET=4"),
    ):
        dataset = load(tmp_path / folder, classes=classes)
        with pytest.raises(UserError, match=words):
            dataset.load_mask(dataset.cases[0])
    for folder, classes in (("new", "WT=1+2+3,RC=4"), ("new", "ED=2,RC=4"), ("old", "ET=4,x=3"), ("old", "NCR=1")):
        dataset = load(tmp_path / folder, classes=classes)
        assert dataset.load_mask(dataset.cases[0]).any()


def test_men_rt_has_one_channel_and_one_label(tmp_path, save_nifti):
    for kind in ("t1c", "gtv"):
        save_nifti(tmp_path / f"a/BraTS-MEN-RT-0402-1_{kind}.nii.gz", np.ones((4, 5, 2), np.uint8))
    with pytest.raises(UserError, match=r"--classes regions: cases of MEN-RT have one label, the tumour \(gtv\)"):
        load(tmp_path, classes="regions")
    assert load(tmp_path).cases[0].group == "BraTS-MEN-RT-0402"
    labelled(tmp_path, save_nifti, "BraTS-MEN-00004-000")
    with pytest.raises(UserError, match="of MEN-RT has one; keep them in data sets of their own"):
        load(tmp_path)


# ---- errors ------------------------------------------------------------------------------------------------------


def test_missing_modality_is_named(tmp_path, put):
    put("A/A_{}.nii.gz", (6, 8, 2), kinds=("t1", "t2", "flair", "seg"))
    with pytest.raises(UserError, match=f"{tmp_path}/A: case A lacks the modality t1ce; add the file"):
        load(tmp_path, need_masks=False)


def test_missing_truth_is_named(tmp_path, put):
    put("A/A_{}_9_w.nii.gz", (6, 8), kinds=MODALITIES)
    with pytest.raises(UserError, match="A_t1_9_w.nii.gz: has no mask; add A_seg_9_w.nii.gz or remove"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["t2", "seg"])
def test_volumes_that_differ_in_shape_are_refused_before_training(tmp_path, put, save_nifti, kind):
    put("A/A_{}.nii.gz", (6, 8, 5))
    save_nifti(tmp_path / f"A/A_{kind}.nii.gz", content(kind, (6, 8, 4)))
    with pytest.raises(UserError, match=f"A_{kind}.nii.gz: has 6x8x4 voxels, but A_t1.nii.gz has 6x8x5"):
        load(tmp_path)


def test_slices_that_differ_in_shape_are_refused(tmp_path, put, save_nifti):
    put("A/A_{}_9_w.nii.gz", (6, 8))
    save_nifti(tmp_path / "A/A_seg_9_w.nii.gz", content("seg", (8, 6)))
    with pytest.raises(UserError, match="A_seg_9_w.nii.gz: the mask has 8x6 pixels"):
        load(tmp_path)[0]
    save_nifti(tmp_path / "A/A_flair_9_w.nii.gz", content("flair", (8, 6)))
    with pytest.raises(UserError, match="A_flair_9_w.nii.gz: has 8x6x1 voxels, but A_t1_9_w.nii.gz has 6x8x1"):
        load(tmp_path)[0]


def test_a_volume_named_like_a_slice_is_refused(tmp_path, put):
    put("A/A_{}_9_w.nii.gz", (6, 8, 3))
    with pytest.raises(UserError, match="A_t1_9_w.nii.gz: holds 3 slices where a 2-D slice is expected"):
        load(tmp_path)[0]


def test_truncated_file_is_named(tmp_path, put, truncate):
    put("A/A_{}.nii.gz", (24, 24, 8))
    truncate(tmp_path / "A/A_flair.nii.gz")
    with pytest.raises(UserError, match="A_flair.nii.gz: is truncated or damaged"):
        load(tmp_path)[0]


def test_values_that_are_not_finite_are_named(tmp_path, put, save_nifti):
    put("A/A_{}.nii.gz", (6, 8, 3))
    save_nifti(tmp_path / "A/A_t2.nii.gz", np.full((6, 8, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="A_t2.nii.gz: holds values that are not finite"):
        load(tmp_path)[0]


def test_empty_folder_second_file_and_second_case(tmp_path, put):
    with pytest.raises(UserError, match="no cases found for BRATS; it must hold, at any depth, files such as"):
        load(tmp_path)
    put("HGG/A/{}.nii.gz", (6, 8, 2))
    put("HGG/A/{}.nii", (6, 8, 2), kinds=("t2",))
    with pytest.raises(UserError, match="t2.nii.gz: is a second t2 file of its case beside t2.nii;"):
        load(tmp_path)
    (tmp_path / "HGG/A/t2.nii").unlink()
    put("LGG/A/{}.nii.gz", (6, 8, 2))
    with pytest.raises(UserError, match="its case name 'A_slice_000' is also that of .*HGG"):
        load(tmp_path)


# ---- normalisation -----------------------------------------------------------------------------------------------


def test_images_are_z_scores_of_the_whole_volume(tmp_path, put):
    put("A/{}.nii.gz", (20, 24, 6))
    dataset = load(tmp_path)
    volume = np.stack([dataset.load_image(case) for case in dataset.cases], axis=-1)
    assert volume.dtype == np.float32
    for channel, kind in enumerate(MODALITIES):
        raw = turned(content(kind, (20, 24, 6))).astype(np.float64)
        expected = (raw - raw[raw != 0].mean()) / raw[raw != 0].std()
        np.testing.assert_allclose(volume[channel][raw != 0], expected[raw != 0], atol=2e-3)
        assert (volume[channel][raw == 0] == 0).all()
    item = BraTSDataset(tmp_path, 20)[2]["image"]  # items are those values, not normalised a second time
    torch.testing.assert_close(item[:, -5:], torch.zeros(4, 5, 20))
    assert 0.7 < item[:, :-6].std() < 1.1


# ---- reading once ------------------------------------------------------------------------------------------------


def test_each_file_is_decoded_once_however_many_slices_are_read(tmp_path, put, reads):
    for name in ("A", "B"):
        put(f"{name}/{name}_{{}}.nii.gz", (8, 8, 7))
    dataset = load(tmp_path)
    assert reads == []
    for index in np.random.default_rng(0).permutation(len(dataset)):
        dataset[int(index)]
    for case in dataset.cases:
        dataset.load_mask(case)
    assert sorted(reads) == sorted(f"{name}_{kind}.nii.gz" for name in "AB" for kind in KINDS)


def test_a_volume_larger_than_the_cache_is_still_read_once(tmp_path, put, reads, monkeypatch):
    monkeypatch.setattr(VolumeReader, "cache_bytes", 10)
    put("A/A_{}.nii.gz", (8, 8, 5))
    dataset = load(tmp_path, need_masks=False)
    for index in range(5):
        dataset[index]
    assert len(reads) == 4


def test_a_pickled_data_set_leaves_its_cache_behind(tmp_path, put):
    put("A/A_{}.nii.gz", (64, 64, 5))
    dataset = load(tmp_path)
    before = len(pickle.dumps(dataset))
    expected = dataset[3]["image"]
    data = pickle.dumps(dataset)
    assert len(data) < before + 1000
    assert torch.equal(pickle.loads(data)[3]["image"], expected)
