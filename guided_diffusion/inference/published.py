"""What the published sampling script fuses: for V1 the sample mixed with the calibration output, for V2 the sample."""

import torch

LEAST_DICE = 0.65  # of sample and calibration output, below which the sample only adds to the output
ADDED, MIXED = 0.25, 0.5  # the sample's weights


def fused_by_published(sample, calibration, version, *, is_solver):
    """The members that the published script fuses, of the shape of `sample`, in [0, 1].

    sample: the members, [E, N, K, H, W], 0 for background and 1 for foreground, also beyond. calibration: the condition
    branch's mask, in [0, 1]. version: "v1" or "v2" (the published "new"). is_solver: whether DPM-Solver++ drew the
    sample. It is then scaled to span [0, 1] in each mask. V2 fuses the sample. V1 fuses `cal_out`: calibration + 0.25
    sample, or, without the solver and where the Dice of sample > 0 and calibration is 0.65 or more, the mean of both.
    """
    if is_solver:
        low, high = sample.amin(dim=(-2, -1), keepdim=True), sample.amax(dim=(-2, -1), keepdim=True)
        span = high - low
        sample = torch.where(span > 0, (sample - low) / torch.where(span > 0, span, 1), sample)
    if version == "v2":
        return sample.clamp(0, 1)
    added = (calibration + ADDED * sample).clamp(0, 1)
    if is_solver:
        return added
    marked = (sample > 0).to(sample.dtype)
    size = (marked + calibration).sum(dim=(-2, -1), keepdim=True)
    agrees = 2 * (marked * calibration).sum(dim=(-2, -1), keepdim=True) >= LEAST_DICE * size
    return torch.where(agrees, (MIXED * (calibration + sample)).clamp(0, 1), added)
