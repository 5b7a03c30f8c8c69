"""How training read its images, as a checkpoint keeps it: the CT window for whoever goes on, and whether data fit."""

from .data import SegmentationDataset, find_loader
from .registry import LOADERS
from .runtime.console import console
from .runtime.errors import UserError

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
