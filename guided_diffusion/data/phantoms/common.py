"""What all phantoms share: the numbers of their cases, smooth noise, and the best threshold as a baseline."""

import numpy as np
from scipy.ndimage import gaussian_filter

TEST_START = 5000  # training cases are numbered from 0, test cases from here


def splits(num_train, num_test, parts):
    """Yield (part, ISIC's name of the split, case numbers) for training and for testing. parts: their two names."""
    if num_train > TEST_START:
        raise ValueError(f"num_train is {num_train}; case numbers from {TEST_START} on belong to the test cases")
    yield parts[0], "Training", range(num_train)
    yield parts[1], "Test", range(TEST_START, TEST_START + num_test)


def smooth_noise(rng, shape, sigma):
    """Gaussian noise of zero mean and unit variance, smooth over `sigma` pixels (a number, or one for each axis)."""
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def best_threshold_dice(image, mask):
    """The highest Dice of any threshold on any channel, chosen with the truth; NaN for an empty mask.

    image: [C, H, W]. mask: bool [H, W]. Every distinct value is tried, with the pixels at or above it and with those at
    or below it.
    """
    truth = np.asarray(mask, dtype=bool).ravel()
    if not truth.any():
        return float("nan")
    best = 0.0
    for channel in np.asarray(image).reshape(len(image), -1):
        order = np.argsort(channel, kind="stable")
        values, hits = channel[order], np.cumsum(truth[order])
        last = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # the last pixel of each distinct value
        below = 2 * hits[last] / (last + 1 + hits[-1])
        first = np.append(0, last[:-1] + 1)
        above_hits = hits[-1] - np.append(0, hits[last[:-1]])
        above = 2 * above_hits / (truth.size - first + hits[-1])
        best = max(best, below.max(), above.max())
    return float(best)
