"""Whether cases that are sampled or scored were trained on, so that their Dice says nothing about new images."""

from .data import build_dataset
from .errors import UserError
from .split import hold_out_of
from .storage import cached


def leakage_warning(dataset, units, trained):
    """A line that says how many of the `units` of a data set were trained on; None when none was, or none is known.

    trained: the checkpoint's "data_name", "data_dir" and what it held out. Its training cases are looked up only
    where that folder is the data set's, or lies in it or around it.
    """
    if not trained.get("data_name") or not trained.get("data_dir"):
        return None
    there, here = cached(trained["data_dir"]).resolve(), dataset.data_dir.resolve()
    if there != here and there not in here.parents and here not in there.parents:
        return None
    try:
        held = hold_out_of(trained)
        cases = build_dataset(trained["data_name"], there, image_size=1, split="train", hold_out=held).cases
    except (UserError, OSError):  # it has been moved or changed since: nothing is known
        return None
    images = {_image_of(case) for case in cases}
    count = sum(_image_of(unit.cases[0]) in images for unit in units)
    if not count:
        return None
    return (
        f"warning: {count} of {len(units)} cases were trained on: Dice on training images says nothing about new ones; "
        "keep test images apart, by --val_fraction or a split.json"
    )


def _image_of(case):
    """What tells the case's image from others: its file and, as a file may hold the images of many cases, its name."""
    return case.images[0].resolve(), case.name
