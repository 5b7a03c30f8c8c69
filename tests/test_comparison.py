"""Comparing two runs, in figures and settings, and the model card, at the script's door; the paired difference
against SciPy."""

import json
import math

import numpy as np
import pytest
from conftest import FAST, one_class, strict_json, write_folder
from PIL import Image
from scipy.stats import wilcoxon

from guided_diffusion.comparison import paired
from guided_diffusion.results import ResultsFolder


def test_paired_differences_are_of_groups():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.8, 0.1, 40), rng.normal(0.75, 0.1, 40)
    second[3] = math.nan
    there = ~np.isnan(second)
    groups = np.arange(40) // 2
    found = paired(first, second, groups)
    assert found["n"] == 39 and found["difference"] == pytest.approx((first - second)[there].mean())
    means = [np.nanmean((first - second)[groups == g]) for g in range(20)]
    assert found["p"] == pytest.approx(wilcoxon(means).pvalue)
    assert found["low"] < found["difference"] < found["high"]
    back = paired(second, first, groups)
    assert back["difference"] == pytest.approx(-found["difference"]) and back["p"] == pytest.approx(found["p"])
    assert paired(first, first, groups)["p"] == 1 and paired([math.nan], [1.0], [0])["n"] == 0


@pytest.fixture
def runs(tmp_path):
    """A data set of four pictures and two runs of three members on them: one near the truth, one farther."""
    write_folder(tmp_path / "data", 4)
    for name, share in (("near", 0.02), ("far", 0.2)):
        settings = {"num_ensemble": 3, "fuse": "mean+coarse"}
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
    script("segmentation_eval", ["--pred_dir", runs / "near", "--ensemble_curve True --card True"])
    before = strict_json(runs / "near" / "summary.json")
    sizes = before["ensemble_size"]
    assert sizes["method"] == "vote" and sizes["sizes"] == [1, 2, 3]
    assert sizes["dice"][0]["mean"] == pytest.approx(before["sample"]["mean"])
    assert sizes["dice"][2]["mean"] == pytest.approx(before["ensemble"]["dice"]["mean"])
    assert strict_json(runs / "near" / "curves.json")["ensemble_size"] == sizes
    out = capsys.readouterr().out
    assert "members     dice" in out and "smallest n on" in out and "specificity by STAPLE" in out
    for member in before["members"]:
        assert 0.9 < member["staple_sensitivity"] <= 1 and 0.9 < member["staple_specificity"] <= 1

    card = (runs / "near" / "model_card.md").read_text()
    mean = before["ensemble"]["dice"]
    assert f"| dice | {mean['mean']:.4f} | {mean['low']:.4f} to {mean['high']:.4f} |" in card
    assert all(f"\n## {part}\n" in card for part in ("Data", "Configuration", "Metrics", "Limits", "Citing"))
    assert "arXiv:2301.11798" in card and "2211.00611" not in card and "nan" not in card.lower().split()

    script("segmentation_eval", ["--pred_dir", runs / "near", "--compare", runs / "far", "--nsd_tolerance 1.5"])
    found = strict_json(runs / "near" / "summary.json")["comparison"]
    assert found["cases"] == 4 and found["figures"]["dice"]["difference"] > 0.05 and "nsd_1.5" in found["figures"]
    assert found["figures"]["dice"]["p"] == pytest.approx(2 / 16)  # four pairs, all of one sign
    assert "compared with" in (out := capsys.readouterr().out) and "\nsettings: the same\n" in out
    assert found["differences"] == [] and found["warning"] is None
    for path in (runs / "far" / "masks").glob("*.png"):
        path.unlink()
    line = refusal("segmentation_eval", ["--pred_dir", runs / "near", "--compare", runs / "far"])
    assert "far: nothing to evaluate: of 4 cases" in line


# ---- in what they differ -----------------------------------------------------------------------------------------


@pytest.fixture
def compared(script, capsys):
    """A function (results folder, another) that compares them and returns what is printed and {name: the two values}
    of the differences in summary.json."""

    def run(this, other):
        capsys.readouterr()
        script("segmentation_eval", ["--pred_dir", this, "--compare", other])
        out = capsys.readouterr().out
        found = strict_json(this / "summary.json")["comparison"]
        assert found["warning"] is None or f"{found['warning']}\n" in out
        listed = found["differences"]
        return out, listed and {one["name"]: (one["first"], one["second"]) for one in listed}

    return run


def test_two_runs_of_the_scripts_tell_what_was_another_flag(train, sample, trained, pictures, compared):
    one = sample(trained, pictures, FAST)
    steps = "--diffusion_steps 6 --dpm_solver True --num_workers 0 --precision fp32"
    other = sample(trained, pictures, f"--num_ensemble 3 --seed 4 --save_samples True {steps}", out="other")
    out, listed = compared(one, other)
    assert listed == {"sampling num_ensemble": (2, 3), "sampling timesteps": ("2", "6"), "sampling seed": (0, 4)}
    assert "settings that differ, this -> other:\n  sampling num_ensemble: 2 -> 3\n" in out
    assert out.index("sampling seed: 0 -> 4") < out.index("this    other")

    flags = "--version unet --lr 1e-2 --weight_decay 0.1 --val_fraction 0.4 --log_interval 2"
    checkpoint = train("FOLDER", pictures, flags)
    out, listed = compared(sample(checkpoint, pictures, FAST, out="unet"), one)
    assert listed["training version"] == ("unet", "v1") and listed["training weight_decay"] == (0.1, 0)
    assert listed["checkpoint"] == (f"{checkpoint} of step 2", f"{trained} of step 2")
    assert listed["training val_fraction"] == (0.4, 0)
    told = {name.partition(" ")[2] for name in listed}
    assert not told & {"lr", "out_dir", "log_interval", "data_dir", "image_size", "num_workers"}
    assert f"this one has the test cases of {pictures} by --val_fraction 0.4 --split_seed 0, the other the" in out


def rewrite(folder, **values):
    """Change the manifest of a results folder, group by group."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for group, value in values.items():
        manifest[group] = {**manifest[group], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(manifest))


def test_lists_paths_and_what_is_not_recorded(runs, compared):
    near, far = runs / "near", runs / "far"
    trained_on = {"data_name": "/here/loader.py:Own", "data_dir": "/here/ISIC/Train"}
    model = {"version": "v2", "channel_mult": "1,2"}
    steps = list(range(20, 0, -1))
    rewrite(
        near,
        settings={"timesteps": steps, "scales": [], "coupling_sigma": None},
        config={"data": trained_on, "model": model},
    )
    elsewhere = {"data_name": "/there/loader.py:Own", "data_dir": "/there/ISIC/Train"}
    rewrite(far, settings={"timesteps": steps[1:] + [0], "scales": None}, config={"data": elsewhere})
    _, listed = compared(near, far)
    assert listed == {
        "sampling timesteps": ("20", "as many others"),
        "training channel_mult": ("1,2", "not recorded"),
    }
    rewrite(far, settings={"scales": [0.9, 1.1]}, config={"data": {"data_dir": "/there/PH2/Train"}}, step=8)
    rewrite(far, checkpoint_sha256="cd")
    out, listed = compared(near, far)
    assert listed["checkpoint"] == ("m.pt of step 7", "m.pt of step 8")
    assert listed["sampling scales"] == ("", "0.9, 1.1") and "  sampling scales: none -> 0.9, 1.1\n" in out
    assert listed["training data_dir"] == ("/here/ISIC/Train", "/there/PH2/Train")
    rewrite(far, step=7)
    _, listed = compared(near, far)
    assert listed["checkpoint"] == ("m.pt of step 7, SHA-256 ab...", "m.pt of step 7, SHA-256 cd...")


def test_other_cases_are_warned_of(runs, compared):
    near, far, data = runs / "near", runs / "far", runs / "data"
    assert "warning: the two runs" not in compared(near, far)[0]
    rewrite(far, data={"split": "all"})
    text = f"the same cases: this one has the test cases of {data}, the other all cases of {data}. Cases are paired"
    assert text in compared(near, far)[0]
    rewrite(far, data={"split": "test", "data_dir": str(far)})
    assert f"the other the test cases of {far}." in compared(near, far)[0]
    (far / "manifest.json").unlink()  # any folder of masks: nothing is known of it
    out, listed = compared(near, far)
    assert listed is None and "warning: the two runs" not in out and "settings" not in out
