"""The plan of a run: a pure function of a fingerprint, a machine, the user's options and the seconds of steps."""

import math
from dataclasses import asdict, replace

import pytest
from helpers import train_options

from guided_diffusion.config.settings import settle
from guided_diffusion.data.fingerprint import GRIDS, Fingerprint
from guided_diffusion.training.training_plan import (
    NETWORKS,
    Candidate,
    Choice,
    Machine,
    may_plan,
    plan_training,
    short_lines,
)

CPU, GPU = Machine("cpu", 8e9, 2), Machine("cuda", 80e9, 8)


def data(side=384, trips=(), **values):
    """A fingerprint of square pictures. trips: the round trips at `GRIDS`, the last one for those that follow."""
    grids = [grid for grid in GRIDS if grid < side]
    known = [*trips, *[trips[-1]] * len(grids)][: len(grids)] if trips else [0.999] * len(grids)
    given = {"cases": 100, "images": 100, "seen": 40, "channels": 3, "classes": ("lesion",), "present": (0.9,)}
    given |= {"sides": ((side, side),) * 3, "coverage": 0.3, "shares": (0.1,)}
    return Fingerprint(**given | {"round_trips": {g: (v,) for g, v in zip(grids, known, strict=True)}} | values)


LESIONS = data()
VESSELS = data(565, (0.74, 0.85, 0.91, 0.966, 0.986), coverage=0.83, images=14, cases=14)
SMALL = data(512, (0.7, 0.8, 0.85, 0.9), coverage=0.05, is_volumes=True, empty=0.9)
HEART = data(256, (0.94, 0.985), coverage=0.1, is_volumes=True, empty=0.2)


def planned(found, line="", machine=CPU, cheapest=0.05, timed=None):
    """The plan. cheapest: the seconds of a step of the smallest network on images of 128 pixels."""
    options, given = train_options(f"--data_dir x {line}")
    settings = settle(options, given)
    values = {
        name: value for part in (settings.data, settings.train, settings.model) for name, value in asdict(part).items()
    }
    by_channels = {network.preset or network.channels: network for network in NETWORKS}

    def seconds_of(flags):
        network = by_channels[flags.get("preset") or flags.get("num_channels")]
        candidate = Candidate(network, flags["image_size"], flags["patch_size"])
        seconds = cheapest * candidate.cost / Candidate(NETWORKS[0], 128, 4).cost
        (timed if timed is not None else []).append(candidate)
        return seconds, seconds

    return plan_training(found, machine, values, given, seconds_of)


def shown(plan, **values):
    return {name: plan.values.get(name) for name in values} == values


def why(plan, what):
    return next(choice.why for choice in plan.choices if choice.what == what)


def test_large_lesions_are_seen_whole():
    plan = planned(LESIONS, "--max_minutes 3")
    assert shown(plan, image_size=128, crop=None) and "enlarged again keep a Dice of 0.999" in why(plan, "view")
    assert plan.values["lr"] == 1e-3 and plan.values["lr_anneal_steps"] == -1 and plan.values["condition_share"] == 0.95


def test_thin_structures_everywhere_are_cut_into_crops():
    plan = planned(VESSELS, "--max_minutes 3")
    assert shown(plan, crop=True, image_size=128, patch_size=2) and "0.740" in why(plan, "view")
    assert shown(planned(replace(VESSELS, coverage=0.2), "--max_minutes 3"), crop=True)  # a grid of 512 takes too long
    whole = planned(replace(VESSELS, coverage=0.2), "--max_minutes 600")
    assert shown(whole, crop=None, image_size=512)


def test_small_lesions_in_volumes():
    plan = planned(SMALL, "--max_minutes 3")
    assert shown(plan, crop=True, slices="balanced") and "takes too long" in why(plan, "view")
    assert shown(planned(SMALL, "--max_minutes 60"), crop=None, image_size=512)
    heart = planned(HEART, "--max_minutes 3")
    assert shown(heart, crop=None, slices=None, image_size=192) and "all" in why(heart, "slices")


def test_rare_classes_decide_the_grid():
    two = replace(HEART, classes=("a", "b"), present=(0.9, 0.1), round_trips={128: (0.99, 0.9), 192: (0.99, 0.98)})
    assert shown(planned(two, "--max_minutes 3"), image_size=192)
    unseen = replace(two, round_trips={128: (0.99, math.nan), 192: (0.99, math.nan)})
    assert shown(planned(unseen, "--max_minutes 3"), image_size=128)


def test_images_that_are_too_small_for_crops():
    tiny = data(60, coverage=1.0)
    assert shown(planned(tiny, "--max_minutes 3"), image_size=64, crop=None)
    between = data(90, coverage=1.0)  # enlarged to 128
    assert shown(planned(between, "--max_minutes 3"), image_size=128, crop=None)


def test_without_marks_nothing_speaks_for_crops():
    plan = planned(data(600, present=(0.0,), round_trips={}), "--max_minutes 3")
    assert shown(plan, image_size=128, crop=None) and "nothing is marked" in why(plan, "view")


# ---- time ----------------------------------------------------------------------------------------------------------


def test_a_longer_limit_takes_a_larger_network():
    costs = [planned(LESIONS, f"--max_minutes {minutes}").candidate.cost for minutes in (1, 5, 60, 600)]
    assert costs == sorted(costs) and costs[0] < costs[1] < costs[2] < costs[3]
    for minutes in (1, 5, 60):
        plan = planned(LESIONS, f"--max_minutes {minutes}")
        assert plan.steps >= plan.candidate.network.least_steps
    slow = planned(LESIONS, "--max_minutes 3", cheapest=5.0)
    assert slow.candidate == Candidate(NETWORKS[0], 128, 4)
    assert "even its 600 steps take more than 3 minutes" in why(slow, "network")


def test_few_networks_are_timed_and_the_largest_that_fits_is_among_them():
    timed = []
    plan = planned(LESIONS, "--max_minutes 20", timed=timed)
    assert plan.candidate in timed and len(timed) <= 4 and timed[0] == Candidate(NETWORKS[0], 128, 4)


def test_images_that_take_long_to_read_leave_time_for_a_smaller_network():
    fast, slow = (planned(replace(LESIONS, images=9000, read_seconds=s), "--max_minutes 3") for s in (0, 0.05))
    assert slow.candidate.cost < fast.candidate.cost


def test_without_a_limit_the_steps_follow_the_cases_and_a_cpu_takes_an_hour_at_most():
    plan = planned(LESIONS)
    assert plan.values["lr_anneal_steps"] == plan.steps == 2400 and plan.seconds <= 3600
    assert "condition_share" not in plan.values and planned(replace(LESIONS, images=400)).steps == 5000
    assert planned(replace(LESIONS, images=9000)).steps == 6000
    assert planned(LESIONS, "--max_steps 900").values["lr_anneal_steps"] == 900


def test_the_users_steps_and_decay_stay():
    assert planned(LESIONS, "--max_steps 900").values["lr_anneal_steps"] == 900
    short = planned(LESIONS, "--max_minutes 60 --max_steps 50")
    assert short.steps == 50 and short.seconds < 600 and short.values["lr_anneal_steps"] == -1
    decay = planned(LESIONS, "--max_minutes 3 --lr_anneal_steps 50")
    assert decay.steps == 50 and "lr_anneal_steps" not in decay.values
    constant = planned(LESIONS, "--lr_decay none")
    assert shown(constant, max_steps=2400, lr_anneal_steps=None)
    assert not {"max_steps", "lr_anneal_steps"} & set(planned(LESIONS, "--lr_decay none --max_minutes 3").values)
    assert planned(LESIONS, cheapest=9.0).steps < 400  # an hour on a slow machine


def test_few_steps_take_a_small_network():
    for minutes, machine in ((0, CPU), (600, CPU), (0, GPU)):
        plan = planned(LESIONS, f"--max_minutes {minutes} --max_steps 900", machine=machine, cheapest=0.001)
        assert shown(plan, num_channels=16) and plan.steps == 900
    tiny = planned(VESSELS, "--max_steps 50")
    assert tiny.candidate.network.channels == 16 and "need more than your 50 steps" in why(tiny, "network")


def test_a_decay_without_an_end_gets_one():
    for decay in (-1, 0):
        plan = planned(LESIONS, f"--lr_anneal_steps {decay}")
        assert shown(plan, max_steps=2400) and plan.seconds <= 3600
    assert "max_steps" not in planned(LESIONS, "--lr_anneal_steps -1 --max_minutes 3").values


def test_a_gpu_gets_the_published_sizes_by_its_memory():
    plan = planned(LESIONS, machine=GPU, cheapest=0.001)
    assert shown(plan, preset="B", image_size=256, patch_size=1, lr=1e-4) and plan.steps == 20_000
    assert shown(planned(LESIONS, machine=replace(GPU, memory=16e9), cheapest=0.001), preset="S")
    small = planned(LESIONS, machine=replace(GPU, memory=4e9), cheapest=0.001)
    assert shown(small, preset=None, num_channels=64, image_size=256)
    short = planned(LESIONS, "--max_minutes 5", machine=GPU, cheapest=0.002)
    assert shown(short, preset=None, lr_anneal_steps=-1)


def test_validations_fit_their_share_of_the_time():
    plan = planned(LESIONS, "--max_minutes 20")
    assert plan.values["val_cases"] == 8 and 2 * plan.values["sample_interval"] < plan.steps
    assert shown(planned(VESSELS, "--max_minutes 1"), sample_interval=0)  # hundreds of windows
    assert "last.pt" in why(planned(VESSELS, "--max_minutes 1"), "validation")
    often = planned(LESIONS, "--max_minutes 20 --sample_interval 20")  # more validations, of fewer cases
    assert set(often.values) & {"sample_interval", "val_cases"} == {"val_cases"} and often.values["val_cases"] < 8
    assert f"{-(-often.steps // 20)} validations" in why(often, "validation")
    assert "val_cases" not in planned(LESIONS, "--max_minutes 20 --sample_interval 0").values
    assert planned(VESSELS, "--max_minutes 1 --val_cases 1").values["sample_interval"] > 0  # the user wants them


# ---- what the user sets ----------------------------------------------------------------------------------------------


def test_given_values_win():
    line = "--max_minutes 3 --lr 0.01 --batch_size 4 --crop False --sample_interval 7 --orientation any"
    plan = planned(VESSELS, line)
    assert not {"lr", "batch_size", "crop", "sample_interval", "orientation"} & set(plan.values)
    (view,) = (choice for choice in plan.choices if choice.what == "view")
    assert "--crop False (as you set it)" in view.line and "you asked for whole images" in view.line
    assert plan.values["image_size"] == 512
    assert shown(planned(LESIONS, "--crop True --max_minutes 3"), image_size=128)
    assert "lr_anneal_steps" not in planned(LESIONS, "--max_minutes 3 --lr_anneal_steps 500").values
    assert planned(LESIONS, "--max_minutes 3 --condition_share 0.7").values.get("condition_share") is None


def test_every_version_gets_the_same_sizes_and_augmentation():
    v2, unet, v1 = (planned(LESIONS, f"--max_minutes 3 --version {version}") for version in ("v2", "unet", "v1"))
    assert v2.candidate == unet.candidate == v1.candidate
    assert shown(unet, augment="light", dropout=0.1, condition_share=None, diffusion_level=None)
    assert "augment" not in v2.values  # the recipe has it


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", True),
        ("--version unet --lr 1e-3 --crop True", True),
        ("--recipe staged", True),
        ("--recipe none", False),
        ("--recipe published", False),
        ("--image_size 128", False),
        ("--preset XS", False),
        ("--num_res_blocks 1", False),
        ("--overfit 2", False),
    ],
)
def test_a_plan_is_made_where_no_size_is_given(line, expected):
    options, given = train_options(f"--data_dir x {line}")
    assert may_plan(settle(options, given).train, given) == expected


def test_every_candidate_is_a_network_that_the_options_take():
    for network in NETWORKS:
        for grid in network.grids:
            for patch in (1, 2, 4):
                flags = Candidate(network, grid * patch, patch).flags
                options, _ = train_options("--data_dir x " + " ".join(f"--{n} {v}" for n, v in flags.items()))
                levels = len(options[2].multipliers())
                assert grid % 2 ** (levels - 1) == 0 and options[2].num_channels == network.channels


def test_lines():
    assert Choice("notes", {}, "a reason").line == "notes: a reason"
    assert Choice("rate", {}, "a reason", {"lr": 0.1}).line == "--lr 0.1 (as you set it)"  # for reasons of its own
    lines = short_lines(planned(LESIONS, "--max_minutes 3"))
    assert all(line.startswith("plan: ") for line in lines) and lines[-1].startswith("plan: about ")
