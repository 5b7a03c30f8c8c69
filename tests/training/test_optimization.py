"""Learning rates against closed forms and diffusers, clipped gradients, and an optimizer that is restored."""

import copy
import math

import pytest
import torch
from conftest import TINY
from helpers import batch_of, flat, log_rows

from guided_diffusion.models.sharding import state_dicts
from guided_diffusion.training.optimization import build_optimizer, restore_optimizer
from guided_diffusion.training.stages import learning_rate_factor

# ---- the learning rate -------------------------------------------------------------------------------------------


def test_without_new_flags_the_rate_is_what_it_was_to_the_bit():
    for step in range(37):
        assert learning_rate_factor(step) == 1
        assert learning_rate_factor(step, total=37) == 1 - step / 37


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_decay_is_diffusers(decay, warmup):
    """Theirs rises as step / warmup, from a first step at rate 0, which teaches nothing; ours is a step ahead."""
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(decay, optimizer, num_warmup_steps=warmup, num_training_steps=50)
    for step in range(50):
        ours = learning_rate_factor(step, warmup=warmup, total=50, decay=decay)
        if step < warmup:
            assert ours == (step + 1) / warmup
        else:
            assert ours == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_rates_of_a_resumed_run_go_on(script, pictures, tmp_path):
    data = ["--data_name FOLDER --data_dir", pictures, "--out_dir", tmp_path, TINY]
    flags = "--lr 1e-2 --warmup_steps 2 --lr_decay cosine --lr_anneal_steps 6 --grad_clip 0.5"
    script("segmentation_train", [*data, flags, "--max_steps 3"])
    script("segmentation_train", ["--out_dir", tmp_path, "--resume_checkpoint auto --max_steps 9 --precision fp32"])
    wanted = [0.5, 1, *((1 + math.cos(math.pi * k / 4)) / 2 for k in range(4))]
    assert [row["lr"] for row in log_rows(tmp_path)] == pytest.approx([1e-2 * share for share in wanted])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr_decay cosine", "--lr_decay cosine: needs --lr_anneal_steps"),
        ("--lr_decay linear", "--lr_decay linear: needs --lr_anneal_steps"),
        ("--lr_decay none --lr_anneal_steps 5", "contradicts --lr_decay none"),
        ("--warmup_steps 5 --lr_anneal_steps 5", "--warmup_steps 5: must be below --lr_anneal_steps 5"),
        ("--grad_clip -1", "--grad_clip -1: must be at least 0"),
    ],
)
def test_rates_that_make_no_sense(refusal, flags, words):
    assert words in refusal("segmentation_train", flags)


# ---- clipping ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("microbatch", [-1, 2])
def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_left(loop, microbatch):  # noqa: F811
    """By plain gradient descent, whose step is the gradient itself."""
    moves, norms = [], []
    for clip in (0.0, 1e-2, 1e6):
        trainer = loop(grad_clip=clip, microbatch=microbatch, lr=1.0)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0)
        start = flat(trainer.model)
        norms.append(trainer.train_step(batch_of(trainer.dataset, [0, 1, 2])).read()["grad_norm"])
        moves.append((start - flat(trainer.model)).double())
    free, clipped, loose = moves
    assert norms[0] == norms[1] == norms[2] and norms[0] > 2e-2  # what is logged is the norm before clipping
    assert torch.equal(free, loose)
    assert clipped.norm().item() == pytest.approx(1e-2, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(free, clipped, dim=0) > 1 - 1e-6


def test_a_scaled_gradient_is_clipped_after_unscaling(loop):  # noqa: F811
    moves = []
    for scale in (1.0, 2.0**10):
        trainer = loop(grad_clip=1e-2, lr=1.0)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0)
        start = flat(trainer.model)
        trainer.train_step(batch_of(trainer.dataset, [0, 1, 2]))
        moves.append(start - flat(trainer.model))
    assert moves[0].norm().item() == pytest.approx(1e-2, rel=1e-3)
    torch.testing.assert_close(*moves, rtol=1e-4, atol=1e-7)


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
