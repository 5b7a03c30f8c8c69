"""The threshold with a guarantee: the formula against a search, and the risk of new cases over many draws."""

import math

import numpy as np
import pytest
from conftest import FAST, strict_json
from PIL import Image

from guided_diffusion.checkpoint import load_checkpoint
from guided_diffusion.evaluation.risk_control import (
    LesionLevels,
    achieved_misses,
    choose_thresholds,
    controlled_level,
    missed_shares,
)
from guided_diffusion.runtime.errors import UserError

TOP = 65535


def lesion(rng, pixels=40):
    """The probabilities of one lesion's pixels: some lesions are found well, some hardly."""
    return np.clip(rng.beta(*rng.uniform(0.5, 4, 2), pixels), 1e-4, 1)


def levels_of(probability):
    return LesionLevels.of(probability, np.ones(len(probability), bool))


def test_the_threshold_is_the_highest_that_a_search_admits():
    rng = np.random.default_rng(0)
    for alpha, patients in ((0.1, 25), (0.3, 8), (0.5, 1)):
        cases = [np.rint(lesion(rng) * TOP) / TOP for _ in range(patients + 6)]
        groups = [*range(patients), *range(min(6, patients)), *range(6 - min(6, patients))][: len(cases)]
        groups = [group % patients for group in groups]
        (choice,) = choose_thresholds([[levels_of(case)] for case in cases], ["lesion"], groups, alpha)
        admitted = []
        for threshold in np.unique(np.concatenate(cases)) - 0.5 / TOP:
            each = {}
            for case, group in zip(cases, groups, strict=True):
                each.setdefault(group, []).append(np.mean(case < threshold))
            risk = np.mean([np.mean(values) for values in each.values()])
            if patients / (patients + 1) * risk + 1 / (patients + 1) <= alpha + 1e-12:
                admitted.append((threshold, risk))
        assert choice.threshold == pytest.approx(max(admitted)[0], abs=1e-9)
        assert choice.risk == pytest.approx(max(admitted)[1]) and choice.groups == patients


def test_new_cases_miss_at_most_alpha_on_average_and_not_much_less():
    """The mean loss of case n + 1 over many draws lies between alpha - 2 / (n + 1) and alpha."""
    rng, alpha, patients, draws = np.random.default_rng(1), 0.1, 30, 500
    losses = []
    for _ in range(draws):
        cases = [lesion(rng) for _ in range(patients + 1)]
        risk, count = missed_shares([levels_of(case) for case in cases[:-1]], range(patients))
        threshold = (controlled_level(risk, count, alpha) - 0.5) / TOP
        losses.append(np.mean(cases[-1] <= threshold))
    mean, error = np.mean(losses), np.std(losses) / math.sqrt(draws)
    assert mean <= alpha + 3 * error and mean >= alpha - 2 / (patients + 1) - 3 * error
    assert error < 0.01


def test_too_few_patients_and_probabilities_of_nought_are_refused():
    sure = levels_of(np.full(5, 0.9))
    with pytest.raises(UserError, match="--max_misses 0.1: needs 9 patients or cases with a lesion at least, and has"):
        choose_thresholds([[sure]] * 8, ["lesion"], range(8), 0.1)
    assert choose_thresholds([[sure]] * 9, ["lesion"], range(9), 0.1)[0].threshold == pytest.approx(0.9, abs=1e-4)
    with pytest.raises(UserError, match=r"needs 9 .*, and has 1; take more .* \(class b\)"):
        choose_thresholds([[sure, sure]] + [[sure, None]] * 8, ["a", "b"], range(9), 0.1)
    with pytest.raises(
        UserError, match="no threshold above 0 misses that few, since too many lesion pixels have the prob"
    ):
        choose_thresholds([[levels_of(np.zeros(5))]] * 20, ["lesion"], range(20), 0.1)


def test_cases_without_a_lesion_are_left_out_and_counted():
    none = LesionLevels.of(np.full((4, 4), 0.9), np.zeros((4, 4), bool))
    assert none is None
    cases = [[levels_of(np.linspace(0.1, 0.9, 20))]] * 20
    with_none = choose_thresholds([*cases, [none], [none]], ["lesion"], range(22), 0.2)[0]
    without = choose_thresholds(cases, ["lesion"], range(20), 0.2)[0]
    assert with_none.threshold == without.threshold and (with_none.groups, with_none.without) == (20, 2)


def test_the_achieved_share_is_a_mean_over_patients():
    rows = [{"sensitivity": value} for value in (1.0, 0.5, 0.9, math.nan)]
    found = achieved_misses(rows, ["a", "a", "b", "c"])
    assert found["mean"] == pytest.approx((0.25 + 0.1) / 2) and found["n"] == 2
    assert found["low"] == pytest.approx(0.1) and found["high"] == pytest.approx(0.25)


def test_by_the_scripts_from_results_to_guaranteed_masks(
    script, sample, refusal, own_checkpoint, pictures, tmp_path, capsys
):
    data = ["--model_path", own_checkpoint, "--data_dir", pictures, "--out_dir", tmp_path / "none", FAST]
    line = refusal("segmentation_sample", [*data, "--threshold guaranteed"])
    assert "--threshold guaranteed: the checkpoint has none; fit it on validation cases" in line
    plain = sample(own_checkpoint, pictures, f"{FAST} --split all", out="plain")
    fit = ["--pred_dir", plain, "--fit_threshold", own_checkpoint]
    assert "--max_misses 0.1: needs 9 patients" in refusal("segmentation_eval", fit)
    alone = ["--pred_dir", plain, "--max_misses 0.3"]
    assert "--max_misses belongs to --fit_threshold" in refusal("segmentation_eval", alone)
    capsys.readouterr()
    script("segmentation_eval", [*fit, "--max_misses 0.3 --fit_temperature", own_checkpoint])
    out = capsys.readouterr().out
    assert "for at most 0.3 on average and written to" in out and "over 4 groups" in out
    assert "holds for new cases only if none of these was trained on" in out
    fitted = load_checkpoint(own_checkpoint).config["masks"]["threshold"]
    assert fitted["max_misses"] == 0.3 and fitted["groups"] == [4] and 0 < fitted["values"][0] < 1

    found = sample(own_checkpoint, pictures, f"{FAST} --threshold guaranteed", out="guaranteed")
    assert "at most 0.3 of a patient's lesion pixels are missed on average" in capsys.readouterr().out
    misses, temperature = [], load_checkpoint(own_checkpoint).config["calibration"]["temperature"]
    assert temperature != 1  # which moves the saved probability, but not the mask
    for path in sorted((pictures / "masks").iterdir()):
        truth, mask = (np.asarray(Image.open(folder / path.name)) > 0 for folder in (path.parent, found / "masks"))
        probability = np.asarray(Image.open(plain / "probability" / path.name)) / TOP
        assert np.array_equal(mask, probability > fitted["values"][0])
        misses.append(1 - (truth & mask).sum() / truth.sum())
    summary, settings = strict_json(found / "summary.json"), strict_json(found / "manifest.json")["settings"]
    assert summary["misses"]["at_most"] == settings["max_misses"] == 0.3 and settings["fuse"] == "mean"
    assert summary["misses"]["classes"]["foreground"]["mean"] == pytest.approx(np.mean(misses), abs=1e-6)
    assert np.mean(misses) <= 0.3 and 4 / 5 * np.mean(misses) + 1 / 5 <= 0.3
    script("segmentation_eval", ["--pred_dir", found])
    assert "Missed share of the lesion pixels: 0." in capsys.readouterr().out

    page = (found / "report.html").read_text()
    assert "Missed share of the lesion pixels: 0." in page and "fitted to miss at most 0.3 of the lesion" in page

    for flags, line in (
        ("--threshold guaranteed --num_ensemble 3", "was fitted for num_ensemble 2, and now it is 3; sample as before"),
        ("--threshold guaranteed --keep_largest", "--keep_largest: removes pixels, so --threshold guaranteed would"),
        ("--threshold 0.3 --fuse staple", "--threshold 0.3: cuts the mean probability; leave out --fuse staple"),
        ("--threshold 0", "--threshold 0: must be guaranteed, or a number between 0 and 1"),
        ("--threshold low", "--threshold low: must be numbers"),
    ):
        assert line in refusal("segmentation_sample", [*data, flags])
