"""The door for other programs gives the script's results to the bit, for every kind of data and layout of an image."""

import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from conftest import FAST, LOADER, mri
from helpers import TASK_AFFINE, write_task
from PIL import Image

import guided_diffusion
from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.data import build_dataset
from guided_diffusion.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
SETTINGS = {"members": 2, "steps": 2, "sampler": "dpm_solver", "precision": "fp32", "device": "cpu"}
SAVED = f"{FAST} --save_samples True --seed 3"


@pytest.fixture(scope="module")
def segmenter(trained):
    return Segmenter.load(trained, seed=3, **SETTINGS)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def images_of(folder):
    return {path.stem: pixels(path) for path in sorted((folder / "images").iterdir())}


def check(answer, results, name):
    """That an answer is what the script wrote of a picture."""
    mask, probability, uncertainty = answer
    assert np.array_equal(pixels(results / "masks" / f"{name}.png"), mask * np.uint8(255))
    assert np.array_equal(pixels(results / "probability" / f"{name}.png"), (probability * 65535).round())
    assert np.array_equal(pixels(results / "uncertainty" / f"{name}.png"), (uncertainty * 2 * 255).round())
    assert len(answer.members) == 2 and 0 < probability.max() and mask.dtype == bool
    for k, member in enumerate(answer.members):
        assert np.array_equal(pixels(results / "samples" / f"{name}_{k:02d}.png"), member * np.uint8(255))


@pytest.mark.parametrize("batch", ["arrays", "tensor"])
def test_a_batch_of_pictures_as_the_script_segments_it(segmenter, sample, trained, pictures, batch):
    results, images = sample(trained, pictures, SAVED), images_of(pictures)
    given = list(images.values())
    if batch == "tensor":
        given = torch.from_numpy(np.stack(given)).permute(0, 3, 1, 2)  # [N, C, H, W]
    answers = segmenter(given, list(images))
    assert len(answers) == 4
    for name, answer in zip(images, answers, strict=True):
        check(answer, results, name)


def test_one_picture_alone_and_how_its_channels_lie(segmenter, sample, trained, pictures):
    results, image = sample(trained, pictures, f"{SAVED} --batch_size 1"), images_of(pictures)["case1"]
    check(segmenter(image, "case1"), results, "case1")
    first = torch.from_numpy(image.copy()).permute(2, 0, 1).double()
    check(segmenter(first, "case1"), results, "case1")
    square = image[:3]  # [3, W, 3]: either may be the channels
    with pytest.raises(ValueError, match=r"shape \(3, 40, 3\) may be .* add axes='HWC' or axes='CHW'"):
        segmenter(square)
    one = segmenter(square, axes="HWC").probability
    assert one.shape == (3, 40) and segmenter(square, axes="CHW").probability.shape == (40, 3)
    assert np.array_equal(one, segmenter(np.moveaxis(square, -1, 0), axes="CHW").probability)
    assert not np.array_equal(segmenter(image, "other").probability, segmenter(image, "case1").probability)
    in_batch = segmenter([image, image], ["0", "case1"])[0].probability
    assert np.allclose(segmenter(image).probability, in_batch, atol=1e-5)  # batches of other sizes round otherwise


def test_the_path_of_a_picture_is_read_as_the_script_reads_it(segmenter, sample, trained, pictures):
    results, path = sample(trained, pictures, f"{SAVED} --batch_size 1"), pictures / "images" / "case1.png"
    check(segmenter(path), results, "case1")
    assert np.array_equal(segmenter([str(path)])[0].members, segmenter(path).members)
    assert np.array_equal(segmenter(path, "other").members, segmenter(pixels(path), "other").members)
    with pytest.raises(UserError, match="none.png: "):
        segmenter(pictures / "none.png")


def test_the_path_of_a_volume_has_its_own_affine(train, sample, volumes, save_nifti, tmp_path):
    """The mask lies over the file, whose axes point elsewhere than the slices do."""
    checkpoint, path = train("FOLDER", volumes(mri())), tmp_path / "v0.nii.gz"
    save_nifti(path, mri(), np.array([[0, -2.0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    results = sample(checkpoint, path, SAVED)
    assert [file.name for file in results.glob("*_seg.nii.gz")] == ["v0_seg.nii.gz"]
    segmenter = Segmenter.load(checkpoint, seed=3, **SETTINGS)
    answer = segmenter(path)
    assert np.array_equal(nibabel.load(results / "v0_seg.nii.gz").get_fdata(), answer.mask)
    assert np.array_equal(answer.members, segmenter.volume(mri(), "v0", affine=nibabel.load(path).affine).members)
    with pytest.raises(ValueError, match="affine is given with a path"):
        segmenter.volume(path, affine=np.eye(4))
    with pytest.raises(ValueError, match="v0.nii.gz: is a volume, not an image"):
        segmenter([path])


def test_it_describes_itself(segmenter, trained):
    assert repr(segmenter).splitlines() == [
        "Segmenter",
        f"  model: v1 of step 2, {trained}",
        "  images: 3 channels, normalised as by FolderDataset",
        f"  classes: {segmenter.classes.described()}",
        "  members: 2 by dpm_solver, 2 steps; seed 3",
        "  runs at 32 x 32 pixels in fp32 on cpu",
    ]


def test_a_runs_folder_is_loaded_by_its_best_checkpoint(trained):
    assert "last.pt" in repr(Segmenter.load(trained.parent, **SETTINGS))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((32, 32)), "does not have the checkpoint's 3 channels"),
        (np.zeros((32, 32, 4)), "does not have the checkpoint's 3 channels"),
        (np.zeros(32), "is none of"),
        (np.random.default_rng(0).random((32, 32, 3)), "give them from 0 to 255"),
        (np.full((32, 32, 3), 256), "give them from 0 to 255"),
        (np.full((32, 32, 3), np.nan), "not finite"),
        (np.zeros((0, 32, 3)), r"^an image of shape \(0, 32, 3\) has no pixels; check how it was read or cut$"),
        (torch.zeros(3, 32, 0), r"^an image of shape \(3, 32, 0\) has no pixels"),
        (np.full((32, 32, 3), None), "^an image has dtype object; pass an array of numbers, as from numpy.asarray"),
        (np.full((32, 32, 3), "1"), "^an image has dtype <U1; pass an array of numbers"),
        ([[[1, 2], [3]]], "^an image is not an array; pass an array of numbers, as from numpy.asarray"),
        (np.zeros((32, 32, 3), complex), r"^an image has complex numbers; pass their magnitude, as from abs\(\)$"),
        (torch.zeros(32, 32, 3, dtype=torch.complex64), "^an image has complex numbers"),
    ],
)
def test_images_that_do_not_fit_are_refused(segmenter, image, message):
    with pytest.raises(ValueError, match=message):
        segmenter(image)


def test_settings_that_the_script_would_refuse(trained, tmp_path):
    for settings, message in (
        ({"members": -1}, "--num_ensemble -1: must be at least 0"),
        ({"fuse": "best"}, "must be one of auto, staple, mean, vote"),
        ({"sampler": "ddim", "solver_order": 3}, "ddim has none"),
        ({"image_size": 33}, "33"),
        ({"wheel": 1}, "wheel: is neither a parameter of Segmenter.load nor a flag of sampling$"),
        ({"n_samples": 5}, "n_samples: is neither .*; did you mean members?"),
        ({"gpu": 0}, "gpu: is neither .*; did you mean device?"),
        ({"symetries": "all"}, "symetries: is neither .*; did you mean symmetries?"),
        ({"num_channels": 16}, "contradicts the checkpoint"),
    ):
        with pytest.raises(UserError, match=message):
            Segmenter.load(trained, **settings)
    with pytest.raises(UserError, match="none.pt: no such file; a run writes last.pt"):
        Segmenter.load(tmp_path / "none.pt")
    with pytest.raises(UserError, match="--precision fp8: must be one of auto, fp32, bf16, fp16"):
        Segmenter.load(trained, precision="fp8")


@pytest.mark.parametrize("device", ["cuda", "cuda:7", torch.device("cuda", 1), "gpu", "meta", ["cpu"]])
def test_a_device_that_is_not_there(trained, monkeypatch, device):
    if torch.cuda.device_count() and "cuda" in str(device):
        pytest.skip("there is a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError) as error:
        Segmenter.load(trained, device=device)
    assert str(error.value) == (f"device is {str(device)!r}, but torch finds only cpu here; pass one of these or None")


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((3, 32, 32, 0)), r"^a volume of shape \(3, 32, 32, 0\) has no pixels"),
        (np.full((3, 8, 8, 2), None), "^a volume has dtype object; "),
        (np.zeros((3, 8, 8, 2), complex), "^a volume has complex numbers; "),
    ],
)
def test_volumes_that_are_none_are_refused(segmenter, volume, message):
    with pytest.raises(ValueError, match=message):
        segmenter.volume(volume)


def test_an_affine_that_places_nothing_is_refused(segmenter):
    for affine in (np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="^affine is .* places no volume in space; pass nibabel.load"):
            segmenter.volume(np.zeros((3, 8, 8, 2)), affine=affine)


def test_mri_slices_and_volumes(train, sample, brats, slices):
    """Of raw values: the z-scores are taken as the loaders take them."""
    checkpoint = train("BRATS", brats)
    segmenter = Segmenter.load(checkpoint, seed=3, **SETTINGS)
    volume = next((brats / "testing").iterdir())
    kinds = ("t1", "t1ce", "t2", "flair")
    scans = [nibabel.load(volume / f"{volume.name}_{kind}.nii.gz") for kind in kinds]
    raw = np.stack([scan.get_fdata() for scan in scans])
    results = sample(checkpoint, brats, SAVED)
    answer = segmenter.volume(raw, volume.name, affine=scans[0].affine)
    for what, values in (("seg", answer.mask), ("prob", answer.probability), ("uncertainty", answer.uncertainty)):
        assert np.array_equal(nibabel.load(results / f"{volume.name}_{what}.nii.gz").get_fdata(), values), what
    assert answer.mask.shape == raw.shape[1:] and answer.probability.std() > 0
    with pytest.raises(ValueError, match="does not have the checkpoint's 4 channels"):
        segmenter(raw)

    results = sample(checkpoint, slices, f"{SAVED} --batch_size 1", out="slices")
    mask = sorted((results / "masks").iterdir())[0]
    subject, index = re.fullmatch(r"brats_train_(\d+)_(\d+)", mask.stem).groups()
    files = [next((slices / "testing").rglob(f"brats_train_{subject}_{kind}_{index}_w.nii.gz")) for kind in kinds]
    check(segmenter(np.stack([nibabel.load(path).get_fdata() for path in files]), mask.stem), results, mask.stem)


def test_a_folder_of_nifti_files_is_remembered_by_its_checkpoint(train, sample, pictures, save_nifti, tmp_path):
    scans = {}
    for name, image in images_of(pictures).items():
        scans[name] = image[..., 0].T * 7.0
        save_nifti(tmp_path / "scans" / "images" / f"{name}.nii.gz", scans[name])
        save_nifti(tmp_path / "scans" / "masks" / f"{name}.nii.gz", pixels(pictures / "masks" / f"{name}.png").T / 255)
    checkpoint = train("FOLDER", tmp_path / "scans")
    results = sample(checkpoint, tmp_path / "scans", SAVED)
    segmenter = Segmenter.load(checkpoint, seed=3, **SETTINGS)
    answers = segmenter(list(scans.values()), list(scans))
    for name, answer in zip(scans, answers, strict=True):
        check(answer, results, name)
    by_path = segmenter([tmp_path / "scans" / "images" / f"{name}.nii.gz" for name in scans])
    assert all(np.array_equal(one.members, other.members) for one, other in zip(answers, by_path, strict=True))
    older = load_checkpoint(checkpoint)
    del older.config["loader"]
    save_checkpoint(older, tmp_path / "older.pt")
    with pytest.raises(UserError, match="older.pt: is older than Segmenter"):
        Segmenter.load(tmp_path / "older.pt")


OWN = (
    LOADER
    + """
    kept = ("brightest",)
    label_names = ("flat", "sessile")

    def normalise(self, image):
        return image / self.brightest
"""
)


def test_a_loader_of_ones_own_with_labels(train, sample, pictures, tmp_path):
    own = OWN.replace("        cases = []", "        cases, self.brightest = [], 200.0").replace(
        "() else ()", "() else (), 1"
    )
    (tmp_path / "own.py").write_text(own)
    images = images_of(pictures)
    for name, image in images.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / name / "photo.png")
        Image.fromarray(pixels(pictures / "masks" / f"{name}.png")).save(tmp_path / "data" / name / "truth.png")
    name = f"{tmp_path / 'own.py'}:Polyps"
    checkpoint = train(name, tmp_path / "data", "--class_cond True --version v2")
    results = sample(checkpoint, tmp_path / "data", f"{SAVED} --data_name {name}")
    segmenter = Segmenter.load(checkpoint, seed=3, data_name=name, **SETTINGS)
    answers = segmenter(list(images.values()), list(images), label="sessile")
    for name, answer in zip(images, answers, strict=True):
        check(answer, results, name)
    assert segmenter.class_names == ("polyp",)
    by_number = segmenter(images["case0"], "case0", label=1).probability
    assert np.array_equal(by_number, segmenter(images["case0"], "case0", label="sessile").probability)
    with pytest.raises(ValueError, match="label is None; the class-conditional checkpoint has flat, sessile"):
        segmenter(images["case0"])


def test_the_readmes_lines_run_as_they_stand(trained, pictures, tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n([^`]*Segmenter\.load[^`]*)```", text)
    run = tmp_path / re.search(r'Segmenter\.load\("([^"]+)"', lines)[1]
    run.mkdir(parents=True)
    (run / "last.pt").write_bytes(trained.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {"image": images_of(pictures)["case0"]}
    exec(lines, names)
    assert names["mask"].shape == names["probability"].shape == names["uncertainty"].shape == (32, 40)


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, guided_diffusion; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr
    assert guided_diffusion.Segmenter is Segmenter
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        guided_diffusion.Segmentor  # noqa: B018


def test_a_volume_of_ct_beside_mri_is_normalised_by_channel(train, tmp_path):
    """A window for the first channel, z-scores for the second, and the slices that the data set shows."""
    generator = np.random.default_rng(0)
    images = {name: generator.integers(-900, 900, (32, 32, 3, 2)).astype(np.int16) for name in "ab"}
    labels = {name: (image[..., 0] > 0).astype(np.uint8) for name, image in images.items()}
    task = {"name": "Clinic", "modality": {"0": "CT", "1": "MRI"}, "labels": {"0": "background", "1": "lesion"}}
    folder = write_task(tmp_path / "task", task, images, labels)
    checkpoint = train("MSD", folder)
    segmenter, seen = Segmenter.load(checkpoint, members=1, steps=1, precision="fp32", device="cpu"), []
    encode = segmenter.sampler.model.encode
    segmenter.sampler.model.encode = lambda image, label: seen.append(image) or encode(image, label)
    segmenter.volume(np.moveaxis(images["a"], -1, 0), affine=TASK_AFFINE)
    shown = build_dataset("MSD", folder, 32)
    torch.testing.assert_close(torch.cat(seen), torch.stack([shown[k]["image"] for k in range(3)]))
