"""Where results lie: nibabel and SimpleITK lay each written volume over its image."""

import csv
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
import SimpleITK
from helpers import manifest_with, maps_of, write_volume

from guided_diffusion.data.registry import build_dataset
from guided_diffusion.data.volumes import VolumeReader, image_geometry
from guided_diffusion.evaluation.evaluate import evaluate
from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.io.nifti import read_nifti_labels, write_nifti
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
PLAIN = np.array([[-1.0, 0, 0, 20], [0, -1, 0, 30], [0, 0, 2, -10], [0, 0, 0, 1]])
MOVED = np.array([[-1.0, 0, 0, 100], [0, -1, 0, 50], [0, 0, 2, 25], [0, 0, 0, 1]])
COSINE, SINE = np.cos(0.4), np.sin(0.4)
OBLIQUE = PLAIN @ np.array([[COSINE, -SINE, 0, 3], [SINE, COSINE, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1]])
SHEARED = PLAIN @ np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
SHAPE = (5, 6, 4)

# name: (shape, sform and its code, qform and its code, unit)
PLACES = {
    "both": (SHAPE, (PLAIN, 1), (PLAIN, 1), "mm"),
    "qform elsewhere": (SHAPE, (PLAIN, 2), (MOVED, 1), "mm"),
    "qform turned": (SHAPE, (PLAIN, 2), (OBLIQUE, 1), "mm"),
    "neither code": (SHAPE, (None, 0), (None, 0), "mm"),
    "only qform": (SHAPE, (None, 0), (MOVED, 1), "mm"),
    "only sform": (SHAPE, (MOVED, 4), (None, 0), "mm"),
    "sform in Talairach space": (SHAPE, (MOVED, 3), (PLAIN, 1), "mm"),
    "microns": (SHAPE, (PLAIN, 1), (PLAIN, 1), "micron"),
    "metres": (SHAPE, (PLAIN / 1000, 1), (PLAIN / 1000, 1), "meter"),
    "no unit": (SHAPE, (PLAIN, 1), (PLAIN, 1), "unknown"),
    "oblique": (SHAPE, (OBLIQUE, 1), (OBLIQUE, 1), "mm"),
    "sheared": (SHAPE, (SHEARED, 1), (PLAIN, 1), "mm"),
    "sagittal slice": ((1, 6, 4), (PLAIN, 1), (PLAIN, 1), "mm"),
    "coronal slice": ((5, 1, 4), (PLAIN, 1), (PLAIN, 1), "mm"),
    "axial slice": ((5, 6, 1), (PLAIN, 1), (PLAIN, 1), "mm"),
    "oblique coronal slice": ((5, 1, 4), (OBLIQUE, 1), (OBLIQUE, 1), "mm"),
    "slice of four axes": ((5, 6, 1, 1), (PLAIN, 1), (PLAIN, 1), "mm"),
    "four axes": ((*SHAPE, 1), (PLAIN, 1), (PLAIN, 1), "mm"),
    "channels": ((*SHAPE, 2), (OBLIQUE, 2), (MOVED, 1), "micron"),
}
for axes, signs in list(product(permutations(range(3)), product((1, -1), repeat=3)))[1::7]:
    turned = np.eye(4)
    turned[:3, :3] = np.eye(3)[:, axes] * np.array(signs) * [0.8, 1.1, 2.5]
    turned[:3, 3] = 7, -8, 9
    PLACES[f"{axes} {signs}"] = (SHAPE, (turned, 1), (turned, 1), "mm")


def save(path, array, sform, qform, unit="mm", kind=nibabel.Nifti1Image):
    image = kind(array, np.diag([1.5, 1.5, 3, 1]))
    image.set_sform(sform[0], sform[1])
    image.set_qform(qform[0], qform[1], strip_shears=False)
    image.header.set_xyzt_units(unit)
    image.header["descrip"], image.header["aux_file"], image.header["intent_name"] = b"A. Patient", b"secret", b"who"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"A. Patient"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def written(folder, image):
    """A random mask and its maps, written for the image as sampling does: (labels of the mask on the network's axes,
    the case, the paths)."""
    reader = VolumeReader()
    case = reader.cases("v", [image])[0]
    geometry = reader.file_geometry(case)
    shape = (*geometry.shape, 1)[:3]
    results = ResultsFolder(folder, manifest_with(), save_samples=True)
    maps = maps_of(shape if case.volume else shape[:2])
    if case.volume:
        write_volume(results, "v", maps, geometry, lambda k: np.zeros((1, *shape[:2])))
    else:
        results.write_image("v", maps, np.zeros((1, *shape[:2]), np.float32), geometry=geometry)
    return maps.mask[0].reshape(geometry.shape), case, sorted(folder.glob("v_*.nii.gz"))


@pytest.mark.parametrize("name", PLACES)
def test_results_lie_over_their_image_in_every_reader(tmp_path, name):
    shape, sform, qform, unit = PLACES[name]
    path = save(tmp_path / "v.nii", RNG.random(shape).astype(np.float32), sform, qform, unit)
    mask, case, paths = written(tmp_path / "results", path)
    assert len(paths) == (6 if case.volume else 1)  # mask, probability, uncertainty, coarse mask and two members
    image, seen = nibabel.load(path), SimpleITK.ReadImage(str(path))
    seen = seen[..., 0] if seen.GetDimension() == 4 else seen  # a channel
    for found in paths:
        ours, itk = nibabel.load(found), SimpleITK.ReadImage(str(found))
        assert np.array_equal(ours.get_sform(), image.get_sform()) and np.array_equal(ours.affine, image.affine)
        assert np.array_equal(ours.get_qform(), image.get_qform())
        for code in ("sform_code", "qform_code"):
            assert ours.header[code] == image.header[code]
        assert ours.header.get_xyzt_units() == image.header.get_xyzt_units()
        assert ours.header.get_zooms() == image.header.get_zooms()[:3] and ours.shape == shape[:3]
        assert itk.GetSize() == seen.GetSize() and itk.GetDimension() == seen.GetDimension()
        for property_of in ("GetOrigin", "GetDirection", "GetSpacing"):
            assert getattr(itk, property_of)() == getattr(seen, property_of)()
        content = found.read_bytes() if found.suffix == ".nii" else nibabel.openers.Opener(found).read()
        assert b"Patient" not in content and b"secret" not in content and b"who" not in content
    seg = next(path for path in paths if path.name == "v_seg.nii.gz")
    assert np.array_equal(read_nifti_labels(seg), mask)


def test_the_second_version_of_nifti_stays_what_it_is(tmp_path):
    affine = PLAIN + 1 / 3 * np.eye(4, k=1)
    affine[3] = 0, 0, 0, 1
    path = save(tmp_path / "v.nii.gz", RNG.random(SHAPE), (affine, 1), (PLAIN, 1), kind=nibabel.Nifti2Image)
    for found in written(tmp_path / "results", path)[2]:
        ours = nibabel.load(found)
        assert type(ours) is nibabel.Nifti2Image and np.array_equal(ours.get_sform(), affine)  # in float64
        assert np.array_equal(ours.get_qform(), nibabel.load(path).get_qform())


def test_a_2d_image_has_its_mask_as_nifti_too(tmp_path):
    path = save(tmp_path / "v.nii.gz", RNG.random((5, 6)), (PLAIN, 1), (PLAIN, 1))
    mask, _, (found,) = written(tmp_path / "results", path)
    ours = nibabel.load(found)
    assert ours.shape == (5, 6) and np.array_equal(ours.get_fdata() > 0, mask)
    assert np.array_equal(ours.get_sform(), nibabel.load(path).get_sform())
    predictions = Predictions(tmp_path / "results", ["v"])
    assert np.array_equal(predictions.mask("v", False), mask)
    predictions.is_ours = True
    assert predictions.unmatched() == []


def test_a_loaders_own_affine_is_written_in_both_forms(tmp_path):
    for affine in (PLAIN, OBLIQUE):
        write_nifti(tmp_path / "v.nii.gz", np.zeros(SHAPE, np.uint8), affine)
        ours, itk = nibabel.load(tmp_path / "v.nii.gz"), SimpleITK.ReadImage(str(tmp_path / "v.nii.gz"))
        for form, code in (ours.get_sform(coded=True), ours.get_qform(coded=True)):
            assert code == 2 and np.allclose(form, affine, atol=1e-5)
        assert np.allclose(itk.GetOrigin(), affine[:3, 3] * [-1, -1, 1]) and np.allclose(itk.GetSpacing(), (1, 1, 2))
        assert ours.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("unit, factor", [("mm", 1), ("unknown", 1), ("micron", 1000), ("meter", 0.001)])
def test_distances_and_volumes_are_in_mm_and_ml(tmp_path, unit, factor):
    affine = np.diag([2 * factor, 2 * factor, 4 * factor, 1])
    truth = np.zeros((12, 12, 6), np.uint8)
    truth[2:7, 2:7, 1:4] = 1
    for folder, array in (("images", RNG.random(truth.shape)), ("masks", truth), ("pred", np.roll(truth, 1, 0))):
        save(tmp_path / folder / "v.nii", array.astype(np.float32), (affine, 1), (affine, 1), unit)
    dataset = build_dataset("FOLDER", tmp_path, 16)
    assert dataset.load_geometry(dataset.cases[0]).spacing == pytest.approx((2, 2, 4))
    figures = evaluate(tmp_path / "pred", dataset)
    assert figures["ensemble"]["hd95"]["mean"] == pytest.approx(2)
    with open(tmp_path / "pred" / "metrics.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["truth_volume"]) == pytest.approx(5 * 5 * 3 * 16 / 1000)
    assert any("become mm here" in note for note in dataset.notes) == (factor != 1)


# ---- predictions on other grids ----------------------------------------------------------------------------------


TRUTH = np.zeros((24, 20, 10), np.uint8)
TRUTH[6:12, 8:16, 2:6] = 1


@pytest.fixture
def scored(tmp_path, capsys):
    """A function (array, affine) that scores a prediction on `TRUTH`: (Dice, what was printed)."""
    for folder, array in (("images", RNG.random(TRUTH.shape).astype(np.float32)), ("masks", TRUTH)):
        save(tmp_path / folder / "v.nii.gz", array, (PLAIN, 1), (PLAIN, 1))

    def score(array, affine, like=None):
        code = 0 if affine is None else 1
        save(tmp_path / "pred" / "v.nii.gz", array, (affine, code), (affine, code))
        dataset = build_dataset("FOLDER", tmp_path, 16)
        dice = evaluate(tmp_path / "pred", dataset)["ensemble"]["dice"]["mean"]
        return dice, capsys.readouterr().out

    return score


def part(low, step=(1, 1, 1)):
    """(voxels of `TRUTH` from `low` on, every step-th of them, their affine)."""
    taken = TRUTH[low[0] :: step[0], low[1] :: step[1], low[2] :: step[2]]
    affine = PLAIN @ np.diag([*step, 1.0])
    affine[:3, 3] = PLAIN[:3, :3] @ low + PLAIN[:3, 3]
    return taken, affine


def test_the_same_grid_in_other_orders_of_axes_is_not_resampled(scored):
    for axes, flips in (((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 0, 2), (1,))):
        array, affine = TRUTH.transpose(axes), PLAIN.copy()
        affine[:3, :3] = affine[:3, axes]
        for axis in flips:
            array = np.flip(array, axis)
            affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
            affine[:3, axis] *= -1
        assert scored(array, affine) == (1, "")


def test_a_2d_file_for_a_slice_along_the_first_axis(tmp_path):
    """A prediction whose axis of length 1 was dropped: it has its place, or it is refused by name."""
    image, affine = TRUTH[7:8], PLAIN.copy()
    for folder in ("images", "masks"):
        save(tmp_path / folder / "v.nii.gz", image, (affine, 1), (affine, 1))
    turned = affine[:, [1, 2, 0, 3]]
    save(tmp_path / "pred" / "v.nii.gz", image[0], (turned, 1), (turned, 1))
    assert evaluate(tmp_path / "pred", build_dataset("FOLDER", tmp_path, 16))["ensemble"]["dice"]["mean"] == 1
    save(tmp_path / "pred" / "v.nii.gz", image[0], (np.eye(4), 1), (np.eye(4), 1))
    with pytest.raises(UserError, match="v.nii.gz: has lost its affine, so that its place is unknown"):
        evaluate(tmp_path / "pred", build_dataset("FOLDER", tmp_path, 16))


def test_a_truth_that_lies_elsewhere_is_said(scored, tmp_path):
    away = PLAIN.copy()
    away[:3, 3] += 50
    save(tmp_path / "masks" / "v.nii.gz", TRUTH, (away, 1), (away, 1))
    dice, printed = scored(TRUTH, PLAIN)
    assert (
        dice == 1 and "warning: the truth of 1 volume lies elsewhere in space than the image, and is taken" in printed
    )


def test_a_crop_a_larger_box_and_another_resolution_are_resampled(scored):
    dice, said = scored(*part((4, 6, 2)))
    assert dice == 1 and said.startswith("warning: 1 prediction on another grid than the image, brought to it by ")
    assert "v.nii.gz has 20x14x8 voxels of 1x1x2 mm, its image 24x20x10 voxels of 1x1x2 mm" in said
    padded = PLAIN.copy()
    padded[:3, 3] -= PLAIN[:3, :3] @ (2, 3, 1)
    assert scored(np.pad(TRUTH, ((2, 2), (3, 0), (1, 1))), padded)[0] == 1
    fine = PLAIN @ np.diag([0.5, 0.5, 1, 1])
    fine[:3, 3] -= PLAIN[:3, :3] @ (0.25, 0.25, 0)
    assert scored(TRUTH.repeat(2, 0).repeat(2, 1), fine)[0] == 1
    coarse = PLAIN @ np.diag([2.0, 2, 2, 1])
    coarse[:3, 3] += PLAIN[:3, :3] @ (0.5, 0.5, 0.5)
    assert scored(TRUTH[::2, ::2, ::2], coarse)[0] == 1
    turned = OBLIQUE.copy()  # a box that lies askew and holds the object
    turned[:3, 3] += OBLIQUE[:3, :3] @ (-12, -12, -5)
    places = np.linalg.inv(PLAIN) @ turned @ np.r_[np.indices((40, 40, 10)).reshape(3, -1), np.ones((1, 16000))]
    nearest = np.rint(places[:3]).astype(int)
    inside = ((nearest >= 0) & (nearest < np.array(TRUTH.shape)[:, None])).all(0)
    values = np.where(inside, TRUTH[tuple(np.where(inside, nearest, 0))], 0).reshape(40, 40, 10).astype(np.uint8)
    assert 0.75 < scored(values, turned)[0] <= 1


def test_the_same_shape_in_another_place_is_resampled_too(scored):
    moved = PLAIN.copy()
    moved[:3, 3] += PLAIN[:3, :3] @ (1, 0, 0)
    dice, said = scored(np.roll(TRUTH, -1, 0), moved)
    assert dice == 1 and "another grid" in said


@pytest.mark.parametrize("affine, words", [
    (np.eye(4), "v.nii.gz: has lost its affine, so that its place is unknown: it has 20x14x8 voxels of 1x1x1 mm, its "),
    (np.diag([-1.0, -1, 1, 1]), "v.nii.gz: has the affine that SimpleITK gives to an array without CopyInformation, "),
    (None, "v.nii.gz: has lost its affine, so that its place is unknown: "),
    (MOVED, "v.nii.gz: lies beside its image and shares no voxel with it: it has 20x14x8 voxels of 1x1x2 mm, its "),
])  # fmt: skip
def test_without_a_common_place_it_is_refused(scored, affine, words):
    with pytest.raises(UserError, match=words):
        scored(part((4, 6, 2))[0], affine)


def test_without_an_affine_the_same_shape_is_voxel_for_voxel(scored):
    for affine in (np.eye(4), None):
        dice, said = scored(TRUTH, affine)
        assert dice == 1 and said.startswith("warning: 1 prediction taken voxel for voxel over the image, since ")


def test_pictures_of_another_size_are_said(tmp_path, save_picture, capsys):
    for name in "ab":
        for folder, size in (("images", (8, 10)), ("masks", (8, 10)), ("pred", (16, 20))):
            save_picture(tmp_path / folder / f"{name}.png", np.uint8(255) * (np.indices(size)[0] < size[0] // 2))
    assert evaluate(tmp_path / "pred", build_dataset("FOLDER", tmp_path, 16))["ensemble"]["dice"]["mean"] == 1
    assert "warning: 2 predictions on another grid than the image, brought to it by nearest neighbour: " in (
        said := capsys.readouterr().out
    )
    assert "pred: the mask of a has 16x20 pixels, its image 8x10" in said


def test_masks_of_2d_nifti_images_may_be_nifti_in_any_order_of_axes(tmp_path):
    truth = np.zeros((8, 1, 6), np.uint8)
    truth[2:5, :, 1:4] = 1
    for folder, array in (("images", RNG.random(truth.shape).astype(np.float32)), ("masks", truth), ("pred", truth)):
        save(tmp_path / folder / "v.nii.gz", array, (PLAIN, 1), (PLAIN, 1))
    dataset = build_dataset("FOLDER", tmp_path, 16)
    assert dataset.cases[0].volume is None and image_geometry(dataset, dataset.cases[0]).shape == (8, 6, 1)
    assert evaluate(tmp_path / "pred", dataset)["ensemble"]["dice"]["mean"] == 1
