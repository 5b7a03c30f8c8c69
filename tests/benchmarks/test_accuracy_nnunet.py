"""nnU-Net as a contender: our data as its raw folder, its masks by our names, and its line in the record."""

import importlib
import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import write_folder
from PIL import Image

from guided_diffusion.data.phantoms import write_lidc
from guided_diffusion.io.files import write_json
from guided_diffusion.io.images import read_picture
from guided_diffusion.runtime.errors import UserError

REAL = "NNUNET_PYTHON"  # the python of an environment with nnunetv2, for the one test that runs it


pytestmark = pytest.mark.usefixtures("beside_each_other")


@pytest.fixture
def nnunet():
    return importlib.import_module("accuracy_nnunet")


@pytest.fixture
def folder(tmp_path):
    """Four pictures; the last is for testing."""
    write_folder(tmp_path / "data", 4)
    write_json(tmp_path / "data" / "split.json", {"train": ["case0", "case1", "case2"], "test": ["case3"]})
    return tmp_path / "data"


def set_of(folder, kind="Folder"):
    return importlib.import_module("accuracy_sets").DataSet("mine", str(folder), kind)


def values(path):
    return np.asarray(Image.open(path))


def test_colour_pictures_become_one_file_each(nnunet, folder, tmp_path):
    raw = tmp_path / "raw"
    assert nnunet.write_raw(set_of(folder), "test", raw) == {"case00000": "case3"}
    about = json.loads((raw / "dataset.json").read_text())
    assert about["numTraining"] == 3 and about["file_ending"] == ".png"
    assert list(about["channel_names"]) == ["0", "1", "2"] and about["labels"] == {"background": 0, "foreground": 1}
    assert sorted(path.name for path in raw.glob("imagesTr/*")) == [f"case0000{i}_0000.png" for i in range(3)]
    assert np.array_equal(values(raw / "imagesTr" / "case00001_0000.png"), values(folder / "images" / "case1.png"))
    assert np.array_equal(values(raw / "labelsTr" / "case00001.png") * 255, values(folder / "masks" / "case1.png"))
    assert np.array_equal(values(raw / "imagesTs" / "case00000_0000.png"), values(folder / "images" / "case3.png"))
    assert not (raw / "labelsTs").exists()


def test_sixteen_bits_keep_their_precision(nnunet, folder, tmp_path):
    shutil.rmtree(folder / "images")
    (folder / "images").mkdir()
    grey = np.arange(32 * 40, dtype=np.uint16).reshape(32, 40) + 1000
    for i in range(4):
        Image.fromarray(grey[:, ::-1].copy() if i % 2 else grey).save(folder / "images" / f"case{i}.png")
        shutil.copy(folder / "masks" / f"case{i}.png", folder / "masks" / f"case{i}.png.old")
        Image.fromarray(values(folder / "masks" / f"case{i}.png")[:32, :32]).resize((40, 32)).save(
            folder / "masks" / f"case{i}.png"
        )
        (folder / "masks" / f"case{i}.png.old").unlink()
    nnunet.write_raw(set_of(folder), "test", tmp_path / "raw")
    written = values(tmp_path / "raw" / "imagesTr" / "case00000_0000.png")
    assert written.dtype.kind in "uiI" and np.array_equal(written, grey)


def test_several_readers_become_their_majority(nnunet, tmp_path):
    write_lidc(tmp_path / "data", 4, 2, size=32)
    data, raw = set_of(tmp_path / "data", "LIDC"), tmp_path / "raw"
    assert nnunet.write_raw(data, "test", raw) == {"case00000": "lidc_0004", "case00001": "lidc_0005"}
    dataset = data.build("train", need_masks=True)
    readers = dataset.load_mask(dataset.cases[2])[:, 0]
    mask = values(raw / "labelsTr" / "case00002.png")
    assert np.array_equal(mask, readers.sum(axis=0) > len(readers) / 2) and mask.any()
    assert (readers.any(axis=0) != mask).any()  # the readers differ


def test_volumes_keep_their_place(nnunet, tmp_path):
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 4.0, 3], [0, 0, 0, 1]])
    rng = np.random.default_rng(0)
    images = {f"scan{i}": rng.normal(100, 30, (12, 10, 5)).astype(np.float32) for i in range(3)}
    for name, image in images.items():
        for part, array in (("images", image), ("masks", (image > 120).astype(np.uint8))):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "data" / part / f"{name}.nii.gz")
    write_json(tmp_path / "data" / "split.json", {"train": ["scan0", "scan1"], "test": ["scan2"]})
    data, raw = set_of(tmp_path / "data"), tmp_path / "raw"
    assert nnunet.write_raw(data, "test", raw) == {"case00000": "scan2"}
    assert json.loads((raw / "dataset.json").read_text())["file_ending"] == ".nii.gz"
    written = nibabel.load(raw / "imagesTr" / "case00001_0000.nii.gz")
    label = nibabel.load(raw / "labelsTr" / "case00001.nii.gz")
    assert np.allclose(written.affine, label.affine) and written.shape == label.shape
    # The loader may turn a volume; each voxel stays at its place in space.
    to_file = np.linalg.inv(affine) @ written.affine
    for index in ((0, 0, 0), (3, 4, 2)):
        i, j, k = (to_file @ [*index, 1])[:3].round().astype(int)
        assert bool(label.get_fdata()[index]) == bool(images["scan1"][i, j, k] > 120)
    predicted, results = tmp_path / "predicted", tmp_path / "results"
    predicted.mkdir()
    shutil.copy(raw / "labelsTr" / "case00000.nii.gz", predicted / "case00000.nii.gz")
    nnunet.read_back(predicted, {"case00000": "scan2"}, results)
    assert [path.name for path in results.iterdir()] == ["scan2.nii.gz"]


def test_masks_get_the_cases_names(nnunet, tmp_path):
    (tmp_path / "predicted").mkdir()
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "predicted" / "case00000.png")
    nnunet.read_back(tmp_path / "predicted", {"case00000": "a b"}, tmp_path / "results")
    assert np.array_equal(read_picture(tmp_path / "results" / "a b.png")[0], 255 * np.eye(8))
    with pytest.raises(UserError, match="has no mask of c \\(case00001\\)"):
        nnunet.read_back(tmp_path / "predicted", {"case00001": "c"}, tmp_path / "results")


@pytest.mark.parametrize(
    ("python", "message"),
    [("", "--nnunet_python: is needed"), ("/no/such", "/no/such: cannot be run"), ("false", "has no nnunetv2")],
)
def test_an_environment_without_nnunet_is_refused(nnunet, python, message):
    with pytest.raises(UserError, match=message) as refused:
        nnunet.nnunet_version(python)
    assert "\n" not in str(refused.value)


def options_of(tmp_path, **more):
    accuracy = importlib.import_module("accuracy")
    flags = {"out_dir": str(tmp_path / "runs"), "record": str(tmp_path / "a.jsonl"), "threads": 1} | more
    return accuracy.AccuracyOptions(**flags), accuracy.CONTENDERS


def test_a_run_is_prepared_once_and_has_its_line(nnunet, folder, tmp_path, monkeypatch):
    """With a stand-in for nnU-Net, which marks what is bright."""
    calls = []

    def worker(options, name, command, **environment):
        _, _, verb, *words = command
        calls.append((verb, environment["nnUNet_n_proc_DA"]))
        assert verb != "prepare" or words == ["0.1"]
        if verb == "train":
            assert words == ["0.5", "3"]
            place = Path(environment["nnUNet_results"]) / "Dataset" / "trainer"
            place.mkdir(parents=True)
            (place / "steps.json").write_text('{"steps": 17, "patch_size": [32, 32]}')
        if verb == "predict":
            Path(words[1]).mkdir()
            for path in Path(words[0]).iterdir():
                bright = (values(path).mean(axis=-1) < 120).astype(np.uint8)
                Image.fromarray(bright).save(Path(words[1]) / path.name.replace("_0000", ""))
        return 60.0, 30.0

    def evaluate(options, script, words):
        importlib.import_module("guided_diffusion.cli.verbs").evaluate_main([*words, "--num_workers", "0"])

    monkeypatch.setattr(nnunet, "nnunet_version", lambda python: "9.9")
    monkeypatch.setattr(nnunet, "call_program", worker)
    monkeypatch.setattr(nnunet, "call_script", evaluate)
    options, contenders = options_of(tmp_path, minutes=0.5)
    for name in ("nnunet", "nnunet_mirrored", "nnunet"):
        nnunet.run_nnunet(options, set_of(folder), name, contenders[name], 3)
    assert calls == [("prepare", "1"), ("train", "0"), ("predict", "0"), ("predict", "0")]
    first, second = (json.loads(line) for line in Path(options.record).read_text().splitlines())
    assert (first["version"], first["steps"], first["prepare_cpu_seconds"]) == ("nnU-Net 9.9", 17, 30.0)
    assert first["train_cpu_seconds"] == 30.0 and first["seconds_per_case"] == 60.0
    assert (first["views"], second["views"]) == ("tiles", "tiles, mean over 4 mirrored images")
    bright = values(folder / "images" / "case3.png").mean(axis=-1) < 120
    truth = values(folder / "masks" / "case3.png") > 0
    dice = 2 * (bright & truth).sum() / (bright.sum() + truth.sum())
    assert first["cases"]["dice"] == [pytest.approx(dice, abs=1e-4)] and first["groups"] == ["case3"]


@pytest.mark.skipif(not os.environ.get(REAL), reason=f"needs {REAL}, the python of an environment with nnunetv2")
def test_the_real_program_learns(nnunet, tmp_path):
    write_folder(tmp_path / "data", 8)
    write_json(tmp_path / "data" / "split.json", {"train": [f"case{i}" for i in range(7)], "test": ["case7"]})
    options, contenders = options_of(tmp_path, minutes=0.2, nnunet_python=os.environ[REAL])
    nnunet.run_nnunet(options, set_of(tmp_path / "data"), "nnunet", contenders["nnunet"], 0)
    (line,) = (json.loads(line) for line in Path(options.record).read_text().splitlines())
    assert line["steps"] > 5 and 10 < line["loop_cpu_seconds"] < 14 and line["figures"]["dice"] > 0.1
