"""Going on from a checkpoint: which options are its own, which are those given now, and where it writes."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY
from helpers import TRAIN, equal

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.options import ProcessOptions
from guided_diffusion.runtime import distributed as dist_util
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.training.run import choose_precision, prepare_run

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def begun(script, pictures, tmp_path):
    """A function (flags) that trains a step into run/ and returns the flags that go on with it."""

    def run(flags=""):
        data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path / "run"]
        script("segmentation_train", [*data, TINY, "--max_steps 1", flags])
        return ["--resume_checkpoint auto --max_steps 2 --out_dir", tmp_path / "run"]

    return run


def config_of(folder, step):
    return load_checkpoint(folder / f"model{step:06d}.pt").config


# ---- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_resumed_run_keeps_its_precision_unless_one_is_given(begun, script, tmp_path, monkeypatch, has_bf16):
    again = begun()  # in fp32
    monkeypatch.setattr(dist_util, "_cpu_has_bf16", lambda: has_bf16)
    script("segmentation_train", again)
    assert config_of(tmp_path / "run", 2)["device"]["precision"] == "fp32"
    script("segmentation_train", [*again, "--max_steps 3 --precision auto"])
    assert config_of(tmp_path / "run", 3)["device"]["precision"] == ("bf16" if has_bf16 else "fp32")
    script("segmentation_train", [*again, "--max_steps 4 --use_fp16 True"])
    assert config_of(tmp_path / "run", 4)["device"]["precision"] == "bf16"  # a CPU lacks fast fp16


@pytest.mark.parametrize(
    "before, device, has_bf16, after",
    [
        ("fp32", CPU, True, "fp32"),
        ("fp32", GPU, True, "fp32"),
        ("bf16", CPU, True, "bf16"),
        ("bf16", CPU, False, "fp32"),
        ("bf16", GPU, False, "fp32"),
        ("fp16", GPU, True, "fp16"),
        ("fp16", CPU, True, "bf16"),
        ("fp16", CPU, False, "fp32"),
    ],
)
def test_another_device_goes_on_in_auto_where_it_lacks_the_precision(monkeypatch, before, device, has_bf16, after):
    monkeypatch.setattr(dist_util, "_cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    precision, warning = choose_precision(
        ProcessOptions(), set(), SimpleNamespace(config={"device": {"precision": before}}), device
    )
    assert precision == after and (warning is None) == (before == after)
    assert warning is None or f"was in {before}, which {device} lacks: it goes on in {after}" in warning


def test_the_warning_is_printed_and_a_dry_run_stays_a_config(begun, script, tmp_path, monkeypatch, capsys):
    again = begun("--precision bf16")
    monkeypatch.setattr(dist_util, "_cpu_has_bf16", lambda: False)
    for flags, words in ((["--dry_run True"], "# warning: the run was in bf16"), ([], "warning: the run was in bf16")):
        capsys.readouterr()
        script("segmentation_train", [*again, *flags])
        text = capsys.readouterr().out
        assert any(line.startswith(words) for line in text.splitlines())
        assert not flags or yaml.safe_load(text)["precision"] == "fp32"


def test_a_checkpoint_that_does_not_know_its_precision_goes_on_in_auto(monkeypatch):
    monkeypatch.setattr(dist_util, "_cpu_has_bf16", lambda: True)
    assert choose_precision(ProcessOptions(), set(), SimpleNamespace(config={}), CPU) == ("bf16", None)


# ---- a run that is complete --------------------------------------------------------------------------------------


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "again", "words"),
    [
        ("", "", "(step 1 of 1): nothing was trained; to go on, give --max_steps above 1"),
        ("--lr_anneal_steps 1 --max_steps 9", "", "to go on, give --lr_anneal_steps above 1"),
        ("--lr_anneal_steps 1", "", "to go on, give --max_steps and --lr_anneal_steps above 1"),
        ("--max_steps 2", "--max_steps 1 --lr 1e-3", "(step 2, beyond 1): nothing was trained; to go on, give --max_"),
        ("--version v2 --condition_steps 1 --max_steps 2", "--lr 1e-3", "(the condition model is fixed since step"),
    ],
)
def test_a_complete_run_says_so_and_stays_as_it_is(begun, script, tmp_path, capsys, flags, again, words):
    begun(f"--sample_interval 1 --val_cases 1 {flags}")
    run, step = tmp_path / "run", 2 if again else 1
    before = contents(run)
    command = capsys.readouterr().out.rpartition("sample with: ")[2]
    line = ["--resume_checkpoint auto --out_dir", run, again]
    assert script("segmentation_train", line) == 0
    first, last = capsys.readouterr().out.splitlines()  # no line of a network, a validation or a step
    assert first.startswith(f"the run is complete already (step {step}") and words in first
    assert f"; {run / 'best.pt'} is of step" in first and last == f"sample with: {command.strip()}"
    assert contents(run) == before
    script("segmentation_train", [*line, "--dry_run True"])
    assert "# the run is complete already" in capsys.readouterr().out and contents(run) == before


def test_a_best_that_a_kill_left_out_is_made_up_for(begun, script, tmp_path):
    begun("--sample_interval 1 --val_cases 1")
    (tmp_path / "run" / "best.pt").unlink()
    script("segmentation_train", ["--resume_checkpoint auto --out_dir", tmp_path / "run"])
    assert load_checkpoint(tmp_path / "run" / "best.pt").step == 1


@pytest.mark.parametrize("content", [b"", b"step,loss\n", b"PK\x03\x04" * 9])
def test_a_damaged_newest_checkpoint_is_to_be_removed_or_copied_again(refusal, pictures, tmp_path, content):
    (tmp_path / "model000005.pt").write_bytes(content)
    line = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY]
    remedy = "; remove it to go on from the one before, or copy it again"
    auto = refusal("segmentation_train", [*line, "--resume_checkpoint auto"])
    assert f"{tmp_path / 'model000005.pt'}: is " in auto and auto.endswith(remedy)
    named = refusal("segmentation_train", [*line, "--resume_checkpoint", tmp_path / "model000005.pt"])
    assert f"--resume_checkpoint {tmp_path / 'model000005.pt'}: is " in named
    assert named.endswith("; copy it again or name another checkpoint of the run")


def test_it_goes_on_as_it_says(begun, script, tmp_path, capsys):
    begun("--lr_anneal_steps 1")
    line = ["--resume_checkpoint auto --out_dir", tmp_path / "run", "--lr_anneal_steps 2"]
    script("segmentation_train", line)
    assert "to go on, give --max_steps above 1" in capsys.readouterr().out
    script("segmentation_train", [*line, "--max_steps 2"])
    out = capsys.readouterr().out
    assert "going on from step 1" in out and "trained 2 steps\n" in out and "complete already" not in out


# ---- flags beside the checkpoint's options -----------------------------------------------------------------------


def settled(line):
    """The `Run` of a command line, which is not run."""
    return prepare_run(*parse("", TRAIN, " ".join(map(str, line)).split()), dist_util.Processes(0, 1, CPU))


def test_a_flag_that_needs_another_finds_it_in_the_checkpoint(begun):
    again = begun("--lr_anneal_steps 4 --val_fraction 0.4")
    assert settled([*again, "--lr_decay cosine"]).settings.train.lr_decay == "cosine"
    assert settled([*again, "--split_seed 0"]).settings.data.val_fraction == 0.4
    with pytest.raises(UserError, match="--warmup_steps 9: must be below --lr_anneal_steps 4"):
        settled([*again, "--warmup_steps 9"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr_decay cosine", "--lr_decay cosine: needs --lr_anneal_steps"),
        ("--lr_decay linear", "--lr_decay linear: needs --lr_anneal_steps"),
        ("--split_seed 3", "--split_seed belongs to --val_fraction"),
    ],
)
def test_and_is_refused_where_neither_has_it(begun, tmp_path, pictures, flags, words):
    new = [TINY, "--data_name FOLDER --data_dir", pictures, "--resume_checkpoint auto --out_dir", tmp_path / "new"]
    for line in (begun(), new):  # there is a checkpoint; there is none
        with pytest.raises(UserError, match=words):
            settled([*line, flags])


@pytest.mark.parametrize(
    ("before", "flags"),
    [
        ("--val_fraction 0.4", "--split_seed 3"),
        ("--val_fraction 0.4", "--val_fraction 0.2"),
        ("--val_fraction 0.4", "--group_key ^(.)"),
        ("", "--val_fraction 0.4"),
    ],
)
def test_cases_that_were_learned_from_are_not_held_out_later(begun, before, flags):
    with pytest.raises(UserError, match=f"{flags.split()[0]} .*: would divide .* could count as unseen; leave it"):
        settled([*begun(before), flags])


def test_all_cases_may_be_trained_on_later_and_other_data_be_divided_otherwise(begun, tmp_path, pictures):
    again = begun("--val_fraction 0.4")
    assert settled([*again, "--val_fraction 0"]).settings.data.val_fraction == 0
    shutil.copytree(pictures, tmp_path / "others")
    run = settled([*again, "--split_seed 3 --data_dir", tmp_path / "others"])
    assert run.settings.data.split_seed == 3 and "others otherwise than the run divided" in " ".join(run.warnings)


def test_changed_flags_are_reported(begun):
    again = begun("--lr_anneal_steps 4 --val_fraction 0.4")
    warnings = settled([*again, "--lr 2e-3 --val_fraction 0.4 --lr_decay cosine"]).warnings
    assert warnings[0].startswith("changed from step") and "--lr 0.002 (was 0." in warnings[0]
    assert "--lr_decay cosine (was linear)" in warnings[0] and "val_fraction" not in warnings[0]
    assert settled(again).warnings == ()


def test_a_run_of_version_0_6_keeps_the_masks_that_it_was_trained_on(begun, tmp_path):
    again = begun()
    path = tmp_path / "run" / "model000001.pt"
    now = settled(again).dataset
    before = load_checkpoint(path, to_train=True)
    del before.config["train"]["soft_masks"]
    for name in (path, path.with_name("last.pt")):
        save_checkpoint(before, name)
    old = settled(again).dataset
    assert now.view.soft_masks and not old.view.soft_masks
    assert ((now[0]["mask"] > 0) & (now[0]["mask"] < 1)).any() and set(old[0]["mask"].unique().tolist()) == {0, 1}


def test_half_the_width_is_that_of_the_checkpoint(begun, tmp_path, pictures):
    again = begun("--version v2 --recipe staged --val_fraction 0")
    for flags in ("", "--recipe staged", "--recipe staged --diffusion_channels -1", "--diffusion_channels 4"):
        assert settled([*again, flags]).settings.model.diffusion_channels == 4
    with pytest.raises(UserError, match="--diffusion_channels 64 contradicts the checkpoint .* 4"):
        settled([*again, "--diffusion_channels 64"])
    with pytest.raises(UserError, match="--num_channels 16 contradicts the checkpoint"):
        settled([*again, "--num_channels 16 --diffusion_channels -1"])
    new = ["--num_channels 6 --data_name FOLDER --data_dir", pictures, "--resume_checkpoint auto --image_size 32"]
    assert settled([*new, "--out_dir", tmp_path / "new"]).settings.model.diffusion_channels == 3


def test_a_recipe_that_is_the_checkpoint_s_own_keeps_what_other_flags_changed(begun):
    again = begun("--version v2 --recipe staged --coarse_loss mse --second_stage_lr 2")
    run = settled([*again, "--recipe staged"])
    assert (run.settings.diffusion.coarse_loss, run.settings.train.second_stage_lr) == ("mse", 2)
    with pytest.raises(UserError, match="contradicts the checkpoint"):
        settled([*again, "--recipe published"])


# ---- where it writes ---------------------------------------------------------------------------------------------


def test_from_another_folder_it_goes_on_where_it_wrote(script, pictures, tmp_path, monkeypatch):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    data = ["--data_name FOLDER --data_dir", pictures, TINY]
    script("segmentation_train", [*data, "--out_dir run --max_steps 1"])
    run = tmp_path / "here" / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["out_dir"] == str(run)
    monkeypatch.chdir(tmp_path / "there")
    script("segmentation_train", ["--resume_checkpoint ../here/run/model000001.pt --max_steps 2"])
    script("segmentation_train", ["--config ../here/run/config.yaml --resume_checkpoint auto --max_steps 3"])
    assert (run / "model000003.pt").is_file() and not list((tmp_path / "there").iterdir())
    script("segmentation_train", ["--resume_checkpoint ../here/run --out_dir new --max_steps 4"])
    record = yaml.safe_load((tmp_path / "there" / "new" / "config.yaml").read_text())
    assert record["resume_checkpoint"] == str(tmp_path / "there" / "../here/run/last.pt")
    assert (tmp_path / "there" / "new" / "model000004.pt").is_file()


def test_a_remote_folder_stays_as_it_is(begun):
    run = settled(begun())
    settings = replace(run.settings, train=replace(run.settings.train, out_dir="gs://bucket/run"))
    run = replace(run, settings=settings)
    assert run.config["train"]["out_dir"] == run.values["out_dir"] == "gs://bucket/run"


def test_in_a_new_folder_the_checkpoint_of_the_message_exists(begun, script, tmp_path, capsys):
    begun()
    start = tmp_path / "run" / "model000001.pt"
    capsys.readouterr()
    script("segmentation_train", ["--resume_checkpoint", start, "--max_steps 1 --out_dir", tmp_path / "new"])
    out = capsys.readouterr().out
    assert f"--model_path {tmp_path / 'new' / 'model000001.pt'}" in out and "complete already (step 1 of 1)" in out
    one, other = load_checkpoint(start), load_checkpoint(tmp_path / "new" / "model000001.pt")
    assert equal(one.model, other.model) and equal(one.optimizer, other.optimizer)
    assert (tmp_path / "new" / "last.pt").exists()
    before = start.stat().st_mtime_ns
    script("segmentation_train", ["--resume_checkpoint", start, "--max_steps 1"])
    assert start.stat().st_mtime_ns == before  # in its own folder it is not written again
