"""The scripts as commands: train, sample and evaluate end to end on every kind of data, and bad input."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys

import nibabel
import numpy as np
from conftest import FAST, LOADER, SCRIPTS, TINY, files, finish, rows, strict_json, words
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


# ---- end to end --------------------------------------------------------------------------------------------------


def test_isic_as_processes(process, isic, tmp_path):
    """The three commands as a user types them, each a process of its own, with loaders beside."""
    run, results = tmp_path / "run", tmp_path / "results"
    data = ["--data_name ISIC --data_dir", isic / "Train", "--out_dir", run, TINY, "--num-workers 2"]
    trained = finish(process("segmentation_train", [*data, "--max-steps 3 --class_cond True"]))
    assert trained.status == 0 and not trained.messages, trained.err
    assert f"--model_path {run / 'model000003.pt'}" in trained.out
    data = ["--model_path", run / "model000003.pt", "--data_dir", isic / "Test", "--out_dir", results]
    sampled = finish(process("segmentation_sample", [*data, FAST, "--num_workers 2 --debug True --save_samples True"]))
    assert sampled.status == 0 and not sampled.messages, sampled.err
    evaluated = finish(process("segmentation_eval", ["--pred_dir", results]))
    assert evaluated.status == 0 and not evaluated.messages, evaluated.err
    assert "dice" in evaluated.out and "3 cases" in evaluated.out
    assert load_checkpoint(run / "model000003.pt").label_names == ["benign", "malignant"]
    names = [f"ISIC_000500{n}" for n in range(3)]
    for name in names:
        for part in ("masks", "probability", "uncertainty"):
            assert pixels(results / part / f"{name}.png").shape[:2] == (32, 40)
        assert pixels(results / "overlay" / f"{name}.png").shape == (7 * 32, 7 * 40, 3)
        mask, probability = pixels(results / "masks" / f"{name}.png"), pixels(results / "probability" / f"{name}.png")
        assert set(np.unique(mask)) <= {0, 255} and mask.dtype == np.uint8
        assert 255 < probability.max() <= 65535
        for k in range(2):
            assert set(np.unique(pixels(results / "samples" / f"{name}_0{k}.png"))) <= {0, 255}
        assert (results / "coarse" / f"{name}.png").exists() and (results / "debug" / f"{name}.gif").exists()
    assert [row["name"] for row in rows(results)] == names
    assert strict_json(results / "summary.json")["ensemble"]["cases"] == 3
    manifest = strict_json(results / "manifest.json")
    assert manifest["status"] == "complete" and manifest["cases"] == manifest["cases_sampled"] == 3
    assert manifest["checkpoint_sha256"] == hashlib.sha256((run / "model000003.pt").read_bytes()).hexdigest()
    assert (results / "report.html").exists()


def test_brats_volumes(train, sample, script, brats):
    results = sample(train("BRATS", brats), brats, FAST + " --save_samples True --batch_size 2")
    name = "BraTS2021_05000"
    theirs = nibabel.load(brats / "testing" / name / f"{name}_flair.nii.gz")
    for part in ("seg", "prob", "uncertainty", "sample_00", "sample_01", "coarse"):
        ours = nibabel.load(results / f"{name}_{part}.nii.gz")
        assert ours.shape == theirs.shape == (32, 32, 3) and np.array_equal(ours.affine, theirs.affine)
        assert ours.header.get_zooms() == theirs.header.get_zooms()
    assert not (results / "masks").exists() and (results / "overlay" / f"{name}.png").exists()
    assert [row["name"] for row in rows(results)] == [name]  # the volume is one case
    before = (results / "summary.json").read_text()
    script("segmentation_eval", ["--pred_dir", results])
    assert (results / "summary.json").read_text() == before


def test_brats_slices(train, sample, slices):
    results = sample(train("BRATS", slices / "training"), slices / "testing")
    masks = files(results / "masks")
    assert len(masks) == 2 and all(name.startswith("brats_train_") for name in masks)
    assert pixels(results / "masks" / masks[0]).shape == (32, 32) and len(rows(results)) == 2


def test_folder_with_the_published_kind_of_model(train, sample, pictures, capsys):
    """eps, learned variance, linear schedule; full DDPM through a short schedule; the training flags said again."""
    flags = (
        "--class_cond False --num_heads 1 --learn_sigma True --use_scale_shift_norm False --noise_schedule linear "
        "--rescale_learned_sigmas False --rescale_timesteps False"
    )
    checkpoint = train("FOLDER", pictures, f"{flags} --objective eps --diffusion_steps 5 --lr 1e-4")
    results = sample(
        checkpoint, pictures, f"{flags} --diffusion_steps 5 --num_ensemble 2 --num_workers 0 --num_samples 1"
    )
    manifest = strict_json(results / "manifest.json")
    assert manifest["settings"]["sampler"] == "ddpm" and manifest["settings"]["timesteps"] == [4, 3, 2, 1, 0]
    assert files(results / "masks") == ["case0.png"]
    assert strict_json(results / "summary.json")["missing"] == 3
    told = f"4 cases of {pictures}, of which --num_samples takes the first 1; 0 finished already"
    assert told in capsys.readouterr().out


def test_single_file_volume_is_taken_apart_and_restacked(train, sample, brats, tmp_path):
    """FOLDER with NIfTI volumes, one channel; the masks are for training alone."""
    for part, kind in (("images", "flair"), ("masks", "seg")):
        (tmp_path / "data" / part).mkdir(parents=True)
        source = brats / "training" / "BraTS2021_00000" / f"BraTS2021_00000_{kind}.nii.gz"
        shutil.copy(source, tmp_path / "data" / part / "v.nii.gz")
    checkpoint = train("FOLDER", tmp_path / "data", "--classes tumour=1+2+4")
    shutil.rmtree(tmp_path / "data" / "masks")
    results = sample(checkpoint, tmp_path / "data")
    assert nibabel.load(results / "v_seg.nii.gz").shape == (32, 32, 3)
    assert not (results / "metrics.csv").exists() and (results / "report.html").exists()


def test_a_loader_of_ones_own(train, sample, script, pictures, tmp_path):
    (tmp_path / "my_loader.py").write_text(LOADER)
    for n in range(3):
        (tmp_path / "data" / f"patient{n}").mkdir(parents=True)
        shutil.copy(pictures / "images" / f"case{n}.png", tmp_path / "data" / f"patient{n}" / "photo.png")
        shutil.copy(pictures / "masks" / f"case{n}.png", tmp_path / "data" / f"patient{n}" / "truth.png")
    named = f" --data_name {tmp_path / 'my_loader.py'}:Polyps"
    checkpoint = train(named.split()[1], tmp_path / "data", "--num_workers 1")
    assert load_checkpoint(checkpoint).class_names == ["polyp"]
    results = sample(checkpoint, tmp_path / "data", FAST + " --num_workers 1" + named)
    script("segmentation_eval", ["--pred_dir", results, named])
    assert [row["name"] for row in rows(results)] == ["patient0", "patient1", "patient2"]
    for path in (tmp_path / "data").glob("*/truth.png"):
        path.unlink()
    assert len(files(sample(checkpoint, tmp_path / "data", FAST + named, out="without") / "masks")) == 3


def test_a_checkpoint_and_results_are_used_from_another_folder(script, pictures, tmp_path, monkeypatch):
    """Paths given relative to where the training ran."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my_loader.py").write_text(LOADER)
    for n in range(2):
        (tmp_path / "here" / "data" / f"patient{n}").mkdir(parents=True)
        shutil.copy(pictures / "images" / f"case{n}.png", tmp_path / "here" / "data" / f"patient{n}" / "photo.png")
        shutil.copy(pictures / "masks" / f"case{n}.png", tmp_path / "here" / "data" / f"patient{n}" / "truth.png")
    monkeypatch.chdir(tmp_path / "here")
    data = "--data_name my_loader.py:Polyps --data_dir data --out_dir ../run"
    script("segmentation_train", f"{data} {TINY} --max_steps 1")
    monkeypatch.chdir(tmp_path)
    named = "--data_name here/my_loader.py:Polyps"
    script("segmentation_train", f"--resume_checkpoint auto --max_steps 2 --out_dir run {named}")
    line = f"--model_path run/model000002.pt --data_dir here/data --out_dir results {FAST} {named}"
    script("segmentation_sample", line)
    name = f"{tmp_path / 'here' / 'my_loader.py'}:Polyps"
    assert load_checkpoint(tmp_path / "run" / "model000002.pt").config["data"]["data_name"] == "my_loader.py:Polyps"
    assert strict_json(tmp_path / "results" / "manifest.json")["data"]["data_name"] == name
    monkeypatch.chdir(pictures)
    script("segmentation_eval", ["--pred_dir", tmp_path / "results", f"--data_name {name}"])
    assert len(rows(tmp_path / "results")) == 2


def test_settings_from_a_yaml_file(script, pictures, tmp_path):
    lines = TINY.replace("--", "").split()
    text = "".join(f"{name}: {value}\n" for name, value in zip(lines[::2], lines[1::2], strict=True))
    (tmp_path / "run.yaml").write_text(f"{text}max_steps: 9\ndata_name: FOLDER\ndata_dir: {pictures}\n")
    script("segmentation_train", ["--config", tmp_path / "run.yaml", "--out_dir", tmp_path / "run", "--max_steps 1"])
    config = load_checkpoint(tmp_path / "run" / "model000001.pt").config
    assert config["model"]["num_channels"] == 8 and config["train"]["max_steps"] == 1


# ---- sampling ----------------------------------------------------------------------------------------------------


def probabilities(folder):
    return {path.stem: pixels(path) / 65535 for path in (folder / "probability").iterdir()}


def test_results_depend_on_neither_the_batch_nor_the_other_cases(sample, trained, pictures):
    one = probabilities(sample(trained, pictures, FAST, out="one"))
    four = probabilities(sample(trained, pictures, FAST + " --batch_size 4", out="four"))
    two = probabilities(sample(trained, pictures, FAST + " --num_samples 2 --batch_size 3", out="two"))
    assert len(one) == 4 and sorted(two) == ["case0", "case1"]
    for name, expected in one.items():
        assert np.abs(four[name] - expected).max() <= 2e-5  # 1e-5, and a step of the 16 bits
    for name, values in two.items():
        assert np.abs(values - one[name]).max() <= 2e-5
    other = probabilities(sample(trained, pictures, FAST + " --seed 1", out="other"))
    assert np.abs(other["case0"] - one["case0"]).max() > 1e-3


def test_another_image_size_than_in_training(sample, refusal, trained, pictures, tmp_path):
    results = sample(trained, pictures, FAST + " --image_size 48 --num_samples 1")
    assert pixels(results / "masks" / "case0.png").shape == (32, 40)
    assert strict_json(results / "manifest.json")["settings"]["image_size"] == 48
    line = ["--model_path", trained, "--data_dir", pictures, "--out_dir", tmp_path / "odd", FAST, "--image_size 33"]
    assert "image size 33 does not work with 2 levels" in refusal("segmentation_sample", line)


def test_ctrl_c_while_sampling(process, trained, pictures, tmp_path):
    line = ["--model_path", trained, "--data_dir", pictures, "--out_dir", tmp_path / "results", FAST]
    child = process("segmentation_sample", [*line, "--diffusion_steps 999 --num_ensemble 8 --num_workers 2"])
    bar = ""
    while not re.search(r"[1-9]\d*/31968", bar):  # its first steps are done
        bar += (character := child.stderr.read(1))
        assert character, bar  # the process has ended
    os.killpg(child.pid, signal.SIGINT)
    ended = finish(child)
    assert ended.status == 130 and ended.messages[-1:] == ["interrupted"], ended.err
    assert "Traceback" not in ended.err
    assert "0 of 4 cases finished; the same command continues from here" in ended.out


def test_a_log_file_gets_few_lines_of_the_bars(trained, pictures, tmp_path):
    """As on a cluster: a terminal is redrawn ten times a second, a file would hold every one of them."""
    flags = ["--model_path", trained, "--data_dir", pictures, "--out_dir", tmp_path, FAST, "--diffusion_steps 100"]
    command = [sys.executable, str(SCRIPTS / "segmentation_sample.py"), *words(flags)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert 2 <= ended.stderr.count("sampling:") <= 4 and "4 of 4 images" in ended.stderr
