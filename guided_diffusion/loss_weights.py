"""Weights of the loss by the signal-to-noise ratio of the time step, for each prediction target."""

import numpy as np


def loss_weight(weighting, objective, snr, gamma=5.0):
    """What the squared error of a prediction is multiplied by: float64 [N].

    snr: abar / (1 - abar), float64 [N], from 0 on. weighting: a weight w(t) of the error of x_0,
    - "min_snr": min(SNR, gamma) (arXiv 2303.09556 eq. 8, and section 3.4 for the other targets);
    - "snr_plus_one": SNR + 1, under which the error of x_0 is that of v (arXiv 2202.00512 section 4);
    - "none": that of the target as it is, the weight 1 here.
    The squared error of eps is SNR times that of x_0, and of v SNR + 1 times, so it is divided by as much. At SNR 0
    an error of eps says nothing of x_0; its weight there is the limit, 1, of "min_snr".
    """
    snr = np.asarray(snr, dtype=np.float64)
    if weighting == "none":
        return np.ones_like(snr)
    of_x0 = {"min_snr": np.minimum(snr, gamma), "snr_plus_one": snr + 1}[weighting]
    if objective == "eps":
        return np.divide(of_x0, snr, out=np.ones_like(snr), where=snr > 0)
    return of_x0 / {"x0": 1, "v": snr + 1}[objective]
