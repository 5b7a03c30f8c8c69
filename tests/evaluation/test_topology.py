"""Topology: pictures by hand, a shape whose Betti numbers are known, and scikit-image's variation of information."""

import math

import numpy as np
import pytest
from skimage.metrics import variation_of_information as reference_vi

from guided_diffusion.evaluation.topology import (
    TOPOLOGY,
    TOPOLOGY_FIGURES,
    TrueTopology,
    background_segments,
    betti_numbers,
    topology_figures,
    variation_of_information,
)


def drawn(*lines):
    """A mask from lines of text, # for the foreground."""
    return np.array([[character == "#" for character in line] for line in lines])


RING = drawn(
    ".......",
    ".#####.",
    ".#...#.",
    ".#...#.",
    ".#####.",
    ".......",
)
EIGHT = drawn(
    "#########",
    "#...#...#",
    "#...#...#",
    "#########",
)
TWO_AT_A_CORNER = drawn("##..", "##..", "..##", "..##")


@pytest.mark.parametrize(
    ("mask", "betti"),
    [
        (RING, (1, 1)),
        (EIGHT, (1, 2)),
        (TWO_AT_A_CORNER, (1, 0)),  # corners connect the foreground
        (drawn("#.#", ".#.", "#.#"), (1, 0)),  # the border's background is one with the outside
        (drawn(".#.", "#.#", ".#."), (1, 1)),  # edges alone connect the background: the middle is a hole
        (RING & ~drawn(*["...#..."] * 6), (2, 0)),
        (np.zeros((3, 3), bool), (0, 0)),
        (np.ones((3, 3), bool), (1, 0)),
    ],
)
def test_betti_numbers_of_pictures(mask, betti):
    assert betti_numbers(mask) == betti


def test_betti_numbers_of_volumes():
    torus, shell = np.zeros((9, 9, 3), bool), np.zeros((5, 5, 5), bool)
    torus[2:7, 2:7, 1] = True
    torus[4, 4, 1] = False
    assert betti_numbers(torus) == (1, 1)  # a tunnel
    shell[1:4, 1:4, 1:4] = True
    shell[2, 2, 2] = False
    assert betti_numbers(shell) == (1, 0)  # a cavity is no tunnel
    both = np.concatenate([np.pad(torus, ((0, 0), (0, 0), (1, 1))), np.pad(shell, ((0, 0), (2, 2), (0, 0)))])
    assert betti_numbers(both) == (2, 1)


def test_cl_dice_is_of_the_centreline():
    """A thicker vessel along the same line is right; half a vessel misses half the line."""
    thick, thin = np.zeros((2, 20, 60), bool)
    thick[6:13, 4:56], thin[9, 4:56] = True, True
    assert TrueTopology(thin).compare(thick)["cldice"] > 0.95  # but for its ends
    half = thin.copy()
    half[:, 30:] = False
    assert TrueTopology(thin).compare(half)["cldice"] == pytest.approx(2 * 1 * 0.5 / 1.5)
    specks = half.copy()
    specks[1, 4:56:4] = True  # 13 pixels off the line beside 26 on it
    assert TrueTopology(thin).compare(specks)["cldice"] == pytest.approx(2 * (26 / 39) * 0.5 / (26 / 39 + 0.5))
    empty = thin & False
    assert TrueTopology(thin).compare(empty)["cldice"] == TrueTopology(empty).compare(thin)["cldice"] == 0
    assert math.isnan(TrueTopology(empty).compare(empty)["cldice"])


def test_a_mask_against_itself_has_no_error():
    assert TrueTopology(EIGHT).compare(EIGHT) == {"cldice": 1.0, **dict.fromkeys(TOPOLOGY[1:], 0.0)}


def test_a_broken_membrane_merges_two_segments():
    broken = EIGHT.copy()
    broken[1:3, 4] = False
    found = TrueTopology(EIGHT).compare(broken)
    assert (found["betti0_error"], found["betti1_error"]) == (0, 1) and found["vi_background"] > 0.3
    truth, mask = background_segments(EIGHT), background_segments(broken)
    assert truth.max() == 2 and mask.max() == 1
    assert found["vi_background"] == pytest.approx(reference_vi(truth, mask).sum())


def test_variation_of_information_is_scikit_image_s():
    first, second = np.random.default_rng(0).integers(0, 5, (2, 40, 30))
    assert variation_of_information(first, second) == pytest.approx(reference_vi(first, second).sum())
    halves, one = np.arange(8).reshape(2, 4) // 4, np.zeros((2, 4), int)
    assert variation_of_information(halves, one) == pytest.approx(1)  # one bit says which half


def test_figures_are_of_the_mask_and_of_eight_members_at_most():
    members = [RING] * 3 + [RING & False] * 20
    found = topology_figures(RING, members, RING)
    assert set(found) == set(TOPOLOGY_FIGURES) and found["mask_cldice"] == 1
    # Of 23 members the numbers 0, 3, 6, 9, 13, 16, 19 and 22 count.
    assert found["sample_cldice"] == pytest.approx(1 / 8) and found["sample_betti1_error"] == pytest.approx(7 / 8)
    alone = topology_figures(RING, [], RING)
    assert alone["mask_cldice"] == 1 and all(math.isnan(alone[f"sample_{name}"]) for name in TOPOLOGY)
