"""The folders in a run's options: a checkpoint holds their digests, and whoever has the folder knows it again."""

import os
from pathlib import Path

from ..io.storage import folder_digest, is_remote

UNNAMED = ("", "auto", "none")  # values that name no folder


def without_folders(config):
    """A checkpoint's config without the folders of this machine: their SHA-256 stands in their place, in "digests".

    A loader's file keeps its last name, my.py:Class.
    """
    data, train, digests = dict(config["data"]), dict(config["train"]), dict(config.get("digests", {}))
    for group, name in ((data, "data_dir"), (data, "cache_dir"), (train, "val_dir")):
        if group.get(name, "") not in UNNAMED:
            digests[name] = folder_digest(group[name])
            del group[name]
    data.pop("data_dir", None)
    for name in ("out_dir", "resume_checkpoint", "init_from", "encoder_weights"):
        train.pop(name, None)
    if ".py:" in data.get("data_name", ""):
        data["data_name"] = os.path.basename(data["data_name"])
    return config | {"data": data, "train": train, "digests": digests}


def with_folders(config, record, folders=()):
    """A checkpoint's config with its folders named again, as far as their digests are those of known folders.

    record: the values of the run's config.yaml, or {}. folders: others that data_dir may be. data_dir and val_dir are
    "" where they stay unknown; the config of an older checkpoint, which names them, is returned as it is.
    """
    if "digests" not in config:
        return config
    data, train = dict(config["data"]), dict(config["train"])
    for group, name, others in ((data, "data_dir", folders), (data, "cache_dir", ()), (train, "val_dir", ())):
        digest = config["digests"].get(name)
        if digest and group.get(name, "") in UNNAMED:
            group[name] = next((str(place) for place in (record.get(name), *others) if _is_place(place, digest)), "")
    data.setdefault("data_dir", "")
    if not data.get("cache_dir", "auto"):
        del data["cache_dir"]
    recorded = record.get("data_name")
    if ".py:" in data["data_name"] and isinstance(recorded, str) and os.path.basename(recorded) == data["data_name"]:
        data["data_name"] = recorded
    return config | {"data": data, "train": train}


def _is_place(place, digest):
    return isinstance(place, (str, Path)) and str(place) not in UNNAMED and folder_digest(place) == digest


def folders_around(folder):
    """A folder, those above it and those in it, for `with_folders`; of a remote folder only itself."""
    if is_remote(folder) or not folder:
        return [folder]
    path = Path(folder).absolute()
    try:
        below = [entry.path for entry in os.scandir(path) if entry.is_dir()]
    except OSError:
        below = []
    return [path, *path.resolve().parents, *below]
