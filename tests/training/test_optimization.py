"""Learning rates step by step against closed forms and diffusers, and clipped gradients."""

import math

import pytest
import torch
from conftest import TINY
from helpers import batch_of, flat, log_rows

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
        ("--grad_clip -1", "--grad_clip -1.0: must be at least 0"),
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
        norms.append(trainer.train_step(batch_of(trainer.dataset, [0, 1, 2]))["grad_norm"])
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
