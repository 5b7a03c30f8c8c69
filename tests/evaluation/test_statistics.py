"""The bootstrap interval against SciPy's, the normal theory, and its edges."""

import math

import numpy as np
import pytest
import scipy.stats

from guided_diffusion.evaluation.statistics import bootstrap_interval


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_agrees_with_scipys_percentile_bootstrap(level):
    values = np.random.default_rng(1).beta(8, 2, size=40)
    ours = bootstrap_interval(values, level=level)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, confidence_level=level, method="percentile", n_resamples=20_000, random_state=0
    ).confidence_interval
    assert ours == pytest.approx(theirs, abs=0.1 * values.std() / math.sqrt(40))
    half = scipy.stats.norm.ppf((1 + level) / 2) * values.std() / math.sqrt(40)
    assert ours == pytest.approx((values.mean() - half, values.mean() + half), abs=0.25 * half)


def test_is_repeatable_and_knows_its_edges():
    values = np.random.default_rng(2).normal(size=10)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))
    for wrong in ([math.nan, 1], [[1, 2]]):
        with pytest.raises(ValueError):
            bootstrap_interval(wrong)
