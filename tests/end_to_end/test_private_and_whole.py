"""Checkpoints in commands: damage is noticed at every door, no private name is in them, one run writes to a folder."""

import shutil

import pytest
import yaml
from conftest import FAST, TINY, files

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.io.archives import check_records
from guided_diffusion.io.locks import LOCK, folder_lock
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training import run as training_run


@pytest.fixture(scope="module")
def validated(script, pictures, tmp_path_factory):
    """A run of two checkpoints with validation: (its folder, the folder of its validation cases)."""
    out, val = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("val") / "secret_hospital"
    shutil.copytree(pictures, val)
    for path in (*val.glob("images/*"), *val.glob("masks/*")):
        path.rename(path.with_name(f"patient_{path.name}"))
    flags = ["--val_dir", val, TINY, "--sample_interval 1 --val_cases 2 --max_steps 2 --save_interval 1"]
    script("segmentation_train", ["--data_name FOLDER --data_dir", pictures, "--out_dir", out, *flags])
    return out, val


@pytest.fixture
def copied(validated, tmp_path):
    shutil.copytree(validated[0], tmp_path / "run")
    return tmp_path / "run"


def flip(path, tensor="data/3"):
    """Flip one bit in the middle of a record."""
    record = next(record for record in check_records(path) if record.name.endswith(tensor))
    data = bytearray(path.read_bytes())
    data[record.start + record.size // 2] ^= 8
    path.write_bytes(data)


def test_a_flipped_bit_in_a_tensor_is_refused_at_every_door(copied, refusal, pictures, tmp_path):
    newest = copied / "model000002.pt"
    newest.write_bytes(newest.read_bytes())  # no longer the file of last.pt
    flip(newest)
    line = f"{newest}: is damaged, or no checkpoint (the tensor model."
    remedy = "bytes differ from their checksum); copy it again, or use the checkpoint before it, model000001.pt"
    out = ["--out_dir", tmp_path / "out"]
    for name, words in [
        ("segmentation_sample", ["--model_path", newest, "--data_dir", pictures, *out, FAST]),
        ("segmentation_train", ["--resume_checkpoint", newest, "--max_steps 3", *out]),
        ("segmentation_train", ["--resume_checkpoint auto --max_steps 3 --out_dir", copied]),
    ]:
        found = refusal(name, words)
        assert line in found and "bytes differ from their checksum" in found
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError) as error:
        Segmenter.load(newest)
    assert str(error.value).startswith(line) and str(error.value).endswith(remedy)


def test_a_checkpoint_holds_no_folder_and_no_case(validated, pictures):
    out, val = validated
    for name in ("model000002.pt", "best.pt", "last.pt"):
        data = (out / name).read_bytes()
        for private in (str(out), str(pictures), str(val), "secret_hospital", "patient_case", str(out.parent)):
            assert private.encode() not in data
    assert load_checkpoint(out / "best.pt").validation["step"] in (1, 2)


def test_a_run_goes_on_with_the_folders_of_its_record(copied, script, refusal, validated, pictures, tmp_path, capsys):
    best = load_checkpoint(copied / "best.pt").validation["log_loss"]
    script("segmentation_train", ["--resume_checkpoint", copied / "model000002.pt", "--max_steps 3"])
    text = capsys.readouterr().out
    assert (copied / "model000003.pt").is_file() and "the validation cases have changed" not in text
    assert load_checkpoint(copied / "model000003.pt").validation["log_loss"] <= best
    record = yaml.safe_load((copied / "config.yaml").read_text())
    assert (record["val_dir"], record["data_dir"]) == (str(validated[1]), str(pictures))
    (copied / "config.yaml").unlink()
    resume = ["--resume_checkpoint", copied / "model000003.pt", "--max_steps 4"]
    assert "--val_dir: is needed" in refusal("segmentation_train", resume)
    assert "--out_dir: is needed" in refusal("segmentation_train", [*resume, "--val_dir", validated[1]])
    resume += ["--val_dir", validated[1], "--out_dir", tmp_path / "new"]
    assert "--data_dir: is needed" in refusal("segmentation_train", resume)
    assert not (tmp_path / "new").exists()


def test_cases_that_were_trained_on_are_still_recognised(copied, script, pictures, tmp_path, capsys):
    (copied / "config.yaml").unlink()
    line = [
        "--model_path",
        copied / "last.pt",
        "--data_dir",
        pictures,
        "--split all",
        FAST,
        "--out_dir",
        tmp_path / "o",
    ]
    script("segmentation_sample", line)
    assert "warning: 4 of 4 cases were trained on" in capsys.readouterr().out


# ---- one run to a folder ---------------------------------------------------------------------------------------------


def test_two_runs_do_not_share_a_folder(copied, refusal, pictures, tmp_path):
    before = {name: (copied / name).read_bytes() for name in files(copied)}
    results = tmp_path / "results"
    results.mkdir()
    train = ["--resume_checkpoint auto --max_steps 3 --out_dir", copied]
    sample = ["--model_path", copied / "last.pt", "--data_dir", pictures, FAST, "--out_dir", results]
    with folder_lock(copied), folder_lock(results):
        for name, line, folder in [("segmentation_train", train, copied), ("segmentation_sample", sample, results)]:
            assert f"error: {folder}: another run writes there: " in refusal(name, line)
    assert {name: (copied / name).read_bytes() for name in files(copied)} == before and not files(results)


def test_a_run_that_wrote_meanwhile_is_noticed(copied, refusal, monkeypatch):
    """The folder's checkpoints are listed before its lock is taken."""
    find = training_run.find_start

    def find_and_go_on(*arguments):
        start = find(*arguments)
        shutil.copy(copied / "model000002.pt", copied / "model000009.pt")
        return start

    monkeypatch.setattr(training_run, "check_not_behind", lambda *_: None)
    monkeypatch.setattr(training_run, "find_start", find_and_go_on)
    line = refusal("segmentation_train", ["--resume_checkpoint auto --max_steps 3 --out_dir", copied])
    assert "model000009.pt: was written by another run while this one began" in line
    assert LOCK not in files(copied)


def test_evaluation_respects_a_lock(refusal, script, trained, pictures, tmp_path):
    script("segmentation_sample", ["--model_path", trained, "--data_dir", pictures, FAST, "--out_dir", tmp_path / "r"])
    with folder_lock(tmp_path / "r"):
        assert "another run writes there" in refusal("segmentation_eval", ["--pred_dir", tmp_path / "r"])
        script("segmentation_eval", ["--pred_dir", tmp_path / "r", "--out_dir", tmp_path / "elsewhere"])


# ---- what a stranger may have made ----------------------------------------------------------------------------------


def test_a_changed_checkpoint_is_one_line_at_every_door(trained, refusal, pictures, tmp_path):
    changed = load_checkpoint(trained)
    changed.config["calibration"] = {"temperature": float("nan")}
    save_checkpoint(changed, tmp_path / "model000007.pt")
    line = "its option temperature nan: must be a number above 0; "
    out = ["--out_dir", tmp_path / "out"]
    sample = ["--model_path", tmp_path / "model000007.pt", "--data_dir", pictures, *out, FAST]
    assert line in refusal("segmentation_sample", sample)
    train = ["--resume_checkpoint", tmp_path / "model000007.pt", "--data_dir", pictures, "--max_steps 9", *out]
    assert line in refusal("segmentation_train", train)
    with pytest.raises(UserError, match=line):
        Segmenter.load(tmp_path / "model000007.pt")
    assert not (tmp_path / "out").exists()
