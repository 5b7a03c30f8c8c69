"""V2 and the plain U-Net through the scripts: trained, sampled, evaluated and resumed as V1 is."""

import json

import numpy as np
import pytest
import torch
from conftest import FAST, TINY
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.data.registry import build_dataset
from guided_diffusion.inference.members import draw_members
from guided_diffusion.inference.plan import plan_sampling
from guided_diffusion.models.medsegdiff import MedSegDiffV2, PlainUNet


@pytest.fixture(scope="module")
def checkpoint_of(script, pictures, tmp_path_factory):
    """A function that trains a version for two steps on `pictures`, once, and returns its checkpoint's path."""
    trained = {}

    def train(version, extra=""):
        if (version, extra) not in trained:
            out = tmp_path_factory.mktemp(version)
            data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", out]
            script("segmentation_train", [*data, TINY, f"--version {version} --max_steps 2 --lr 1e-2 {extra}"])
            trained[version, extra] = out / "model000002.pt"
        return trained[version, extra]

    return train


def sample(script, checkpoint, pictures, out, extra=""):
    script("segmentation_sample", ["--model_path", checkpoint, "--data_dir", pictures, "--out_dir", out, FAST, extra])
    return out


def test_v2_encodes_each_image_once_for_a_whole_ensemble(script, checkpoint_of, pictures, tmp_path, monkeypatch):
    calls, steps = [], []
    encode, forward = MedSegDiffV2.encode, MedSegDiffV2.forward
    monkeypatch.setattr(
        MedSegDiffV2, "encode", lambda self, image, *a: calls.append(len(image)) or encode(self, image, *a)
    )
    monkeypatch.setattr(MedSegDiffV2, "forward", lambda self, x, *a: steps.append(len(x)) or forward(self, x, *a))
    checkpoint = checkpoint_of("v2")
    calls.clear(), steps.clear()
    flags = "--num_ensemble 3 --batch_size 2 --diffusion_steps 4 --dpm_solver True"
    sample(script, checkpoint, pictures, tmp_path / "results", flags)
    assert calls == [2, 2]  # four images, two a batch
    assert steps == [6] * 8  # three members of two images, four steps, two batches


def test_members_from_a_cached_condition_equal_those_that_encode_at_every_step(checkpoint_of, pictures):
    model, diffusion = load_checkpoint(checkpoint_of("v2")).build()
    model.eval()
    dataset = build_dataset("FOLDER", pictures, 32)
    image, names = torch.stack([dataset[n]["image"] for n in range(2)]), ["a", "b"]
    plan = plan_sampling(SampleOptions(diffusion_steps=4, use_ddim=True), {"diffusion_steps"}, diffusion)
    cached = draw_members(model, diffusion, plan, image, names, members=3)

    def encode_anew(x_t, t, condition):
        return MedSegDiffV2.forward(model, x_t, t, model.encode(image.repeat(3, 1, 1, 1)))

    model.forward = encode_anew
    again = draw_members(model, diffusion, plan, image, names, members=3)
    torch.testing.assert_close(again.soft, cached.soft, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.coarse, cached.coarse, atol=1e-5, rtol=0)
    assert (cached.soft[0] - cached.soft[1]).abs().max() > 1e-4  # members differ
    assert torch.equal(cached.coarse[0], cached.coarse[1])  # v2's coarse mask is the image's alone


def test_the_plain_unet_answers_once_whatever_is_asked(script, checkpoint_of, pictures, tmp_path, monkeypatch, capsys):
    calls = []
    forward = PlainUNet.forward
    monkeypatch.setattr(PlainUNet, "forward", lambda self, *a: calls.append(1) or forward(self, *a))
    checkpoint = checkpoint_of("unet")
    calls.clear()
    out = sample(script, checkpoint, pictures, tmp_path / "results", "--num_ensemble 5 --save_samples True")
    assert len(calls) == 1 and "one answer" in capsys.readouterr().out
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"]["num_ensemble"] == 1 and manifest["config"]["model"]["version"] == "unet"
    assert len(list((out / "samples").iterdir())) == 4 and not (out / "coarse").exists()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sample"]["n"] == 4 and summary["coarse"]["n"] == 0
    # Its probability is the sigmoid of its logits: no noise in it.
    model, _ = load_checkpoint(checkpoint).build()
    load_checkpoint(checkpoint).load_weights(model.eval(), "ema")
    image = build_dataset("FOLDER", pictures, 32)[0]["image"][None]
    probability = torch.sigmoid(model.encode(image).logits)
    probability = torch.nn.functional.interpolate(probability, (32, 40), mode="bilinear")[0, 0].detach().numpy()
    written = np.asarray(Image.open(out / "probability" / "case0.png")) / 65535
    np.testing.assert_allclose(written, probability, atol=2e-3)


@pytest.mark.parametrize("version", ["v2", "unet"])
def test_resuming_keeps_the_version_and_refuses_another(script, refusal, checkpoint_of, pictures, version):
    folder = checkpoint_of(version).parent
    data = ["--data_dir", pictures, "--out_dir", folder, "--resume_checkpoint auto --num_workers 0"]
    line = refusal("segmentation_train", [*data, "--version v1"])
    assert f"--version v1 contradicts the checkpoint to go on from, which was trained with version {version}" in line
    script("segmentation_train", [*data, "--data_name FOLDER --max_steps 3"])
    assert load_checkpoint(folder / "model000003.pt").config["model"]["version"] == version


def test_the_plain_unet_learns_by_mse_too(script, pictures, tmp_path):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path]
    script("segmentation_train", [*data, TINY, "--version unet --mask_loss mse --max_steps 8 --lr 1e-2"])
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"] and "coarse" not in lines[-1]


def test_the_plain_unet_refuses_diffusion_flags(refusal, pictures, tmp_path):
    line = refusal(
        "segmentation_train", ["--data_dir", pictures, "--out_dir", tmp_path, "--version unet --objective v"]
    )
    assert "--version unet has no diffusion" in line and "--objective v" in line
