"""How training read its images, as a checkpoint keeps it: the CT window for whoever goes on, and whether data fit."""

from ..config.settings import HOLD_OUT_FLAGS
from ..io.storage import cached
from ..runtime.console import console, counted
from ..runtime.errors import UserError
from .dataset import SegmentationDataset
from .registry import LOADERS, build_dataset, find_loader
from .splits import hold_out_of

BYTES, CT, OTHER_VOLUMES = "images of 0 to 255", "CT (cut to a --ct_window)", "volumes other than CT"


def used_window(kept, asked=""):
    """The window that CT was cut to, as `--ct_window` is written; "" where there is no CT.

    kept: `kept_values()` of the data set. asked: what the flag said, which counts where the loader does not tell.
    """
    if "modalities" in kept:
        window = kept["window"] if "CT" in kept["modalities"] else None
    elif "is_nifti" in kept:
        window = kept["ct_window"] if kept["is_nifti"] else None
    else:
        window = asked.split(",") if asked else None
    return ",".join(f"{float(bound):.10g}" for bound in window) if window else ""


def trained_window(config):
    """The `used_window` of a checkpoint's training."""
    return used_window(config.get("loader", {}), config["data"].get("ct_window", ""))


def check_reading(dataset, config):
    """Raise `UserError` where images are of another kind than those a checkpoint was trained on, or their channels in
    another order; warn where channels have other names. config: the checkpoint's."""
    kept, name = config.get("loader", {}), config["data"]["data_name"].upper()
    there = _kinds(kept, find_loader(name) if name in LOADERS else None)
    here = _kinds(dataset.kept_values(), type(dataset))
    if not there or not here:
        return
    if any(there[k % len(there)] != here[k % len(here)] for k in range(max(len(there), len(here)))):
        raise UserError(
            f"{dataset.data_dir}: holds {_kinds_text(here)}, the checkpoint was trained on {_kinds_text(there)}; "
            "take data of that kind, or another checkpoint"
        )
    old, new = (", ".join(values.get("modalities", ())) for values in (kept, dataset.kept_values()))
    if old and new and old.upper() != new.upper():
        told = f"{dataset.data_dir}: has the channels {new}, the checkpoint was trained on {old}"
        if sorted(old.upper().split(", ")) == sorted(new.upper().split(", ")):
            raise UserError(f"{told}; they must be in the same order")
        console().warning(f"warning: {told}; they must mean the same")


def _kinds(kept, loader):
    """Of what kind the images of a data set are, of each channel or, in one, of all; () where it does not say.

    kept: its `kept_values()`. loader: its class, None for one that is not known.
    """
    if "modalities" in kept:
        return tuple(CT if name == "CT" else OTHER_VOLUMES for name in kept["modalities"])
    if "is_nifti" in kept:
        return (BYTES if not kept["is_nifti"] else CT if kept["ct_window"] else OTHER_VOLUMES,)
    is_plain = loader is not None and all(
        getattr(loader, name) is getattr(SegmentationDataset, name) for name in ("normalise", "normalise_raw")
    )
    return (BYTES,) if is_plain else ()


def _kinds_text(kinds):
    """The kinds for a message: the one kind, or that of each channel."""
    return kinds[0] if len(set(kinds)) == 1 else "channels of " + ", ".join(kinds)


# ---- Whether cases that are sampled or scored were trained on, so that their Dice says nothing about new images -----


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
