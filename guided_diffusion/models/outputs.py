"""What the variants of the network hand on: their output, and what each knows of an image before it sees x_t."""

from typing import NamedTuple

import torch


class ModelOutput(NamedTuple):
    """What every variant returns.

    prediction: float32 [N, K, H, W], eps, x0 or v by the diffusion's objective (before its activation).
    variance: float32 [N, K, H, W], the learned interpolation in about [-1, 1], or None.
    coarse: float32 [N, K, H, W], the condition branch's own mask logits, or None.
    """

    prediction: torch.Tensor
    variance: torch.Tensor | None
    coarse: torch.Tensor | None


class _RowSelection:
    def rows(self, which):
        """The condition of these rows, which may repeat: `which` is int [M]. Ensemble members share their image's."""

        def taken(x):
            if isinstance(x, tuple):
                return tuple(taken(part) for part in x)
            return None if x is None else x.index_select(0, which)

        return type(self)(*(taken(part) for part in self))


def joined(conditions):
    """One condition of the rows of several, which are NamedTuples of tensors, of tuples of them, and of None."""

    def cat(values):
        if values[0] is None:
            return None
        if isinstance(values[0], tuple):
            return tuple(cat(parts) for parts in zip(*values, strict=True))
        return torch.cat(values)

    return type(conditions[0])(*(cat(values) for values in zip(*conditions, strict=True)))


class _ConditionV1(NamedTuple):
    image: torch.Tensor
    features: torch.Tensor
    label: torch.Tensor | None


class ConditionV1(_RowSelection, _ConditionV1):
    """What v1 knows of an image before it sees x_t: the image [N, C, H, W], the condition encoder's first-level
    features [N, D, H, W], and the class embedding [N, E] or None."""


class _ConditionV2(NamedTuple):
    visible: torch.Tensor
    bottleneck: torch.Tensor
    anchors: tuple[torch.Tensor, ...]
    coarse: torch.Tensor
    label: torch.Tensor | None


class ConditionV2(_RowSelection, _ConditionV2):
    """All that v2 knows of an image.

    visible: what the diffusion's encoder sees beside x_t, [N, D', H', W']: the image and perhaps the condition model's
    features. bottleneck: c0 [N, D, h, w], of the diffusion's width. anchors: the attention maps [N, 1, H_i, W_i] of the
    diffusion's first levels. coarse: the condition model's mask logits [N, K, H, W]. label: the class embedding [N, E]
    or None.
    """


class _Answer(NamedTuple):
    logits: torch.Tensor


class Answer(_RowSelection, _Answer):
    """The plain U-Net's answer: mask logits [N, K, H, W]."""
