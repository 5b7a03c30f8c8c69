"""Temperature scaling: one number T that makes probabilities neither too sure nor too unsure.

p becomes sigmoid(logit(p) / T): T above 1 draws probabilities towards 0.5, T below 1 away from it. What is above 0.5
stays above it, so no mask changes. `temperature_fit` fits T.
"""

import numpy as np


def apply_temperature(probability, temperature):
    """sigmoid(logit(p) / T) of an array in [0, 1], of the same type; 0, 0.5 and 1 stay what they are."""
    if temperature == 1:
        return probability
    probability = np.asarray(probability)
    p = probability.astype(np.float64)
    with np.errstate(divide="ignore"):
        odds = np.log(p) - np.log1p(-p)
    return (1 / (1 + np.exp(-odds / temperature))).astype(probability.dtype)
