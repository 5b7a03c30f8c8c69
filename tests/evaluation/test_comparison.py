"""Comparing two runs, the ensemble's size, and the model card, at the script's door; the paired difference
against SciPy."""

import json
import math
import re

import numpy as np
import pytest
from conftest import one_class, strict_json, write_folder
from PIL import Image
from scipy.stats import wilcoxon

from guided_diffusion.evaluation.comparison import paired_difference
from guided_diffusion.inference.results import ResultsFolder
from guided_diffusion.runtime.errors import UserError


def test_paired_differences_are_of_groups():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.1, 40), rng.normal(0.75, 0.1, 40)
    second[3] = math.nan
    there = ~np.isnan(second)
    groups = np.arange(40) // 2
    found = paired_difference(first, second, groups)
    assert found["n"] == 39 and found["difference"] == pytest.approx((first - second)[there].mean())
    means = [np.nanmean((first - second)[groups == g]) for g in range(20)]
    assert found["p"] == pytest.approx(wilcoxon(means).pvalue)
    assert found["low"] < found["difference"] < found["high"]
    back = paired_difference(second, first, groups)
    assert back["difference"] == pytest.approx(-found["difference"]) and back["p"] == pytest.approx(found["p"])
    assert paired_difference(first, first, groups)["p"] == 1 and paired_difference([math.nan], [1.0], [0])["n"] == 0


@pytest.fixture
def runs(tmp_path):
    """A data set of four pictures and two runs of three members on them: one near the truth, one farther."""
    write_folder(tmp_path / "data", 4)
    for name, share in (("near", 0.02), ("far", 0.2)):
        settings = {"num_ensemble": 3, "fuse": "mean"}
        manifest = {"checkpoint": "m.pt", "checkpoint_sha256": "ab", "settings": settings, "step": 7}
        manifest |= {"data": {"data_name": "FOLDER", "data_dir": str(tmp_path / "data")}}
        manifest["config"] = {"model": {"version": "v2"}, "data": {"data_name": "FOLDER"}, "train": {"lr": 1e-3}}
        results = ResultsFolder(tmp_path / name, manifest, save_samples=True)
        rng = np.random.default_rng(0)
        for path in sorted((tmp_path / "data" / "masks").glob("*.png")):
            truth = np.asarray(Image.open(path)) > 0
            members = np.stack([truth ^ (rng.random(truth.shape) < share) for _ in range(3)])
            soft = members.mean(axis=0).astype(np.float32)
            maps = one_class(soft > 0.5, soft, soft / 2, members, soft)
            results.write_image(path.stem, maps, np.zeros((3, *truth.shape)))
    return tmp_path


def test_script_compares_writes_the_card_and_the_sizes(runs, script, refusal, capsys):
    script(
        "segmentation_eval",
        ["--pred_dir", runs / "near", "--ensemble_curve True --card True --copula_length 3 --topology True"],
    )
    before = strict_json(runs / "near" / "summary.json")
    sizes = before["ensemble_size"]
    assert sizes["method"] == "vote" and sizes["sizes"] == [1, 2, 3]
    assert sizes["dice"][0]["mean"] == pytest.approx(before["sample"]["mean"])
    assert sizes["dice"][2]["mean"] == pytest.approx(before["ensemble"]["dice"]["mean"])
    assert strict_json(runs / "near" / "curves.json")["ensemble_size"] == sizes
    assert sizes["sets"]["sizes"] == [3]
    assert sizes["sets"]["ged2_unbiased"][0] == pytest.approx(before["diversity"]["ged2_unbiased"])
    assert before["topology"]["mask_cldice"]["n"] == before["diversity"]["control_copula_matched_iou"]["n"] == 4
    page = (runs / "near" / "report.html").read_text()
    assert "By number of members" in page and "Gaussian copula" in page
    out = capsys.readouterr().out
    assert "members     dice" in out
    for member in before["members"]:
        assert 0.9 < member["staple_sensitivity"] <= 1 and 0.9 < member["staple_specificity"] <= 1

    card = (runs / "near" / "model_card.md").read_text()
    assert f"| dice | {before['ensemble']['dice']['mean']:.4f} | – |" in card  # four cases
    assert all(f"\n## {part}\n" in card for part in ("Data", "Configuration", "Metrics", "Limits", "Citing"))
    assert "arXiv:2301.11798" in card and "2211.00611" not in card and "nan" not in card.lower().split()

    script("segmentation_eval", ["--pred_dir", runs / "near", "--compare", runs / "far", "--nsd_tolerance 1.5"])
    found = strict_json(runs / "near" / "summary.json")["comparison"]
    assert found["cases"] == 4 and found["figures"]["dice"]["difference"] > 0.05 and "nsd_1.5" in found["figures"]
    assert found["figures"]["dice"]["p"] == pytest.approx(2 / 16)  # four pairs, all of one sign
    assert "compared with" in capsys.readouterr().out
    for path in (runs / "far" / "masks").glob("*.png"):
        path.unlink()
    line = refusal("segmentation_eval", ["--pred_dir", runs / "near", "--compare", runs / "far"])
    assert "far: nothing to evaluate: of 4 cases" in line


@pytest.mark.parametrize("fusion", ["weighted", "staple+coarse"])
def test_results_of_a_removed_fusion_are_still_evaluated(runs, script, refusal, fusion):
    """Their masks are there; but for members that would have to be fused again."""
    path = runs / "near" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["fuse"] = fusion
    path.write_text(json.dumps(manifest))
    script("segmentation_eval", ["--pred_dir", runs / "near"])
    assert strict_json(runs / "near" / "summary.json")["ensemble"]["dice"]["mean"] > 0.9
    line = refusal("segmentation_eval", ["--pred_dir", runs / "near", "--ensemble_curve True"])
    assert f"fused by {fusion}, which this version no longer has; leave it out" in line
    with pytest.raises(UserError, match=f"these results were made with .*{re.escape(fusion)}.*choose another"):
        ResultsFolder(runs / "near", manifest | {"settings": manifest["settings"] | {"fuse": "mean"}})
