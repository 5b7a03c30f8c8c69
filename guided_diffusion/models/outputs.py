"""What a network returns, and the condition that it computes from an image once, before it sees x_t."""

from typing import NamedTuple

import torch


class ModelOutput(NamedTuple):
    """The output of every variant.

    prediction: float32 [N, K, H, W], eps, x0 or v by the diffusion's objective, before the activation.
    variance: float32 [N, K, H, W], in about [-1, 1], the learned log variance's place between its bounds, or None.
    coarse: float32 [N, K, H, W], the condition branch's mask logits, or None.
    """

    prediction: torch.Tensor
    variance: torch.Tensor | None
    coarse: torch.Tensor | None


class ConditionV1(NamedTuple):
    """The part of V1's condition that does not depend on x_t.

    image: [N, C p^2, H / p, W / p], in patches of p x p pixels. features: of the condition encoder's first level,
    [N, D, H / p, W / p]. label: the class embedding [N, E], or None.
    """

    image: torch.Tensor
    features: torch.Tensor
    label: torch.Tensor | None

    def rows(self, which):
        """The condition of the rows `which`, int [M], which may repeat."""
        return select_rows(self, which)


class ConditionV2(NamedTuple):
    """V2's condition, none of which depends on x_t or t.

    visible: what the diffusion's encoder sees beside x_t, [N, D', H', W']: the image, perhaps with the condition
    model's features. bottleneck: c0 [N, D, h, w], of the diffusion's width. anchors: the attention maps of the
    diffusion's first levels, [N, 1, H_i, W_i]. coarse: the condition model's mask logits [N, K, H, W]. label: the class
    embedding [N, E], or None.
    """

    visible: torch.Tensor
    bottleneck: torch.Tensor
    anchors: tuple[torch.Tensor, ...]
    coarse: torch.Tensor
    label: torch.Tensor | None

    def rows(self, which):
        """The condition of the rows `which`, int [M], which may repeat."""
        return select_rows(self, which)


class PlainCondition(NamedTuple):
    """The plain U-Net's condition, which is its whole answer: mask logits [N, K, H, W]."""

    logits: torch.Tensor

    def rows(self, which):
        """The condition of the rows `which`, int [M], which may repeat."""
        return select_rows(self, which)


def select_rows(condition, which):
    """The rows `which`, int [M], of a condition: a NamedTuple of tensors [N, ...], tuples of them, and None."""

    def select(x):
        if isinstance(x, tuple):
            return tuple(select(part) for part in x)
        return None if x is None else x.index_select(0, which)

    return type(condition)(*(select(part) for part in condition))


def join_conditions(conditions):
    """Conditions of one type as a single one, their rows one after the other."""

    def join(values):
        if values[0] is None:
            return None
        if isinstance(values[0], tuple):
            return tuple(join(parts) for parts in zip(*values, strict=True))
        return torch.cat(values)

    return type(conditions[0])(*(join(values) for values in zip(*conditions, strict=True)))
