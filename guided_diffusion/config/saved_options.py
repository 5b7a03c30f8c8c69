"""The options in a checkpoint: they pass the checks of flags before anything is built from them."""

import math

from ..io.texts import has_control, shown
from ..runtime.errors import UserError
from .command_line import fields_of
from .fields import REMOVED, build
from .options import DataOptions, DeviceOptions, DiffusionOptions, ModelOptions
from .train_options import TrainOptions
from .values import check_value, is_path

SAVED_GROUPS = {"data": DataOptions, "model": ModelOptions, "diffusion": DiffusionOptions, "train": TrainOptions}


class UnknownOptionError(UserError):
    """A checkpoint has an option that this version does not know."""


def check_saved_options(config):
    """Raise `UserError` unless the option values of a checkpoint have the types and bounds of their flags.

    config: {"data" | "model" | "diffusion" | "train": {name: value}}, and perhaps "device", {"precision", "use_fp16"},
    and "calibration", {"temperature"}; other groups are not looked at. The message begins with the option's name.
    Raises `UnknownOptionError` for a name that is no option.
    """
    for name, group in SAVED_GROUPS.items():
        _check_group(config[name], group)
    _check_group(config.get("device", {}), DeviceOptions)
    temperature = config.get("calibration", {}).get("temperature", 1.0)
    if type(temperature) not in (int, float) or not (math.isfinite(temperature) and temperature > 0):
        raise UserError(f"temperature {shown(temperature)}: must be a number above 0")


def _check_group(values, group):
    fields = fields_of([group])
    values = {name: value for name, value in values.items() if name not in REMOVED}  # see `fields.without_removed`
    for name in values:
        if name not in fields:
            raise UnknownOptionError(shown(name))
    try:
        for name, value in values.items():
            if not is_path(fields[name]):
                check_value(fields[name], value)
            elif not isinstance(value, str) or has_control(value):  # else a path, perhaps of another machine
                raise UserError(f"{name} {shown(value)}: must be text without control characters")
        # Both names mean the objective, and only the other one is read.
        build(group, {name: value for name, value in values.items() if name != "predict_xstart"}, whole=False)
    except UserError as error:
        raise UserError(str(error).removeprefix("--")) from None
