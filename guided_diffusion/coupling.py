"""Members whose dependence is the diffusion's and whose mean is a given probability: the ensemble copula coupling."""

import torch

LARGEST_LOGIT = 16.0  # what a float32 soft mask can tell apart


def coupled(soft, probability):
    """Members whose mean is `probability`, in the order in which the drawn members stand at each pixel.

    At each pixel the drawn members are ranked by how sure they are of the foreground, and the first p E of E have it
    (the one on the edge in part): as ensemble copula coupling (Schefzik et al., Statistical Science 28, 2013) keeps a
    weather ensemble's dependence between places and takes the margins from what is calibrated at each. Members that
    are equally sure stand in the order of their whole size.

    soft: [E, N, K, H, W] in [0, 1]; probability: [N, K, H, W] in [0, 1]. Returns soft masks, float32 like `soft`; of
    one member, the probability itself.
    """
    members = len(soft)
    sure = torch.logit(soft.float(), eps=1e-7).clamp(-LARGEST_LOGIT, LARGEST_LOGIT)
    by_size = sure.sum(dim=(-2, -1)).argsort(dim=0, descending=True, stable=True)  # [E, N, K]
    order = by_size[..., None, None].expand_as(sure)
    ranked = sure.gather(0, order).argsort(dim=0, descending=True, stable=True)  # places in `order`, surest first
    rank = torch.empty_like(ranked).scatter_(0, order.gather(0, ranked), _counting(ranked))
    return (probability.float() * members - rank).clamp(0, 1)


def _counting(x):
    """0, 1, 2, ... along the first dimension, int64 of the shape of x."""
    return torch.arange(len(x), device=x.device).reshape(-1, *[1] * (x.ndim - 1)).expand_as(x).contiguous()
