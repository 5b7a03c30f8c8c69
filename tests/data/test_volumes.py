"""Volumes: normalisation, windows, and files decoded once."""

import numpy as np
import pytest

from guided_diffusion.data.volume_cache import VolumeCache
from guided_diffusion.data.volumes import zscore


@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, 1e4])
def test_zero_and_constant_channels_give_zeros(value):
    values = np.full((9, 7, 5), value, np.float32)
    values[0] = 0
    np.testing.assert_array_equal(zscore(values), np.zeros((9, 7, 5)))


def test_outliers_are_clipped():
    values = np.random.default_rng(0).normal(100, 1, (50, 50)).astype(np.float32)
    values[0, :2] = 1e4, -1e4
    scores = zscore(values)
    assert scores[0, 0] == 5 and scores[0, 1] == -5 and np.abs(scores).max() == 5


def test_cache_stays_within_its_bytes_and_drops_the_least_recently_used():
    decoded = []

    def decode(key):
        decoded.append(key)
        return np.zeros(100, np.uint8)

    cache = VolumeCache(250)
    for key in "abacab":
        cache.get(key, decode)
        assert cache.used <= 250
    assert decoded == ["a", "b", "c", "b"]
