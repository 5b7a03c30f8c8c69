"""The answer for one case: the fused mask at the image's own size, with its probability and uncertainty."""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..data.classes import BINARY
from ..data.resizing import resize_maps
from . import ensemble
from .mask_rules import with_larger_regions
from .temperature import apply_temperature

# The largest value of each; the last is of several checkpoints.
PIXEL_MAPS = {"variance": 0.25, "entropy": 1.0, "mutual_information": 1.0, "data_entropy": 1.0}


@dataclass
class CaseMaps:
    """A case's maps at its own size: [K, H, W], or [K, X, Y, Z] for a volume.

    mask: bool, the fused mask. probability: float32 in [0, 1], the mean of the soft members (of several checkpoints, of
    their means), or the answer in one pass, at the temperature. uncertainty: float32 in [0, 0.5], see
    `ensemble.uncertainty`. members: bool
    [E, K, ...], as drawn or cut by `ensemble.member_masks`; E is 0 for an answer in one pass. coarse: float32 in
    [0, 1], or None. pixel_maps: those of `PIXEL_MAPS` by name, or empty; see `ensemble.pixel_uncertainty`.
    """

    mask: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    members: np.ndarray
    coarse: np.ndarray | None
    pixel_maps: dict = field(default_factory=dict)

    def __iter__(self):
        """For `mask, probability, uncertainty = maps`."""
        return iter((self.mask, self.probability, self.uncertainty))

    def map_arrays(self, function):
        """The `CaseMaps` with function(array) in place of each array."""
        maps = {name: function(values) for name, values in self.pixel_maps.items()}
        own = (self.mask, self.probability, self.uncertainty, self.members, self.coarse)
        return CaseMaps(*(None if values is None else function(values) for values in own), maps)

    def without_class_axis(self):
        """The `CaseMaps` of the first class, without the axis K."""
        coarse = None if self.coarse is None else self.coarse[0]
        maps = {name: values[0] for name, values in self.pixel_maps.items()}
        return CaseMaps(self.mask[0], self.probability[0], self.uncertainty[0], self.members[:, 0], coarse, maps)


def fuse_cases(
    members,
    sizes,
    method,
    classes=BINARY,
    *,
    temperature=1.0,
    pixel_maps=False,
    one_pass=False,
    shares=(),
    threshold=(),
):
    """Yield the `CaseMaps` of each image of a batch, from its `members.Members`, one by one: those of many large images
    do not fit into memory together.

    sizes: (H, W) of each original image. Masks are interpolated to that size and cut there, so borders are smooth and
    the fused mask is that of the members as written. The maps come from the soft masks; votes and members from the
    drawn masks, where there are any. method: one of `ensemble.FUSE_METHODS`. classes: the `Classes` of the K masks.
    temperature: of the probability alone, see `apply_temperature`. pixel_maps: whether to add them. one_pass: the soft
    mask is the condition model's answer rather than a member. shares: the members of each of several checkpoints, whose
    means then have equal weights in the probability and in the fusion by the mean. threshold: of each class, above
    which its mean probability, before the temperature, is foreground; () for the mask of `method`.
    """
    for n, size in enumerate(sizes):
        soft = resize_maps(members.soft[:, n], size)  # [E, K, H, W]
        cut = soft if members.drawn is None else resize_maps(members.drawn[:, n], size)
        own = ensemble.member_masks(cut, classes.is_exclusive).numpy()
        coarse = None
        if members.coarse is not None:
            coarse = resize_maps(members.coarse[:, n], size).mean(dim=0)
        batch = soft[:, None]  # [E, 1, K, H, W]
        answers = checkpoint_means(batch, shares)
        fused = answers if method == "mean" else cut[:, None]
        mean = ensemble.mean_consensus(answers)[0].numpy()
        if threshold:
            mask = with_larger_regions(mean > np.float32(threshold)[:, None, None], classes)
        else:
            mask = ensemble.fuse_masks(fused, method, classes.is_exclusive)[0].numpy()
        yield CaseMaps(
            mask=classes.as_written(mask),
            probability=apply_temperature(mean, temperature, classes.is_exclusive),
            uncertainty=ensemble.uncertainty(batch)[0].numpy(),
            members=np.stack([classes.as_written(member) for member in own])[1 if one_pass else 0 :],
            coarse=None if coarse is None else coarse.numpy(),
            pixel_maps=_pixel_maps(soft, answers[:, 0] if shares else None) if pixel_maps else {},
        )


def checkpoint_means(soft, shares):
    """The mean of each checkpoint's soft members [E, ...]: [C, ...]; without `shares` the members themselves.

    shares: the members of each of C checkpoints, which lie in that order.
    """
    if not shares or len(shares) == len(soft):
        return soft
    return torch.stack([ensemble.mean_consensus(part) for part in soft.split(shares)])


def _pixel_maps(soft, answers=None):
    """The `PIXEL_MAPS` of soft members [E, K, H, W]: {name: float32 [K, H, W]}.

    A single one has no mutual information, and its variance is that of a mask drawn from it, as in
    `ensemble.uncertainty`. answers: of several checkpoints, their means [C, K, H, W]. The entropy is then that of the
    mean answer, the total uncertainty. It is the sum of data_entropy, the mean of the answers' entropies, and of the
    mutual information, which is here of the answers: the uncertainty about the model.
    """
    found = ensemble.pixel_uncertainty(soft.numpy())._asdict()
    if len(soft) == 1:
        found["variance"] = found["mean"] * (1 - found["mean"])
        del found["mutual_information"]
    if answers is not None:
        apart = ensemble.pixel_uncertainty(answers.numpy())
        found |= {"entropy": apart.entropy, "mutual_information": apart.mutual_information}
        found["data_entropy"] = apart.entropy - apart.mutual_information
    return {name: found[name].astype(np.float32) for name in PIXEL_MAPS if name in found}


def stack_slices(slices):
    """The `CaseMaps` of a volume [K, X, Y, Z] from those of its slices [K, X, Y], in order along Z."""

    def stacked(name):
        parts = [getattr(maps, name) for maps in slices]
        return None if parts[0] is None else np.stack(parts, axis=-1)

    maps = {name: np.stack([one.pixel_maps[name] for one in slices], axis=-1) for name in slices[0].pixel_maps}
    return CaseMaps(*(stacked(name) for name in ("mask", "probability", "uncertainty", "members", "coarse")), maps)
