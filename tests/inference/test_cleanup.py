"""Clean-up of masks: what is filled, kept and removed, in which order, and what the flags say."""

import numpy as np
import pytest
from conftest import FAST, mri, strict_json
from PIL import Image

from guided_diffusion import Segmenter
from guided_diffusion.checkpoint import load_checkpoint, save_checkpoint
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.data.classes import BINARY, Classes
from guided_diffusion.inference.cleanup import Cleanup, cleaned, components_of, described_rules, rules_of
from guided_diffusion.io.nifti import read_nifti
from guided_diffusion.runtime.errors import UserError

ORGANS = Classes(("liver", "tumour"), ((1,), (2,)))


def drawing(text):
    """A mask from lines of # and other characters."""
    return np.array([[letter == "#" for letter in line] for line in text.split()])


RING = """
    ####....#.
    #..#....##
    #..#......
    ####..#...
    ..........
    """


def clean(text, *rule):
    return cleaned(drawing(text)[None], [Cleanup(*rule)], BINARY)[0]


def test_each_rule_and_their_order():
    ring = drawing(RING)
    filled = ring.copy()
    filled[1:3, 1:3] = True
    assert np.array_equal(clean(RING, True), filled)
    largest = np.zeros_like(ring)
    largest[:4, :4] = ring[:4, :4]
    assert np.array_equal(clean(RING, False, True), largest)
    small = ring.copy()
    small[3, 6] = False
    assert np.array_equal(clean(RING, False, False, 2), small) and np.array_equal(clean(RING, False, False, 1), ring)
    assert clean(RING, True, True).sum() == 16 and not clean(RING, True, True, 17).any()
    assert clean(RING, False, True, 13).sum() == 0  # the ring has 12: holes are filled before sizes are counted
    assert clean(RING, True, False, 13).sum() == 16
    assert np.array_equal(ring, drawing(RING))  # the input is left alone


def test_corners_connect_the_foreground_but_not_a_hole():
    assert clean("#.. .#. ..#", False, True).sum() == 3
    open_corner = "###. #.#. .##."  # the hole touches the outside at a corner alone
    assert clean(open_corner, True).sum() == drawing(open_corner).sum() + 1
    assert clean("##. ... .##", False, True)[0].sum() == 2  # of two largest the first
    assert not clean("... ...", True, True, 5).any()


def test_volumes_are_cleaned_in_three_dimensions():
    volume = np.zeros((1, 6, 6, 6), bool)
    volume[0, 1:5, 1:5, 1:5] = True
    volume[0, 2:4, 2:4, 2:4] = False  # a cavity
    volume[0, 3, 3, 5] = volume[0, 0, 0, 0] = True  # the first continues the shell, the second is apart... by a corner
    found = cleaned(volume, [Cleanup(fill_holes=True)], BINARY)
    assert found[0, 2:4, 2:4, 2:4].all() and found.sum() == volume.sum() + 8
    assert cleaned(volume, [Cleanup(keep_largest=True)], BINARY)[0, 0, 0, 0]  # which 26 neighbours connect
    tunnel = volume.copy()
    tunnel[0, 2:4, 2:4, :] = False  # open at both ends: no hole, though each slice has one
    assert np.array_equal(cleaned(tunnel, [Cleanup(fill_holes=True)], BINARY), tunnel)


def test_a_hole_that_another_class_fills_stays_its_own():
    liver = drawing("##### #...# #...# #...# #####")
    tumour = np.zeros_like(liver)
    tumour[1:4, 1:4] = True
    tumour[2, 2] = False
    found = cleaned(np.stack([liver, tumour]), [Cleanup(True)] * 2, ORGANS)
    assert np.array_equal(found[0], liver) and found[1, 2, 2] and found[1].sum() == 9


def test_what_is_removed_inside_another_class_becomes_that_class_and_elsewhere_background():
    liver = drawing("#####. #...#. #...#. #...#. #####. ......")
    tumour = drawing("...... .###.. .#.#.. .###.. ...... .....#")
    found = cleaned(np.stack([liver, tumour]), [Cleanup(), Cleanup(min_size=9)], ORGANS)
    assert np.array_equal(found[0], liver | drawing("...... .###.. .#.#.. .###.. ...... ......")) and not found[1].any()
    lines = ("##### #...# #...# #####", "..... .##.. .###. .....", "..... ...#. ..... .....")
    masks = np.stack([drawing(text) for text in lines])  # a speck of fat at the corner of blood, inside the wall
    organs = Classes(("wall", "blood", "fat"), ((1,), (2,), (3,)))
    found = cleaned(masks, [Cleanup()] * 2 + [Cleanup(min_size=2)], organs)
    assert found[0, 1, 3] and np.array_equal(found[1], masks[1]) and not found[2].any()


# ---- the flags ---------------------------------------------------------------------------------------------------


def test_flags_for_all_or_for_some_classes():
    def rules(fitted=None, **flags):
        return rules_of(SampleOptions(**flags), ORGANS, fitted)

    fitted = {"fill_holes": [False, True], "keep_largest": [True, False], "min_size": [0, 30]}
    assert rules() == () and rules(fill_holes="False", keep_largest="no", min_size="0") == ()
    assert rules(keep_largest="liver") == (Cleanup(keep_largest=True), Cleanup())
    assert rules(fill_holes="True", min_size="5,0") == (Cleanup(True, False, 5), Cleanup(True))
    assert rules(fitted) == (Cleanup(keep_largest=True), Cleanup(True, False, 30))
    assert rules(fitted, keep_largest="False") == (Cleanup(), Cleanup(True, False, 30))
    assert rules(fitted, fill_holes="False", keep_largest="False", min_size="0") == ()
    line = described_rules(rules(fitted), ORGANS)
    assert line == "liver: keep the largest component; tumour: fill holes, remove components below 30 pixels"
    assert described_rules((Cleanup(True),) * 2, ORGANS) == "fill holes"
    for flags, message in (
        ({"keep_largest": "spleen"}, "--keep_largest spleen: must be auto, True, False or names of classes: liver, tu"),
        ({"min_size": "1,2,3"}, "--min_size 1,2,3: must be one number, or one for each of 2 classes"),
        ({"min_size": "-1"}, "--min_size -1: every number must be at least 0"),
    ):
        with pytest.raises(UserError, match=message):
            rules(**flags)


def test_what_a_region_loses_its_parts_lose_too():
    whole = drawing("###..## ###..## ###..##")
    core = drawing("#....## .....## .....##")  # its largest part lies in what the whole tumour loses
    tumour = Classes(("WT", "TC"), ((1, 2), (2,)))
    found = cleaned(np.stack([whole, core]), [Cleanup(keep_largest=True)] * 2, tumour)
    assert np.array_equal(found[0], drawing("###.... ###.... ###....")) and found[1].sum() == 1
    found = cleaned(
        np.stack([whole, core])[::-1], [Cleanup(), Cleanup(min_size=7)], Classes(("TC", "WT"), ((2,), (1, 2)))
    )
    assert components_of(found[1])[1].tolist() == [9] and found[0].sum() == 1


def masks_of(folder):
    found = {}
    for path in sorted((folder / "masks").iterdir()):
        with Image.open(path) as picture:
            found[path.stem] = np.asarray(picture) > 0
    return found


def test_sampling_and_the_segmenter_clean_alike_by_flags_and_by_the_checkpoint(
    sample, trained, pictures, tmp_path, capsys, refusal
):
    flags = f"{FAST} --fuse mean --threshold 0.45 --num_samples 2"
    plain = masks_of(sample(trained, pictures, flags, out="plain"))
    cleanly = sample(trained, pictures, f"{flags} --keep_largest --min_size 3", out="cleanly")
    line = "clean-up of the masks: keep the largest component, remove components below 3 pixels"
    assert line in capsys.readouterr().out.splitlines()
    rule = [Cleanup(keep_largest=True, min_size=3)]
    expected = {name: cleaned(mask[None], rule, BINARY)[0] for name, mask in plain.items()}
    found = masks_of(cleanly)
    assert any(not np.array_equal(plain[name], expected[name]) for name in plain)
    settings = strict_json(cleanly / "manifest.json")["settings"]
    names = ("fill_holes", "keep_largest", "min_size", "threshold")
    assert [settings[name] for name in names] == [False, True, 3, 0.45]

    checkpoint = load_checkpoint(trained)
    checkpoint.config["masks"] = {
        "cleanup": {"fill_holes": [False], "keep_largest": [True], "min_size": [3], "cases": 4, "split": "val"}
    }
    fitted = tmp_path / "fitted.pt"
    save_checkpoint(checkpoint, fitted)
    by_default = masks_of(sample(fitted, pictures, flags, out="default"))
    assert "pixels, chosen on 4 cases; without it: --fill_holes False --keep_" in capsys.readouterr().out
    without = masks_of(sample(fitted, pictures, f"{flags} --keep_largest False --min_size 0", out="without"))
    options = {"members": 2, "steps": 2, "sampler": "dpm_solver", "precision": "fp32", "device": "cpu"}
    segmenter = Segmenter.load(fitted, fuse="mean", threshold=0.45, **options)
    for name, mask in expected.items():
        assert np.array_equal(found[name], mask) and np.array_equal(by_default[name], mask)
        assert np.array_equal(without[name], plain[name])
        with Image.open(pictures / "images" / f"{name}.png") as picture:
            assert np.array_equal(segmenter(np.asarray(picture), name).mask, mask)
    again = ["--model_path", trained, "--data_dir", pictures, "--out_dir", cleanly, flags]
    assert "made with --keep_largest True, now it is False" in refusal("segmentation_sample", again)
    checkpoint.config["masks"]["cleanup"]["min_size"] = [3, 4]
    save_checkpoint(checkpoint, fitted)
    assert "config.masks.cleanup.min_size: must have 1 values, one for each class" in refusal(
        "segmentation_sample", ["--model_path", fitted, *again[2:]]
    )


def test_a_volume_is_cleaned_as_a_whole(train, sample, volumes):
    data = volumes(mri(), mri(1))
    checkpoint = train("FOLDER", data)
    plain = sample(checkpoint, data, FAST, out="plain")
    probability = [read_nifti(plain / f"v{k}_prob.nii.gz")[:2] for k in (0, 1)]
    quantiles = [round(float(np.quantile(probability[0][0], q)), 5) for q in np.linspace(0.5, 0.99, 30)]
    cut = next(cut for cut in quantiles if all(components_of(values > cut)[1].size > 1 for values, _ in probability))
    largest = sample(checkpoint, data, f"{FAST} --threshold {cut} --keep_largest", out="largest")
    for k, (values, affine) in enumerate(probability):
        expected = cleaned(values[None] > np.float32(cut), [Cleanup(keep_largest=True)], BINARY)[0]
        mask, placed = read_nifti(largest / f"v{k}_seg.nii.gz")[:2]
        assert np.array_equal(mask > 0, expected) and np.allclose(placed, affine)
        assert (values > cut).sum() > expected.sum() > 0
