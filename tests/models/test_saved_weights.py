"""Tensors from a file: dense, real, finite, and those of the network."""

import pytest
import torch

from guided_diffusion.config.options import ModelOptions
from guided_diffusion.models.saved_weights import (
    check_finite,
    check_fits,
    check_moments,
    check_plain,
    named_tensors,
    network_of,
)
from guided_diffusion.runtime.errors import UserError

SMALL = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1}


@pytest.mark.parametrize(
    ("tensor", "line"),
    [
        (torch.ones(1).expand(10**12), r"claims the shape \[1000000000000\], more than the file holds"),
        (torch.as_strided(torch.ones(6), (3, 3), (1, 1)), r"claims the shape \[3, 3\], more than the file holds"),
        (torch.ones(2, dtype=torch.complex64), "is of the type torch.complex64"),
        (torch.ones(2, 2).to_sparse(), "is not a dense array"),
        (torch.ones(2, device="meta"), "is not a dense array"),
        (torch.nn.Parameter(torch.ones(2)), "is not a dense array"),
    ],
)
def test_what_is_no_dense_array_of_real_numbers_is_refused(tensor, line):
    with pytest.raises(UserError, match=f"the tensor w {line}"):
        check_plain("w", tensor)


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_quantised_numbers_are_refused():
    with pytest.raises(UserError, match="is of the type torch.qint8"):
        check_plain("w", torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8))


def test_dense_arrays_of_any_layout_pass():
    for tensor in (torch.ones(2, 3).t(), torch.ones(()), torch.ones(0), torch.ones(1, 4, 5, 6).contiguous()):
        check_plain("w", tensor)
        check_plain("w", tensor.to(torch.bfloat16))
    check_plain("w", torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(number):
    weights = torch.ones(50)
    check_finite("w", weights * 3e38)  # whose float32 sum would overflow
    weights[17] = number
    with pytest.raises(UserError, match="the tensor w holds numbers that are not finite"):
        check_finite("w", weights)


def test_the_network_takes_no_memory_and_must_fit_together():
    weights = dict.fromkeys(range(300))
    network = network_of(ModelOptions(**SMALL), 10**5, 1, 0, weights)
    assert all(parameter.is_meta for parameter in network.parameters())
    for changes, line in [
        ({"num_res_blocks": 10**9}, "the options describe a larger network than the file holds weights for"),
        ({"image_size": 15}, "the options build no network: image size 15"),
        ({"num_heads": 7}, "the options build no network"),
        ({"num_channels": 10**12}, "the options build no network"),
    ]:
        with pytest.raises(UserError, match=line):
            network_of(ModelOptions(**SMALL | changes), 3, 1, 0, weights)


def test_names_shapes_and_kinds_must_agree():
    wanted = {"a": torch.ones(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    check_fits({"a": torch.ones(2, 3).half(), "b": torch.ones(1).int()}, wanted, "weights")
    for found, line in [
        ({"a": wanted["a"]}, "lacks the weights b, which its network needs"),
        ({**wanted, "c": wanted["a"]}, "holds the weights c, which its network does not have"),
        ({**wanted, "a": torch.ones(3, 2)}, r"the weights a have the shape \[3, 2\], not \[2, 3\]"),
        ({**wanted, "b": torch.ones(1)}, "the weights b are of the type torch.float32, not torch.int64"),
    ]:
        with pytest.raises(UserError, match=line):
            check_fits(found, wanted, "weights")


def test_moments_belong_to_parameters_by_name_or_number():
    parameters = {"a": torch.ones(2, device="meta"), "b": torch.ones(3, device="meta")}
    good = {"step": torch.tensor(1.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    check_moments({"b": good}, parameters)
    check_moments({1: good}, parameters)
    for state, line in [
        ({2: good}, "the optimizer's state of 2, which its network does not have"),
        ({"a": good}, "the optimizer's exp_avg of a is missing or of another shape"),
        ({"b": {**good, "step": torch.ones(2)}}, "the optimizer's step of b is missing or no single number"),
        ({"b": {**good, "exp_avg": torch.full((3,), float("nan"))}}, "the optimizer's exp_avg of b holds NaN"),
        ({"b": {}}, "the optimizer's exp_avg of b is missing"),
    ]:
        with pytest.raises(UserError, match=line):
            check_moments(state, parameters)


def test_tensors_are_named_by_their_path():
    one, two = torch.ones(1), torch.ones(2)
    assert list(named_tensors({"model": {"a.b": one}, "x": [3, (two,)]})) == [("model.a.b", one), ("x.1.0", two)]
