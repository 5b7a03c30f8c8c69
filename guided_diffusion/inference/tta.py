"""Several looks at an image: what a network tells from it alone is averaged over the image turned, mirrored and scaled.

Each look brings its own errors. Those at a border, which are the surest, go in other directions when the pixels fall
otherwise, so that the mean is less sure where it is wrong.
"""

import torch
import torch.nn.functional as F

from ..diffusion.losses import class_logits, class_probabilities
from ..models.outputs import join_conditions

# ---- The eight symmetries of the square, in which the members of an ensemble may see an image by turns --------------


IDENTITY = (0, False)


SYMMETRIES = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))  # the identity first


def turned(x, symmetry):
    """x: [..., S, S] turned and mirrored."""
    turns, mirrored = symmetry
    x = torch.rot90(x, turns, (-2, -1)) if turns else x
    return x.flip(-1) if mirrored else x


def turned_back(x, symmetry):
    """The inverse of `turned`."""
    turns, mirrored = symmetry
    x = x.flip(-1) if mirrored else x
    return torch.rot90(x, -turns, (-2, -1)) if turns else x


def each_turned(x, which, back=False):
    """Rows [M, ..., S, S], row i turned (or turned back) by the symmetry which[i]."""
    if all(symmetry == IDENTITY for symmetry in which):
        return x
    turn = turned_back if back else turned
    return torch.stack([turn(row, symmetry) for row, symmetry in zip(x, which, strict=True)])


TOLD = ("coarse", "logits")  # fields of a condition that are mask logits told from the image alone


MARGIN = 0.25  # of half a side: so far from its edges a look that is cut off there counts less


def encoded(model, image, label, *, kept, symmetries, scales, rows, exclusive):
    """The conditions of the images [N, C, H, W] in the first `kept` of the symmetries, row s * N + n.

    All of them have the mean over looks of the mask logits that a condition holds (`TOLD`), if it holds any: over each
    of the symmetries at the image's own scale and at each of `scales` (see `scaled`). The mean is that of
    probabilities; at a pixel, over the looks that it is in, by `scaled_back`'s weights. label: int [N] or None. rows:
    how many images go through the network at once. exclusive: see `mask_losses.class_probabilities`.
    """
    looks = [(symmetry, scale) for scale in (1.0, *scales) for symmetry in symmetries]  # those that are kept first
    if len(looks) == 1:
        return model.encode(image, label)
    condition = join_conditions(list(_passes(model, image, label, looks[:kept], rows)))
    name = next((field for field in TOLD if field in condition._fields), None)
    if name is None:
        return condition
    others = [getattr(other, name) for other in _passes(model, image, label, looks[kept:], rows)]
    logits = torch.cat([getattr(condition, name), *others]).float()
    total, count = 0, 0  # at each pixel
    for (symmetry, scale), told in zip(looks, class_probabilities(logits, exclusive).split(len(image)), strict=True):
        told, weight = scaled_back(told, scale)
        total = total + turned_back(told * weight, symmetry)
        count = count + turned_back(weight, symmetry)
    mean = class_logits(total / count, exclusive)
    return condition._replace(**{name: torch.cat([turned(mean, symmetry) for symmetry in symmetries[:kept]])})


def _passes(model, image, label, looks, rows):
    """The conditions of the images by one look after the other, `rows` of them in a pass."""
    if not looks:
        return
    images = torch.cat([scaled(turned(image, symmetry), scale) for symmetry, scale in looks])  # [L * N, C, H, W]
    labels = None if label is None else label.repeat(len(looks))
    for low in range(0, len(images), rows):
        yield model.encode(images[low : low + rows], None if labels is None else labels[low : low + rows])


def scaled(x, scale):
    """x: [N, C, H, W] magnified about its middle (above 1; what no longer fits is cut off) or made smaller (below 1;
    around it is its own reflection), bilinear."""
    return x if scale == 1 else F.grid_sample(x, _grid(x, 1 / scale), padding_mode="reflection", align_corners=False)


def scaled_back(x, scale):
    """The inverse of `scaled`, and what each pixel of it counts: [N, C, H, W] and, from 0 to 1, [1, 1, H, W].

    A magnified look says less well what is near its edges, beyond which it does not see: it counts less and less there,
    down to 0 at its edge, so that none shows in the mean.
    """
    weight = torch.ones_like(x[:1, :1])
    if scale == 1:
        return x, weight
    grid = _grid(x, scale)
    if scale > 1:
        weight = ((1 - grid[:1].abs()) / MARGIN).clamp(0, 1).square().prod(dim=-1)[:, None]
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False), weight


def _grid(x, factor):
    """Where each pixel of [N, C, H, W] looks, `factor` times as far from the middle: [N, H, W, 2]."""
    theta = torch.tensor([[factor, 0.0, 0.0], [0.0, factor, 0.0]], dtype=x.dtype, device=x.device)
    return F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
