"""The verbs of this program, and how the user called it, so that messages name commands in the same way."""

import os
import shlex
import site
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"  # not installed: only a clone has them
VERB_SCRIPTS = {
    "train": "segmentation_train.py",
    "plan": "segmentation_plan.py",
    "sample": "segmentation_sample.py",
    "evaluate": "segmentation_eval.py",
    "check": "check_data.py",
    "export": "export.py",
    "demo": "demo.py",
}
MEDSEGDIFF, MODULE, SCRIPT = DOORS = ("medsegdiff", "python -m guided_diffusion", "python scripts/")
CALLED_BY = "MEDSEGDIFF_CALLED_BY"  # the environment variable that hands the door on to processes that are started


def door():
    """One of `DOORS`: how the user called this program. A program that imports the package counts as a clone's script
    where there is a clone, else as `medsegdiff`."""
    if os.environ.get(CALLED_BY) in DOORS:
        return os.environ[CALLED_BY]
    called = Path(sys.argv[0] if sys.argv else "")
    if called.stem == MEDSEGDIFF:
        return MEDSEGDIFF
    if called.name == "__main__.py" and called.parent.name == "guided_diffusion":
        return MODULE
    return SCRIPT if SCRIPTS.is_dir() else MEDSEGDIFF


def command(verb, *words):
    """The command of a verb with these words, ready for the shell: `medsegdiff check`, or as the user called it."""
    how = door()
    if how == SCRIPT:
        script = SCRIPTS / VERB_SCRIPTS[verb]
        start = ["python", script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script]
    else:
        start = [*how.split(), verb]
    return shlex.join(map(str, [*start, *words]))


def command_name(verb):
    """The name of a verb's command in prose: `medsegdiff check`, or its script's, check_data.py."""
    return VERB_SCRIPTS[verb] if door() == SCRIPT else command(verb)


def own_name():
    """The name of the command that this process runs, for a lock; "python" for any other program."""
    called, *rest = sys.argv or [""]
    if door() != SCRIPT and rest and rest[0] in VERB_SCRIPTS:
        return command_name(rest[0])
    return os.path.basename(called) or "python"


def prepare_children():
    """Let `python -m guided_diffusion` in processes to start import this package, and name commands as this one does.

    It then imports no module of the folder that it is in. That folder may hold a stranger's files: a
    guided_diffusion.py among them would run (before Python 3.11 it still does).
    """
    os.environ[CALLED_BY] = door()
    os.environ["PYTHONSAFEPATH"] = "1"
    root, path = str(SCRIPTS.parent), os.environ.get("PYTHONPATH")
    if root not in (*site.getsitepackages(), site.getusersitepackages()):  # those come last, after Python's own
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, path)))
