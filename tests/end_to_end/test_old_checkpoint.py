"""A checkpoint of version 0.1.0 (ISIC phantoms of 16 pixels, 4 steps): it is sampled as then, and trains on."""

import importlib
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint

FILES = Path(__file__).parents[1] / "data_files"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / "model000004.pt"
    with lzma.open(FILES / "v0.1.0.pt.xz") as packed, open(path, "wb") as file:
        shutil.copyfileobj(packed, file)
    return path


def test_it_gives_the_probability_that_it_gave(old):
    y, x = np.mgrid[:16, :16]
    image = np.stack([200 - 120 * ((x - 8) ** 2 + (y - 7) ** 2 < 20)] * 3, axis=-1).astype(np.uint8)
    segmenter = Segmenter.load(old, device="cpu", precision="fp32", num_ensemble=3, diffusion_steps=4, dpm_solver=True)
    found = np.squeeze(segmenter(image).probability)
    np.testing.assert_allclose(found, np.load(FILES / "v0.1.0_probability.npy"), atol=1e-4)


def test_training_goes_on_from_it(old, script, isic, tmp_path):
    before = load_checkpoint(old)
    flags = ["--data_dir", isic, "--resume_checkpoint", old, "--out_dir", tmp_path, "--max_steps 5 --num_workers 0"]
    script("segmentation_train", flags)
    after = load_checkpoint(tmp_path / "model000005.pt")
    assert (before.step, after.step) == (4, 5)
    assert after.config["model"]["num_channels"] == before.config["model"]["num_channels"]
    assert before.model.keys() == after.model.keys()
    assert any(not np.array_equal(before.model[name], after.model[name]) for name in before.model)


@pytest.mark.parametrize(
    ("door", "name"),
    [
        ("unet", "UNetShape"),
        ("gaussian_diffusion", "GaussianDiffusion"),
        ("dpm_solver", "sample_dpm_solver"),
        ("isicloader", "ISICDataset"),
        ("bratsloader", "BraTSDataset"),
        ("files", "read_picture"),
        ("errors", "UserError"),
    ],
)
def test_documented_import_paths_still_work(door, name):
    assert hasattr(importlib.import_module(f"guided_diffusion.{door}"), name)
