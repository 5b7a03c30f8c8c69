"""One case's answer: the members fused into masks at the image's own size, with their probability and doubt."""

from dataclasses import dataclass, field

import numpy as np
import torch.nn.functional as F

from ..data.classes import BINARY
from . import ensemble
from .temperature import apply_temperature

PIXEL_MAPS = {"variance": 0.25, "entropy": 1.0, "mutual_information": 1.0}  # and the largest value each can have


@dataclass
class CaseMaps:
    """One case's answer at its own size: [K, H, W], or [K, X, Y, Z] for a volume.

    mask: bool, the fused mask. probability: float in [0, 1], mean of the members. uncertainty: float in [0, 0.5],
    their standard deviation. members: bool [E, K, ...], each cut at 0.5, or, of classes that exclude one another, to
    the likeliest. coarse: float in [0, 1], or None. pixel_maps: each of `PIXEL_MAPS`, where asked for, see
    `ensemble.pixel_uncertainty`.
    """

    mask: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    members: np.ndarray
    coarse: np.ndarray | None
    pixel_maps: dict = field(default_factory=dict)

    def __iter__(self):
        """`mask, probability, uncertainty = maps`."""
        return iter((self.mask, self.probability, self.uncertainty))

    def changed(self, change):
        """The same with `change(array)` in place of each array that is there."""
        maps = {name: change(values) for name, values in self.pixel_maps.items()}
        own = (self.mask, self.probability, self.uncertainty, self.members, self.coarse)
        return CaseMaps(*(None if values is None else change(values) for values in own), maps)

    def of_one_class(self):
        """The same of a single class, without the axis K."""
        coarse = None if self.coarse is None else self.coarse[0]
        maps = {name: values[0] for name, values in self.pixel_maps.items()}
        return CaseMaps(self.mask[0], self.probability[0], self.uncertainty[0], self.members[:, 0], coarse, maps)


def fuse_cases(members, sizes, method, classes=BINARY, *, temperature=1.0, pixel_maps=False):
    """The `CaseMaps` of each image of a batch, from its `sampling.Members`.

    sizes: (H, W) of each original. The members' soft masks are brought to that size smoothly and cut at 0.5 there,
    so that borders stay smooth and the fused mask is that of the members as they are written. method: one of
    `ensemble.FUSE_METHODS`. classes: what the K masks are; see `ensemble.fuse_masks` for classes that exclude one
    another. temperature: of the probability alone, see `temperature.apply_temperature`. pixel_maps: whether to add
    `PIXEL_MAPS`.
    """
    maps = []
    for n, size in enumerate(sizes):
        soft = _at_size(members.soft[:, n], size)  # [E, K, H, W]
        own = ensemble.member_masks(soft, classes.is_exclusive).numpy()
        coarse = None
        if members.coarse is not None:
            coarse = _at_size(members.coarse[:, n], size).mean(dim=0)
        fused = soft[:, None]  # [E, 1, K, H, W], an ensemble of one image
        mask = ensemble.fuse_masks(fused, method, classes.is_exclusive)[0].numpy()
        maps.append(
            CaseMaps(
                mask=classes.as_written(mask),
                probability=apply_temperature(ensemble.mean_consensus(fused)[0].numpy(), temperature),
                uncertainty=ensemble.uncertainty(fused)[0].numpy(),
                members=np.stack([classes.as_written(member) for member in own]),
                coarse=None if coarse is None else coarse.numpy(),
                pixel_maps=_pixel_maps(soft) if pixel_maps else {},
            )
        )
    return maps


def _pixel_maps(soft):
    """`PIXEL_MAPS` of soft members [E, K, H, W]: {name: float32 [K, H, W]}."""
    doubt = ensemble.pixel_uncertainty(soft.numpy())
    return {name: getattr(doubt, name).astype(np.float32) for name in PIXEL_MAPS}


def _at_size(maps, size):
    """Values in [0, 1] [E, K, h, w] -> float32 [E, K, H, W] on the CPU, bilinear (antialiased when it shrinks)."""
    maps = maps.float().cpu()
    if tuple(maps.shape[-2:]) != tuple(size):
        maps = F.interpolate(maps, tuple(size), mode="bilinear", antialias=True, align_corners=False)
    return maps.clamp(0, 1)


def stack_slices(slices):
    """One `CaseMaps` of a volume from those of its slices, in order along the last axis."""

    def stacked(name):
        parts = [getattr(maps, name) for maps in slices]
        return None if parts[0] is None else np.stack(parts, axis=-1)

    maps = {name: np.stack([one.pixel_maps[name] for one in slices], axis=-1) for name in slices[0].pixel_maps}
    return CaseMaps(*(stacked(name) for name in ("mask", "probability", "uncertainty", "members", "coarse")), maps)
