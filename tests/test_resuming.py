"""Going on from a checkpoint: which options are its own, which are those given now, and where it writes."""

import pytest
import torch
import yaml
from conftest import TINY

from guided_diffusion import dist_util
from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.resuming import kept_precision

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
    precision, warning = kept_precision({"device": {"precision": before}}, device)
    assert precision == after and (warning is None) == (before == after)
    assert warning is None or f"was in {before}, which {device} lacks: it goes on in {after}" in warning


def test_that_is_told_and_a_dry_run_stays_a_config(begun, script, tmp_path, monkeypatch, capsys):
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
    assert kept_precision({}, CPU) == ("bf16", None)
