"""In what two runs differ whose results are compared: the checkpoint, and the settings of sampling and of training."""

from pathlib import PurePosixPath

from .results import OLDER
from .split import hold_out_of, split_of
from .storage import is_same_folder

UNTOLD = {
    *("out_dir", "val_dir", "resume_checkpoint", "cache_dir"),  # where things lie
    *("log_interval", "save_interval", "keep_checkpoints", "sample_interval", "val_cases", "overfit"),
    *("save_samples", "uncertainty_maps", "debug"),  # what is written beside the masks
    *("num_workers", "microbatch", "use_checkpoint", "compile", "fsdp"),  # how the same is computed
    *("predict_xstart", "use_fp16"),  # other names of --objective and --precision
}
GROUPS = ("data", "model", "diffusion", "train", "device")  # of a checkpoint's options
PLACES = ("data_dir", "data_name")  # which may be a loader's path
SHOWN = 4  # numbers of a list
NOT_RECORDED = "not recorded"
OFF = (None, "", [], NOT_RECORDED)  # manifests of different age may write it in different ways


def apart(first, second):
    """What sets two runs apart, by the manifests of their results, dicts; {} for a folder without one.

    Returns {"differences": a list of {"name", "first", "second"}, or None where either has no manifest; "warning": a
    line where they were sampled from different cases, or None}. Names are "checkpoint", "sampling NAME" and "training
    NAME"; values are numbers, texts, True or False, and None or "" for what is off.
    """
    if not (first and second):
        return {"differences": None, "warning": None}
    return {
        "differences": _checkpoint(first, second) + _settings(first, second),
        "warning": _other_cases(first, second),
    }


def format_differences(differences):
    """Lines for the console, one for each difference."""
    if not differences:
        return ["settings: the same"]
    lines = [f"  {one['name']}: {_shown(one['first'])} -> {_shown(one['second'])}" for one in differences]
    return ["settings that differ, this -> other:", *lines]


def _checkpoint(first, second):
    digests = [manifest.get("checkpoint_sha256", "") for manifest in (first, second)]
    if digests[0] == digests[1]:
        return []
    told = [f"{manifest.get('checkpoint')} of step {manifest.get('step')}" for manifest in (first, second)]
    if told[0] == told[1]:  # it was written anew in between
        told = [f"{text}, SHA-256 {digest[:8]}..." for text, digest in zip(told, digests, strict=True)]
    return [_pair("checkpoint", *told)]


def _settings(first, second):
    found = []
    for group, of in (("sampling", _sampling), ("training", _training)):
        one, other = of(first), of(second)
        for name in dict.fromkeys((*one, *other)):
            values = [values.get(name, NOT_RECORDED) for values in (one, other)]
            if name in UNTOLD or _is_same(name, *values):
                continue
            found.append(_pair(f"{group} {name}", *(_short(name, value) for value in values)))
    return found


def _sampling(manifest):
    data = {name: value for name, value in manifest.get("data", {}).items() if name in ("ct_window", "classes")}
    return OLDER | data | manifest.get("settings", {})


def _training(manifest):
    config = manifest.get("config", {})
    return {name: value for group in GROUPS for name, value in config.get(group, {}).items()}


def _pair(name, first, second):
    return {"name": name, "first": first, "second": "as many others" if first == second else second}


def _is_same(name, one, other):
    if name in PLACES and isinstance(one, str) and isinstance(other, str):
        return _place(one) == _place(other)
    return one == other or (one in OFF and other in OFF)


def _place(path):
    """What tells a data set by its path, wherever it lies: the last part, and of ISIC/Train the one before as well."""
    *_, before, last = ("", *PurePosixPath(path.replace("\\", "/")).parts)
    return (before, last) if split_of(last) else last


def _short(name, value):
    """A value as it is, but a list as a text: the steps that were taken, and all long ones, by their count."""
    if not isinstance(value, list):
        return value
    return str(len(value)) if name == "timesteps" or len(value) > SHOWN else ", ".join(map(str, value))


def _shown(value):
    return "none" if value in (None, "") else value


def _other_cases(first, second):
    """A warning where the two were not sampled from the cases of one split of one folder, or None."""
    one, other = first.get("data", {}), second.get("data", {})
    if not (one.get("data_dir") and other.get("data_dir")):
        return None
    same_split = one.get("split", OLDER["split"]) == other.get("split", OLDER["split"])
    if same_split and hold_out_of(one) == hold_out_of(other) and is_same_folder(one["data_dir"], other["data_dir"]):
        return None
    return (
        f"warning: the two runs were not sampled from the same cases: this one has {_cases(one)}, the other "
        f"{_cases(other)}. Cases are paired by their names and scored by the same truth"
    )


def _cases(data):
    split, held = data.get("split", OLDER["split"]), hold_out_of(data)
    told = f"{'all' if split == 'all' else f'the {split}'} cases of {data['data_dir']}"
    if held is None:
        return told
    key = f" --group_key {held.group_key}" if held.group_key else ""
    return f"{told} by --val_fraction {held.fraction:g} --split_seed {held.seed}{key}"
