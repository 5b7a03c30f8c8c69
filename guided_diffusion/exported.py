"""Exported models: a folder with one set of weights (safetensors), config.json and a model card, as hubs share them.

A checkpoint holds the optimizer's state and every average beside the weights, four times what inference needs.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from .checkpoint_schema import Name, OtherVersionError, StepCount, check_content
from .config.places import without_folders
from .io.archives import file_hash
from .io.files import write_json
from .io.memory import check_room
from .io.texts import read_json, shown
from .runtime.errors import UserError
from .runtime.extras import MissingLibraryError, optional
from .runtime.version import VERSION

WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "README.md"
NEEDED = (WEIGHTS, SETTINGS)  # to load an exported model
EXPORT_FORMAT = "medsegdiff-export-1"
CALIBRATION_KEPT = ("temperature", "cases", "split")
OF_LAST = "model"  # the weights that are not averaged, in `WeightsFile.of`


class WeightsFile(TypedDict):
    """The file of weights. of: the decay rate of their average, as in checkpoints, or "model"."""

    file: Literal["model.safetensors"]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    of: Annotated[str, Meta(max_length=40)]


class ExportedSettings(TypedDict):
    """config.json; `check_content` checks what it has in common with a checkpoint."""

    format: str
    written_by: Annotated[str, Meta(max_length=100)]
    weights: WeightsFile
    step: StepCount
    image_channels: Annotated[int, Meta(ge=1, le=10**6)]
    class_names: Annotated[list[Name], Meta(min_length=1, max_length=65535)]
    label_names: list[str]
    config: dict[str, dict[str, Any]]


def is_exported(path):
    """Whether `path`, local, is the folder of an exported model."""
    return (Path(path) / SETTINGS).is_file()


def write_exported(folder, checkpoint, weights, more=()):
    """Write the weights and config.json of a `Checkpoint` into an empty folder.

    weights: as of `Checkpoint.load_weights`. more: further entries of config.json, a dict. There is no folder, no case
    name and no optimizer's state in them: see `exported_config`. Raises `UserError` for settings that JSON cannot hold.
    """
    rate, state = checkpoint.weights(weights)
    tensors = {
        name: (value.float() if value.is_floating_point() else value).contiguous() for name, value in state.items()
    }
    path = Path(folder) / WEIGHTS
    safetensors = optional("safetensors.torch", "hub", "exported models")
    path.touch()
    mode = path.stat().st_mode
    safetensors.save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)  # the library's files are readable by their owner alone
    settings = {
        "format": EXPORT_FORMAT,
        "written_by": VERSION,
        "weights": {"file": WEIGHTS, "sha256": file_hash(path), "of": rate},
        "step": checkpoint.step,
        "image_channels": checkpoint.image_channels,
        "class_names": list(checkpoint.class_names),
        "label_names": list(checkpoint.label_names),
        "config": exported_config(checkpoint.config),
    }
    write_json(Path(folder) / SETTINGS, settings | dict(more))
    shutil.copymode(Path(folder) / SETTINGS, path)  # safetensors lets the owner alone read its files


def exported_config(config):
    """A checkpoint's config as an exported model has it.

    Of folders only the training data's digests stay, by which sampling warns of cases trained on. Raises `UserError`
    for values of a loader that JSON cannot hold.
    """
    config = without_folders(config)
    kept = config.get("loader", {})
    for name, value in kept.items():
        if not _is_plain(value):
            raise UserError(
                f"the loader's attribute {shown(name)} is {shown(value)}, which config.json cannot hold; keep numbers, "
                "text, lists and dicts of these (see `kept` of SegmentationDataset)"
            )
    calibration = {name: value for name, value in config.get("calibration", {}).items() if name in CALIBRATION_KEPT}
    digests = {name: value for name, value in config["digests"].items() if name != "cache_dir"}
    groups = {name: config[name] for name in ("data", "model", "diffusion", "train")}
    masks = {name: value for name, value in config.get("masks", {}).items() if name != "fitted_on"}
    groups |= {"loader": kept, "digests": digests, "device": config.get("device", {})}
    groups |= {"masks": masks} if masks else {}
    return groups | ({"calibration": calibration} if calibration else {})


def _is_plain(value):
    """Whether JSON holds a value as it is, but for tuples, which become lists."""
    if isinstance(value, dict):
        return all(isinstance(name, str) for name in value) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def read_exported(folder, where=""):
    """The content of an exported model, a dict with the names of `Checkpoint`, and what its weights are (see
    `WeightsFile.of`); checked as a checkpoint's is.

    where: the folder's name in messages. Raises `UserError` that begins with it for a missing, damaged or changed file,
    for weights that do not fit the options or are not finite, and for a file of a newer version. Nothing of it runs.
    """
    folder = Path(folder)
    where = where or str(folder)
    settings = read_json(folder / SETTINGS)
    kind = settings.get("format") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or not re.fullmatch(r"medsegdiff-export-\d{1,9}", kind):
        raise UserError(f"{where}: its {SETTINGS} is of another program; export a checkpoint with medsegdiff export")
    if kind != EXPORT_FORMAT:
        version = shown(settings.get("written_by"), 40)
        raise UserError(f"{where}: was written by version {version}, newer than this one, {VERSION}: use that version")
    settings = read_json(folder / SETTINGS, ExportedSettings)
    tensors = _read_weights(folder / WEIGHTS, settings["weights"]["sha256"], where)
    rate = settings["weights"]["of"]
    content = {name: settings[name] for name in ("step", "image_channels", "class_names", "label_names", "config")}
    content |= {"model": tensors, "ema": {"0" if rate == OF_LAST else rate: tensors}}
    content |= {"optimizer": {}, "scaler": {}, "timestep_sampler": {}, "written_by": settings["written_by"]}
    try:
        check_content(content, to_train=False)
    except (OtherVersionError, MissingLibraryError) as error:
        raise UserError(f"{where}: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {shown(str(error), 300)}; use an unchanged copy of it") from None
    del content["written_by"]
    return content, rate


def _read_weights(path, digest, where):
    """The tensors of a safetensors file. Its library compares the sizes that the header claims with the file."""
    if not path.is_file():
        raise UserError(f"{where}: has no {WEIGHTS}; copy all files of the exported folder")
    safetensors = optional("safetensors", "hub", "exported models")
    if file_hash(path) != digest:
        raise UserError(f"{where}: {WEIGHTS} is damaged, or not the file that {SETTINGS} names; copy both again")
    check_room(path, "weights", path.stat().st_size)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{where}: {WEIGHTS} is no file of safetensors, or a damaged one ({reason}); copy it again"
        ) from None
