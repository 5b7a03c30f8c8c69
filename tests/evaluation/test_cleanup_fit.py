"""The choice of a clean-up: kept where it gains on unseen cases, and only there."""

import numpy as np
import pytest
from conftest import FAST, strict_json

from guided_diffusion.checkpoint import checkpoint_digest, load_checkpoint
from guided_diffusion.data.classes import BINARY
from guided_diffusion.evaluation.cleanup_fit import GRID, choose_cleanup, cleanup_dice, format_cleanup
from guided_diffusion.evaluation.metrics import overlap
from guided_diffusion.inference.cleanup import Cleanup, cleaned


def blobs(seed, specks):
    """A truth of one disk, and a prediction of it with a hole and `specks` small false lesions."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:48, :48]
    truth = np.hypot(y - rng.integers(16, 32), x - rng.integers(16, 32)) < rng.integers(6, 10)
    mask = truth.copy()
    for row, column in rng.integers(1, 46, (specks, 2)):
        mask[row : row + 2, column : column + 2] = True
    return mask, truth


def test_the_grid_begins_with_nothing_and_has_every_combination_once():
    assert GRID[0] == Cleanup() and len(set(GRID)) == len(GRID) == 24


def test_the_dice_of_each_candidate_is_that_of_the_cleaned_mask():
    rng = np.random.default_rng(0)
    masks, truths = (rng.random((2, 24, 24)) < 0.4 for _ in range(2))
    found = cleanup_dice(masks, truths, exclusive=False)
    for column, rule in enumerate(GRID):
        for k in range(2):
            after = cleaned(masks[k : k + 1], [rule], BINARY)[0]
            assert found[k, column] == pytest.approx(overlap(after, truths[k])["dice"])
    empty = np.zeros((1, 24, 24), bool)
    agreed = cleanup_dice(masks[:1], empty, False)[0]
    assert agreed[0] == 0 and agreed[GRID.index(Cleanup(False, False, 1000))] == 1  # two empty masks agree
    assert (cleanup_dice(empty, empty, False) == 1).all()


def test_pixels_without_truth_shape_components_but_not_the_dice():
    rng = np.random.default_rng(1)
    mask, truth = (rng.random((1, 24, 24)) < 0.4 for _ in range(2))
    known = np.arange(24) < np.full((24, 1), 15)
    found = cleanup_dice(mask, truth & known, False, known)
    for column, rule in enumerate(GRID):
        after = cleaned(mask, [rule], BINARY)[0]
        assert found[0, column] == pytest.approx(overlap(after & known, truth[0] & known)["dice"])


def test_a_gain_is_kept_and_a_chance_is_not():
    cases = [blobs(seed, specks=4) for seed in range(12)]
    dice = np.stack([cleanup_dice(mask[None], truth[None], False) for mask, truth in cases])
    (choice,) = choose_cleanup(dice, ["lesion"], list(range(12)))
    assert choice.kept and choice.low > 0 and choice.after > choice.before
    assert choice.rule.keep_largest or choice.rule.min_size in (10, 30, 100)
    assert choice.after == dice[:, 0].mean(axis=0).max()
    table = format_cleanup([choice], "m.pt", {"data": {"split": "val"}}, 12)
    assert "kept" in table and "chosen on 12 validation cases and written to m.pt" in table
    same_patient = choose_cleanup(dice, ["lesion"], ["P"] * 12)[0]
    assert not same_patient.kept and np.isnan(same_patient.low)  # one patient shows nothing

    clean = [blobs(seed, specks=0) for seed in range(12)]
    dice = np.stack([cleanup_dice(mask[None], truth[None], False) for mask, truth in clean])
    (choice,) = choose_cleanup(dice, ["lesion"], list(range(12)))
    assert choice.rule == Cleanup() and not choice.kept
    one_gains = dice.copy()
    one_gains[0, 0, 1:] += 0.01
    (choice,) = choose_cleanup(one_gains - 0.5, ["lesion"], list(range(12)))
    assert choice.rule and not choice.kept  # a gain in one case alone


def test_it_is_written_to_the_checkpoint_and_applied_from_then_on(
    script, sample, refusal, own_checkpoint, write_results, pictures, tmp_path, capsys
):
    results = write_results(own_checkpoint, tmp_path / "results", lambda mask: mask)  # no clean-up can gain
    fit = ["--pred_dir", results, "--fit_cleanup", own_checkpoint, "--data_name FOLDER --data_dir", pictures]
    line = refusal("segmentation_eval", [*fit, "--classes other=255"])
    assert "--fit_cleanup: fits the classes that were sampled; leave out --classes" in line
    before = checkpoint_digest(own_checkpoint)
    script("segmentation_eval", fit)
    assert "no clean-up shows a gain on 4 cases" in capsys.readouterr().out
    assert checkpoint_digest(own_checkpoint) == before  # so that a run that samples with it can go on

    def with_specks(mask):
        spoilt = mask.copy()
        spoilt[0, ::4] = spoilt[-1, ::4] = True
        return spoilt

    results = write_results(own_checkpoint, tmp_path / "spoilt", with_specks)
    fit[1] = results
    script("segmentation_eval", fit)
    out = capsys.readouterr().out
    assert "kept" in out and f"written to {own_checkpoint}; sampling applies it from now on" in out
    fitted = load_checkpoint(own_checkpoint).config["masks"]["cleanup"]
    assert fitted["keep_largest"] == [True] or fitted["min_size"][0] > 0
    script("segmentation_eval", [*fit, "--fit_temperature", own_checkpoint])  # on the same results as before
    checkpoint = load_checkpoint(own_checkpoint).config
    assert checkpoint["masks"]["cleanup"] == fitted and "temperature" in checkpoint["calibration"]
    folder = sample(own_checkpoint, pictures, FAST, out="default")
    settings = strict_json(folder / "manifest.json")["settings"]
    assert settings["keep_largest"] == fitted["keep_largest"][0] and settings["min_size"] == fitted["min_size"][0]
    again = ["--pred_dir", folder, "--fit_cleanup", own_checkpoint]
    assert "the results are cleaned already; sample with --fill_holes False" in refusal("segmentation_eval", again)
    several = ["--pred_dir", f"{folder},{results}", "--out_dir", tmp_path / "o", "--fit_cleanup", own_checkpoint]
    assert "--fit_cleanup: belongs to the results of one checkpoint" in refusal("segmentation_eval", several)
