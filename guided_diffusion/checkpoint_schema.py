"""What a checkpoint's file must hold, checked before anything is built from it: one line names what is wrong."""

import dataclasses
import math
import re
from typing import Annotated, Any

import msgspec
import torch

from .config.fields import ONLY_LEARNED_BY, without_removed
from .config.fitted import MaskFits
from .config.options import DiffusionOptions, ModelOptions
from .config.saved_options import UnknownOptionError, check_saved_options
from .diffusion.gaussian_diffusion import build_diffusion
from .io.files import check_encodable
from .io.texts import shown
from .models.saved_weights import check_finite, check_fits, check_moments, check_plain, named_tensors, network_of
from .runtime.errors import UserError
from .runtime.version import VERSION

DEEPEST, MOST_VALUES = 8, 500_000  # of nested dicts and lists; of the values in them
MOST_SHARED, LEAST_BYTES = 16, 1 << 20  # how often all numbers may be used by several tensors; of a file that is small
LABELS_OF_CONDITION = "condition_model.label_embedding.weight"  # missing in the first checkpoints of v2
# Values of options that a checkpoint lacks because it is older than they are. A new option of the network or the
# diffusion needs its value here: a checkpoint that lacks any other is refused.
OLDER = {
    "model": {
        "concat_features": False,
        "diffusion_channels": 0,
        "diffusion_level": 0,
        "nbp_factor": "sigmoid",
        "encoder": "",
        "head_padding": "zeros",
    },
    "diffusion": {"logit_skip": "none", "class_activation": "sigmoid", "mask_range": "signed"},
    "train": {
        "augment": "none",
        "dice_steps": 0,
        "dice_share": 0.6,
        "slices": "all",
        "crop": False,
        "crop_foreground": "pixel",
        "ema_warmup": True,
        "soft_masks": False,
    },
}
WHO = "was trained with"  # the beginning of a message
PLAIN_TYPES = (str, int, float, bool, type(None))
WORDS = {"`object`": "a dict", "`array`": "a list", "`str`": "text", "`int`": "a whole number", "`float`": "a number"}
SCALER = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}


class OtherVersionError(UserError):
    """A checkpoint needs another version of this program, which the message names."""


StepCount = Annotated[int, msgspec.Meta(ge=0, le=10**12)]  # as in manifest.json
Options = dict[str, str | int | float | bool | None]
Tensors = dict[str, torch.Tensor]
ClassValues = list[Annotated[list[Annotated[int, msgspec.Meta(ge=1, le=65535)]], msgspec.Meta(min_length=1)]]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Config(msgspec.Struct):
    """The options of a run; see `checkpoint.Checkpoint.config`."""

    data: Options
    model: Options
    diffusion: Options
    train: Options
    device: Options = {}
    loader: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    masks: dict[str, Any] = {}
    digests: dict[str, str] = {}


class BestValidation(msgspec.Struct):
    """`checkpoint.Checkpoint.validation` of a run that has validated.

    Up to version 0.4.0 Dice chose the best and there is no log loss; still older checkpoints list the cases' names.
    """

    step: StepCount
    cases: str | list[str]
    log_loss: Annotated[float, msgspec.Meta(ge=0)] | msgspec.UnsetType = msgspec.UNSET
    dice: Annotated[float, msgspec.Meta(ge=0, le=1)] | msgspec.UnsetType = msgspec.UNSET


class OptimizerState(msgspec.Struct):
    """The state of AdamW, by the names of parameters, or by their numbers in older checkpoints."""

    state: dict[str | int, Tensors]
    param_groups: list[dict[str, Any]]


class Content(msgspec.Struct):
    """Everything in a checkpoint's file beside its format; see `checkpoint.Checkpoint`."""

    config: Config
    image_channels: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    class_names: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=65535)]
    label_names: list[str]
    step: StepCount
    model: Annotated[Tensors, msgspec.Meta(min_length=1)]
    ema: Annotated[dict[str, Tensors], msgspec.Meta(min_length=1)]
    optimizer: dict[str, Any]
    scaler: dict[str, float]
    timestep_sampler: Tensors
    validation: dict[str, Any] = {}
    stage_end: StepCount | None = None
    decayed: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    written_by: str = "0.3.0"


def check_content(content, to_train):
    """Check the dict in a checkpoint's file, and complete its option values by those of older versions.

    to_train: whether the checkpoint is to be trained further: then the state of the optimizer counts, and options that
    act in training alone. Changes `content["config"]`. Raises `UserError` that begins with what is wrong, and
    `OtherVersionError` where another version can use the file.
    """
    check_plain_values(content)
    checked = _converted(content, Content)
    if content.get("validation"):
        _converted(content["validation"], BestValidation, "validation")
    for name in (*checked.class_names, *checked.label_names):
        try:
            check_encodable(name)
        except UserError:
            raise UserError(f"the name {shown(name)} of a class or label holds a control character") from None
    _check_options(content, checked.written_by, to_train)
    _check_rates(content["ema"])
    _check_class_names(content["class_names"])
    _check_loader(content["config"].get("loader", {}), len(content["class_names"]))
    _check_masks(content["config"].get("masks", {}), len(content["class_names"]))
    _check_diffusion(content["config"]["diffusion"])
    network = _check_network(content)
    if to_train:
        _check_training_state(content, dict(network.named_parameters()))


def _check_options(content, written_by, to_train):
    older, config = dict(OLDER), content["config"]
    if LABELS_OF_CONDITION not in content["model"]:
        older["model"] = OLDER["model"] | {"condition_labels": False}
    keep = () if to_train else ONLY_LEARNED_BY
    groups = {name: older.get(name, {}) | config[name] for name in ("data", "model", "diffusion", "train")}
    try:  # all groups together, for the oldest version that is needed
        without_removed({name: value for values in groups.values() for name, value in values.items()}, WHO, keep)
    except UserError as error:
        raise OtherVersionError(str(error)) from None
    config |= {name: without_removed(values, WHO, keep) for name, values in groups.items()}
    for name, lacking in (("model", ModelOptions), ("diffusion", DiffusionOptions), ("data", ("data_name",))):
        wanted = lacking if isinstance(lacking, tuple) else [item.name for item in dataclasses.fields(lacking)]
        missing = [option for option in wanted if option not in config[name]]
        if missing:
            raise UserError(f"config.{name} lacks the option {missing[0]}")
    try:
        check_saved_options(config)
    except UnknownOptionError as error:
        if _is_newer(written_by):
            raise OtherVersionError(
                f"was written by the newer version {shown(written_by, 40)}, whose option {error} this version "
                f"{VERSION} does not know: use that version"
            ) from None
        raise UserError(f"its option {error} is unknown: it was written by a newer or a changed version") from None
    except UserError as error:
        raise UserError(f"its option {error}") from None


def saved_diffusion(values):
    """The `GaussianDiffusion` of a checkpoint's option values."""
    known = {name: value for name, value in values.items() if name not in ONLY_LEARNED_BY}
    return build_diffusion(DiffusionOptions(**known))


def _check_diffusion(values):
    try:
        saved_diffusion(values)
    except (UserError, ValueError, ArithmeticError) as error:
        raise UserError(f"the options build no diffusion ({' '.join(str(error).split())})") from None


def _is_newer(version):
    """Whether a version, as "0.10.2", is later than this program's; True for one that is not of that form."""
    numbers = [re.fullmatch(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", text) for text in (version, VERSION)]
    return numbers[0] is None or [*map(int, numbers[0].groups())] > [*map(int, numbers[1].groups())]


def _check_rates(ema):
    for rate in ema:
        try:
            number = float(rate)
        except ValueError:
            number = math.nan
        if not 0 <= number < 1 or not re.fullmatch(r"[0-9.eE+-]+", rate):
            raise UserError(f"its averaged weights are of the rate {rate[:40]!r}, which is no number from 0 to 1")
    if len(set(map(float, ema))) < len(ema):
        raise UserError(f"its averaged weights are of one rate twice: {', '.join(ema)}")


def _check_class_names(names):
    """Raise `UserError` for a name, of several, that leads out of a folder: results have files or folders for each."""
    for name in names if len(names) > 1 else ():
        if "/" in name or name in (".", ".."):
            raise UserError(f"class_names: {shown(name)} cannot be a class's name")


def _check_loader(kept, count):
    """Check what the loader kept, as far as this program reads it. count: the number of classes."""
    values = kept.get("class_values", ())
    _converted(values, ClassValues, "config.loader.class_values")
    if values and len(values) != count:
        raise UserError(f"it has {count} classes, but label values of {len(values)}")
    if "modalities" in kept:
        _converted(kept["modalities"], list[str], "config.loader.modalities")
        _check_window("window", kept.get("window"))
    if "is_nifti" in kept:
        _converted(kept["is_nifti"], bool, "config.loader.is_nifti")
        if "ct_window" not in kept:
            raise UserError("config.loader: lacks the field ct_window")
        _check_window("ct_window", kept.get("ct_window"))


def _check_masks(fits, count):
    """Check what was fitted for the masks of `count` classes."""
    _converted(fits, MaskFits, "config.masks")
    for name, values in (("cleanup", ("fill_holes", "keep_largest", "min_size")), ("threshold", ("values", "groups"))):
        for value in values if name in fits else ():
            if len(fits[name][value]) != count:
                raise UserError(f"config.masks.{name}.{value}: must have {count} values, one for each class")


def _check_window(name, window):
    if window is None or window in ((), []):
        return
    bounds = _converted(window, list[float], f"config.loader.{name}")
    if len(bounds) != 2 or not all(map(math.isfinite, bounds)) or not bounds[0] < bounds[1]:
        raise UserError(f"config.loader.{name}: is no pair of numbers, the lower one first")


def _check_network(content):
    """The checkpoint's network, without memory, after a comparison of all weights with it."""
    counts = content["image_channels"], len(content["class_names"]), len(content["label_names"])
    weights = content["model"]
    network = network_of(ModelOptions(**content["config"]["model"]), *counts, weights)
    check_fits(weights, network.state_dict(), "weights")
    statistics = dict(network.named_buffers())  # of an encoder's batch norms
    for rate, averaged in content["ema"].items():
        averaged = {
            name: value for name, value in averaged.items() if name not in statistics
        }  # exported models have both
        check_fits(averaged, dict(network.named_parameters()), f"averaged weights ({rate})")
    for name, tensor in named_tensors({"model": weights, "ema": content["ema"]}):
        check_finite(name, tensor)
    return network


def _check_training_state(content, parameters):
    if content["optimizer"]:
        _converted(content["optimizer"], OptimizerState, "optimizer")
        check_moments(content["optimizer"]["state"], parameters)
    if content["scaler"] and (
        content["scaler"].keys() != SCALER or not all(0 <= value < math.inf for value in content["scaler"].values())
    ):
        raise UserError(f"scaler: must hold the numbers {', '.join(sorted(SCALER))}")
    if content["config"]["train"].get("schedule_sampler") == "loss-second-moment":
        steps, found = content["config"]["diffusion"]["diffusion_steps"], content["timestep_sampler"]
        shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
        if shapes.keys() != {"losses", "counts"} or shapes["losses"][:1] != (steps,) or shapes["counts"] != (steps,):
            raise UserError(f"timestep_sampler: must hold the losses and counts of {steps} time steps")
        if found["losses"].dim() != 2 or found["counts"].is_floating_point() or (found["counts"] < 0).any():
            raise UserError("timestep_sampler: must hold losses [T, N] and whole counts from 0 up")
        check_finite("timestep_sampler.losses", found["losses"])


def check_plain_values(content):
    """Raise `UserError` for anything but plain values and plain tensors in dicts and lists that are not too deep.

    Dicts, lists and tensors may share their content in a pickle, so a small file could unfold to any size.
    """
    claimed, stored = 0, {}
    waiting, count = [(content, "", 0)], 0
    while waiting:
        value, name, depth = waiting.pop()
        count += 1
        if count > MOST_VALUES or depth > DEEPEST:
            raise UserError(f"holds more than {MOST_VALUES} values, or some more than {DEEPEST} deep")
        if isinstance(value, torch.Tensor):
            check_plain(name, value)
            claimed += value.numel() * value.element_size()
            stored[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (dict, list, tuple)) and len(value) > MOST_VALUES:
            count += len(value)
            waiting.append((None, name, depth))
        elif isinstance(value, dict):
            waiting += [(item, _below(name, key), depth + 1) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(item, _below(name, index), depth + 1) for index, item in enumerate(value)]
        elif isinstance(value, str) and not _is_encodable(value):
            raise UserError(f"{name}: is a text with half a character")
        elif type(value) not in PLAIN_TYPES:
            raise UserError(f"holds {name} of the type {type(value).__name__}, which is no plain value")
    if claimed > MOST_SHARED * max(sum(stored.values()), LEAST_BYTES):
        raise UserError("many tensors share their numbers, so that they claim more than the file holds")


def _is_encodable(text):
    try:
        text.encode(errors="surrogateescape")  # as paths of older checkpoints may need it
    except UnicodeEncodeError:
        return False
    return True


def _below(name, key):
    return f"{name}.{str(key)[:100]}" if name else str(key)[:100]


def _converted(value, kind, where=""):
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).replace("Object missing required field", "lacks the field").partition(" - at ")
        for word, plain in WORDS.items():
            what = what.replace(word, plain)
        place = place.replace("`key` in `$.", "`$.a key of ")
        place = ".".join(filter(None, [where, place.strip("`").removeprefix("$").removeprefix(".")]))
        raise UserError(f"{place or 'its content'}: {what[0].lower()}{what[1:].replace('`', '')}") from None
