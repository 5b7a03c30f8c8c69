"""Temperature scaling of probabilities: p becomes sigmoid(logit(p) / T).

T above 1 draws probabilities towards 0.5, T below 1 away from it. It moves none across 0.5, so no mask changes.
`evaluation.temperature_fit` fits T.
"""

import numpy as np


def apply_temperature(probability, temperature):
    """sigmoid(logit(p) / T) of an array in [0, 1], of its shape and type; 0, 0.5 and 1 do not change."""
    if temperature == 1:
        return probability
    probability = np.asarray(probability)
    p = probability.astype(np.float64)
    with np.errstate(divide="ignore"):
        odds = np.log(p) - np.log1p(-p)
    return (1 / (1 + np.exp(-odds / temperature))).astype(probability.dtype)
