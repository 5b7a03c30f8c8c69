"""The mains of the verbs: what they read without torch, and what they lack."""

import signal
import subprocess
import sys

import pytest

from guided_diffusion.cli import main, verbs
from guided_diffusion.runtime.errors import UserError, interruptible_imports

WITHOUT_TORCH = """
import contextlib, io, sys
sys.argv[0] = "medsegdiff"
from guided_diffusion.cli.main import VERBS, main
from guided_diffusion.runtime.errors import UserError

lines = [[verb, *words] for verb in VERBS for words in (["--help"], ["--help_all"], ["--lerning_rate", "1"])]
for line in [["--version"], ["--help"], *lines, *map(str.split, sys.argv[1:])]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(line)
        except (SystemExit, UserError) as end:
            assert isinstance(end, UserError) or out.getvalue(), line
    for name in ("torch", "torchvision", "scipy", "skimage", "tensorboard"):
        assert name not in sys.modules, (line, name)
"""


def test_help_and_mistakes_need_no_torch(tmp_path):
    """Neither --version, nor a verb's help, nor the error of a flag, of a file of options or of a missing flag."""
    (tmp_path / "run.yaml").write_text("lr: fast\n")
    lines = [f"train --config {tmp_path}/run.yaml", "train --recipe none --lr -1", "sample --model_path runs/first"]
    lines += ["evaluate --num_workers 0", "export runs/first", "check --num_workers 0"]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("verb", "words", "missing"),
    [
        ("sample", ["--model_path", "x"], "data_dir"),
        ("sample", ["--data_dir", "x"], "model_path"),
        ("check", [], "data_dir"),
        ("evaluate", [], "pred_dir"),
        ("export", ["runs/first"], "out_dir"),
        ("export", ["--out", "x"], "model_path"),
    ],
)
def test_a_missing_flag_is_named(verb, words, missing):
    with pytest.raises(UserError, match=f"--{missing}: is needed"):
        main.main([verb, *words])


def test_ctrl_c_ends_the_imports_and_interrupts_what_follows(monkeypatch):
    """During the import of a verb's module the signal ends the process; the work itself gets a KeyboardInterrupt."""
    monkeypatch.setattr("guided_diffusion.cli.check_data.run_check", lambda *_: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    try:
        interruptible_imports()
        assert signal.getsignal(signal.SIGINT) is not before
        with pytest.raises(KeyboardInterrupt):
            verbs.check_main(["--data_dir", "x"])
    finally:
        signal.signal(signal.SIGINT, before)


def test_words_as_flags():
    assert verbs.as_flags(["runs/a", "--out=b", "--pt2"]) == ["--model_path", "runs/a", "--out_dir=b", "--pt2"]
    assert verbs.as_flags(["--model_path", "a", "--out", "b"]) == ["--model_path", "a", "--out_dir", "b"]
    assert verbs.as_flags(["--outer", "x"]) == ["--outer", "x"]
    assert verbs.as_flags(["runs/a", "--model-path=b"]) == ["runs/a", "--model-path=b"]  # refused: two models are named
