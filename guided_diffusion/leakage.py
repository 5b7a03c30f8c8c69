"""Whether cases that are sampled or scored were trained on, so that their Dice says nothing about new images."""

from .data import build_dataset
from .io.storage import cached
from .runtime.console import counted
from .runtime.errors import UserError
from .split import HOLD_OUT_FLAGS, hold_out_of


def leakage_warning(dataset, units, trained):
    """A line that says how many of the `units` of a data set were trained on; None when none was, or none is known.

    trained: the checkpoint's "data_name", "data_dir" and what it held out. Where that folder is the data set's, or lies
    in it or around it, files are compared; else the data may have been moved or copied, and names are.
    """
    if not trained.get("data_name") or not trained.get("data_dir"):
        return None
    there, here = cached(trained["data_dir"]).resolve(), dataset.data_dir.resolve()
    is_elsewhere = there != here and there not in here.parents and here not in there.parents
    try:
        held = hold_out_of(trained)
        cases = build_dataset(trained["data_name"], there, image_size=1, split="train", hold_out=held).cases
    except (UserError, OSError):  # it has been moved or changed since: nothing is known
        return _of_another_machine(dataset, trained) if is_elsewhere else None
    if is_elsewhere:
        return _of_a_copy(dataset, units, {case.name for case in cases}, trained)
    images = {_image_of(case) for case in cases}
    count = sum(_image_of(unit.cases[0]) in images for unit in units)
    if not count:
        return None
    return (
        f"warning: {count} of {counted(len(units), 'case')} {'was' if count == 1 else 'were'} trained on: Dice on "
        "training images says nothing about new ones; keep test images apart, by --val_fraction or a split.json"
    )


def _of_a_copy(dataset, units, names, trained):
    """The warning where cases of another folder have the names of training cases. A few may by chance."""
    count = sum(unit.cases[0].name in names for unit in units)
    if 2 * count < len(units):
        return None
    return (
        f"warning: {count} of {counted(len(units), 'case')} {'has the name' if count == 1 else 'have the names'} of "
        f"training cases of {trained['data_dir']}: if the images are the same, their Dice says nothing about new ones"
        + _leakage_remedy(dataset, trained)
    )


def _of_another_machine(dataset, trained):
    """The warning where training held cases out of a folder that is not there, which may be this one, moved."""
    remedy = _leakage_remedy(dataset, trained)
    if not remedy:
        return None
    there = trained["data_dir"]
    return f"warning: training held cases out of {there}, which is not here: if these are the same data{remedy}"


def _leakage_remedy(dataset, trained):
    """How to sample what was held out, where the data are not divided so already."""
    if not trained.get("val_fraction") or dataset.hold_out is not None:
        return ""
    flags = " ".join(f"--{name} {trained[name]}" for name in HOLD_OUT_FLAGS if trained.get(name))
    return f"; {flags} takes those that were held out"


def _image_of(case):
    """What tells the case's image from others: its file and, as a file may hold the images of many cases, its name."""
    return case.images[0].resolve(), case.name
