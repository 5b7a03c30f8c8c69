"""Several classes: names and label values, label maps to masks and back, fusing, results and evaluation of each."""

import csv
import itertools
import json

import nibabel
import numpy as np
import pytest
import torch
from conftest import strict_json
from helpers import write_task, write_volume
from PIL import Image

from guided_diffusion.data.cases import Case, group_cases
from guided_diffusion.data.classes import (
    BINARY,
    Classes,
    checked_classes,
    found_classes,
    parse_classes,
    read_classes,
    read_labels_of,
    reserved_values,
)
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.evaluation.evaluate import evaluate
from guided_diffusion.evaluation.summary_table import format_summary
from guided_diffusion.inference.answer import fuse_cases, stack_slices
from guided_diffusion.inference.ensemble import fuse_masks, member_masks
from guided_diffusion.inference.members import Members
from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.io.drawing import class_colour, overlay
from guided_diffusion.report.results_page import write_report
from guided_diffusion.runtime.errors import UserError

MANIFEST = {"checkpoint_sha256": "", "settings": {"num_ensemble": 3}, "data": {"data_dir": ""}}
REGIONS = parse_classes("WT=1+2+4,TC=1+4,ET=4")
ORGANS = parse_classes("liver=7,tumour=300,vessel=2")

# ---- names and values --------------------------------------------------------------------------------------------


def test_what_the_flag_says():
    assert REGIONS == Classes(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))
    assert not REGIONS.is_exclusive and ORGANS.is_exclusive and not ORGANS.is_binary and len(ORGANS) == 3
    assert str(REGIONS) == "WT=1+2+4,TC=1+4,ET=4" and parse_classes(" a b = 1 + 1,c=2") == parse_classes("a b=1,c=2")
    assert BINARY.is_binary and BINARY.is_exclusive and str(BINARY) == "" and not parse_classes("a=1").is_binary


def test_instances_are_one_class_by_a_range_of_values():
    cells = parse_classes("cell=1-250+255,other=300")
    assert cells.values == ((*range(1, 251), 255), (300,)) and str(cells) == "cell=1-250+255,other=300"
    assert parse_classes(str(cells)) == cells and str(parse_classes("a=1-3")) == "a=1+2+3"
    assert cells.masks_of(np.array([0, 7, 251, 255, 300])).tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("a=5-2", "'a=5-2' must go from the lower to the higher value"),
        ("a=1-99999", "up to 65535"),
        ("a=1-", "'a=1-' is not NAME=VALUE"),
        ("liver", "'liver' is not NAME=VALUE; write liver=1,tumour=2, or one of auto"),
        ("liver=one", "'liver=one' is not NAME=VALUE"),
        ("a=1,a=2", "two classes have the name a"),
        ("a=1+2,b=1+2", r"two classes have the label value 1\+2"),
        ("a=0", "label values go from 1 to 65535, not 0; 0 is the background"),
        ("a=70000", "not 70000"),
        ("../a=1", "'../a' cannot be a class's name"),
        ("mean=1", "'mean' cannot be a class's name; .*the row of all classes together"),
        (",", "'' is not NAME=VALUE"),
        (" ", "names no class"),
        ("a=1,,b=2", "'' is not NAME=VALUE"),
        ("a=\uff13", "is not NAME=VALUE"),
        ("a=" + "9" * 5000, "is not NAME=VALUE"),
    ],
)
def test_what_the_flag_cannot_say(text, words):
    with pytest.raises(UserError, match=words):
        parse_classes(text)


def test_label_maps_and_masks():
    labels = np.array([[0, 1, 2], [4, 3, -1]])
    assert REGIONS.masks_of(labels).astype(int).tolist() == [
        [[0, 1, 1], [1, 0, 0]],
        [[0, 1, 0], [1, 0, 0]],
        [[0, 0, 0], [1, 0, 0]],
    ]
    assert BINARY.masks_of(labels).astype(int).tolist() == [[[0, 1, 1], [1, 1, 0]]]
    assert BINARY.labels_of(BINARY.masks_of(labels)).dtype == np.uint8
    for classes in (REGIONS, ORGANS):
        values = np.array([0, *sorted({value for values in classes.values for value in values})])
        written = classes.labels_of(classes.masks_of(values))
        assert np.array_equal(written, values) and written.dtype == (np.uint8 if values.max() < 256 else np.uint16)


def test_regions_that_no_label_has_are_composed_et_over_tc_over_wt():
    combinations = np.array(list(itertools.product([False, True], repeat=3)))  # [8, K]: WT, TC, ET
    expected = [4 if et else 1 if tc else 2 if wt else 0 for wt, tc, et in combinations]
    assert REGIONS.labels_of(combinations.T).tolist() == expected
    assert REGIONS.as_written(combinations.T).T.tolist() == [[e > 0, e in (1, 4), e == 4] for e in expected]
    crossing = parse_classes("a=1+2,b=2+3")
    assert crossing.labels_of(np.array([[1, 1, 0], [0, 1, 1]], bool)).tolist() == [1, 2, 3]


def test_a_loader_s_own_classes(tmp_path):
    class Two(SegmentationDataset):
        class_names, class_values = ("outer", "inner"), ((5, 9), 9)
        mask = np.array([[[[1, 1, 0]], [[0, 1, 0]]]])

        def find_cases(self):
            return [Case("a", (tmp_path / "a",), (tmp_path / "a",))]

        def read_mask(self, case):
            return self.mask

    dataset = Two(tmp_path, 8)
    assert str(dataset.classes) == "outer=5+9,inner=9" and dataset.load_mask(dataset.cases[0]).shape == (1, 2, 1, 3)
    Two.class_values = ()
    exclusive = Two(tmp_path, 8)
    assert str(exclusive.classes) == "outer=1,inner=2"
    with pytest.raises(UserError, match="marked a pixel as two of outer, inner; where classes overlap"):
        exclusive.load_mask(exclusive.cases[0])
    Two.class_values = (1,)
    with pytest.raises(UserError, match="Two: has 2 class_names, but 1 class_values"):
        Two(tmp_path, 8)
    with pytest.raises(UserError, match="63 regions overlap; 62 are the most"):
        checked_classes([str(k) for k in range(63)], [range(1, k + 2) for k in range(63)], "x")


@pytest.mark.parametrize("name", ["ignore", "Ignore", "void", "unlabelled"])
def test_a_label_of_pixels_that_nobody_annotated_is_no_class(tmp_path, name):
    labels = {"background": 0, "tumour": 1, "whole": [1, 2], name: 3}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert str(read_classes(tmp_path / "dataset.json")) == "tumour=1,whole=1+2"
    assert reserved_values("dataset.json", {"labels": labels}) == (3,)
    assert reserved_values("dataset.json", {"labels": {"0": "background", "1": "liver"}}) == ()


def test_void_is_no_class_that_is_found():
    with pytest.raises(
        UserError, match="hold 255 beside small values, .* --ignore_label 255, .* --classes class_1=1,class_2=2, which"
    ):
        found_classes([np.array([0, 1, 255]), np.array([2])], "data")
    assert str(found_classes([np.array([0, 128, 255])], "data")) == "class_128=128,class_255=255"


@pytest.mark.parametrize("labels", [{"background": "0", "PZ": "1"}, {"0": "background", "1": "PZ"}, {"PZ": 1}])
def test_names_and_values_of_a_dataset_json_in_either_order(labels):
    assert read_labels_of("dataset.json", {"labels": labels}) == {"PZ": (1,)}


def test_the_ignore_label_of_a_dataset_json_is_left_out(tmp_path):
    """As with --ignore_label 3, unless --classes makes a class of it."""
    labels = {"background": 0, "tumour": 1, "edema": 2, "ignore": 3}
    truth = np.arange(5 * 4 * 3).reshape(5, 4, 3).astype(np.uint8) % 4
    description = {"modality": {"0": "MRI"}, "labels": labels}
    write_task(tmp_path, description, {"a": truth.astype(np.int16)}, {"a": truth})
    for classes, number in (("", 1), ("auto", 2), ("tumour=1,edema=2", 2)):
        dataset = build_dataset("MSD", tmp_path, 8, split="train", need_masks=True, classes=classes)
        case = dataset.cases[0]
        unknown = dataset.load_labels(case) == 3
        assert dataset.ignore_label == (3,) and any("means pixels without truth" in note for note in dataset.notes)
        assert np.array_equal(dataset.load_ignored(case), unknown) and unknown.any()
        mask = dataset.load_mask(case)
        assert mask.shape[1] == number and not mask[:, :, unknown[0]].any() and mask.any()
        assert set(dataset[0]) >= {"mask", "known"} and dataset[0]["known"].shape == (1, 1, 8, 8)
    as_class = build_dataset("MSD", tmp_path, 8, split="train", need_masks=True, classes="tumour=1,rest=2+3")
    assert as_class.ignore_label == () and "known" not in as_class[0]


# ---- fusing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["staple", "mean", "vote"])
def test_a_single_class_is_fused_alike_whether_it_excludes_others_or_not(method):
    soft = torch.rand(5, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fuse_masks(soft, method, exclusive=True), fuse_masks(soft, method))
    doubled = torch.cat([soft, torch.zeros_like(soft)], dim=2)  # beside a class that nobody marks
    fused = fuse_masks(doubled, method, exclusive=True)
    assert torch.equal(fused[:, :1], fuse_masks(soft, method)) and not fused[:, 1].any()


@pytest.mark.parametrize("method", ["staple", "mean", "vote"])
def test_one_of_many_leaves_no_pixel_in_two_classes_and_no_gap_between_them(method):
    soft = torch.rand(5, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).softmax(dim=2)[:, :, 1:]
    assert fuse_masks(soft, method, exclusive=True).sum(dim=1).max() == 1
    assert member_masks(soft, exclusive=True).sum(dim=2).max() == 1
    between = torch.tensor([[0.49, 0.43], [0.43, 0.49], [0.49, 0.43]])[:, None, :, None, None].expand(-1, 1, -1, 4, 4)
    between = torch.cat([between, torch.zeros(3, 1, 2, 4, 4)], dim=-1)
    fused = fuse_masks(between, method, exclusive=True)
    assert fused[0, 0, :, :4].all() and not fused[0, 1].any() and not fused[0, 0, :, 4:].any()
    tie = torch.full((2, 1, 2, 1, 1), 0.4)  # the first of equal classes, and the background before them
    assert fuse_masks(tie, method, exclusive=True).flatten().tolist() == [True, False]
    assert not member_masks(torch.tensor([0.5, 0.0])[:, None, None], exclusive=True).any()


# ---- results and evaluation --------------------------------------------------------------------------------------


class Drawn(SegmentationDataset):
    """Cases a and b, of 12 x 16 pixels, in three classes side by side."""

    image_channels, class_names, class_values = 1, ORGANS.names, ORGANS.values
    volume = None

    def find_cases(self):
        truth = (self.data_dir / "truth",)
        if self.volume:
            return [Case(f"v_{k}", truth, truth, volume="v", slice_index=k) for k in range(2)]
        return [Case(name, truth, truth) for name in "ab"]

    def read_image(self, case):
        return np.zeros((1, 12, 16), np.float32)

    def read_mask(self, case):
        return truth_of(case)[None]

    def geometry(self, case):
        from guided_diffusion.data.cases import Geometry

        return Geometry(np.diag([2.0, 1, 1, 1]), (2.0, 1, 1), (12, 16, 2)) if self.volume else None


def truth_of(case):
    masks = np.zeros((3, 12, 16), bool)
    masks[0, :, :5] = masks[1, 2:6, 5:9] = True
    masks[2, :, 12:] = case.name in ("a", "v_0")  # b and the second slice have no vessel
    return masks


def answer_of(case):
    """Members that are right but for the tumour, half of which one member calls liver and two call nothing."""
    soft = torch.from_numpy(truth_of(case)).float()[None].repeat(3, 1, 1, 1) * 0.9
    soft[:, 1, 2:4] = 0
    soft[0, 0, 2:4, 5:9] = 0.8
    return Members(soft[:, None], None)


@pytest.fixture(params=["pictures", "volume"])
def results(request, tmp_path):
    dataset = type("Of", (Drawn,), {"volume": request.param == "volume" or None})(tmp_path, 12)
    folder = ResultsFolder(tmp_path / "results", dict(MANIFEST), save_samples=True, classes=dataset.classes)
    for unit in group_cases(dataset.cases):
        maps = [next(fuse_cases(answer_of(case), [(12, 16)], "staple", dataset.classes)) for case in unit.cases]
        truth = np.stack([truth_of(case) for case in unit.cases], axis=-1)
        if unit.is_volume:
            geometry = dataset.geometry(unit.cases[0])
            write_volume(folder, unit.name, stack_slices(maps), geometry, lambda k: np.zeros((1, 12, 16)))
        else:
            folder.write_image(unit.name, maps[0], np.zeros((1, 12, 16)), truth[..., 0])
        assert folder.finished(unit.name, unit.is_volume)
    return tmp_path / "results", dataset


def test_label_maps_are_written_in_the_data_s_own_values(results):
    folder, dataset = results
    expected = np.zeros((12, 16), int)
    expected[:, :5], expected[4:6, 5:9] = 7, 300
    if dataset.volume:
        image = nibabel.load(folder / "v_seg.nii.gz")
        labels = np.asarray(image.dataobj)
        assert image.get_data_dtype() == np.uint16 and np.array_equal(labels[..., 1], expected)
        names = {path.name for path in folder.glob("v_*.nii.gz")}
        assert {"v_prob_liver.nii.gz", "v_uncertainty_vessel.nii.gz", "v_sample_00.nii.gz"} < names
        assert set(np.unique(np.asarray(nibabel.load(folder / "v_sample_00.nii.gz").dataobj))) <= {0, 2, 7, 300}
    else:
        assert np.array_equal(np.asarray(Image.open(folder / "masks" / "b.png")), expected)
        assert {path.name for path in (folder / "probability").iterdir()} == set(ORGANS.names)
        assert (folder / "uncertainty" / "tumour" / "a.png").exists()
    predictions = Predictions(folder, classes=dataset.classes)
    unit = group_cases(dataset.cases)[0]
    for k in range(3):
        mask = predictions.mask(unit.name, unit.is_volume, k)
        assert mask.sum() == {0: 60, 1: 8, 2: 48}[k] * (2 if unit.is_volume and k < 2 else 1)
        assert len(predictions.members(unit.name, unit.is_volume, k)) == 3
        assert predictions.probability(unit.name, unit.is_volume, k).max() == pytest.approx(0.9, abs=1e-4)
    page = write_report(folder, dataset, group_cases(dataset.cases)).read_text()
    assert all(name in page for name in ORGANS.names)


def test_small_label_maps_are_pictures_in_colour(tmp_path):
    folder = ResultsFolder(tmp_path, dict(MANIFEST), classes=REGIONS)
    masks = torch.from_numpy(REGIONS.masks_of(np.array([[0, 1], [2, 4]]))).float()
    (maps,) = fuse_cases(Members(masks[None, None], None), [(2, 2)], "staple", REGIONS)
    folder.write_image("a", maps, np.zeros((1, 2, 2)))
    with Image.open(tmp_path / "masks" / "a.png") as picture:
        assert np.asarray(picture).tolist() == [[0, 1], [2, 4]]
        colours = np.asarray(picture.convert("RGB"))
    assert [tuple(colours[place]) for place in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        (0, 0, 0),
        *(class_colour(k) for k in range(3)),
    ]
    assert [Predictions(tmp_path, classes=REGIONS).mask("a", False, k).sum() for k in range(3)] == [3, 2, 1]
    inside = np.zeros((2, 8, 8), bool)
    inside[0], inside[1, 2:6, 2:6] = True, True
    drawn = overlay(np.zeros((8, 8, 3), np.uint8), inside, inside[::-1])
    assert {tuple(colour) for colour in drawn.reshape(-1, 3)} == {(0, 0, 0), class_colour(0), class_colour(1)}


def test_scores_of_each_class_and_their_mean(results, tmp_path):
    folder, dataset = results
    summary = evaluate(folder, dataset, tmp_path / "out")
    with open(tmp_path / "out" / "metrics.csv", newline="") as file:
        rows = {(row["name"], row["class"]): row for row in csv.DictReader(file)}
    cases = ["v"] if dataset.volume else ["a", "b"]
    assert list(rows) == [(case, name) for case in cases for name in (*ORGANS.names, "mean")]
    last = cases[-1]
    assert float(rows[last, "tumour"]["dice"]) == pytest.approx(2 / 3, rel=1e-5)  # 8 of 16 pixels found
    vessel = {} if dataset.volume else {"dice": ""}  # b has none, and none is found: undefined
    assert rows[last, "vessel"].items() >= vessel.items()
    mean = (1 + 2 / 3 + 1) / 3 if dataset.volume else (1 + 2 / 3) / 2
    assert float(rows[last, "mean"]["dice"]) == pytest.approx(mean, rel=1e-5)
    assert strict_json(tmp_path / "out" / "summary.json")["classes"].keys() == set(ORGANS.names)
    assert summary["classes"]["tumour"]["ensemble"]["dice"]["mean"] == pytest.approx(2 / 3)
    assert summary["classes"]["vessel"]["ensemble"]["both_empty"] == summary["ensemble"]["both_empty"] == len(cases) - 1
    expected = mean if dataset.volume else (mean + (1 + 2 / 3 + 1) / 3) / 2
    assert summary["ensemble"]["dice"]["mean"] == pytest.approx(expected)
    # One member takes half of the tumour for liver: Dice 2 * 60 / (2 * 60 + 8) of that class.
    one = (120 / 128 + 2) / 3
    assert summary["classes"]["liver"]["sample"]["mean"] == pytest.approx(one)
    eces = [summary["classes"][name]["calibration"]["ece"] for name in ORGANS.names]
    assert summary["calibration"]["ece"] == pytest.approx(np.mean(eces))
    text = format_summary(summary)
    assert all(name in text for name in ORGANS.names) and "all classes, each case's mean" in text


def test_a_plain_folder_of_label_maps(tmp_path, save_picture, capsys):
    dataset = Drawn(tmp_path, 12)
    for case in dataset.cases:
        save_picture(tmp_path / "plain" / f"{case.name}_mask.png", ORGANS.labels_of(truth_of(case)))
    summary = evaluate(tmp_path / "plain", dataset)
    assert [summary["classes"][name]["ensemble"]["dice"]["mean"] for name in ORGANS.names] == [1, 1, 1]
    assert "warning" not in capsys.readouterr().out
    labels = ORGANS.labels_of(truth_of(dataset.cases[0]))
    save_picture(tmp_path / "plain" / "a_mask.png", np.where(labels == 7, 77, labels))  # as BraTS has 4, others 3
    evaluate(tmp_path / "plain", dataset)
    assert "no class has the label value 77 of" in capsys.readouterr().out
    save_picture(tmp_path / "plain" / "a_mask.png", np.uint8(255) * truth_of(dataset.cases[0])[0])
    assert evaluate(tmp_path / "plain", dataset)["failed"] == 1
    assert "a_mask.png: holds the values 0, 255 and none of the classes liver=7,tumour" in capsys.readouterr().out


def test_values_of_smooth_edges_are_no_classes():
    disc = np.hypot(*np.mgrid[-20:20, -20:20]) < 12
    smooth = np.clip(100 - 10 * (np.hypot(*np.mgrid[-20:20, -20:20]) - 8), 0, 100).astype(np.int32)
    with pytest.raises(UserError, match="DATA: .* label values, as .* lie at edges alone.* by nearest neighbour"):
        found_classes([smooth[None]], "DATA")
    organs = np.arange(1, 21, dtype=np.int32).repeat(4)[:, None].repeat(9, axis=1)  # each 4 rows high
    assert len(found_classes([organs, disc.astype(np.int32)], "DATA")) == 20
