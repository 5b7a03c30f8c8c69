"""A checkpoint of version 0.1.0 (ISIC phantoms of 16 pixels, 4 steps): it is sampled as then; how it trains on."""

import importlib
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint

FILES = Path(__file__).parents[1] / "data_files"


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old") / "model000004.pt"
    with lzma.open(FILES / "v0.1.0.pt.xz") as packed, open(path, "wb") as file:
        shutil.copyfileobj(packed, file)
    return path


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("probability", {}),  # the condition model's, to which members were then coupled
        ("members", {"num_ensemble": 3, "diffusion_steps": 4, "dpm_solver": True}),
    ],
)
def test_it_gives_the_probability_that_it_gave(old, file, options):
    y, x = np.mgrid[:16, :16]
    image = np.stack([200 - 120 * ((x - 8) ** 2 + (y - 7) ** 2 < 20)] * 3, axis=-1).astype(np.uint8)
    found = np.squeeze(Segmenter.load(old, device="cpu", precision="fp32", **options)(image).probability)
    np.testing.assert_allclose(found, np.load(FILES / f"v0.1.0_{file}.npy"), atol=1e-4)


def resume(checkpoint, isic, out):
    return ["--data_dir", isic, "--resume_checkpoint", checkpoint, "--out_dir", out, "--max_steps 5 --num_workers 0"]


def test_training_goes_on_from_one_of_a_single_draw_of_noise(old, script, isic, tmp_path):
    content = torch.load(old, weights_only=True)
    content["config"]["train"]["noise_draws"] = 1  # as --noise_draws 1 --border_weight 1 recorded it
    content["config"]["diffusion"]["border_weight"] = 1.0
    torch.save(content, tmp_path / "model000004.pt")
    script("segmentation_train", resume(tmp_path / "model000004.pt", isic, tmp_path / "run"))
    before, after = load_checkpoint(old), load_checkpoint(tmp_path / "run" / "model000005.pt")
    assert (before.step, after.step) == (4, 5)
    assert after.config["model"] == before.config["model"] and before.model.keys() == after.model.keys()
    assert any(not torch.equal(before.model[name], after.model[name]) for name in before.model)


def test_with_the_several_draws_of_its_default_recipe_it_is_refused_with_the_version_to_use(
    old, refusal, isic, tmp_path
):
    line = refusal("segmentation_train", resume(old, isic, tmp_path / "run"))
    reason = "was trained with noise_draws 2, which this version no longer has: use version 0.1.0"
    assert line == f"error: --resume_checkpoint {old}: {reason}"


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
