"""Temperature scaling of probabilities: p becomes sigmoid(logit(p) / T), and of exclusive classes a softmax likewise.

T above 1 draws probabilities towards one another, T below 1 away from it. The most probable class, or the background,
stays the most probable, so no mask changes. `evaluation.temperature_fit` fits T.
"""

import numpy as np


def apply_temperature(probability, temperature, exclusive=False):
    """Probabilities in [0, 1] at a temperature T, of their shape and type.

    Each value is by itself: sigmoid(logit(p) / T), where 0, 0.5 and 1 do not change. With `exclusive` the array is
    [K, ...], of K classes of which a pixel has one at most: p_k^(1/T) is divided by the sum of these powers over the
    classes and the background, 1 minus their sum. For K = 1 the two are equal. By itself each of three classes of
    p = 1/3 would become 0.41 at T = 2.
    """
    if temperature == 1:
        return probability
    probability = np.asarray(probability)
    p = probability.astype(np.float64)
    with np.errstate(divide="ignore"):
        if exclusive:
            logits = np.log(with_background_first(p)) / temperature
            powers = np.exp(logits - logits.max(axis=0))
            return (powers[1:] / powers.sum(axis=0)).astype(probability.dtype)
        odds = np.log(p) - np.log1p(-p)
    return (1 / (1 + np.exp(-odds / temperature))).astype(probability.dtype)


def with_background_first(probability):
    """Put the background, 1 minus the sum of the classes and at least 0, first: [K, ...] -> [K + 1, ...]."""
    return np.concatenate([np.maximum(1 - probability.sum(axis=0, keepdims=True), 0), probability])
