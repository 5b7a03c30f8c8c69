"""medsegdiff VERB: every verb leads to its main; another word gives one line; commands are shown as the user called."""

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from conftest import SCRIPTS

from guided_diffusion.__main__ import run
from guided_diffusion.cli import main as module
from guided_diffusion.runtime import program
from guided_diffusion.runtime.errors import UserError
from guided_diffusion.runtime.version import VERSION


@pytest.mark.parametrize("verb", module.VERBS)
def test_a_verb_is_the_main_of_its_script(verb, monkeypatch, capsys):
    """Its help names the command as it was called."""
    monkeypatch.delenv(program.CALLED_BY, raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/medsegdiff", verb, "--help"])
    with pytest.raises(SystemExit) as stopped:
        module.main([verb, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and f"medsegdiff {verb} " in out and "scripts/" not in out
    script = (SCRIPTS / program.VERB_SCRIPTS[verb]).read_text()
    assert f"from guided_diffusion.cli.verbs import {module.VERBS[verb][0].__name__} as main\n" in script


def test_every_script_has_its_verb():
    assert set(program.VERB_SCRIPTS.values()) == {path.name for path in SCRIPTS.glob("*.py")}
    assert module.VERBS.keys() == module.OTHER_WORDS.keys() == program.VERB_SCRIPTS.keys()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_verbs_are_listed(words, capsys):
    assert module.main(words) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb}" in out and sentence in out for verb, (_, sentence) in module.VERBS.items())
    assert len(out.splitlines()) < 20 and max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("flag", ["help", "-h", "--help_all"])
def test_help_before_a_verb_is_its_help(flag, monkeypatch):
    called = []
    monkeypatch.setitem(module.VERBS, "train", (called.append, ""))
    module.main([flag, "train"])
    assert called == [["--help_all" if flag == "--help_all" else "--help"]]
    with pytest.raises(UserError, match="trian: no such verb; did you mean train"):
        module.main([flag, "trian"])


def test_the_version_is_printed(capsys):
    assert module.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"medsegdiff {VERSION}, torch 2.")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("trian", "trian: no such verb; did you mean train?"),
        ("segmentation_eval.py", "segmentation_eval.py: no such verb; did you mean evaluate?"),
        ("predict", "predict: no such verb; did you mean sample?"),
        ("check-data", "check-data: no such verb; did you mean check?"),
        ("qqq", f"qqq: no such verb; use one of {', '.join(module.VERBS)}"),
        ("--data_dir", f"--data_dir: comes before the verb; write the verb first, one of {', '.join(module.VERBS)}"),
    ],
)
def test_another_word_gives_one_line(word, line):
    with pytest.raises(UserError) as error:
        module.main([word, "x"])
    assert str(error.value) == line


def test_the_package_declares_the_command():
    project = (SCRIPTS.parent / "pyproject.toml").read_text(encoding="utf-8")
    place = re.search(r'(?ms)^\[project.scripts\]\nmedsegdiff = "([\w.:]+)"$', project)[1]
    assert EntryPoint("medsegdiff", place, "console_scripts").load() is run


def test_the_module_imports_nothing_of_the_folder_that_it_is_started_in(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parent))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    for name in ("difflib", "numpy", "importlib_metadata"):
        (tmp_path / f"{name}.py").write_text("print('a stranger')\n")
    command = [sys.executable, "-m", "guided_diffusion", "tarin"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: tarin: no such verb; did you mean train?\n"
    assert not list(Path(tmp_path).glob("__pycache__"))
