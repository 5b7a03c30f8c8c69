"""A checkpoint's content is checked in whole before it is used."""

import copy
import dataclasses

import pytest
import torch

from guided_diffusion.checkpoint_schema import OtherVersionError, check_content, check_plain_values
from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DataOptions, DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.errors import UserError


@pytest.fixture(scope="module")
def whole():
    """The content of a checkpoint's file: a U-Net of one level, trained with --schedule_sampler loss-second-moment."""
    torch.manual_seed(0)
    model = ModelOptions(version="unet", image_size=8, num_channels=2, channel_mult="1", attention_resolutions="")
    diffusion = build(DiffusionOptions, {"diffusion_steps": 5})
    train = TrainOptions(schedule_sampler="loss-second-moment")
    network = build_model(model, 1, 1, 0)
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    groups = {"data": DataOptions(), "model": model, "diffusion": diffusion, "train": train}
    name, first = next(iter(weights.items()))
    return {
        "config": {group: dataclasses.asdict(options) for group, options in groups.items()},
        "image_channels": 1,
        "class_names": ["lesion"],
        "label_names": [],
        "step": 3,
        "model": weights,
        "ema": {"0.9": {name: weights[name].clone() for name, _ in network.named_parameters()}},
        "optimizer": {
            "state": {name: {"step": torch.tensor(3.0), "exp_avg": first.clone(), "exp_avg_sq": first.clone()}},
            "param_groups": [{"lr": 0.1}],
        },
        "scaler": {},
        "timestep_sampler": {"losses": torch.zeros(5, 10), "counts": torch.zeros(5, dtype=torch.int64)},
        "validation": {"step": 2, "dice": 0.5, "cases": "ab"},
        "stage_end": None,
        "written_by": "0.4.0",
    }


def put(content, place, value):
    """A copy of the content with another value at a place, "config/model/version"; None: without it."""
    content = copy.deepcopy(content)
    *path, last = place.split("/")
    inner = content
    for name in path:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value(inner.get(last)) if callable(value) else value
    return content


def test_a_whole_content_passes_for_both_uses(whole):
    for to_train in (True, False):
        check_content(copy.deepcopy(whole), to_train)


FIRST = "unet.conv_in.weight"
NAN = float("nan")


def with_nan(moment):
    """A function that puts NaN into an optimizer's state."""
    return lambda state: {name: values | {moment: values[moment] * NAN} for name, values in state.items()}


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        ("config", [], "config: expected a dict, got a list"),
        ("config/model", None, "config: lacks the field model"),
        ("config/train", "fast", "config.train: expected a dict, got text"),
        ("config/loader", 3, "config.loader: expected a dict, got a whole number"),
        ("config/loader", {"class_values": [[0]]}, "config.loader.class_values"),
        ("config/loader", {"class_values": [[1], [2]]}, "it has 1 classes, but label values of 2"),
        ("config/loader", {"is_nifti": True, "ct_window": [3.0, NAN]}, "config.loader.ct_window: is no pair"),
        ("config/loader", {"is_nifti": True}, "config.loader: lacks the field ct_window"),
        ("config/loader", {"modalities": "CT"}, "config.loader.modalities: expected a list"),
        ("config/model/version", "v9", "its option version v9: must be one of"),
        ("config/calibration", {"temperature": NAN}, "its option temperature nan"),
        ("config/model/mood", "good", "its option mood is unknown: it was written by a newer or a changed version"),
        ("config/diffusion/diffusion_steps", 10**9, "its option diffusion_steps"),
        ("config/model/num_channels", None, "config.model lacks the option num_channels"),
        ("config/data/data_name", None, "config.data lacks the option data_name"),
        ("config/diffusion/input_scale", 0.0, "the options build no diffusion"),
        ("config/model", lambda options: {**options, 3: 4}, "a key of config.model: expected text"),
        ("label_names", ["a\nb"], "the name a.nb of a class or label holds a control character"),
        ("ema", lambda ema: {"0.9": ema["0.9"], "0.90": ema["0.9"]}, "of one rate twice"),
        ("validation/dice", NAN, "validation.dice: expected a number >= 0"),
        ("image_channels", 10**9, "image_channels: expected a whole number <= 1000000"),
        ("image_channels", 7, "have the shape"),
        ("class_names", [1], "class_names.0.: expected text, got a whole number"),
        ("class_names", ["a"] * 10**5, "class_names: expected a list of length <= 65535"),
        ("class_names", ["a", "b"], "have the shape"),
        ("class_names", [], "class_names: expected a list of length >= 1"),
        ("class_names", ["../../x", "b"], "class_names: ../../x cannot be a class's name"),
        ("class_names", ["\ud800"], "class_names.0: is a text with half a character"),
        ("config/data/data_dir", "a\0b", r"data_dir a\\x00b: must be text without control characters"),
        ("step", "3", "step: expected a whole number, got text"),
        ("step", -1, "step: expected a whole number >= 0"),
        ("step", 2.5, "step: expected a whole number, got a number"),
        ("model", {}, "model: expected a dict of length >= 1"),
        ("model", {"a": 1}, "model.*: expected Tensor, got a whole number"),
        ("ema", {}, "ema: expected a dict of length >= 1"),
        ("ema", lambda ema: {"fast": ema["0.9"]}, "averaged weights are of the rate 'fast'"),
        ("ema", lambda ema: {"nan": ema["0.9"]}, "averaged weights are of the rate 'nan'"),
        ("ema", lambda ema: {"０.9": ema["0.9"]}, "averaged weights are of the rate '０.9'"),
        ("ema/0.9", {}, "lacks the averaged weights"),
        ("optimizer/state", with_nan("exp_avg"), "the optimizer's exp_avg of .* holds NaN"),
        ("optimizer/state", with_nan("step"), "the optimizer's step of .* holds NaN"),
        ("optimizer/state", lambda state: {"gone": next(iter(state.values()))}, "the optimizer's state of gone"),
        ("optimizer", {"state": {}}, "optimizer: lacks the field param_groups"),
        ("scaler", {"scale": 1.0}, "scaler: must hold the numbers"),
        ("timestep_sampler", {}, "timestep_sampler: must hold the losses and counts of 5 time steps"),
        ("timestep_sampler/counts", lambda counts: counts - 1, "timestep_sampler: must hold losses"),
        ("validation", {"step": None}, "validation.*: expected a whole number"),
        ("validation/dice", "high", "validation.dice: expected a number, got text"),
        ("stage_end", -2, "stage_end: expected a whole number >= 0"),
        ("decayed", 1.5, "decayed: expected a number <= 1.0"),
        ("written_by", 3, "written_by: expected text"),
    ],
)
def test_a_wrong_value_is_named(whole, place, value, line):
    with pytest.raises(UserError, match=line) as error:
        check_content(put(whole, place, value), to_train=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("group", ["config", "image_channels", "class_names", "label_names", "step", "model", "ema"])
def test_what_is_missing_is_named(whole, group):
    with pytest.raises(UserError, match=f"its content: lacks the field {group}"):
        check_content(put(whole, group, None), to_train=False)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("change", ["nan", "shape", "more", "less", "complex", "nested"])
def test_weights_must_be_the_network_s_and_finite(whole, change):
    content = copy.deepcopy(whole)
    name = next(iter(content["model"]))
    old = content["model"][name]
    new = {"nan": old * NAN, "shape": old[..., None], "complex": old.to(torch.complex64)}.get(change)
    new = torch.nested.nested_tensor([old[0], old[0][:1]]) if change == "nested" else new
    lines = {
        "nan": f"the tensor model.{name} holds numbers that are not finite",
        "shape": f"the weights {name} have the shape",
        "complex": f"the tensor model.{name} is of the type torch.complex64",
        "nested": f"the tensor model.{name} is not a dense array",
        "more": "holds the weights extra, which its network does not have",
        "less": f"lacks the weights {name}, which its network needs",
    }
    if change == "more":
        content["model"]["extra"] = old
    elif change == "less":
        del content["model"][name]
    else:
        content["model"][name] = new
    with pytest.raises(UserError) as error:
        check_content(content, to_train=False)
    assert str(error.value).startswith(lines[change])


def test_a_newer_version_is_named_only_where_it_matters(whole):
    check_content(put(whole, "written_by", "0.9.0"), to_train=False)
    newer = put(put(whole, "config/model/mood", "good"), "written_by", "0.10.0")
    with pytest.raises(OtherVersionError, match="written by the newer version 0.10.0, whose option mood this version"):
        check_content(newer, to_train=False)


def test_small_content_may_not_unfold_or_nest_without_end():
    lists = [1] * 10
    for _ in range(7):
        lists = [lists] * 10
    deep = {}
    for _ in range(10_000):
        deep = {"a": deep}
    for bomb in (lists, deep):
        with pytest.raises(UserError, match="holds more than 500000 values, or some more than 8 deep"):
            check_plain_values({"class_names": bomb})
    shared = torch.ones(1 << 18)
    check_plain_values({str(number): shared for number in range(4)})
    with pytest.raises(UserError, match="many tensors share their numbers"):
        check_plain_values({str(number): shared[number:] for number in range(100)})
    with pytest.raises(UserError, match="holds more than 500000 values"):
        check_plain_values({"x": [None] * 500_001})
    with pytest.raises(UserError, match="holds x.0 of the type set, which is no plain value"):
        check_plain_values({"x": [{1, 2}]})
