"""Folders as archives leave them: files in folders of their own name, folders of the same name in each other, links."""

import os
import re
from pathlib import Path

from ..io.files import list_files, split_suffix
from ..io.folders import walk_folders
from ..io.volume_formats import NIFTI_SUFFIXES, is_nifti


def folders_below(root):
    """(folder, {name: path of the file}) of `root` and each folder below it, sorted by their paths.

    Links are followed as by `walk_folders`. Hidden files are left out. A folder that stands for a file
    (see `unpacked`) is one of its parent's files.
    """
    for visited in walk_folders(root):
        folder, names = Path(root, visited.below), {entry.name for entry in visited.enter}
        files = {
            entry.name: folder / entry.name
            for entry in visited.entries
            if entry.name not in names and not entry.name.startswith(".")
        }
        for name in names:
            file = unpacked(folder / name)
            if file:
                files[name] = file
        visited.enter = [entry for entry in visited.enter if entry.name not in files]
        yield folder, dict(sorted(files.items()))


def unpacked(path):
    """The only NIfTI file in a folder that is called like one, as some programs unpack x_flair.nii.gz to
    x_flair.nii/FILE; None for any other folder."""
    if not (is_nifti(path) and path.is_dir()):
        return None
    found = list_files(path, NIFTI_SUFFIXES)
    return found[0] if len(found) == 1 else None


def named_file(path):
    """The path whose name says what a file is: its own, or that of the folder that stands for it (see `unpacked`)."""
    return path.parent if is_nifti(path.parent) else path


def files_of(folder, suffixes):
    """{name: path} of the files in a folder with one of these suffixes, sorted, `unpacked` ones included; {} without
    the folder."""
    if not folder.is_dir():
        return {}
    files = {path.name: path for path in list_files(folder, suffixes)}
    for path in folder.iterdir():
        if split_suffix(path)[1].lower() in suffixes and not path.name.startswith("."):
            file = unpacked(path)
            if file:
                files[path.name] = file
    return dict(sorted(files.items()))


def innermost(folder, suffixes):
    """The folder that holds the files: `folder` itself, or without files of these suffixes the one of its name in it.

    Copies of archives often hold NAME/NAME/FILES, or NAME (1)/NAME/FILES.
    """
    while folder.is_dir() and not files_of(folder, suffixes):
        name = plain_name(folder)
        below = [path for path in sorted(folder.iterdir()) if plain_name(path) == name and path.is_dir()]
        if len(below) != 1 or _is_loop(below[0]):
            break
        folder = below[0]
    return folder


def plain_name(folder):
    """The folder's name in lower case, without the " (1)" of a second download."""
    return re.sub(r" *\(\d+\)$", "", os.path.basename(os.path.abspath(folder))).lower()


def _is_loop(folder):
    """Whether a folder is a link to one that holds it."""
    if not folder.is_symlink():
        return False
    target, here = folder.resolve(), folder.parent.resolve()
    return target == here or target in here.parents
