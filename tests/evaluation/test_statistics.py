"""The bootstrap interval against SciPy's and the normal theory, groups, and undefined values."""

import math

import numpy as np
import pytest
import scipy.stats

from guided_diffusion.evaluation.statistics import Resampling, describe_values, mean_defined


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_agrees_with_scipys_percentile_bootstrap(level):
    values = np.random.default_rng(1).beta(8, 2, size=40)
    ours = Resampling(range(40), resamples=10_000).interval(values, level)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=level, method="percentile", n_resamples=20_000, random_state=0
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.1 * values.std() / math.sqrt(40))
    half = scipy.stats.norm.ppf((1 + level) / 2) * values.std() / math.sqrt(40)
    assert ours == pytest.approx((values.mean() - half, values.mean() + half), abs=0.25 * half)


def test_groups_are_drawn_as_a_whole():
    values = np.random.default_rng(2).normal(size=(10, 3))
    grouped = Resampling(np.repeat(list("abcdefghij"), 3)).interval(values.ravel())
    assert grouped == pytest.approx(Resampling(range(10)).interval(values.mean(axis=1)))
    one_group = Resampling(["a"] * 30)
    assert one_group.interval(values.ravel()) == pytest.approx((values.mean(), values.mean()))
    assert math.isnan(describe_values(values.ravel(), one_group)["low"])


def test_seeds_and_undefined_values():
    values = np.random.default_rng(3).normal(size=10)
    interval = Resampling(range(10)).interval(values)
    assert interval == Resampling(range(10)).interval(values) != Resampling(range(10), seed=1).interval(values)
    assert all(math.isnan(bound) for bound in Resampling([0, 1]).interval([math.nan, math.nan]))
    described = describe_values([1.0, math.nan, 4.0], Resampling(range(3)))
    assert (described["mean"], described["median"], described["std"], described["n"]) == (2.5, 2.5, 1.5, 2)
    assert (described["low"], described["high"]) == (1, 4) and mean_defined([math.nan, 3.0]) == 3
    assert describe_values([])["n"] == 0 and math.isnan(mean_defined([math.nan]))
