"""Test-time augmentation: coarse masks are averaged over views of the image, turned, mirrored and scaled.

Errors at a lesion's border are confident, and they differ between views. The mean is therefore less confident where it
is wrong.
"""

import torch
import torch.nn.functional as F

from ..diffusion.losses import class_logits, class_probabilities
from ..models.layers import at_least_float32, without_autocast
from ..models.outputs import join_conditions

# ---- The eight symmetries of the square ----------------------------------------------------------------------------

IDENTITY = (0, False)
SYMMETRIES = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))  # the identity first


def turned(x, symmetry):
    """x [..., S, S], rotated by quarter turns and then mirrored. symmetry: one of `SYMMETRIES`."""
    turns, mirrored = symmetry
    x = torch.rot90(x, turns, (-2, -1)) if turns else x
    return x.flip(-1) if mirrored else x


def turned_back(x, symmetry):
    """The inverse of `turned`."""
    turns, mirrored = symmetry
    x = x.flip(-1) if mirrored else x
    return torch.rot90(x, -turns, (-2, -1)) if turns else x


def each_turned(x, symmetries, back=False):
    """Rows [M, ..., S, S], row i turned (or turned back) by symmetries[i]."""
    if all(symmetry == IDENTITY for symmetry in symmetries):
        return x
    turn = turned_back if back else turned
    return torch.stack([turn(row, symmetry) for row, symmetry in zip(x, symmetries, strict=True)])


# ---- Conditions of several views -----------------------------------------------------------------------------------

LOGIT_FIELDS = ("coarse", "logits")  # fields of a condition that hold mask logits, which do not depend on x_t
MARGIN = 0.25  # of half a side: the width of the edge in which pixels of a magnified view have smaller weights


def encoded(model, image, label, *, kept, symmetries, scales, rows, exclusive):
    """The conditions of the images [N, C, H, W] in the first `kept` symmetries, row s * N + n.

    If a condition holds mask logits (`LOGIT_FIELDS`), each row gets their mean over all views: over every symmetry at
    scale 1 and at each of `scales` (see `scaled`). The mean is one of probabilities; at each pixel the views have the
    weights of `scaled_back`. label: int [N] or None. rows: how many images pass the network at once. exclusive: see
    `losses.class_probabilities`.
    """
    views = [(symmetry, scale) for scale in (1.0, *scales) for symmetry in symmetries]  # the kept ones come first
    if len(views) == 1:
        return model.encode(image, label)
    condition = join_conditions(list(_passes(model, image, label, views[:kept], rows)))
    name = next((field for field in LOGIT_FIELDS if field in condition._fields), None)
    if name is None:
        return condition
    others = [getattr(other, name) for other in _passes(model, image, label, views[kept:], rows)]
    logits = at_least_float32(torch.cat([getattr(condition, name), *others]))
    probabilities = class_probabilities(logits, exclusive).split(len(image))
    mean = class_logits(_mean_over_views(probabilities, views), exclusive)
    return condition._replace(**{name: torch.cat([turned(mean, symmetry) for symmetry in symmetries[:kept]])})


def _mean_over_views(probabilities, views):
    """The weighted mean [N, K, H, W] of one [N, K, H, W] for each view, brought back to the image's own pixels."""
    total, weights = 0, 0
    for (symmetry, scale), probability in zip(views, probabilities, strict=True):
        probability, weight = scaled_back(probability, scale)
        total = total + turned_back(probability * weight, symmetry)
        weights = weights + turned_back(weight, symmetry)
    return total / weights


def _passes(model, image, label, views, rows):
    """The conditions of the images in these views, view by view, `rows` images at a time."""
    if not views:
        return
    images = torch.cat([scaled(turned(image, symmetry), scale) for symmetry, scale in views])  # [V * N, C, H, W]
    labels = None if label is None else label.repeat(len(views))
    for low in range(0, len(images), rows):
        yield model.encode(images[low : low + rows], None if labels is None else labels[low : low + rows])


def scaled(x, scale):
    """x [N, C, H, W] scaled about its centre, bilinear: above 1 it is cropped, below 1 padded by reflection."""
    if scale == 1:
        return x
    x = at_least_float32(x)
    with without_autocast(x.device.type):
        return F.grid_sample(x, _grid(x, 1 / scale), padding_mode="reflection", align_corners=False)


def scaled_back(x, scale):
    """The inverse of `scaled` [N, C, H, W], and the weight of each of its pixels, [1, 1, H, W] in [0, 1].

    A magnified view ends inside the image. Near its edge a network predicts less well, so weights fall to 0 there, and
    the mean has no step.
    """
    x = at_least_float32(x)
    weight = torch.ones_like(x[:1, :1])
    if scale == 1:
        return x, weight
    with without_autocast(x.device.type):
        grid = _grid(x, scale)
    if scale > 1:
        weight = ((1 - grid[:1].abs()) / MARGIN).clamp(0, 1).square().prod(dim=-1)[:, None]
    with without_autocast(x.device.type):
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False), weight


def _grid(x, factor):
    """The sampling grid [N, H, W, 2] that reads each pixel of [N, C, H, W] `factor` times as far from the centre.

    To be computed without autocast: in half precision coordinates of 256 pixels are wrong by up to 0.7 of a pixel.
    """
    theta = factor * torch.eye(2, 3, dtype=x.dtype, device=x.device)
    return F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
