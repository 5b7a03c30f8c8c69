"""The sampling command: its flags, what a second run skips, and what it refuses."""

import shutil

import numpy as np
import pytest
import torch
from conftest import FAST, files, strict_json, write_folder
from PIL import Image

from guided_diffusion.inference.ensemble import entropy
from guided_diffusion.inference.segmenter import Segmenter


@pytest.mark.parametrize(
    "flags, sampler, steps",
    [
        ("", "bernoulli", 10),
        ("--diffusion_steps 3", "bernoulli", 3),
        ("--sampler ddpm --diffusion_steps 3", "ddpm", 3),
        ("--diffusion_steps 3 --use_ddim True", "ddim", 3),
        ("--use_ddim True", "ddim", 50),
        ("--diffusion_steps 4 --dpm_solver True", "dpm_solver", 4),
        ("--timestep_respacing ddim3", "ddim", 3),
        ("--timestep_respacing 1,2", "ddpm", 3),
        ("--diffusion_steps 3 --clip_denoised False --fuse mean --weights model --seed 4", "bernoulli", 3),
    ],
)
def test_sampler_flags(sample, trained, pictures, flags, sampler, steps):
    results = sample(trained, pictures, f"{flags} --num_ensemble 2 --num_samples 1 --num_workers 0 --precision fp32")
    settings = strict_json(results / "manifest.json")["settings"]
    assert settings["sampler"] == sampler and len(settings["timesteps"]) == steps
    assert settings["timesteps"] == sorted(settings["timesteps"], reverse=True) and max(settings["timesteps"]) < 1000
    assert files(results / "masks") == ["case0.png"]


def test_a_v2_trained_in_stages_answers_in_one_pass_unless_members_are_asked_for(
    train, sample, refusal, pictures, capsys, tmp_path
):
    checkpoint = train("FOLDER", pictures, "--version v2 --condition_steps 1 --lr 1e-2")
    flags = "--num_workers 0 --precision fp32 --save_samples True --uncertainty_maps True"
    capsys.readouterr()
    out = sample(checkpoint, pictures, f"{flags} --sampler ddpm")
    printed = capsys.readouterr().out
    assert (
        "the condition model answers in one pass, the diffusion is not used: to draw members by it, add "
        "--num_ensemble 5; --sampler, --save_samples (but for the coarse mask) have no effect"
    ) in printed
    settings = strict_json(out / "manifest.json")["settings"]
    assert (settings["num_ensemble"], settings["sampler"], settings["timesteps"]) == (0, "none", [])
    assert not (out / "samples").exists() and not (out / "mutual_information").exists()
    segmenter = Segmenter.load(checkpoint, device="cpu", precision="fp32")
    for name in ("case0", "case3"):
        p, coarse, spread, bits, variance = (
            np.asarray(Image.open(out / kind / f"{name}.png")).astype(float) / top
            for kind, top in (
                *(("probability", 65535), ("coarse", 255), ("uncertainty", 510)),
                *(("entropy", 65535), ("variance", 4 * 65535)),
            )
        )
        assert np.abs(p - coarse).max() < 1 / 255 and p.std() > 1e-4
        assert np.abs(spread - np.sqrt(p * (1 - p))).max() < 1 / 255
        assert np.abs(bits - entropy(p)).max() < 1e-3 and np.abs(variance - p * (1 - p)).max() < 1e-4
        mask = np.asarray(Image.open(out / "masks" / f"{name}.png")) > 0
        assert (mask == (p > 0.5)).mean() > 0.99
        image = np.asarray(Image.open(pictures / "images" / f"{name}.png"))
        answer = segmenter(image, name)
        assert len(answer.members) == 0 and (answer.mask == mask).all() and np.abs(answer.probability - p).max() < 1e-4
    assert files(out) == files(sample(checkpoint, pictures, f"{flags} --fuse vote --seed 3"))  # they have no effect
    assert "4 finished already" in capsys.readouterr().out
    again = ["--model_path", checkpoint, "--data_dir", pictures, "--out_dir", out, flags, "--num_ensemble 2"]
    assert "made with --num_ensemble 0, now it is 2" in refusal("segmentation_sample", again)


def test_a_second_run_skips_what_is_finished(sample, trained, pictures, capsys):
    results = sample(trained, pictures)
    before = {name: (results / name).stat().st_mtime_ns for name in files(results) if "/" in name}
    contents = {name: (results / name).read_bytes() for name in before}
    capsys.readouterr()
    sample(trained, pictures)
    again = capsys.readouterr()
    assert f"4 cases of {pictures}; 4 finished already" in again.out and "sampling:" not in again.err
    assert {name: (results / name).stat().st_mtime_ns for name in before} == before
    (results / "masks" / "case1.png").unlink()  # as a kill leaves a case: the mask comes last
    (results / "overlay" / "case3.png").unlink()  # lost or removed: the case is made again
    sample(trained, pictures)
    assert strict_json(results / "manifest.json")["cases_sampled"] == 4 + 2
    after = {name: (results / name).stat().st_mtime_ns for name in before}
    assert sorted(name for name in after if after[name] != before[name] and "masks" in name) == [
        "masks/case1.png",
        "masks/case3.png",
    ]
    assert {name: (results / name).read_bytes() for name in before} == contents


def test_another_setting_or_checkpoint_is_refused_for_a_results_folder(sample, refusal, trained, pictures, tmp_path):
    results = sample(trained, pictures, FAST + " --num_samples 1")
    start = ["--data_dir", pictures, "--out_dir", results, FAST]
    again = ["--model_path", trained, *start]
    assert "made with --num_ensemble 2, now it is 3" in refusal("segmentation_sample", [*again, "--num_ensemble 3"])
    assert "made with --fuse staple, now it is mean" in refusal("segmentation_sample", [*again, "--fuse mean"])
    line = refusal("segmentation_sample", [*again, "--dpm_solver False"])
    assert "made with 2 steps of dpm_solver, now it is 2 steps of ddpm (by --diffusion_steps, --sampler, " in line
    content = torch.load(trained, weights_only=True) | {"step": 3}
    torch.save(content, tmp_path / "other.pt")
    line = refusal("segmentation_sample", ["--model_path", tmp_path / "other.pt", *start])
    assert f"made with another checkpoint, {trained} of step 2, now --model_path is {tmp_path / 'other.pt'}" in line


def test_out_dir_must_not_be_the_data(refusal, trained, tmp_path):
    """The data set's masks would count as finished, and its truth would be scored against itself."""
    write_folder(tmp_path / "data", 2)
    before = {name: (tmp_path / "data" / name).read_bytes() for name in files(tmp_path / "data")}
    data = ["--data_dir", tmp_path / "data", "--out_dir", tmp_path / "data"]
    assert "choose another --out_dir" in refusal("segmentation_sample", ["--model_path", trained, *data, FAST])
    assert {name: (tmp_path / "data" / name).read_bytes() for name in files(tmp_path / "data")} == before


def test_debug_of_many_steps_keeps_fifty(sample, trained, pictures):
    results = sample(
        trained, pictures, "--diffusion_steps 120 --num_ensemble 1 --num_samples 1 --num_workers 0 --debug True"
    )
    with Image.open(results / "debug" / "case0.gif") as gif:
        assert 40 <= gif.n_frames <= 51  # and the answer; equal frames are one


# ---- doors: a run's folder, a single file, another layout ----------------------------------------------------------


QUICK = "--num_ensemble 2 --diffusion_steps 1 --num_workers 0 --precision fp32"


def test_a_runs_folder_and_its_config_sample_by_the_best_checkpoint(sample, trained, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained.parent, run)
    results = sample(run, pictures, QUICK, "by last")
    assert strict_json(results / "manifest.json")["checkpoint"] == str(run / "last.pt")
    shutil.copy(trained, run / "best.pt")
    capsys.readouterr()
    results = sample(run, pictures, f"{QUICK} --config '{run / 'config.yaml'}'", "by best")
    assert strict_json(results / "manifest.json")["checkpoint"] == str(run / "best.pt")
    assert capsys.readouterr().out.count("holds a training run's settings; not used here: ") == 1
    assert len(files(results / "masks")) == 4


def test_one_picture_is_sampled_into_a_mask_of_its_name(sample, trained, pictures, tmp_path, capsys):
    folder, path = tmp_path / "photos of today", tmp_path / "photos of today" / "left knee.PNG"
    folder.mkdir()
    shutil.copy(pictures / "images" / "case1.png", path)
    (folder / "labels.csv").write_text("another,layout,here")
    results = sample(trained.parent, path, QUICK)
    out = capsys.readouterr().out
    assert (
        files(results / "masks") == ["left knee.png"]
        and strict_json(results / "manifest.json")["data"]
        | {
            "data_name": "FOLDER",
            "data_dir": str(path.resolve()),
        }
        == strict_json(results / "manifest.json")["data"]
    )
    assert f"1 case of {path}; 0 finished already" in out and "layout: one picture" in out and "not used" not in out
    sample(trained.parent, path, QUICK)
    assert "1 finished already" in capsys.readouterr().out
