"""What the scripts refuse or fail at, a full disk included: one clear line, an exit status, nothing half done."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import FAST, LOADER, SCRIPTS, TINY, files, finish, write_folder

from guided_diffusion.checkpoint import load_checkpoint


@pytest.fixture
def bad(tmp_path):
    """A FOLDER data set of three pictures to be broken, and the training flags for it."""
    write_folder(tmp_path / "bad", 3)
    return tmp_path / "bad"


@pytest.fixture
def not_trained(refusal, bad, tmp_path):
    """A function (flags) that asserts that training is refused and returns the line."""

    def run(flags="", folder=bad, data_name="FOLDER"):
        line = [
            f"--data_name {data_name} --data_dir",
            folder,
            "--out_dir",
            tmp_path / "out",
            TINY,
            "--max_steps 9",
            flags,
        ]
        return refusal("segmentation_train", line)

    return run


@pytest.fixture
def not_sampled(refusal, pictures, trained, tmp_path):
    """A function (flags) that asserts that sampling is refused and returns the line."""

    def run(flags="", folder=pictures, checkpoint=trained, out="out"):
        line = ["--model_path", checkpoint, "--data_dir", folder, "--out_dir", tmp_path / out, FAST, flags]
        return refusal("segmentation_sample", line)

    return run


def test_missing_or_empty_folder(not_trained, not_sampled, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("FOLDER", "ISIC", "BRATS"):
        assert f"{tmp_path / 'none'}: no such folder" in not_trained(folder=tmp_path / "none", data_name=name)
        assert f"{tmp_path / 'empty'}: no cases found" in not_trained(folder=tmp_path / "empty", data_name=name)
    assert "no such folder" in not_sampled(folder=tmp_path / "none")
    line = not_sampled(folder=tmp_path / "empty")
    assert "no cases found" in line and line.endswith("was trained on FOLDER: for other data add --data_name")
    assert "trained on" not in not_sampled("--data_name ISIC", folder=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_flags_that_are_needed(refusal, trained):
    assert "--data_dir: is needed" in refusal("segmentation_train", "--data_name ISIC")
    assert "--model_path: is needed" in refusal("segmentation_sample", "--data_dir x")
    assert "--data_dir: is needed" in refusal("segmentation_sample", ["--model_path", trained])


def test_usage_errors_have_status_two(process, tmp_path):
    ended = finish(process("segmentation_eval", ["--config", tmp_path / "nope.yaml"]))
    assert ended.status == 2 and ended.messages == [
        f"error: --config {tmp_path / 'nope.yaml'}: No such file or directory; name a YAML file"
    ]


def test_a_gpu_that_is_not_there_is_told(script, refusal, pictures, trained, tmp_path, capsys, monkeypatch):
    line = ["--model_path", trained, "--data_dir", pictures, "--out_dir", tmp_path, FAST]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script("segmentation_sample", line)
    assert "no GPU" not in capsys.readouterr().out
    script("segmentation_sample", [*line, "--gpu_dev 3"])
    assert "warning: --gpu_dev 3: torch finds no GPU here and uses the CPU" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "--gpu_dev 3: there is 1 GPU, number 0" in refusal("segmentation_sample", [*line, "--gpu_dev 3"])


def test_unknown_data_name(not_trained, tmp_path):
    assert "--data_name MNIST: unknown" in not_trained(data_name="MNIST")
    assert "no such file" in not_trained(data_name=f"{tmp_path}/none.py:Loader")


def test_image_without_its_mask(not_trained, bad):
    (bad / "masks" / "case1.png").unlink()
    assert "case1.png: has no mask" in not_trained()


@pytest.mark.parametrize("workers", [0, 2])
def test_sizes_that_differ(not_trained, bad, save_picture, workers):
    save_picture(bad / "masks" / "case1.png", np.zeros((32, 41), np.uint8))
    line = not_trained(f"--num_workers {workers}")
    assert "case1.png: the mask has 32x41 pixels, its image case1.png has 32x40; they must agree" in line


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_png(not_trained, bad, truncate, workers):
    truncate(bad / "images" / "case2.png")
    assert f"{bad / 'images' / 'case2.png'}: is truncated or damaged" in not_trained(f"--num_workers {workers}")


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_nifti(not_trained, brats, truncate, tmp_path, workers):
    shutil.copytree(brats, tmp_path / "volumes")
    path = truncate(tmp_path / "volumes/training/BraTS2021_00001/BraTS2021_00001_t2.nii.gz")
    line = not_trained(f"--num_workers {workers}", tmp_path / "volumes", "BRATS")
    assert f"{path}: is truncated or damaged" in line


FAILS_IN_A_WORKER = (
    "return open('/root/none/photo.png') if __import__('torch').utils.data.get_worker_info() else "
    "read_picture(case.images[0])"
)


def test_what_the_system_says_in_a_worker_is_one_line(not_trained, bad, tmp_path):
    """An error of the system (no permission, a failing disk) in a loader's process, whose traceback comes with it."""
    (tmp_path / "failing.py").write_text(LOADER.replace("return read_picture(case.images[0])", FAILS_IN_A_WORKER))
    (bad / "case0").mkdir()
    for source, name in (("images", "photo"), ("masks", "truth")):
        shutil.copy(bad / source / "case0.png", bad / "case0" / f"{name}.png")
    line = not_trained("--num_workers 2", data_name=f"{tmp_path / 'failing.py'}:Polyps")
    assert "/root/none/photo.png" in line and "No such file or directory" in line


def test_brats_case_that_lacks_a_modality(not_trained, brats, tmp_path):
    shutil.copytree(brats, tmp_path / "volumes")
    (tmp_path / "volumes/training/BraTS2021_00001/BraTS2021_00001_t1ce.nii.gz").unlink()
    line = not_trained("", tmp_path / "volumes", "BRATS")
    assert "case BraTS2021_00001 lacks the modality t1ce" in line


def test_class_cond_needs_labels(script, not_trained, not_sampled, isic, tmp_path):
    assert "case0.png: has no class label" in not_trained("--class_cond True")
    data = ["--data_name ISIC --data_dir", isic / "Train", "--out_dir", tmp_path / "run", TINY]
    script("segmentation_train", [*data, "--max_steps 1 --class_cond True"])
    checkpoint = tmp_path / "run" / "model000001.pt"
    (tmp_path / "plain").mkdir()
    images = next((isic / "Test").glob("*Part1_Test_Data"))
    shutil.copytree(images, tmp_path / "plain" / images.name)
    assert "labels" in not_sampled(folder=tmp_path / "plain", checkpoint=checkpoint)


def test_a_label_without_a_name_is_refused(not_trained, tmp_path, bad):
    """It would train without the class, or index beyond the embedding."""
    text = LOADER.replace("else ())", "else (), label=2)")
    (bad / "case0").mkdir()
    for source, name in (("images", "photo"), ("masks", "truth")):
        shutil.copy(bad / source / "case0.png", bad / "case0" / f"{name}.png")
    for names in ("()", "('a', 'b')"):
        (tmp_path / "labelled.py").write_text(
            text.replace("class_names =", f"label_names = {names}\n    class_names =")
        )
        line = not_trained("--class_cond True", data_name=f"{tmp_path / 'labelled.py'}:Polyps")
        assert f"has the class label 2 of {0 if names == '()' else 2}, which --class_cond True needs" in line


def test_image_size_that_the_levels_do_not_divide(not_trained):
    line = not_trained("--image_size 34 --channel_mult 1,1,2,2")
    assert "image size 34 does not work with 4 levels, which need a multiple of 8: use 32 or 40" in line


def test_heads_that_do_not_divide_the_width(not_trained):
    assert "--num_heads 3 does not divide" in not_trained("--num_heads 3")


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_model_path_that_is_no_checkpoint(not_sampled, trained, truncate, tmp_path):
    assert f"--model_path {tmp_path / 'none.pt'}: no such file" in not_sampled(checkpoint=tmp_path / "none.pt")
    (tmp_path / "a run").mkdir()
    assert "a run: is a folder without best.pt and last.pt; name a" in not_sampled(checkpoint=tmp_path / "a run")
    for step in (9, 10):
        shutil.copy(trained, tmp_path / "a run" / f"model{step:06d}.pt")
    newest = tmp_path / "a run" / "model000010.pt"
    assert f"; its newest checkpoint is '{newest}'; name" in not_sampled(checkpoint=tmp_path / "a run")
    (tmp_path / "text.pt").write_text("weights")
    assert "text.pt: is no checkpoint of this program" in not_sampled(checkpoint=tmp_path / "text.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "foreign.pt")
    assert "foreign.pt: is no checkpoint of this program" in not_sampled(checkpoint=tmp_path / "foreign.pt")
    shutil.copy(trained, tmp_path / "cut.pt")
    line = not_sampled(checkpoint=truncate(tmp_path / "cut.pt"))
    assert "cut.pt: is damaged, or no checkpoint (" in line and line.endswith("; copy it again or train anew")
    torch.save(torch.load(trained, weights_only=True) | {"step": Touch(tmp_path / "ran")}, tmp_path / "evil.pt")
    assert "evil.pt: holds more than plain data" in not_sampled(checkpoint=tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--num_channels 16", "--num_channels 16 contradicts the checkpoint"),
        ("--learn_sigma True", "which was trained with learn_sigma False"),
        ("--noise_schedule linear", "which was trained with noise_schedule cosine"),
        ("--predict_xstart False", "contradicts the checkpoint"),
        ("--diffusion_steps 1001", "--diffusion_steps 1001: the checkpoint was trained with 1000"),
        ("--use_ddim True", "--use_ddim True contradicts --dpm_solver True"),
        ("--weights 0.5", "--weights 0.5: the checkpoint has model, ema, 0.9999"),
        ("--timestep_respacing 50", "--timestep_respacing chooses steps of DDPM or DDIM"),
        ("--multi-gpu one", "--multi-gpu one: must be numbers of GPUs separated by commas"),
        ("--lr 1e-4", "--lr: is a flag of segmentation_train.py"),
        ("--use-ddim --debug True", "--use_ddim True contradicts --dpm_solver True"),
        ("--seed", "--seed: needs a value"),
    ],
)
def test_flags_that_contradict(not_sampled, flags, words):
    assert words in not_sampled(flags)


def test_wrong_channels_at_sampling(not_sampled, slices):
    line = not_sampled("--data_name BRATS", folder=slices)
    assert "images have 4 channels, the checkpoint was trained with 3" in line


STACK = """
import numpy as np
from guided_diffusion.data import Case, Geometry, SegmentationDataset

class Stack(SegmentationDataset):
    def find_cases(self):
        path = (self.data_dir / "stack.bin",)
        return [Case(f"v_{k}", path, volume="v", slice_index=k) for k in SLICES]

    def read_image(self, case):
        return np.full((3, 32, 32), case.slice_index, np.float32)

    def geometry(self, case):
        return GEOMETRY
"""
SIX = "Geometry(np.eye(4), (1, 1, 1), (32, 32, 6))"


@pytest.mark.parametrize("slices, geometry, words", [
    ("range(6)", "None", "stack.bin: Stack gives no geometry of the volume v, without which its masks cannot be"),
    ("(1, 3, 4)", SIX, "stack.bin: the volume v has 6 slices, the cases are 3 (slice_index 1, 3, 4), so that its"),
    ("range(1, 7)", SIX, "the volume v has 6 slices, the cases are 6 (slice_index 1, 2, 3, 4, 5, ...), so that its"),
])  # fmt: skip
def test_a_loader_that_does_not_give_whole_volumes(not_sampled, tmp_path, slices, geometry, words):
    """Told before anything is drawn or written."""
    loader = STACK.replace("SLICES", slices).replace("GEOMETRY", geometry)
    (tmp_path / "my_loader.py").write_text(loader, encoding="utf-8")
    (tmp_path / "data").mkdir()
    assert words in not_sampled(f"--data_name {tmp_path}/my_loader.py:Stack", folder=tmp_path / "data")
    assert not (tmp_path / "out").exists()


def test_out_dir_that_cannot_be_written(not_trained, not_sampled, refusal, pictures, trained, tmp_path):
    (tmp_path / "out").write_text("a file")
    assert f"{tmp_path / 'out'}: cannot be written to" in not_trained()
    assert f"{tmp_path / 'out'}: cannot be written to" in not_sampled()
    assert "cannot be written to" in not_sampled(out="out/below")
    line = refusal(
        "segmentation_eval", ["--pred_dir", pictures, "--data_dir x --data_name FOLDER --out_dir /proc/none"]
    )
    assert "x: no such folder" in line
    data = ["--model_path", trained, "--data_dir", pictures, "--out_dir /proc/none"]
    assert "/proc/none: cannot be written to" in refusal("segmentation_sample", data)
    assert (tmp_path / "out").read_text() == "a file"


@pytest.fixture
def small_disk(tmp_path):
    """A function (size) that mounts a file system of that size; needs root."""
    folders = []

    def mount(size):
        folder = tmp_path / f"disk{len(folders)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a small file system")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_as_a_process(process, pictures, small_disk):
    """The first checkpoint fits, the second does not: one line, and the first stands."""
    disk = small_disk("2000k")
    line = [
        "--data_name FOLDER --data_dir",
        pictures,
        "--out_dir",
        disk / "run",
        TINY,
        "--save_interval 1 --max_steps 9",
    ]
    ended = finish(process("segmentation_train", line))
    assert ended.status == 1
    assert ended.messages == [f"error: {disk / 'run' / 'model000002.pt'}: No space left on device"]
    assert [path for path in files(disk / "run") if "model" in path] == ["model000001.pt"]
    assert load_checkpoint(disk / "run" / "model000001.pt").step == 1


def test_full_disk_while_sampling(refusal, trained, pictures, small_disk):
    disk = small_disk("28k")
    line = refusal(
        "segmentation_sample", ["--model_path", trained, "--data_dir", pictures, "--out_dir", disk / "r", FAST]
    )
    assert line.startswith(f"error: {disk / 'r'}/") and line.endswith(".png: No space left on device")
    assert not [path for path in files(disk / "r") if os.path.basename(path).startswith(".")]


@pytest.mark.parametrize("name", ["segmentation_train", "segmentation_sample", "segmentation_eval", "demo"])
def test_ctrl_c_while_a_script_is_imported(tmp_path, name):
    """It comes while numpy, which is slow to load, is half there; and shows no traceback."""
    (tmp_path / "numpy.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SCRIPTS.parent}"}
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--help"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


def test_demo_wants_a_new_folder(refusal, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    assert "is not empty; remove it or choose another --out_dir" in refusal("demo", ["--out_dir", tmp_path])
    assert str(tmp_path / "mine.txt") in refusal("demo", ["--out_dir", tmp_path / "mine.txt"])
    assert "--speed 0: must be above 0" in refusal("demo", "--speed 0")
    assert files(tmp_path) == ["mine.txt"]
