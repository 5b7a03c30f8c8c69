"""Fits into a checkpoint: only to results that it made, and known ones stay known after each fit."""

import pytest

from guided_diffusion.checkpoint import checkpoint_digest, load_checkpoint
from guided_diffusion.evaluation.fits import MOST_STATES, check_origin, shown_split, split_warning, store_fit
from guided_diffusion.runtime.errors import UserError

CLEANUP = {"fill_holes": [True], "keep_largest": [False], "min_size": [0], "cases": 3, "split": "val"}


def test_results_of_before_a_fit_are_the_checkpoints_own(own_checkpoint):
    results = {"checkpoint_sha256": checkpoint_digest(own_checkpoint)}
    other = {"checkpoint_sha256": "0" * 64, "checkpoint": "other.pt"}
    for fit in ({"cleanup": CLEANUP}, {"cleanup": None}, {}):
        checkpoint, original = check_origin(own_checkpoint, results, "fit_cleanup")
        assert original == results["checkpoint_sha256"] or "masks" in checkpoint.config
        with pytest.raises(UserError, match="--fit_cleanup .*: the results were made with other.pt, not with this"):
            check_origin(own_checkpoint, other, "fit_cleanup")
        store_fit(checkpoint, own_checkpoint, results, **fit)
        found = load_checkpoint(own_checkpoint).config["masks"]
        assert ("cleanup" in found) == bool(fit.get("cleanup"))
        assert found["fitted_on"] == [results["checkpoint_sha256"]] != [checkpoint_digest(own_checkpoint)]


def test_only_the_last_states_are_kept(own_checkpoint):
    checkpoint = load_checkpoint(own_checkpoint)
    checkpoint.config["masks"] = {"fitted_on": [str(number) for number in range(MOST_STATES)]}
    store_fit(checkpoint, own_checkpoint, {"checkpoint_sha256": "new"})
    states = load_checkpoint(own_checkpoint).config["masks"]["fitted_on"]
    assert len(states) == MOST_STATES and states[-1] == "new" and "0" not in states


def test_a_fit_to_test_cases_says_so():
    assert split_warning("test").startswith("these were test cases") and not split_warning("val")
    assert "trained on" in split_warning("train") and split_warning("all") == split_warning("train")
    assert [shown_split(split) for split in ("val", "test", "all")] == ["validation ", "test ", ""]
