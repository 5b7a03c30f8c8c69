"""Hints for the user: symptoms of a run that goes wrong with remedies, and the next command to run."""

import math

from ..data.registry import is_loader_file
from ..data.splits import split_folders, split_of
from ..io.storage import folder_and_name, is_remote, join, list_folders
from ..runtime.errors import UserError
from ..runtime.program import command

EMPTY = FULL = 0.5  # share of the members
AGREEMENT = 0.5  # mean Dice of pairs of members
LEARNED = 0.5  # a Dice at which a flat loss is no symptom
FLAT = 0.01  # relative change of the mean loss from one validation to the next
CHECK = "--overfit 4 (does it learn these data at all?)"
SYMPTOM_NAMES = {
    "empty": "most samples empty",
    "full": "most samples full",
    "disagreement": "samples that disagree",
    "flat": "a loss that does not fall",
}


def symptoms(figures, losses, diffusion, train):
    """The symptoms that a validation shows: {a name in `SYMPTOM_NAMES`: a sentence with remedies}.

    figures: of the `ValidationResult`. losses: the mean training loss before the previous validation and since; each
    may be None. diffusion, train: the run's option values, dicts.
    """
    found, check = {}, "" if train["overfit"] else CHECK  # a check cannot advise itself
    for_masks, for_fewer = (_for_masks(diffusion, check or other) for other in ("a higher --lr", "more --max_steps"))
    if figures["empty"] >= EMPTY:
        found["empty"] = (
            f"{figures['empty']:.0%} of the samples are empty though their truth is not. In the first few hundred "
            f"steps small objects are often not found yet. If this persists, {for_masks}, and check the truth in the "
            "picture: masks that are nearly empty may have been read wrongly"
        )
    if figures["full"] >= FULL:
        found["full"] = (
            f"{figures['full']:.0%} of the samples are foreground nearly everywhere though their truth is not. Check "
            f"the truth in the picture (is it inverted?), try a lower --lr, and {for_fewer}"
        )
    if figures["agreement"] < AGREEMENT and "empty" not in found:
        found["disagreement"] = (
            f"the samples of one image hardly agree (Dice {figures['agreement']:.2f} among them): they follow the "
            f"noise and not yet the image. Train longer; if this persists, {for_masks}"
        )
    before, now = losses
    learned = figures["dice"] if math.isfinite(figures["dice"]) else figures["coarse_dice"]
    if before is not None and now is not None and learned < LEARNED and before - now < FLAT * abs(before):
        found["flat"] = (
            f"the loss does not fall ({before:.4g} before the last validation, {now:.4g} since) and Dice is "
            f"{learned:.2f}. Try --lr {3 * train['lr']:.1g} or {train['lr'] / 3:.1g}{check and f', and {check}'}"
        )
    return found


def _for_masks(diffusion, last):
    """Advice: the options that help a network find masks and that this run lacks, and last `last`."""
    tries = []
    if diffusion["objective"] != "x0":
        tries.append("--objective x0 (it finds masks many times sooner)")
    if diffusion["input_scale"] > 0.5:
        tries.append("--input_scale 0.1")
    if diffusion["objective"] == "x0" and diffusion["mask_loss"] == "mse":
        tries.append("--mask_loss bce_dice")
    return f"try {' or '.join([*tries, last])}"


# ---- the next command ----------------------------------------------------------------------------------------------


def sampling_command(data_dir, fetched, folder, checkpoint, data_name=""):
    """The command that samples a checkpoint, ready for the shell.

    data_dir: of the training, local or remote; fetched: its local path. folder: the run's `WorkFolder`; checkpoint: the
    file in it, a `Path`. data_name: of the training; a user's own loader runs only where the command names it.
    """
    results = checkpoint.stem.replace("model", "results")  # each checkpoint gets its own results folder
    testing = remote_testing_folder(data_dir, fetched) if is_remote(data_dir) else testing_folder(fetched)
    words = ["--model_path", folder.shown(checkpoint.name), "--data_dir", testing, "--out_dir", folder.shown(results)]
    words += ["--data_name", data_name] if is_loader_file(data_name) else []
    return command("sample", *words)


def resuming_command(folder, checkpoint, data_name, max_minutes, out_dir=""):
    """The command that goes on from a run's checkpoint, ready for the shell; the checkpoint has the other options.

    folder: the run's `WorkFolder`; checkpoint: the name of the file in it. data_name: as for `sampling_command`.
    max_minutes: the new time limit. out_dir: another folder to write to; "": the run's own.
    """
    words = ["--resume_checkpoint", folder.shown(checkpoint), *(["--out_dir", out_dir] if out_dir else [])]
    words += ["--data_name", data_name] if is_loader_file(data_name) else []
    return command("train", *words, "--max_minutes", f"{max_minutes:g}")


def checking_command(data):
    """The command that checks the data of a run, ready for the shell. data: its option values, a dict."""
    words = ["--data_name", data["data_name"], "--data_dir", data["data_dir"]]
    return command("check", *words, *(["--classes", data["classes"]] if data["classes"] else []))


def testing_folder(data_dir):
    """The folder of test images beside or below the training folder `data_dir`, else that of validation images; without
    any, the training images'."""
    if split_of(data_dir.name) == "train":
        folders = [path for path in sorted(data_dir.parent.iterdir(), reverse=True) if path.is_dir()]
        beside = {split_of(path.name): path for path in folders}
        return beside.get("test") or beside.get("val") or data_dir
    try:
        split_folders(data_dir, "test")
    except UserError:  # it holds train/ alone
        return split_folders(data_dir, "train")[0]
    return data_dir


def remote_testing_folder(data_dir, fetched):
    """The same for a remote `data_dir`. fetched: its local path; folders beside it may not have been fetched."""
    parent, name = folder_and_name(data_dir)
    if split_of(name) == "train":
        beside = {split_of(other): other for other in reversed(list_folders(parent))}
        other = beside.get("test") or beside.get("val")
        return join(parent, other) if other else data_dir
    testing = testing_folder(fetched)
    return data_dir if testing == fetched else join(data_dir, testing.name)
