"""The results folder: its files, sizes and values, and what it refuses."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from helpers import MANIFEST, geometry_of, manifest_with, maps_of, write_volume
from PIL import Image

from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.data.cases import Case, group_cases
from guided_diffusion.data.classes import BINARY, Classes
from guided_diffusion.inference.predictions import Predictions
from guided_diffusion.inference.results import ResultsFolder, check_name_lengths
from guided_diffusion.inference.volume_files import VolumeFiles
from guided_diffusion.io import drawing as pictures
from guided_diffusion.runtime.errors import UserError


def read(path):
    return np.asarray(Image.open(path))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
    write_volume(folder, "v", maps, geometry_of(affine), lambda k: np.random.default_rng(k).random((4, 6, 7)))
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
    monkeypatch.setattr("guided_diffusion.inference.volume_files.write_png", lambda *_: order.append("overlay"))
    monkeypatch.setattr(VolumeFiles, "_write", lambda _, path: order.append(path.name))
    write_volume(folder, "v", maps_of((8, 8, 2)), geometry_of(np.eye(4)), lambda k: np.zeros((1, 8, 8)))
    assert order[-1] == "v_seg.nii.gz" and len(order) == 7


def test_animation(tmp_path):
    folder = ResultsFolder(tmp_path, dict(MANIFEST))
    image, states = np.zeros((16, 20, 3), np.uint8), np.random.default_rng(0).normal(size=(4, 2, 1, 16, 16))
    folder.write_debug("a", pictures.denoising_frames(image, states, [x / 2 for x in states]))
    with Image.open(tmp_path / "debug" / "a.gif") as gif:
        assert gif.format == "GIF" and gif.n_frames == 5  # four steps and the answer


# ---- the manifest ------------------------------------------------------------------------------------------------


def test_the_same_run_goes_on(tmp_path):
    ResultsFolder(tmp_path, manifest_with())
    ResultsFolder(tmp_path, manifest_with(device="another"))


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"checkpoint_sha256": "bb", "step": 6},
            "made with another checkpoint, m.pt of step 5, now --model_path is m.pt of step 6",
        ),
        ({"num_ensemble": 3}, "made with --num_ensemble 2, now it is 3"),
        ({"num_ensemble": 0}, "made with --num_ensemble 2, now it is left out, which asks for the answer in one pass"),
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
    ResultsFolder(tmp_path, manifest_with())
    before = (tmp_path / "manifest.json").read_text()
    with pytest.raises(UserError) as error:
        ResultsFolder(tmp_path, manifest_with(**change))
    assert words in str(error.value) and "choose another --out_dir" in str(error.value)
    assert (tmp_path / "manifest.json").read_text() == before


def test_a_folder_of_coupled_members_is_refused_with_both_ways_out(tmp_path):
    def write(sigma):
        old = manifest_with()
        old["settings"]["coupling_sigma"] = sigma
        (tmp_path / "manifest.json").write_text(json.dumps(old))

    write(2.0)
    with pytest.raises(UserError, match="coupling_sigma 2.0, .*: choose another --out_dir, or use version 0.4.0"):
        ResultsFolder(tmp_path, manifest_with())
    write(None)
    ResultsFolder(tmp_path, manifest_with())


def test_what_a_kill_left_is_no_mask_and_is_removed(tmp_path):
    classes = Classes(("a", "b"), ((1,), (2,)))
    ResultsFolder(tmp_path, manifest_with())
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
        return ResultsFolder(tmp_path, manifest_with(), classes=classes, **options)

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
    ResultsFolder(tmp_path, manifest_with())
    (tmp_path / ".x.12.png").touch()
    os.utime(tmp_path / ".x.12.png", (0, 0))
    with pytest.raises(UserError, match="choose another --out_dir"):
        ResultsFolder(tmp_path, manifest_with(num_ensemble=3))
    assert (tmp_path / ".x.12.png").exists()


def test_another_loader_or_window_is_refused_if_the_older_manifest_has_it(tmp_path):
    def begin(**data):
        manifest = manifest_with()
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
    folder = ResultsFolder(tmp_path, {**manifest_with(), "status": "running"})
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
        ResultsFolder(tmp_path, manifest_with())
    assert not (tmp_path / "manifest.json").exists()


def test_a_damaged_manifest_is_an_error(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json: is no valid JSON"):
        ResultsFolder(tmp_path, manifest_with())


@pytest.mark.parametrize(
    ("suffix", "volume", "sample", "letters"),
    [
        (".png", None, {}, 251),
        (".png", None, {"save_samples": True, "num_ensemble": 5}, 248),
        (".png", None, {"save_samples": True, "num_ensemble": 1001}, 246),
        (".nii.gz", None, {}, 244),
        (".nii.gz", True, {}, 236),
        (".nii.gz", True, {"uncertainty_maps": True}, 229),
    ],
)
def test_names_that_are_too_long_for_a_file_are_refused_before_the_run(suffix, volume, sample, letters):
    def check(name):
        case = Case(name, (Path("images", f"{name}{suffix}"),), volume=volume and name)
        check_name_lengths(group_cases([case]), BINARY, SampleOptions(**sample), sample.get("num_ensemble", 0))

    check("a" * letters)
    check("\u4e2d" * (letters // 3))  # three bytes each
    for name in ("a" * (letters + 1), "\u4e2d" * (letters // 3 + 1)):
        with pytest.raises(UserError, match=r"its name is too long by \d bytes for the result .*; rename the image"):
            check(name)


def test_a_case_with_the_longest_name_is_written(tmp_path):
    name, folder = "a" * 251, ResultsFolder(tmp_path, manifest_with())
    folder.write_image(name, maps_of((8, 9)), np.zeros((1, 8, 9), np.float32))
    assert folder.finished(name, False) and (tmp_path / "masks" / f"{name}.png").is_file()
    predictions = Predictions(tmp_path, [name])
    assert predictions.mask(name, False) is not None and predictions.probability(name, False) is not None
    assert predictions.mask(name, True) is None and predictions.coarse(name, True) is None
