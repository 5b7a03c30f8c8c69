"""A network that is shown its own predictions: beside x_t (self-conditioning), or as the mask that x_t is made from."""

import torch

SHARE_BESIDE = 0.5  # of the rows of training that see a prediction (arXiv 2208.04202 sec. 3.1)


def sees_last(model):
    """Whether the network takes its last prediction of x_0 beside x_t (see `medsegdiff.Denoiser`)."""
    return getattr(model, "self_condition", False)


def is_shown_any(diffusion, model):
    """Whether training shows the network any of its own predictions."""
    return bool(diffusion.own_predictions or sees_last(model))


def with_last(x_t, last):
    """What such a network takes: x_t [N, K, H, W] and after it, where there is one, its last prediction likewise."""
    return x_t if last is None else torch.cat([x_t, last.to(x_t.dtype)], dim=1)


@torch.no_grad()
def predicted(diffusion, model, x_t, t, condition):
    """The x_0 in [-1, 1] that the network predicts at x_t, from which nothing is learned. [N, K, H, W]; t: int [N]."""
    output = model(x_t, diffusion.model_time(t), condition)
    return diffusion.to_x0(diffusion.activate(diffusion.prediction(output, x_t, t)), x_t, t).clamp(-1, 1)


def from_own_mask(diffusion, model, x_t, t, noise, condition, chosen):
    """x_t, of the rows `chosen`, bool [N], made from the mask that the network itself predicts from noise alone.

    In sampling no x_t comes from a true mask: its steps start from what was predicted at the step before. The noise is
    the same throughout, as on a path of the ODE.
    """
    own = predicted(diffusion, model, noise, torch.full_like(t, diffusion.num_timesteps - 1), condition)
    return torch.where(_rows(chosen), diffusion.q_sample(own, t, noise), x_t)


def beside(diffusion, model, x_t, t, condition, chosen):
    """The network's prediction at x_t for the rows `chosen`, bool [N], and 0 for the others: [N, K, H, W]."""
    return predicted(diffusion, model, x_t, t, condition) * _rows(chosen)


def _rows(chosen):
    return chosen[:, None, None, None]
