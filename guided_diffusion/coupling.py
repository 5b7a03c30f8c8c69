"""Members whose dependence is the diffusion's and whose mean is a given probability: the ensemble copula coupling."""

import torch
import torch.nn.functional as F

LARGEST_LOGIT = 16.0  # what a float32 soft mask can tell apart


def coupled(soft, probability, sigma=0.0):
    """Members whose mean is `probability`, in the order in which the drawn members stand at each pixel.

    At each pixel the drawn members are ranked by how sure they are of the foreground, and the first p E of E have it
    (the one on the edge in part): as ensemble copula coupling (Schefzik et al., Statistical Science 28, 2013) keeps a
    weather ensemble's dependence between places and takes the margins from what is calibrated at each. Members that
    are equally sure stand in the order of their whole size.

    How sure a member is, is told by the pixel's neighbourhood, a Gaussian of `sigma` pixels: a draw's doubt about the
    single pixel would leave outlines ragged that readers draw in one go.

    soft: [E, N, K, H, W] in [0, 1]; probability: [N, K, H, W] in [0, 1]. Returns soft masks, float32 like `soft`; of
    one member, the probability itself.
    """
    members = len(soft)
    sure = torch.logit(soft.float(), eps=1e-7).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    sure = smoothed(sure, sigma) if sigma else sure
    by_size = sure.sum(dim=(-2, -1)).argsort(dim=0, descending=True, stable=True)  # [E, N, K]
    order = by_size[..., None, None].expand_as(sure)
    ranked = sure.gather(0, order).argsort(dim=0, descending=True, stable=True)  # places in `order`, surest first
    rank = torch.empty_like(ranked).scatter_(0, order.gather(0, ranked), _counting(ranked))
    return (probability.float() * members - rank).clamp(0, 1)


def smoothed(x, sigma):
    """x: [..., H, W], convolved with a Gaussian of `sigma` pixels, cut off at three of them; beyond the borders is what
    lies on them."""
    reach = int(3 * sigma + 0.5)
    weights = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma**2))
    weights = weights / weights.sum()
    padded = F.pad(x.reshape(-1, 1, *x.shape[-2:]), [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, weights[None, None, :, None]), weights[None, None, None]).reshape(x.shape)


def _counting(x):
    """0, 1, 2, ... along the first dimension, int64 of the shape of x."""
    return torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x).contiguous()
