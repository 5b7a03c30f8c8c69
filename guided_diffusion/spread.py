"""Members that are spread: each is an exact draw of its own, together they cover what is likely more evenly."""

import numpy as np
import torch
from scipy.special import ndtri

from .seeds import seeded_generator


def spread_positions(seed, name, members, directions):
    """Standard normal positions of the members along each direction, one in each of `members` equally likely intervals.

    A Latin hypercube: along each direction the members take the intervals in an order of its own, and a place within.
    Every single position is standard normal. float64 [members, directions], decided by (seed, name, members).
    """
    generator = seeded_generator("spread", seed, name, members)
    order = torch.stack([torch.randperm(members, generator=generator) for _ in range(directions)], dim=1)
    place = torch.rand(members, directions, generator=generator, dtype=torch.float64)
    inside = ((order + place) / members).clamp(1e-12, 1 - 1e-12)
    return torch.from_numpy(ndtri(np.asarray(inside)))


def doubt(coarse):
    """Unit directions [N, K, H, W] along which noise matters most: where the coarse mask is in doubt, p (1 - p).

    coarse: logits [N, K, H, W]. What noise adds up to there decides, first of all, how large a member's mask becomes.
    """
    p = torch.sigmoid(coarse.float())
    weight = p * (1 - p)
    return weight / torch.linalg.vector_norm(weight, dim=(-2, -1), keepdim=True).clamp(min=1e-12)


def moved(noise, direction, position):
    """Noise moved along unit directions to where its projection on each is its `position`.

    Noise that is standard normal stays so where the position is: the rest does not depend on the projection.
    noise, direction: [M, K, H, W]; position: [M, K].
    """
    away = position - (noise * direction).sum(dim=(-2, -1))  # [M, K]
    return noise + away[..., None, None] * direction
