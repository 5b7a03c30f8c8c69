"""Thresholds of the probability: which flags go together, and regions within one another."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.data.classes import BINARY, Classes
from guided_diffusion.inference.answer import fuse_cases
from guided_diffusion.inference.cleanup import Cleanup
from guided_diffusion.inference.mask_rules import (
    decisive_settings,
    holds_every_union,
    tiling,
    with_larger_regions,
    with_mask_rules,
)
from guided_diffusion.inference.members import Members
from guided_diffusion.inference.plan import NO_STEPS, SamplingPlan
from guided_diffusion.runtime.errors import UserError

PLAN = SamplingPlan("ddim", (9, 5), fuse="staple")
ORGANS = Classes(("liver", "tumour"), ((1,), (2,)))
NESTED = Classes(("WT", "TC", "ET"), ((1, 2, 4), (1, 4), (4,)))


def ruled(plan=PLAN, classes=BINARY, masks=None, **flags):
    checkpoint = SimpleNamespace(classes=classes, config={"masks": masks or {}})
    return with_mask_rules(plan, SampleOptions(**flags), checkpoint, 32)


def test_regions_within_one_another_have_thresholds_and_others_do_not():
    nested = NESTED
    assert holds_every_union(nested) and holds_every_union(Classes(("polyp",)))
    assert not holds_every_union(Classes(("liver", "tumour"), ((1,), (2,))))
    assert not holds_every_union(Classes(("a", "b"), ((1, 2), (2, 3))))
    masks = np.zeros((3, 1, 3), bool)
    masks[2, 0, 0] = masks[1, 0, 1] = True
    found = with_larger_regions(masks, nested)
    assert found[:, 0].T.tolist() == [[True, True, True], [True, True, False], [False, False, False]]
    assert np.array_equal(nested.as_written(found), found)


def test_a_threshold_cuts_the_mean():
    assert ruled() == ruled(threshold="0.5") == PLAN
    plan = ruled(threshold="0.3", min_size="4")
    assert (plan.fuse, plan.threshold, plan.cleanup) == ("mean", (0.3,), (Cleanup(min_size=4),))
    assert ruled(classes=NESTED, threshold="0.3,0.4,0.5").threshold == (0.3, 0.4, 0.5)
    assert ruled(classes=NESTED, threshold="0.3").threshold == (0.3,) * 3
    soft = torch.tensor([0.2, 0.3, 0.7]).reshape(3, 1, 1, 1, 1).expand(3, 1, 1, 2, 2)
    (maps,) = fuse_cases(Members(soft, None), [(2, 2)], "mean", threshold=(0.39,), temperature=3.0)
    assert maps.mask.all() and maps.probability.max() < 0.5
    (maps,) = fuse_cases(Members(soft, None), [(2, 2)], "mean", threshold=(0.41,))
    assert not maps.mask.any()
    for classes, flags, line in (
        (ORGANS, {"threshold": "0.3"}, "of classes that exclude one another the most probable one wins"),
        (NESTED, {"threshold": "0.3,0.4"}, "or one for each class"),
        (BINARY, {"threshold": "1"}, "must be guaranteed, or a number between 0 and 1"),
        (BINARY, {"threshold": "0.3", "fuse": "vote"}, "cuts the mean probability; leave out --fuse vote"),
    ):
        with pytest.raises(UserError, match=line):
            ruled(classes=classes, **flags)


def test_a_guarantee_holds_for_the_settings_of_its_fit_alone():
    sample = SampleOptions(num_ensemble=4)
    fit = {"values": [0.2], "max_misses": 0.1, "groups": [12], "split": "val"}
    fit["settings"] = decisive_settings(PLAN, sample, 32)
    masks = {"threshold": fit, "cleanup": {"fill_holes": [True], "keep_largest": [True], "min_size": [0]}}
    plan = ruled(masks=masks, threshold="guaranteed", num_ensemble=4)
    assert (plan.threshold, plan.max_misses, plan.fuse, plan.cleanup) == ((0.2,), 0.1, "mean", ())
    assert ruled(masks=masks, num_ensemble=4).cleanup == (Cleanup(True, True),)
    assert ruled(masks=masks, threshold="guaranteed", num_ensemble=4, fill_holes="True").cleanup == (Cleanup(True),)
    asked = {"masks": masks, "threshold": "guaranteed", "num_ensemble": 4}
    for change, line in (
        ({"num_ensemble": 5}, "was fitted for num_ensemble 4, and now it is 5"),
        ({"weights": "model"}, "was fitted for weights ema, and now it is model"),
        ({"tile": True}, "was fitted for tile False, and now it is with overlap 0.25"),
        ({"plan": NO_STEPS}, "was fitted for sampler ddim, and now it is none"),
        ({"plan": SamplingPlan("ddim", (9, 5), shares=(2, 2))}, "was fitted for one checkpoint alone"),
        ({"min_size": "3"}, "--min_size: removes pixels"),
        ({"fuse": "staple"}, "leave out --fuse staple"),
        ({"masks": {}}, "the checkpoint has none"),
    ):
        with pytest.raises(UserError, match=line):
            ruled(**asked | change)
    assert tiling(SampleOptions(tile=True, tile_overlap=0.5)) == "with overlap 0.5" and tiling(SampleOptions()) is False
