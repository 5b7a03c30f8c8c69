"""How the user called the program, and the commands in messages, which are written in the same way."""

import os
import shlex
import sys

import pytest

from guided_diffusion.runtime import program
from guided_diffusion.runtime.program import command, command_name, door, own_name, prepare_children


@pytest.fixture
def called(monkeypatch):
    """A function (words) that lets the program look as if it was started by these words."""
    monkeypatch.delenv(program.CALLED_BY, raising=False)
    return lambda *words: monkeypatch.setattr(sys, "argv", list(words))


@pytest.mark.parametrize(
    ("start", "expected", "own"),
    [
        ("/opt/bin/medsegdiff", "medsegdiff sample", "medsegdiff train"),
        ("/x/guided_diffusion/__main__.py", "python -m guided_diffusion sample", "python -m guided_diffusion train"),
        ("scripts/segmentation_train.py", "python scripts/segmentation_sample.py", "segmentation_train.py"),
        ("/opt/bin/pytest", "python scripts/segmentation_sample.py", "pytest"),
    ],
)
def test_commands_are_written_as_the_user_called(called, monkeypatch, start, expected, own):
    called(start, "train", "--data_dir", "x")
    monkeypatch.chdir(program.SCRIPTS.parent)
    assert command("sample", "--out_dir", "a b") == f"{expected} --out_dir 'a b'"
    assert own_name() == own
    assert command_name("sample") == expected.removeprefix("python scripts/")


def test_a_script_is_found_from_another_folder(called, monkeypatch, tmp_path):
    called("segmentation_train.py")
    monkeypatch.chdir(tmp_path)
    python, script = shlex.split(command("check"))
    assert python == "python" and os.path.samefile(script, program.SCRIPTS / "check_data.py")


def test_without_a_clone_there_are_no_scripts(called, monkeypatch, tmp_path):
    called("/opt/bin/jupyter")
    monkeypatch.setattr(program, "SCRIPTS", tmp_path / "scripts")
    assert command("check") == command_name("check") == "medsegdiff check"


def test_processes_that_are_started_name_commands_alike(called, monkeypatch):
    called("/opt/bin/medsegdiff", "train")
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", program.CALLED_BY):
        monkeypatch.setenv(name, "")  # undone afterwards
    prepare_children()
    called_by = os.environ[program.CALLED_BY]
    monkeypatch.setattr(sys, "argv", ["/x/guided_diffusion/__main__.py", "train"])
    assert called_by == door() == "medsegdiff" and os.environ["PYTHONPATH"] == str(program.SCRIPTS.parent)
