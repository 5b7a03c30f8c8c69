"""Commands to go on with: sampling what has been trained, with the test images that go with the training images, or
looking at the data."""

import shlex
from pathlib import Path

from .data.splits import SPLIT_FOLDERS, split_folders
from .io.storage import folder_and_name, is_remote, join, list_folders
from .runtime.errors import UserError

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def sampling_command(data_dir, fetched, folder, checkpoint):
    """The command that samples the checkpoint of this name in a `WorkFolder`, ready for the shell.

    data_dir: of the training, local or remote; fetched: where it is on this machine.
    """
    results = checkpoint.stem.replace("model", "results")  # each checkpoint's masks in a folder apart
    testing = remote_testing_folder(data_dir, fetched) if is_remote(data_dir) else testing_folder(fetched)
    words = ["--model_path", folder.shown(checkpoint.name), "--data_dir", testing, "--out_dir", folder.shown(results)]
    return _command("segmentation_sample.py", words)


def checking_command(data):
    """The command that looks at the data of a run, ready for the shell. data: its option values, a dict."""
    words = ["--data_name", data["data_name"], "--data_dir", data["data_dir"]]
    return _command("check_data.py", [*words, "--classes", data["classes"]] if data["classes"] else words)


def _command(name, words):
    script = SCRIPTS / name
    if script.is_relative_to(Path.cwd()):
        script = script.relative_to(Path.cwd())
    return shlex.join(map(str, ["python", script, *words]))


def testing_folder(data_dir):
    """Where the test images are that go with the training images of `data_dir`; where the training images are if
    there are none."""
    if data_dir.name.lower() in SPLIT_FOLDERS["train"]:
        beside = [path for path in sorted(data_dir.parent.iterdir()) if path.name.lower() in SPLIT_FOLDERS["test"]]
        return beside[0] if beside else data_dir
    try:
        split_folders(data_dir, "test")
    except UserError:  # it holds train/ alone
        return split_folders(data_dir, "train")[0]
    return data_dir


def remote_testing_folder(data_dir, fetched):
    """The same of a remote `data_dir`; fetched: where it is on this machine, which need not have what is beside it."""
    parent, name = folder_and_name(data_dir)
    if name.lower() in SPLIT_FOLDERS["train"]:
        beside = [other for other in list_folders(parent) if other.lower() in SPLIT_FOLDERS["test"]]
        return join(parent, beside[0]) if beside else data_dir
    testing = testing_folder(fetched)
    return data_dir if testing == fetched else join(data_dir, testing.name)
