"""The optimizer's state across an interruption: the very steps of a run that was not interrupted."""

import copy

import pytest
import torch

from guided_diffusion.models.sharding import state_dicts
from guided_diffusion.training.optimization import build_optimizer, restore_optimizer


def make_network(memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)).double()
    return network.to(memory_format=memory_format)


def take_steps(network, optimizer, first, last, learning):
    """Steps on gradients drawn by their number; only the parameters whose names begin with `learning` learn."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for name, parameter in network.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if name.startswith(learning):
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("numbered", [False, True])
def test_a_restored_optimizer_takes_the_same_steps(numbered):
    """Also from an older checkpoint, with moments that lie differently in memory, and where a part has not learned."""
    network = make_network(torch.channels_last)
    optimizer = build_optimizer(network.parameters(), 1e-2, 0.1)
    take_steps(network, optimizer, 0, 3, learning="0.")
    weights, state = copy.deepcopy(state_dicts(network, optimizer))
    assert state["state"].keys() == {"0.weight", "0.bias"}
    if numbered:
        state = copy.deepcopy(optimizer.state_dict())
    take_steps(network, optimizer, 3, 6, learning=("0.", "1."))

    resumed = make_network()
    resumed.load_state_dict(weights)
    other = build_optimizer(resumed.parameters(), 1e-2, 0.1)
    restore_optimizer(resumed, other, state)
    assert len(other.state) == 2
    for parameter, moments in other.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
    take_steps(resumed, other, 3, 6, learning=("0.", "1."))
    for expected, parameter in zip(network.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(expected, parameter)


def test_settings_are_those_of_the_new_run():
    network = make_network()
    optimizer = build_optimizer(network.parameters(), 1e-2, 0.1)
    take_steps(network, optimizer, 0, 1, learning="")
    other = build_optimizer(network.parameters(), 1e-3, 0.3)
    restore_optimizer(network, other, state_dicts(network, optimizer)[1])
    (group,) = other.param_groups
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (1e-3, 0.3, 4)


def test_a_run_that_has_not_stepped_keeps_an_empty_state():
    network = make_network()
    optimizer = build_optimizer(network.parameters(), 1e-2, 0.1)
    state = state_dicts(network, optimizer)[1]
    restore_optimizer(network, optimizer, state)
    assert not optimizer.state and not state["state"]
