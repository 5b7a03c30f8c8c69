"""The results folder and its pictures: what is written, of which size and values, and what is refused."""

import json
import os

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from guided_diffusion.data.cases import Geometry
from guided_diffusion.data.classes import Classes
from guided_diffusion.inference.answer import CaseMaps, fuse_cases, stack_slices
from guided_diffusion.inference.ensemble import staple
from guided_diffusion.inference.members import Members
from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.io import drawing as pictures
from guided_diffusion.runtime.errors import UserError

MANIFEST = {
    "checkpoint": "m.pt",
    "step": 5,
    "checkpoint_sha256": "aa",
    "settings": {"num_ensemble": 2, "sampler": "ddpm", "timesteps": list(range(100))},
    "data": {"data_dir": "/data"},
}


def maps_of(size, members=2, coarse=True, seed=0, classes=1):
    """Random answers of a size."""
    rng, shape = np.random.default_rng(seed), (classes, *size)
    return CaseMaps(
        mask=rng.random(shape) > 0.5,
        probability=rng.random(shape).astype(np.float32),
        uncertainty=rng.random(shape).astype(np.float32) / 2,
        members=rng.random((members, *shape)) > 0.5,
        coarse=rng.random(shape).astype(np.float32) if coarse else None,
    )


def geometry_of(affine):
    """The geometry of a volume that lies as its file does; its spacing and shape are not asked for."""
    return Geometry(affine, (), ())


def read(path):
    return np.asarray(Image.open(path))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- fusing ------------------------------------------------------------------------------------------------------


def disc(size, radius):
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    return torch.from_numpy((np.hypot(x, y) < radius).astype(np.float32))


def test_fused_maps_at_each_images_own_size():
    soft = torch.stack([disc(32, 8), disc(32, 10), disc(32, 12)])[:, None, None].repeat(
        1, 2, 1, 1, 1
    )  # [E, N, K, H, W]
    soft[:, 1] = 0
    first, second = fuse_cases(Members(soft, soft / 2), [(64, 96), (16, 32)], "vote")
    assert first.mask[0].shape == (64, 96) and second.mask[0].shape == (16, 32)
    assert first.members[:, 0].shape == (3, 64, 96) and first.coarse[0].shape == (64, 96)
    area = np.pi * 10**2 * 2 * 3  # of the middle disc, stretched twice and three times
    assert first.mask[0].sum() == pytest.approx(area, rel=0.05)
    assert [m.sum() for m in first.members[:, 0]] == pytest.approx([area * 0.64, area, area * 1.44], rel=0.06)
    assert first.probability[0, 32, 48] == pytest.approx(1) and first.uncertainty[0, 32, 48] == pytest.approx(0)
    ring = first.probability[0, 32, 48 + 11 * 3]  # only the largest of the three is there
    assert ring == pytest.approx(1 / 3, abs=0.05)
    assert first.coarse[0, 32, 48] == pytest.approx(0.5)
    assert not second.mask[0].any() and second.probability[0].max() == 0 and second.uncertainty[0].max() == 0


def test_fusing_at_the_networks_size_is_exact():
    generator = torch.Generator().manual_seed(0)
    soft = torch.rand(4, 1, 1, 6, 8, generator=generator)
    (maps,) = fuse_cases(Members(soft, None), [(6, 8)], "mean")
    assert np.array_equal(maps.members[:, 0], soft[:, 0, 0].numpy() > 0.5)
    assert np.allclose(maps.probability[0], soft[:, 0, 0].mean(0)) and maps.coarse is None
    assert np.allclose(maps.uncertainty[0], soft[:, 0, 0].numpy().std(0), atol=1e-6)
    assert np.array_equal(maps.mask[0], maps.probability[0] > 0.5)


def test_the_fused_mask_is_the_staple_of_the_members_as_they_are_written():
    generator = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(torch.rand(5, 1, 4, 4, generator=generator), (16, 16), mode="bicubic")
    (maps,) = fuse_cases(Members(smooth[:, None].clamp(0, 1), None), [(40, 56)], "staple")
    votes = torch.from_numpy(maps.members[:, 0])[:, None, None]
    assert np.array_equal(maps.mask[0], (staple(votes).consensus[0, 0] > 0.5).numpy())
    assert maps.mask[0].any() and not maps.mask[0].all()


def test_stacked_slices_lie_along_the_last_axis():
    slices = [maps_of((4, 5), seed=k) for k in range(3)]
    volume = stack_slices(slices)
    assert volume.mask[0].shape == (4, 5, 3) and volume.members[:, 0].shape == (2, 4, 5, 3)
    for k, maps in enumerate(slices):
        assert np.array_equal(volume.mask[0, ..., k], maps.mask[0])
        assert np.array_equal(volume.members[:, 0, ..., k], maps.members[:, 0])
        assert np.array_equal(volume.coarse[0, ..., k], maps.coarse[0])
    assert stack_slices([maps_of((4, 5), coarse=False)]).coarse is None


# ---- writing -----------------------------------------------------------------------------------------------------


def test_files_of_a_picture(tmp_path):
    maps, image = maps_of((12, 20)), np.full((3, 12, 20), 100, np.float32)
    folder = ResultsFolder(tmp_path, dict(MANIFEST), save_samples=True)
    assert not folder.finished("a", False)
    folder.write_image("a", maps, image, truth=np.zeros((1, 12, 20), bool))
    assert folder.finished("a", False)
    assert files(tmp_path) == [
        "coarse/a.png",
        "manifest.json",
        "masks/a.png",
        "overlay/a.png",
        "probability/a.png",
        "samples/a_00.png",
        "samples/a_01.png",
        "uncertainty/a.png",
    ]
    assert np.array_equal(read(tmp_path / "masks/a.png"), np.uint8(255) * maps.mask[0])
    assert np.array_equal(read(tmp_path / "samples/a_01.png"), np.uint8(255) * maps.members[1, 0])
    probability = read(tmp_path / "probability/a.png")
    assert probability.dtype == np.uint16 or Image.open(tmp_path / "probability/a.png").mode.startswith("I")
    assert np.abs(probability / 65535 - maps.probability[0]).max() < 1 / 65535
    assert np.abs(read(tmp_path / "uncertainty/a.png") / 255 / 2 - maps.uncertainty[0]).max() < 1 / 255
    overlay = read(tmp_path / "overlay/a.png")
    assert overlay.shape == (12 * 13, 20 * 13, 3) and set(map(tuple, overlay.reshape(-1, 3))) == {
        (100,) * 3,
        pictures.MASK_COLOUR,
    }


def test_without_save_samples_there_are_none(tmp_path):
    ResultsFolder(tmp_path, dict(MANIFEST)).write_image("a", maps_of((8, 8)), np.zeros((1, 8, 8), np.float32))
    assert not (tmp_path / "samples").exists() and not (tmp_path / "coarse").exists()


def test_files_of_a_volume(tmp_path):
    maps = maps_of((6, 7, 3))
    affine = np.array([[-2.0, 0, 0, 5], [0, 1, 0.5, 6], [0, 0, 3, 7], [0, 0, 0, 1]])
    folder = ResultsFolder(tmp_path, dict(MANIFEST), save_samples=True)
    folder.write_volume("v", maps, geometry_of(affine), lambda k: np.random.default_rng(k).random((4, 6, 7)))
    assert folder.finished("v", True) and not folder.finished("w", True)
    names = ["coarse", "prob", "sample_00", "sample_01", "seg", "uncertainty"]
    assert files(tmp_path) == ["manifest.json", "overlay/v.png", *(f"v_{name}.nii.gz" for name in names)]
    for name in names:
        image = nibabel.load(tmp_path / f"v_{name}.nii.gz")
        assert image.shape == (6, 7, 3) and np.array_equal(image.affine, affine)
    seg = nibabel.load(tmp_path / "v_seg.nii.gz")
    assert seg.get_data_dtype() == np.uint8 and np.array_equal(seg.get_fdata() > 0, maps.mask[0])
    assert np.allclose(nibabel.load(tmp_path / "v_prob.nii.gz").get_fdata(), maps.probability[0])


def test_the_mask_is_written_last(tmp_path, monkeypatch):
    """A kill at any moment leaves a case unfinished, never half a case that counts as finished."""
    from guided_diffusion.inference import results as module

    order = []
    for name in ("write_png", "write_nifti"):
        monkeypatch.setattr(
            module, name, lambda path, *_: order.append(path.name if "nii" in path.name else path.parent.name)
        )
    folder = ResultsFolder(tmp_path, dict(MANIFEST), save_samples=True)
    folder.write_image("a", maps_of((8, 8)), np.zeros((1, 8, 8), np.float32))
    assert order[-1] == "masks" and order.count("masks") == 1 and len(order) == 7
    order.clear()
    folder.write_volume("v", maps_of((8, 8, 2)), geometry_of(np.eye(4)), lambda k: np.zeros((1, 8, 8)))
    assert order[-1] == "v_seg.nii.gz" and len(order) == 7


def test_animation(tmp_path):
    folder = ResultsFolder(tmp_path, dict(MANIFEST))
    image, states = np.zeros((16, 20, 3), np.uint8), np.random.default_rng(0).normal(size=(4, 2, 1, 16, 16))
    folder.write_debug("a", pictures.denoising_frames(image, states, [x / 2 for x in states]))
    with Image.open(tmp_path / "debug" / "a.gif") as gif:
        assert gif.format == "GIF" and gif.n_frames == 5  # four steps and the answer


# ---- the manifest ------------------------------------------------------------------------------------------------


def changed(**changes):
    new = json.loads(json.dumps(MANIFEST))
    for key, value in changes.items():
        if key in new["settings"]:
            new["settings"][key] = value
        elif key in new["data"]:
            new["data"][key] = value
        else:
            new[key] = value
    return new


def test_the_same_run_goes_on(tmp_path):
    ResultsFolder(tmp_path, changed())
    ResultsFolder(tmp_path, changed(device="another"))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"checkpoint_sha256": "bb", "step": 6},
            "made with another checkpoint, m.pt of step 5, now --model_path is m.pt of step 6",
        ),
        ({"num_ensemble": 3}, "made with --num_ensemble 2, now it is 3"),
        ({"data_dir": "/other"}, "made with --data_dir /data, now it is /other"),
        (
            {"timesteps": list(range(50))},
            "made with 100 steps of ddpm, now it is 50 steps of ddpm (by --diffusion_steps, ",
        ),
        (
            {"timesteps": list(range(1, 101))},
            "made with 100 steps of ddpm, now it is as many other steps (by --diffusion_steps",
        ),
        (
            {"sampler": "ddim"},
            "made with 100 steps of ddpm, now it is 100 steps of ddim (by --diffusion_steps, --sampler, --use_ddim",
        ),
    ],
)
def test_another_run_is_refused_with_the_difference(tmp_path, change, words):
    ResultsFolder(tmp_path, changed())
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(UserError) as error:
        ResultsFolder(tmp_path, changed(**change))
    assert words in str(error.value) and "choose another --out_dir" in str(error.value)
    assert (tmp_path / "manifest.json").read_text() == before


def test_what_a_kill_left_is_no_mask_and_is_removed(tmp_path):
    classes = Classes(("a", "b"), ((1,), (2,)))
    ResultsFolder(tmp_path, changed())
    names = (
        "masks/.x.12.png",
        ".x_seg.12.nii.gz",
        "probability/b/.x.12.png",
        "overlay/.x.12.png",
        "samples/.x_00.12.png",
    )
    left = [tmp_path / name for name in names]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert Predictions(tmp_path).unmatched() == []

    def begin(**options):
        return ResultsFolder(tmp_path, changed(), classes=classes, **options)

    begin()  # they are fresh: perhaps another run is writing them
    assert all(path.exists() for path in left)
    for path in left[1:]:
        os.utime(path, (0, 0))
    begin(begin=False)  # of several processes the first one alone
    assert all(path.exists() for path in left)
    folder = begin()
    assert [path.exists() for path in left] == [True, False, False, False, False]
    os.utime(left[0], (0, 0))
    folder.complete(seconds=90, sampled=1, cases=1)  # it has become old meanwhile
    assert not left[0].exists()


def test_another_runs_folder_is_left_as_it_is(tmp_path):
    ResultsFolder(tmp_path, changed())
    (tmp_path / ".x.12.png").touch()
    os.utime(tmp_path / ".x.12.png", (0, 0))
    with pytest.raises(UserError, match="choose another --out_dir"):
        ResultsFolder(tmp_path, changed(num_ensemble=3))
    assert (tmp_path / ".x.12.png").exists()


def test_another_loader_or_window_is_refused_if_the_older_manifest_has_it(tmp_path):
    def begin(**data):
        manifest = changed()
        manifest["data"] = manifest["data"] | data
        ResultsFolder(tmp_path, manifest)

    begin()
    begin(data_name="AUTO")  # as older manifests have it
    begin(data_name="msd", ct_window="-160,240")
    begin(data_name="MSD", ct_window="-160,240")
    with pytest.raises(UserError, match="made with --data_name MSD, now it is FOLDER; choose another --out_dir"):
        begin(data_name="FOLDER", ct_window="-160,240")
    with pytest.raises(UserError, match="made with --ct_window -160,240, now it is -1000,400; choose another"):
        begin(data_name="MSD", ct_window="-1000,400")


def test_complete_adds_facts(tmp_path):
    folder = ResultsFolder(tmp_path, {**changed(), "status": "running"})
    assert json.loads((tmp_path / "manifest.json").read_text())["status"] == "running"
    folder.complete(seconds=1.5, sampled=2, cases=3)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["status"] == "complete" and manifest["seconds"] == 1.5


@pytest.mark.parametrize("path", ["masks/a.png", "BraTS_seg.nii.gz"])
def test_a_folder_of_foreign_masks_is_no_results_folder(tmp_path, path):
    """A data set's own masks would count as finished, and its truth would be scored against itself."""
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).touch()
    with pytest.raises(UserError, match="holds masks without a manifest of sampling"):
        ResultsFolder(tmp_path, changed())
    assert not (tmp_path / "manifest.json").exists()


def test_a_damaged_manifest_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: is no valid JSON"):
        ResultsFolder(tmp_path, changed())


# ---- reading back ------------------------------------------------------------------------------------------------


def test_predictions_of_pictures(tmp_path):
    folder = ResultsFolder(tmp_path, changed(), save_samples=True)
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
    ResultsFolder(tmp_path, changed(), save_samples=True).write_volume(
        "v", maps, geometry_of(np.eye(4)), lambda k: np.zeros((1, 6, 7))
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


def test_two_masks_of_a_case_in_a_plain_folder_are_an_error(tmp_path, save_picture):
    for name in ("a.png", "a_mask.png", "b.png"):
        save_picture(tmp_path / name, np.zeros((4, 5), np.uint8))
    with pytest.raises(UserError, match="a_mask.png: is a second mask of a beside a.png; keep one"):
        Predictions(tmp_path, ["a"]).mask("a", False)
    predictions = Predictions(tmp_path, ["a", "a_mask"])
    assert predictions.mask("a", False) is not None
    assert [path.name for path in predictions.unmatched()] == ["a_mask.png", "b.png"]


def test_in_a_results_folder_names_are_exact(tmp_path):
    ResultsFolder(tmp_path, changed()).write_image("a_mask", maps_of((8, 9)), np.zeros((1, 8, 9), np.float32))
    predictions = Predictions(tmp_path, ["a"])
    assert predictions.mask("a", False) is None
    assert [path.name for path in predictions.unmatched()] == ["a_mask.png"]


def test_damaged_or_missing_predictions_are_errors(tmp_path, save_picture, truncate):
    with pytest.raises(UserError, match="--pred_dir must name a folder"):
        Predictions(tmp_path / "none")
    truncate(save_picture(tmp_path / "a.png", np.random.default_rng(0).integers(0, 2, (40, 40), np.uint8) * 255))
    with pytest.raises(UserError, match="a.png: is truncated or damaged"):
        Predictions(tmp_path).mask("a", False)
