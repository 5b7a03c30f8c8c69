"""The options in a checkpoint pass the checks of flags."""

import dataclasses

import pytest

from guided_diffusion.config.options import DataOptions, DiffusionOptions, ModelOptions
from guided_diffusion.config.saved_options import UnknownOptionError, check_saved_options
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.runtime.errors import UserError


def config_with(**groups):
    classes = {"data": DataOptions, "model": ModelOptions, "diffusion": DiffusionOptions, "train": TrainOptions}
    config = {name: dataclasses.asdict(kind()) for name, kind in classes.items()}
    return config | {name: config.get(name, {}) | values for name, values in groups.items()}


def test_the_defaults_of_every_group_are_valid():
    check_saved_options(config_with(device={"precision": "bf16", "use_fp16": False}, calibration={"temperature": 1.3}))
    check_saved_options(config_with(data={"data_dir": "/of/another/machine\udcff"}, diffusion={"objective": "v"}))


@pytest.mark.parametrize(
    ("groups", "line"),
    [
        ({"model": {"version": "v9"}}, "version v9: must be one of v1, v2"),
        ({"model": {"num_channels": "64"}}, "num_channels 64: must be a whole number"),
        ({"model": {"num_channels": True}}, "num_channels True: must be a whole number"),
        ({"model": {"num_channels": -3}}, "num_channels -3: must be above 0"),
        ({"model": {"channel_mult": "1,nan"}}, "channel_mult 1,nan: "),
        ({"model": {"channel_mult": [1, 2]}}, "channel_mult .*: must be text"),
        ({"model": {"dropout": float("nan")}}, "dropout nan: is not a finite number"),
        ({"diffusion": {"diffusion_steps": 1}}, "diffusion_steps 1: must be at least 2"),
        ({"diffusion": {"input_scale": float("inf")}}, "input_scale inf: is not a finite number"),
        ({"diffusion": {"objective": "eps", "logit_skip": "noise"}}, "logit_skip noise goes with"),
        ({"train": {"ema_rate": "0.9,0.9"}}, "ema_rate 0.9,0.9: names a rate twice"),
        ({"train": {"crop": None}}, "crop None: must be True or False"),
        ({"train": {"out_dir": 3}}, "out_dir 3: must be text"),
        ({"data": {"ct_window": "5,1"}}, "ct_window 5,1: must be two numbers"),
        ({"device": {"precision": "fp8"}}, "precision fp8: must be one of"),
        ({"calibration": {"temperature": float("nan")}}, "temperature nan: must be a number above 0"),
        ({"calibration": {"temperature": -1.0}}, "temperature -1.0: must be a number above 0"),
        ({"calibration": {"temperature": "1"}}, "temperature 1: must be a number above 0"),
    ],
)
def test_a_value_that_its_flag_would_refuse_is_refused(groups, line):
    with pytest.raises(UserError, match=line) as error:
        check_saved_options(config_with(**groups))
    assert "\n" not in str(error.value)


def test_an_unknown_option_has_an_error_of_its_own():
    with pytest.raises(UnknownOptionError, match="^mood$"):
        check_saved_options(config_with(model={"mood": "good"}))
