"""Writes what is fitted to results into the checkpoint that made them, from which sampling reads it."""

from ..checkpoint import ExportedModel, checkpoint_digest, checkpoint_file, load_checkpoint, save_checkpoint
from ..runtime.errors import UserError

FIT_FLAGS = ("fit_temperature", "fit_cleanup", "fit_threshold")  # whose value is the checkpoint
MOST_STATES = 100  # of one checkpoint whose results are known


def check_origin(path, manifest, flag="fit_temperature"):
    """The `Checkpoint` at `path`, and the SHA-256 of its file before any temperature was written into it.

    flag: whose value the path is. Raises `UserError` where the results with this manifest were not sampled with the
    checkpoint, as it is or as it was before something else was fitted to the same or other results.
    """
    checkpoint = load_checkpoint(path, where=f"--{flag} {path}")
    if isinstance(checkpoint, ExportedModel):
        raise UserError(f"--{flag} {path}: is an exported model; fit into the run's checkpoint, then export it again")
    digest = checkpoint_digest(path)
    original = checkpoint.config.get("calibration", {}).get("checkpoint_sha256", digest)
    earlier = checkpoint.config.get("masks", {}).get("fitted_on", ())
    if manifest.get("checkpoint_sha256") not in (digest, original, *earlier):
        raise UserError(
            f"--{flag} {path}: the results were made with {manifest.get('checkpoint', 'another program')}, not with "
            "this file as it is; sample with it first"
        )
    return checkpoint, original


def store_fit(checkpoint, path, manifest, **fits):
    """Write the checkpoint with these entries of config["masks"], whole or not at all; None removes one.

    manifest: of the results, which from now on are known as the checkpoint's own.
    """
    masks = checkpoint.config.get("masks", {}) | fits
    states = [*masks.get("fitted_on", ()), manifest["checkpoint_sha256"]]
    masks["fitted_on"] = list(dict.fromkeys(states))[-MOST_STATES:]
    checkpoint.config["masks"] = {name: value for name, value in masks.items() if value is not None}
    save_checkpoint(checkpoint, checkpoint_file(path))


def split_of_results(manifest):
    """The split of results, by their manifest."""
    return manifest.get("data", {}).get("split", "test")


def shown_split(split):
    """The split of results before a noun in messages, as "validation "; "" for all cases."""
    return {"val": "validation ", "train": "training ", "all": ""}.get(split, f"{split} ")


def split_warning(split):
    """A line where other than validation cases were fitted to, else ""."""
    if split == "test":
        return "these were test cases, so later figures on them are too good; fit on --split val"
    if split in ("train", "all"):
        return "on cases that were trained on a network is surer than on new ones; fit on --split val"
    return ""
