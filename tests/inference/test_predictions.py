"""Predictions: what is read back from a results folder or from a plain folder of masks."""

import os
import unicodedata

import numpy as np
import pytest
from helpers import geometry_of, manifest_with, maps_of, write_volume

from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.runtime.errors import UserError


def test_predictions_of_pictures(tmp_path):
    folder = ResultsFolder(tmp_path, manifest_with(), save_samples=True)
    expected = {name: maps_of((8, 9), seed=n) for n, name in enumerate(["a", "a_00", "b[1]"])}
    for name, maps in expected.items():
        folder.write_image(name, maps, np.zeros((1, 8, 9), np.float32))
    predictions = Predictions(tmp_path)
    for name, maps in expected.items():
        assert np.array_equal(predictions.mask(name, False), maps.mask[0])
        assert np.array_equal(predictions.members(name, False), maps.members[:, 0])  # a's are not a_00's
        assert np.abs(predictions.coarse(name, False) - maps.coarse[0]).max() < 0.5 / 255 + 1e-6
        assert np.abs(predictions.probability(name, False) - maps.probability[0]).max() < 0.5 / 65535 + 1e-6
    assert predictions.mask("none", False) is None and predictions.members("none", False) == []
    assert predictions.coarse("none", False) is None and predictions.probability("none", False) is None
    assert predictions.num_ensemble == 2


def test_predictions_of_volumes(tmp_path):
    maps = maps_of((6, 7, 3))
    write_volume(
        ResultsFolder(tmp_path, manifest_with(), save_samples=True),
        "v",
        maps,
        geometry_of(np.eye(4)),
        lambda k: np.zeros((1, 6, 7)),
    )
    predictions = Predictions(tmp_path)
    assert np.array_equal(predictions.mask("v", True), maps.mask[0])
    assert np.array_equal(predictions.members("v", True), maps.members[:, 0])
    assert np.array_equal(predictions.coarse("v", True), maps.coarse[0])
    assert np.array_equal(predictions.probability("v", True), maps.probability[0])
    assert predictions.probability("none", True) is None
    assert predictions.mask("none", True) is None and predictions.coarse("none", True) is None


@pytest.mark.parametrize("scale", [1, 255])
def test_a_plain_folder_of_masks(tmp_path, save_picture, scale):
    mask = np.arange(20).reshape(4, 5) % 3 == 0
    save_picture(tmp_path / "a.png", np.uint8(scale) * mask)
    predictions = Predictions(tmp_path)
    assert np.array_equal(predictions.mask("a", False), mask)
    assert predictions.probability("a", False) is None and predictions.num_ensemble is None


@pytest.mark.parametrize("value", [1.5, -0.1, np.nan])
def test_what_is_no_probability_is_refused(tmp_path, save_nifti, value):
    save_nifti(tmp_path / "v_prob.nii.gz", np.full((3, 4, 2), value, np.float32))
    with pytest.raises(UserError, match="v_prob.nii.gz: holds values outside 0 to 1"):
        Predictions(tmp_path).probability("v", True)


@pytest.mark.parametrize("ending", ["_mask", "_seg", "_segmentation", "_Segmentation"])
def test_a_plain_folder_of_masks_with_endings(tmp_path, save_picture, save_nifti, ending):
    full, empty = np.full((4, 5), 255, np.uint8), np.zeros((4, 5), np.uint8)
    save_picture(tmp_path / f"a{ending}.tif", full)
    save_picture(tmp_path / f"b{ending}.png", empty)
    save_nifti(tmp_path / f"v{ending}.nii.gz", full[..., None])
    predictions = Predictions(tmp_path, ["a", "b", f"b{ending}", "v"])
    assert predictions.mask("a", False).all() and predictions.mask("v", True).all()
    assert not predictions.mask(f"b{ending}", False).any()
    assert predictions.mask("b", False) is None  # its only candidate is named like another case


def test_names_that_differ_in_unicode_form_or_case(tmp_path, save_picture):
    name = "M\u00fcller"
    save_picture(tmp_path / f"{unicodedata.normalize('NFD', name)}_mask.png", np.full((4, 5), 255, np.uint8))
    save_picture(tmp_path / "A.PNG", np.full((4, 5), 255, np.uint8))
    predictions = Predictions(tmp_path, [name, "a"])
    assert predictions.mask(name, False).all() and predictions.mask("a", False).all() and not predictions.unmatched()
    assert Predictions(tmp_path, ["A", "a"]).mask("a", False) is None  # the file is A's
    (tmp_path / "A.PNG").rename(tmp_path / "aB.png")
    assert Predictions(tmp_path, ["AB", "ab"]).mask("ab", False) is None  # or that of AB


def test_two_masks_of_a_case_in_a_plain_folder_are_an_error(tmp_path, save_picture):
    for name in ("a.png", "a_mask.png", "b.png"):
        save_picture(tmp_path / name, np.zeros((4, 5), np.uint8))
    with pytest.raises(UserError, match="a_mask.png: is a second mask of a beside a.png; keep one"):
        Predictions(tmp_path, ["a"]).mask("a", False)
    predictions = Predictions(tmp_path, ["a", "a_mask"])
    assert predictions.mask("a", False) is not None
    assert [path.name for path in predictions.unmatched()] == ["a_mask.png", "b.png"]


def test_in_a_results_folder_names_are_exact(tmp_path):
    ResultsFolder(tmp_path, manifest_with()).write_image("a_mask", maps_of((8, 9)), np.zeros((1, 8, 9), np.float32))
    predictions = Predictions(tmp_path, ["a"])
    assert predictions.mask("a", False) is None
    assert [path.name for path in predictions.unmatched()] == ["a_mask.png"]


def test_damaged_or_missing_predictions_are_errors(tmp_path, save_picture, truncate):
    with pytest.raises(UserError, match="--pred_dir must name a folder"):
        Predictions(tmp_path / "none")
    truncate(save_picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 2, (40, 40), np.uint8) * 255))
    with pytest.raises(UserError, match="a.png: is truncated or damaged"):
        Predictions(tmp_path).mask("a", False)


def test_members_of_another_case_whose_name_begins_alike(tmp_path, save_nifti):
    """The volumes a and a_sample_1: the latter's maps are no members of the former."""
    for name in ("a_seg", "a_sample_00", "a_sample_1_seg", "a_sample_1_prob", "a_sample_1_sample_00"):
        save_nifti(tmp_path / f"{name}.nii.gz", np.ones((3, 3, 2), np.uint8))
    (tmp_path / "manifest.json").write_text('{"checkpoint_sha256": "0"}')
    predictions = Predictions(tmp_path, ("a", "a_sample_1"))
    assert len(predictions.members("a", True)) == len(predictions.members("a_sample_1", True)) == 1


def test_one_listing_serves_all_cases(tmp_path, monkeypatch):
    folder = ResultsFolder(tmp_path, manifest_with(), save_samples=True)
    for name in "abc":
        folder.write_image(name, maps_of((8, 9)), np.zeros((1, 8, 9), np.float32))
    predictions, listed, list_folder = Predictions(tmp_path), [], os.listdir
    monkeypatch.setattr("os.listdir", lambda path: listed.append(path) or list_folder(path))
    monkeypatch.setattr("os.scandir", lambda path: pytest.fail(f"{path} is listed again"))
    assert [len(predictions.members(name, False)) for name in "abcd"] == [2, 2, 2, 0]
    assert listed == [tmp_path / "samples"]


def test_notes_of_another_process_are_joined(tmp_path):
    one, other = Predictions(tmp_path), Predictions(tmp_path)
    one.used, one.assumed = {tmp_path / "a.png"}, {"a": "first"}
    other.used, other.assumed, other.unknown = {tmp_path / "b.png"}, {"a": "second", "b": "text"}, {7: "b.png"}
    one.add_notes(other.take_notes())
    assert other.take_notes() == (set(), {}, {}, {})
    assert one.take_notes() == ({tmp_path / "a.png", tmp_path / "b.png"}, {}, {"a": "first", "b": "text"}, {7: "b.png"})
