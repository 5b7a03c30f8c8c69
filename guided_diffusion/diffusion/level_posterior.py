"""The posterior of a mask that is, near each pixel, a level set of a given probability map."""

import math

import torch
import torch.nn.functional as F

from .losses import with_background

# The level u in [0, 1] lies in one of 16 bands, which are narrow near 0 and 1: even in log(u / (1 - u)), from -5 to 5.
BAND_EDGES = (0.0, *(1 / (1 + math.exp(5 - 5 * i / 7)) for i in range(15)), 1.0)
WINDOW_LENGTH = 2.0  # pixels: the window within which one level is assumed, exp(-r^2 / (2 WINDOW_LENGTH^2))
WINDOW = 6  # pixels, where the window ends: exp(-4.5)
SURE = 1e-4  # the neighbours' evidence makes no probability smaller than this, or larger than 1 minus this


def level_set_logits(logits, evidence):
    """logit p(x_0,i = 1 | x_t, I) if the mask near pixel i is a level set of p = sigmoid(logits); [N, K, H, W].

    The prior: around pixel i, x_0,j = 1 where p_j > u, with one level u, uniform in [0, 1]. Then p(x_0,i = 1) = p_i,
    and the posterior of the level is

        w_i(u) ~ exp(sum over j of K(j - i) evidence_j [p_j > u]),    K(r) = exp(-r^2 / (2 WINDOW_LENGTH^2)),

    which gives p(x_0,i = 1 | ...) = integral of w_i(u) [p_i > u] du. Without evidence the result is the logits
    themselves. With it, neighbours decide together, so that noise makes no specks and a border moves as a whole.

    logits, evidence: [N, K, H, W]; the logits that x_t is worth at each pixel by itself (see
    `GaussianDiffusion.skipped_logits`). Each of the K classes has a level of its own. Returns float32 [N, K, H, W].
    No gradient passes. The integral is a sum over the bands between `BAND_EDGES`; within one p counts linearly.
    """
    with torch.no_grad():
        p, evidence = logits.float().sigmoid(), evidence.float()
        largest = weight = held = None
        for low, high in zip(BAND_EDGES[:-1], BAND_EDGES[1:], strict=True):
            inside = ((p - low) / (high - low)).clamp(0, 1)
            total = _windowed(evidence * inside) + math.log(high - low)
            if largest is None:
                largest, weight, held = total, torch.ones_like(total), inside
                continue
            above = torch.maximum(largest, total)
            before, now = torch.exp(largest - above), torch.exp(total - above)
            largest, weight, held = above, weight * before + now, held * before + now * inside
        posterior = held / weight
        posterior = torch.maximum(posterior, p.clamp(max=SURE))
        return torch.logit(torch.minimum(posterior, p.clamp(min=1 - SURE)), eps=1e-7)


def exclusive_level_logits(logits, evidence):
    """The same for K classes that exclude one another, as logits against the background's; float32 [N, K, H, W].

    logits, evidence: [N, K, H, W], of each class against the background. Near each pixel each of the K + 1 classes is
    a level set of its probability, against all others together. Against the background alone no evidence would count
    on the border of two classes where the background is unlikely, as both are then likely against it. The evidence for
    class k is the change of log(p_k / (1 - p_k)) by a pixel's own x_t. K + 1 posteriors q by themselves need not sum
    up to 1; the result is log(q_k / q_0). For K = 1 it is that of `level_set_logits`.
    """
    with torch.no_grad():
        before = with_background(logits.float())
        prior = _against_others(before)
        change = _against_others(before + with_background(evidence.float())) - prior
        q = F.logsigmoid(level_set_logits(prior, change))
        return q[:, 1:] - q[:, :1]


def _against_others(logits):
    """log(p_k / (1 - p_k)) of each class, where p is the softmax of logits [N, K, H, W]."""
    classes = range(logits.shape[1])
    others = [torch.cat([logits[:, :k], logits[:, k + 1 :]], dim=1).logsumexp(dim=1) for k in classes]
    return logits - torch.stack(others, dim=1)


def _windowed(values):
    """The sum of values [N, K, H, W] over the window around each pixel; there are none beyond the border.

    Sums of shifted maps stay float32 under any autocast and on a GPU, where a convolution would take half precision or
    TF32, and overflow in fp16. On a CPU they take a third of its time. An exported graph, which is in float32, has
    convolutions: they are two operations instead of fifty.
    """
    weights = [math.exp(-((r / WINDOW_LENGTH) ** 2) / 2) for r in range(WINDOW + 1)]
    if torch.compiler.is_exporting():
        window = torch.tensor([*weights[:0:-1], *weights], device=values.device).reshape(1, 1, -1, 1)
        maps = F.conv2d(values.flatten(0, 1)[:, None], window, padding=(WINDOW, 0))
        return F.conv2d(maps, window.transpose(2, 3), padding=(0, WINDOW)).reshape(values.shape)
    for axis, padding in ((-2, (0, 0, WINDOW, WINDOW)), (-1, (WINDOW, WINDOW))):
        size, wide, values = values.shape[axis], F.pad(values, padding), values.clone()
        for r in range(1, WINDOW + 1):
            for first in (WINDOW - r, WINDOW + r):
                values.add_(wide.narrow(axis, first, size), alpha=weights[r])
    return values
