"""The Dice by ensemble size, against fusing whole images, and the size from which it no longer grows."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.evaluation.controls import copula_members
from guided_diffusion.evaluation.diversity import compare_sets
from guided_diffusion.evaluation.ensemble_size import (
    dice_by_size,
    format_sizes,
    sets_by_size,
    size_summary,
    sizes_up_to,
    subsets,
)
from guided_diffusion.evaluation.metrics import overlap
from guided_diffusion.evaluation.proper_scores import proper_scores
from guided_diffusion.inference.ensemble import fuse_masks


def case(seed, members, classes):
    """Noisy copies of a truth: bool [E, K, 12, 14], [K, 12, 14]; with several classes a pixel has at most one."""
    rng = np.random.default_rng(seed)
    label = np.zeros((12, 14), int)
    label[2:9, 3:8], label[3:7, 8:12] = 1, classes
    noisy = np.where(rng.random((members, 12, 14)) < 0.2, rng.integers(0, classes + 1, (members, 12, 14)), label)
    return np.stack([noisy == k for k in range(1, classes + 1)], axis=1), np.stack(
        [label == k for k in range(1, classes + 1)]
    )


@pytest.mark.parametrize("method", ["staple", "vote"])
@pytest.mark.parametrize("classes", [1, 2])
def test_dice_is_that_of_fusing_whole_images(method, classes):
    members, truth = case(0, 3, classes)
    found = dice_by_size(members, truth, method, True, "a")
    for size in range(1, 4):
        expected = []
        for chosen in subsets(3, size, "a"):
            soft = torch.from_numpy(members[chosen])[:, None].float()  # [n, 1, K, H, W]
            fused = fuse_masks(soft, method, exclusive=True)[0].numpy()
            expected.append([overlap(fused[k], truth[k])["dice"] for k in range(classes)])
        assert found[size - 1] == pytest.approx(np.mean(expected, axis=0))
    volume = dice_by_size(members[..., None], truth[..., None], method, True, "a")
    assert np.array_equal(volume, found)


def test_a_truth_that_is_empty_twice_is_undefined_and_identical_members_do_not_grow():
    empty = np.zeros((3, 1, 4, 4), bool)
    assert np.isnan(dice_by_size(empty, empty[0], "vote", True, "a")).all()
    members, truth = case(1, 1, 1)
    same = dice_by_size(np.repeat(members, 3, axis=0), truth, "staple", True, "a")
    assert (same == overlap(members[0, 0], truth[0])["dice"]).all()


def test_large_ensembles_are_scored_at_few_sizes():
    assert sizes_up_to(40, (1, 2, 4, 8, 16, 32, 64)) == [1, 2, 4, 8, 16, 32, 40] and sizes_up_to(3, (4, 8)) == [3]
    members, truth = case(3, 20, 1)
    found = dice_by_size(members, truth, "vote", True, "a")
    assert found.shape == (10, 1)  # 1 to 8, 16 and 20
    assert found[-1] == overlap(members[:, 0].mean(axis=0) > 0.5, truth[0])["dice"]


def test_sets_of_each_size_are_those_of_the_subsets():
    members, truth = case(4, 6, 1)
    raters = np.stack([truth[0], members[0, 0], np.zeros_like(truth[0])])
    found = sets_by_size(members[:, 0], raters, "a")
    fraction = raters.mean(axis=0)
    for place, size in enumerate((4, 6)):
        chosen = [members[one, 0] for one in subsets(6, size, "a")]
        sets = [compare_sets(list(one), list(raters)) for one in chosen]
        for figure in ("ged2_unbiased", "matched_iou"):
            assert found[figure][place] == pytest.approx(np.mean([one[figure] for one in sets]))
        losses = [proper_scores(one.mean(axis=0), fraction)["log_loss_sum"] for one in chosen]
        assert found["log_loss_sum"][place] == pytest.approx(np.mean(losses))
    assert found["rater_pixels"] == pytest.approx(fraction.sum())


def test_more_members_from_the_truth_never_score_worse():
    """Members and raters from one distribution: the unbiased GED stays at 0, the log loss falls."""
    cases = [np.array(copula_members(np.clip(soft_disc(), 0, 1), 34, 4.0, str(k))) for k in range(40)]
    sets = [sets_by_size(masks[:32], masks[32:], str(k)) for k, masks in enumerate(cases)]
    found = size_summary([[0.5, 0.5]] * 40, range(40), "vote", 2, None)
    assert "sets" not in found
    found = size_summary([[0.5] * 10] * 40, range(40), "vote", 32, sets)["sets"]
    assert found["sizes"] == [4, 8, 16, 32] == [*found["sizes"]]
    geds = [one["mean"] for one in found["ged2_unbiased"]]
    assert max(geds) - min(geds) < 0.03 and all(one["low"] < 0.01 for one in found["ged2_unbiased"])
    losses = [one["mean"] for one in found["log_loss_per_area"]]
    assert losses == sorted(losses, reverse=True) and losses[0] > 1.5 * losses[-1]


def soft_disc(size=24):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (10 - np.hypot(y, x)) / 8


def test_subsets_are_distinct_seeded_and_complete_where_few():
    assert len(subsets(4, 2, "a")) == 6 and subsets(3, 3, "a").tolist() == [[0, 1, 2]]
    drawn = subsets(10, 4, "a")
    assert drawn.shape == (8, 4) and len({tuple(row) for row in drawn}) == 8
    assert np.array_equal(drawn, subsets(10, 4, "a")) and not np.array_equal(drawn, subsets(10, 4, "b"))


def test_growth_ends_where_no_larger_ensemble_is_better():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.6, 0.8, (40, 1))
    dice = base + np.array([0, 0.05, 0.08, 0.0803, 0.0805]) + rng.normal(0, 1e-4, (40, 5))
    found = size_summary(dice, range(40), "staple")
    assert found["enough"] == 3 and found["sizes"] == [1, 2, 3, 4, 5] and found["method"] == "staple"
    assert [one["mean"] for one in found["dice"]] == pytest.approx(dice.mean(axis=0))
    assert "no longer grows from 3 members on" in format_sizes(found)
    assert format_sizes(found).startswith("binary masks of the members, fused by staple\n")
    # A gain within the noise is no growth.
    noise = base + np.array([0, 0.01, 0.012]) + rng.normal(0, 0.2, (40, 3))
    assert size_summary(noise, range(40), "vote")["enough"] == 1
    growing = size_summary(base + np.array([0, 0.05, 0.1]), range(40), "vote")
    assert growing["enough"] == 3 and "still grows at 3" in format_sizes(growing)
    assert "fused by vote; the run itself may use the mean of soft masks\n" in format_sizes(growing)
    assert size_summary([[math.nan] * 3], [0], "vote") is None and size_summary([[0.5]], [0], "vote") is None
