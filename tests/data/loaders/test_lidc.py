"""LIDC patches in one .npz file: what a case holds, what is read when, and files that are not as they should be."""

import pickle
import sys

import numpy as np
import pytest
import torch

from guided_diffusion.data.batches import training_batches
from guided_diffusion.data.cases import group_cases
from guided_diffusion.data.compatibility import leakage_warning
from guided_diffusion.data.phantoms import write_lidc
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.runtime.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 16, 20), np.uint8)
MASKS = RNG.random((5, 3, 16, 20)) < 0.4  # 20 columns: the last byte of a row is half used
ARRAYS = {
    "images": IMAGES,
    "masks": np.packbits(MASKS, axis=-1),
    "patient": np.array(["P1", "P1", "P2", "P3", "P3"]),
    "is_test": np.array([False, False, True, False, False]),
}


@pytest.fixture
def save(tmp_path):
    """A function that writes data.npz with ARRAYS, some replaced (None: left out), and returns its folder."""

    def write(**changed):
        arrays = {name: value for name, value in {**ARRAYS, **changed}.items() if value is not None}
        np.savez_compressed(tmp_path / "data.npz", **arrays)
        return tmp_path

    return write


def load(folder, **keywords):
    return build_dataset("LIDC", folder, 16, **keywords)


def test_a_case_for_each_patch_with_all_raters(save):
    dataset = load(save(), need_masks=True)
    assert [case.name for case in dataset.cases] == [f"lidc_{n:04d}" for n in range(5)]
    assert [case.group for case in dataset.cases] == ["P1", "P1", "P2", "P3", "P3"]
    assert (dataset.image_channels, dataset.class_names) == (1, ("nodule",))
    for n, case in enumerate(dataset.cases):
        assert len(case.masks) == 3
        assert np.array_equal(dataset.load_image(case), IMAGES[n][None])
        assert np.array_equal(dataset.load_mask(case), MASKS[n][:, None])
    item = dataset[2]
    assert item["image"].shape == (1, 16, 16) and item["mask"].shape == (3, 1, 16, 16) and item["size"] == (16, 20)
    assert item["image"].min() >= -1 and item["image"].max() <= 1 and item["image"].min() < -0.5


def test_splits_keep_the_names(save):
    folder = save(is_test=np.array([0, 0, 1, 0, 0], np.uint8))
    assert [case.name for case in load(folder, split="test").cases] == ["lidc_0002"]
    train = load(folder, split="train")
    assert [case.name for case in train.cases] == ["lidc_0000", "lidc_0001", "lidc_0003", "lidc_0004"]
    assert np.array_equal(train.load_image(train.cases[2]), IMAGES[3][None])


def test_a_patient_on_both_sides_is_refused(save):
    folder = save(is_test=np.array([False, True, True, False, False]))
    with pytest.raises(UserError, match="data.npz: patient P1 is in training and in testing; correct is_test"):
        load(folder, split="train")
    assert len(load(folder)) == 5


# ---- what is read when -------------------------------------------------------------------------------------------


def test_finding_cases_reads_no_images(save):
    """Damaged images are found by whoever reads them, in one line."""
    images = RNG.integers(0, 256, (5, 160, 200), np.uint8)
    folder = save(images=images, masks=np.full((5, 1, 160, 25), 255, np.uint8))
    data = bytearray((folder / "data.npz").read_bytes())
    data[len(data) // 2] ^= 255  # inside images.npy, by far the largest
    (folder / "data.npz").write_bytes(data)
    dataset = load(folder)
    assert len(dataset) == 5 and dataset.load_mask(dataset.cases[0]).any()
    with pytest.raises(UserError, match="data.npz: is truncated or damaged"):
        dataset[0]


def test_the_file_is_read_once(save):
    dataset = load(save(), need_masks=True)
    first = dataset[0]
    (dataset.data_dir / "data.npz").unlink()
    assert torch.equal(dataset[0]["mask"], first["mask"]) and dataset[1]["image"].shape == (1, 16, 16)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_forked_workers_share_what_was_read_before(save):
    dataset = load(save(), need_masks=True)
    batches = training_batches(dataset, 2, seed=0, num_workers=1)
    (dataset.data_dir / "data.npz").unlink()  # the worker, which starts with the first batch, has no file to read
    assert next(batches)["mask"].shape == (2, 3, 1, 16, 16)


def test_pickles_hold_no_pixels(save):
    images = RNG.integers(0, 256, (5, 160, 200), np.uint8)
    dataset = load(save(images=images, masks=np.zeros((5, 1, 160, 25), np.uint8)), need_masks=True)
    expected = dataset[3]
    text = pickle.dumps(dataset)
    assert len(text) < 20_000 < images.nbytes
    assert torch.equal(pickle.loads(text)[3]["image"], expected["image"])


# ---- files that are not as they should be ------------------------------------------------------------------------


def test_no_file_and_several_files(save, tmp_path):
    with pytest.raises(
        UserError, match="no cases found for LIDC; it must hold one .npz file with images, masks, patient"
    ):
        load(tmp_path)
    np.savez(save() / "other.npz", images=np.zeros(1), masks=np.zeros(1))
    with pytest.raises(UserError, match=r"holds 2 .npz files \(data.npz, other.npz, ...\); keep each in a folder"):
        load(tmp_path)


def test_a_truncated_file(save, truncate):
    folder = save()
    truncate(folder / "data.npz", 0.7)
    with pytest.raises(UserError, match="data.npz: is truncated or damaged, or is no .npz file"):
        load(folder)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"masks": None}, "has no array masks; it needs images, masks, patient, is_test"),
        ({"patient": None, "is_test": None}, "has no array patient or is_test"),
        ({"images": IMAGES[0]}, r"images is uint8 \[16, 20\]; it must be uint8 \[N, H, W\]"),
        ({"images": IMAGES / 255}, r"images is float64 \[5, 16, 20\]"),
        ({"masks": MASKS}, r"masks is bool \[5, 3, 16, 20\]; it must be uint8 \[N, R, H, W / 8\]"),
        ({"masks": MASKS.astype(np.uint8)}, r"does not go with images \[5, 16, 20\]; pack it by numpy.packbits"),
        ({"masks": ARRAYS["masks"][:4]}, r"masks is \[4, 3, 16, 3\], which does not go with images"),
        ({"masks": ARRAYS["masks"][:, :0]}, "masks is uint8"),
        ({"patient": ARRAYS["patient"][:4]}, r"patient is .* \[4\]; it must have one value for each image"),
        ({"patient": ARRAYS["patient"].astype(object)}, "patient is object"),
        ({"is_test": np.array([0, 1, 2, 0, 0])}, "is_test holds other values than 0 and 1"),
        ({"is_test": np.zeros(5)}, "is_test is float64"),
    ],
)
def test_odd_arrays_are_refused(save, changed, message):
    folder = save(**changed)
    with pytest.raises(UserError, match=f"data.npz: .*{message}"):
        load(folder)


def test_training_sampling_and_evaluating_by_the_scripts(script, tmp_path, capsys):
    write_lidc(tmp_path / "data", num_train=4, num_test=2, size=32)
    data = ["--data_name LIDC --data_dir", tmp_path / "data"]
    flags = "--image_size 32 --num_channels 8 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 16"
    run = "--num_workers 0 --batch_size 2 --precision fp32 --max_steps 1 --raters mean"
    script("segmentation_train", [*data, "--out_dir", tmp_path / "run", flags, run])
    fast = "--num_ensemble 2 --diffusion_steps 2 --dpm_solver True --num_workers 0 --precision fp32"
    checkpoint = ["--model_path", tmp_path / "run" / "model000001.pt"]
    script("segmentation_sample", [*data, *checkpoint, "--out_dir", tmp_path / "out", fast, "--save_samples True"])
    assert "several raters" not in capsys.readouterr().out
    script("segmentation_sample", [*data, *checkpoint, "--out_dir", tmp_path / "fewer", fast])
    assert "several raters: GED2, matched IoU" in capsys.readouterr().out
    names = sorted(path.stem for path in (tmp_path / "out" / "masks").iterdir())
    assert names == ["lidc_0004", "lidc_0005"]
    capsys.readouterr()
    script("segmentation_eval", ["--pred_dir", tmp_path / "out"])
    text = capsys.readouterr().out
    labels = (
        "log loss per lesion pixel",
        "GED² unbiased",
        "level sets: GED² unbiased",
        "matched IoU",
        "dice to raters",
    )
    assert all(label in text for label in labels)


def test_training_on_one_half_of_the_file_is_no_leak_into_the_other(tmp_path):
    write_lidc(tmp_path, num_train=4, num_test=2, size=32)
    trained = {"data_name": "LIDC", "data_dir": str(tmp_path)}
    for split, warned in (("test", False), ("train", True)):
        dataset = build_dataset("LIDC", tmp_path, 32, split=split)
        assert (leakage_warning(dataset, group_cases(dataset.cases), trained) is not None) == warned


def test_an_odd_file_does_not_change_what_is_read(save, pictures, tmp_path):
    folder = save()
    before = load(folder).cases
    np.savez(folder / "embeddings.npz", features=np.zeros(3))
    assert load(folder).cases == before and len(build_dataset("AUTO", folder, 16)) == 5
    (tmp_path / "pictures").mkdir()
    for part in ("images", "masks"):
        (tmp_path / "pictures" / part).symlink_to(pictures / part)
    np.savez(tmp_path / "pictures" / "embeddings.npz", features=np.zeros(3))
    assert build_dataset("AUTO", tmp_path / "pictures", 16).data_name == "FOLDER"


def test_a_folder_of_its_name_inside(save, tmp_path):
    inner = tmp_path / "LIDC" / "LIDC"
    inner.mkdir(parents=True)
    (save() / "data.npz").rename(inner / "data.npz")
    assert len(load(tmp_path / "LIDC")) == 5 and build_dataset("AUTO", tmp_path / "LIDC", 16).data_name == "LIDC"
