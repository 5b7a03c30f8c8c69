"""What was fitted for the masks of a checkpoint: a stranger's file holds one value for each class, or is refused."""

import copy

import pytest

from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.runtime.errors import UserError

WHOLE = {
    "cleanup": {"fill_holes": [True], "keep_largest": [False], "min_size": [30], "cases": 12, "split": "val"},
    "threshold": {"values": [0.2], "max_misses": 0.1, "groups": [12], "split": "val", "settings": {"scales": [0.9]}},
    "fitted_on": ["ab"],
}


@pytest.fixture
def stored(trained, tmp_path):
    """A function (masks) that returns what a checkpoint with these fits is read as."""

    def read(masks):
        checkpoint = load_checkpoint(trained)
        checkpoint.config["masks"] = masks
        save_checkpoint(checkpoint, tmp_path / "m.pt")
        return load_checkpoint(tmp_path / "m.pt").config["masks"]

    return read


def test_whole_and_empty_fits_are_read(stored):
    assert stored(WHOLE) == WHOLE and stored({}) == {} and stored({"cleanup": WHOLE["cleanup"]})


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("cleanup.fill_holes", ["yes"]),
        ("cleanup.min_size", [-1]),
        ("threshold.values", [float("nan")]),
        ("threshold.values", [0.2, 0.3]),
        ("threshold.max_misses", 1.0),
    ],
)
def test_wrong_fits_are_named(stored, place, value):
    masks = copy.deepcopy(WHOLE)
    group, name = place.split(".")
    masks[group][name] = value
    with pytest.raises(UserError, match=f"config.masks.{place}"):
        stored(masks)
