"""Whether data fit a checkpoint: the same CT window and kind of image, and no case that it was trained on."""

from pathlib import Path

from ..config.options import NO_WINDOW
from ..config.settings import HOLD_OUT_FLAGS, is_divided, is_of_earlier_version
from ..io.storage import cached
from ..runtime.console import console, counted
from ..runtime.errors import UserError, reason_of
from .cases import group_cases
from .dataset import SegmentationDataset
from .division import part_of
from .loader_checks import is_ours
from .registry import LOADERS, build_dataset, find_loader, is_loader_file
from .splits import hold_out_of

BYTES, CT, OTHER_VOLUMES = "images of 0 to 255", "CT (cut to a --ct_window)", "volumes other than CT"


def used_window(kept, asked=""):
    """The CT window of a data set as a value of `--ct_window`, "LOW,HIGH"; "" if there is no CT.

    kept: the data set's `kept_values()`. asked: the flag's value, which counts if the loader keeps no window.
    """
    if kept.get("is_picture"):
        window = None
    elif "modalities" in kept:
        window = kept["window"] if "CT" in kept["modalities"] else None
    elif "is_nifti" in kept:
        window = kept["ct_window"] if kept["is_nifti"] else None
    else:
        window = asked.split(",") if asked and asked.lower() != NO_WINDOW else None
    return ",".join(f"{float(bound):.10g}" for bound in window) if window else ""


def trained_window(config):
    """The `used_window` of a checkpoint's training. config: the checkpoint's."""
    return used_window(config.get("loader", {}), config["data"].get("ct_window", ""))


def check_channels(dataset, trained):
    """Raise `UserError` unless images have as many channels as those that a checkpoint was `trained` on."""
    if dataset.image_channels != trained:
        raise UserError(
            f"{dataset.data_dir}: images have {dataset.image_channels} channels, the checkpoint was trained with "
            f"{trained}"
        )


def check_reading(dataset, config):
    """Raise `UserError` if a checkpoint was trained on images of another kind, or on the channels in another order.

    Warns if the channels have other names, and of CT where training saw none. config: the checkpoint's.
    """
    kept, name = config.get("loader", {}), config["data"]["data_name"].upper()
    there = _kinds(kept, find_loader(name, named_by="the checkpoint") if name in LOADERS else None)
    here = _kinds(dataset.kept_values(), type(dataset))
    if not there or not here:
        return
    if any(there[k % len(there)] != here[k % len(here)] for k in range(max(len(there), len(here)))):
        raise UserError(
            f"{dataset.data_dir}: holds {_kinds_text(here)}, the checkpoint was trained on {_kinds_text(there)}; "
            "take data of that kind, or another checkpoint"
        )
    if CT not in here and _has_ct(dataset.kept_values()) and _has_ct(kept) is False:
        console().warning(
            f"warning: {dataset.data_dir}: holds CT in Hounsfield units, but the checkpoint saw other volumes: it was "
            "trained on z-scores, as MRI has them"
        )
    old, new = (", ".join(values.get("modalities", ())) for values in (kept, dataset.kept_values()))
    if old and new and old.upper() != new.upper():
        message = f"{dataset.data_dir}: has the channels {new}, the checkpoint was trained on {old}"
        if sorted(old.upper().split(", ")) == sorted(new.upper().split(", ")):
            raise UserError(f"{message}; they must be in the same order")
        console().warning(f"warning: {message}; they must mean the same")


def is_read_alike(config):
    """Whether the kind of a checkpoint's images is known, so that `check_reading` compares it with another loader's.

    config: the checkpoint's.
    """
    name = config["data"]["data_name"].upper()
    return bool(
        _kinds(config.get("loader", {}), find_loader(name, named_by="the checkpoint") if name in LOADERS else None)
    )


def _kinds(kept, loader):
    """The kind of a data set's images, for each channel or one for all; () if it is unknown.

    kept: its `kept_values()`. loader: its class, or None.
    """
    if kept.get("is_picture"):
        return (BYTES,)
    if "modalities" in kept:
        has_window = bool(kept.get("window", True))
        return tuple(CT if name == "CT" and has_window else OTHER_VOLUMES for name in kept["modalities"])
    if "is_nifti" in kept:
        return (BYTES if not kept["is_nifti"] else CT if kept["ct_window"] else OTHER_VOLUMES,)
    is_plain = loader is not None and all(
        getattr(loader, name) is getattr(SegmentationDataset, name) for name in ("normalise", "normalise_raw")
    )
    return (BYTES,) if is_plain else ()


def _has_ct(kept):
    """Whether a data set holds CT, with a window or without one; None if it is unknown. kept: its `kept_values()`."""
    if kept.get("is_picture"):
        return None
    if "modalities" in kept:
        return "CT" in kept["modalities"]
    return kept["ct_window"] is not None if "ct_window" in kept else None


def _kinds_text(kinds):
    """The kinds for a message."""
    return kinds[0] if len(set(kinds)) == 1 else "channels of " + ", ".join(kinds)


# ---- cases that chose the checkpoint, or were trained on -------------------------------------------------------------


def selection_warning(dataset):
    """A warning where validation cases stand for test cases that the data lack; None otherwise.

    Training chooses best.pt by the Dice of these cases.
    """
    if dataset.split != "test" or not any(case.masks for case in dataset.cases) or part_of(dataset) != "val":
        return None
    count = len(group_cases(dataset.cases))
    cases = "validation case stands" if count == 1 else f"{count} validation cases stand"
    return (
        f"warning: {dataset.data_dir} has no test cases: its {cases} for them, but training also chooses best.pt by "
        "them, so that their Dice is too good; --test_fraction in training keeps others apart"
    )


def leakage_warning(dataset, units, trained):
    """A warning with the number of `units` of a data set that were trained on; None if none is known to be.

    trained: the checkpoint's "data_name", "data_dir" and hold-out options. Files are compared if one of the two folders
    holds the other or both are the same. Otherwise the data may have been moved or copied, and names are compared.
    """
    names = trained.get("data_name"), trained.get("data_dir", "")
    if not all(isinstance(name, str) for name in names) or not names[0]:
        return None
    if not trained.get("data_dir"):  # a checkpoint away from its run's config.yaml
        return _absent_folder_warning(dataset, trained)
    there, here = cached(trained["data_dir"]).resolve(), dataset.data_dir.resolve()
    is_elsewhere = there != here and there not in here.parents and here not in there.parents
    if there == Path(there.anchor) or Path.home().resolve().is_relative_to(there):  # too much to look through
        return f"warning: which cases were trained on is unknown: the checkpoint names {there}, no folder of data"
    try:
        loader = _trained_loader(dataset, trained["data_name"])
        every = build_dataset(loader, there, image_size=1, split="train", named_by="the checkpoint").cases
        if is_elsewhere and is_of_earlier_version(trained):
            names = {case.name for case in every}  # which of them it held out is unknown
            return _same_names_warning(dataset, units, names, names, trained)
        held = hold_out_of(trained)
        cases = held.divide(every)["train"] if held else every
    except (UserError, OSError) as error:  # the folder was moved or changed since, or divided by an earlier version
        unknown = f"warning: which cases were trained on is unknown: {reason_of(error)}"
        return _absent_folder_warning(dataset, trained) if is_elsewhere else unknown
    if is_elsewhere:
        names, known = ({case.name for case in those} for those in (cases, every))
        return _same_names_warning(dataset, units, names, known, trained)
    images = {_image_key(case) for case in cases}
    count = sum(_image_key(unit.cases[0]) in images for unit in units)
    if not count:
        return None
    return (
        f"warning: {count} of {counted(len(units), 'case')} {'was' if count == 1 else 'were'} trained on: Dice on "
        "training images says nothing about new ones; keep test images apart, by --val_fraction or a split.json"
    )


def _trained_loader(dataset, data_name):
    """The loader of training: its name, or the data set's class where that is a user's own of the same class name.

    A user's own loader runs only where the command names it; then the class is at hand, and its file may have moved.
    """
    same = is_loader_file(data_name) and not is_ours(type(dataset))
    return type(dataset) if same and data_name.rpartition(":")[2] == type(dataset).__name__ else data_name


def _same_names_warning(dataset, units, names, known, trained):
    """The warning for cases of another folder with the `names` of training cases.

    known: the names of all cases there, held-out ones too.
    """
    count, remedy = sum(unit.cases[0].name in names for unit in units), _leakage_remedy(dataset, trained)
    if not count or 2 * sum(unit.cases[0].name in known for unit in units) < len(units):  # a few may agree by chance
        return None
    return (
        f"warning: {count} of {counted(len(units), 'case')} {'has the name' if count == 1 else 'have the names'} of "
        f"training cases of {trained['data_dir']}: if the images are the same, their Dice says nothing about new ones"
        + (f"; {remedy}" if remedy else "")
    )


def _absent_folder_warning(dataset, trained):
    """The warning if training held cases out of a folder that is absent; the data set may be that folder, moved."""
    remedy = _leakage_remedy(dataset, trained)
    if not remedy:
        return None
    there = f"{trained['data_dir']}, which is not here" if trained.get("data_dir") else "a folder that is unknown here"
    return f"warning: training held cases out of {there}; if these are the same data, {remedy}"


def _leakage_remedy(dataset, trained):
    """How to sample the held-out cases. "" if nothing was held out, or `dataset` does so."""
    if not is_divided(trained) or dataset.hold_out is not None:
        return ""
    if is_of_earlier_version(trained):
        return "only version 0.2.0 takes the held-out cases"
    flags = " ".join(f"--{name} {trained[name]}" for name in HOLD_OUT_FLAGS if trained.get(name))
    return f"{flags} takes the held-out cases"


def _image_key(case):
    """What identifies a case's image: its file, and its name, since one file may hold the images of many cases."""
    return case.images[0].resolve(), case.name
