"""Gaussian diffusion of masks: q(x_t|x_0), prediction targets and losses."""

import math
from typing import NamedTuple

import numpy as np
import torch

from .losses import CROSS_ENTROPIES, bce, bce_dice, class_probabilities, mean_flat, near_borders
from .schedule import Schedule, noise_schedule

MASK_LOSSES = ("mse", "bce", "bce_dice")


LOGIT_SKIPS = ("none", "noise", "coarse", "both")


ACTIVATIONS = ("sigmoid", "softmax")


LARGEST_GAIN = 4.0  # of the network's output; where noise is low, its errors would otherwise be made large


class Denoised(NamedTuple):
    """A denoiser's view of x_t: x0 and eps [N, K, H, W] (mask in [-1, 1]; noise), the learned fraction in [0, 1]
    between the smallest and the largest log variance (or None), and the condition branch's mask logits (or None)."""

    x0: torch.Tensor
    eps: torch.Tensor
    variance_fraction: torch.Tensor | None
    coarse: torch.Tensor | None


class GaussianDiffusion:
    """The forward process over T steps and what a network learns of its reverse.

    alphas_bar: float64 [T], see `noise_schedule`. objective: "eps", "x0" or "v". mask_loss: "mse" or "bce_dice".
    An x0 prediction is squashed: by tanh with MSE; by 2 sigmoid - 1 with BCE + Dice, whose loss sees the logits.
    class_activation: "sigmoid", each of the K classes by itself, or "softmax", which takes the place of the sigmoid
    where classes exclude one another (see `class_probabilities`; tanh z = 2 sigmoid(2 z) - 1).
    coarse_loss: "mse", "bce", "bce_dice" or None (as mask_loss); coarse_ce, coarse_every, border_weight: see the
    method `coarse_loss`.
    """

    def __init__(
        self,
        alphas_bar,
        *,
        objective="eps",
        mask_loss="mse",
        logit_skip="none",
        class_activation="sigmoid",
        coarse_weight=1.0,
        coarse_loss=None,
        coarse_ce=1.0,
        coarse_every=1,
        border_weight=1.0,
        rescale_timesteps=False,
        rescale_learned_sigmas=False,
        use_kl=False,
    ):
        self.schedule = Schedule(alphas_bar)
        if objective not in ("eps", "x0", "v") or mask_loss not in MASK_LOSSES or logit_skip not in LOGIT_SKIPS:
            raise ValueError(f"unknown objective {objective!r}, mask loss {mask_loss!r} or skip {logit_skip!r}")
        if (mask_loss != "mse" or logit_skip != "none") and objective != "x0":
            raise ValueError(f"the mask loss {mask_loss} with the skip {logit_skip} needs the objective x0")
        if class_activation not in ACTIVATIONS or (class_activation == "softmax" and objective != "x0"):
            raise ValueError(f"the class activation {class_activation!r} does not go with the objective {objective}")
        self.logit_skip, self.exclusive = logit_skip, class_activation == "softmax"
        self.objective, self.mask_loss, self.coarse_weight = objective, mask_loss, coarse_weight
        self.coarse_kind, self.coarse_ce, self.coarse_every = coarse_loss or mask_loss, coarse_ce, coarse_every
        self.border_weight = border_weight
        self.rescale_timesteps, self.rescale_learned_sigmas = rescale_timesteps, rescale_learned_sigmas
        self.use_kl = use_kl

    @property
    def num_timesteps(self):
        """T."""
        return len(self.schedule)

    # ---- the forward process -----------------------------------------------------------------------------------

    def q_mean_variance(self, x0, t):
        """Mean sqrt(abar) x_0 and variance 1 - abar of q(x_t | x_0) (DDPM eq. 4). x0: [N, K, H, W]; t: int [N]."""
        abar = self.schedule.alpha_bar(t.cpu().numpy())
        return _per_row(np.sqrt(abar), x0) * x0, _per_row(1 - abar, x0).expand_as(x0)

    def q_sample(self, x0, t, noise):
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise. x0, noise: [N, K, H, W]; t: int [N]."""
        abar = self.schedule.alpha_bar(t.cpu().numpy())
        return _per_row(np.sqrt(abar), x0) * x0 + _per_row(np.sqrt(1 - abar), x0) * noise

    # ---- the network's view ------------------------------------------------------------------------------------

    def model_time(self, t):
        """The time steps as the network sees them: t, or t scaled to 0..1000."""
        return t.float() * (1000 / self.num_timesteps) if self.rescale_timesteps else t

    def target(self, x0, t, noise):
        """What the network should predict: eps, x0, or v = sqrt(abar) eps - sqrt(1 - abar) x_0."""
        if self.objective == "eps":
            return noise
        if self.objective == "x0":
            return x0
        abar = self.schedule.alpha_bar(t.cpu().numpy())
        return _per_row(np.sqrt(abar), x0) * noise - _per_row(np.sqrt(1 - abar), x0) * x0

    def prediction(self, output, x_t, t):
        """The network's raw prediction at x_t, with what `logit_skip` adds to it: for x0 by its activation, mask logits
        or half of them (tanh z = 2 sigmoid(2 z) - 1). t: int [N], or one int for all rows.

        Beside the skip "noise" the prediction is in units of that evidence, up to a bound: what neighbours say is a
        weighted sum of their x_t, and the weights need not be learned for each t anew.
        """
        skip = self.skipped_logits(output, x_t, t)
        if skip is None:
            return output.prediction
        prediction = output.prediction
        if self.logit_skip in ("noise", "both"):
            prediction = prediction * _per_row(np.minimum(self._evidence(t), LARGEST_GAIN), x_t)
        return prediction + (0.5 * skip if self.mask_loss == "mse" else skip)

    def _evidence(self, t):
        """The logits that one unit of x_t is worth at t, 2 sqrt(abar) / (1 - abar): float64, of a scalar or [N]."""
        abar = self.schedule.alpha_bar(_on_host(t))
        return 2 * np.sqrt(abar) / (1 - abar)

    def skipped_logits(self, output, x_t, t):
        """The mask logits that need no network: float32 like x_t, or None.

        The noise of one pixel tells nothing of another's, so for a binary mask Bayes' rule gives, exactly,
            logit p(x_0,i = 1 | x_t, I) = 2 sqrt(abar) x_t,i / (1 - abar) + logit p(x_0,i = 1 | x_t elsewhere, I):
        a pixel's own evidence, which is the skip "noise", and what its surroundings and the image say, which is left to
        the network. Of the latter the coarse mask's logits are the part without x_t (the skip "coarse"). For classes
        that exclude one another the same holds of each class's logit against the background's, which is 0.
        """
        parts = []
        if self.logit_skip in ("noise", "both"):
            parts.append(_per_row(self._evidence(t), x_t) * x_t)
        if self.logit_skip in ("coarse", "both") and output.coarse is not None:
            parts.append(output.coarse.detach())
        return sum(parts) if parts else None

    def activate(self, prediction):
        """The raw prediction as a value of its target: squashed to [-1, 1] for x0."""
        if self.objective != "x0":
            return prediction
        if self.mask_loss != "mse":
            return 2 * class_probabilities(prediction, self.exclusive) - 1
        return 2 * class_probabilities(2 * prediction, True) - 1 if self.exclusive else torch.tanh(prediction)

    def to_x0(self, value, x_t, t):
        """x_0 from an (activated) prediction of the target at x_t. t: int [N], or one int for all rows."""
        if self.objective == "x0":
            return value
        abar = self.schedule.alpha_bar(_on_host(t))
        signal, noise = _per_row(np.sqrt(abar), x_t), _per_row(np.sqrt(1 - abar), x_t)
        if self.objective == "eps":
            return (x_t - noise * value) / signal
        return signal * x_t - noise * value

    def to_eps(self, x0, x_t, t):
        """The noise that x_t holds if x_0 is the clean mask. t: int [N], or one int for all rows."""
        abar = self.schedule.alpha_bar(_on_host(t))
        return (x_t - _per_row(np.sqrt(abar), x_t) * x0) / _per_row(np.sqrt(1 - abar), x_t)

    def denoiser(self, model, condition, *, clip=True, dynamic_threshold=0.0):
        """Close over the condition: a function (x_t, t) -> `Denoised`, which is all that samplers see.

        t is one int for all rows, as in sampling, which a GPU is not waited for, or int [N]. With `clip` x_0 is kept
        in [-1, 1], with a `dynamic_threshold` above 0 too (`cut_dynamically`); eps follows from the clipped
        x_0, so that the two agree.
        """

        def denoise(x_t, t):
            times = t if isinstance(t, torch.Tensor) else torch.full((len(x_t),), int(t), device=x_t.device)
            output = model(x_t, self.model_time(times), condition)
            x0 = self.to_x0(self.activate(self.prediction(output, x_t, t)), x_t, t)
            if dynamic_threshold:
                x0 = cut_dynamically(x0, dynamic_threshold)
            elif clip:
                x0 = x0.clamp(-1, 1)
            fraction = None if output.variance is None else (output.variance + 1) / 2
            return Denoised(x0, self.to_eps(x0, x_t, t), fraction, output.coarse)

        return denoise

    # ---- losses ------------------------------------------------------------------------------------------------

    def training_losses(self, model, mask, condition, t, noise, dice=False):
        """Losses per item of the network's view of x_t.

        mask: [N, K, H, W] in [0, 1]; condition: `model.encode(image)`; t: int [N]; noise: like mask. dice: whether Dice
        is added to cross-entropy on the mask that is told from the image alone: the coarse one where there is one.
        Returns a dict of float32 [N]: "loss" (the sum that is trained on), "mask" (the target's loss, or the bound
        with `use_kl`), "vb" (the variational term, with learned variance) and "coarse" (with a coarse head).
        """
        x0 = mask * 2 - 1
        x_t = self.q_sample(x0, t, noise)
        output = model(x_t, self.model_time(t), condition)
        if any(part is not None and part.shape != mask.shape for part in output):  # would broadcast without a word
            raise ValueError(f"the network's outputs have other shapes than the masks' {tuple(mask.shape)}")
        prediction = self.prediction(output, x_t, t)
        value = self.activate(prediction)
        losses = {}
        if self.use_kl:
            losses["mask"] = self.num_timesteps * self.variational_term(x0, x_t, t, value, output.variance)
            total = losses["mask"]
        else:
            if self.mask_loss in CROSS_ENTROPIES:
                kind = "bce_dice" if dice and output.coarse is None else self.mask_loss
                losses["mask"] = CROSS_ENTROPIES[kind](prediction, mask, exclusive=self.exclusive)
            else:
                losses["mask"] = mean_flat((value - self.target(x0, t, noise)) ** 2)
            total = losses["mask"]
            if output.variance is not None:
                # Learned sigma only: the mean is trained by the loss above (arXiv 2102.09672 sec. 3.1).
                losses["vb"] = self.variational_term(x0, x_t, t, value.detach(), output.variance)
                if self.rescale_learned_sigmas:
                    losses["vb"] = losses["vb"] * (self.num_timesteps / 1000)
                total = total + losses["vb"]
        if output.coarse is not None and self.coarse_weight:
            losses["coarse"] = self.coarse_loss(output.coarse, mask, t, dice)
            total = total + self.coarse_weight * losses["coarse"]
        return {"loss": total, **losses}

    def coarse_loss(self, logits, mask, t, dice=False):
        """Loss per item [N] of the coarse mask's logits: Dice + beta CE (V2's anchor loss) or MSE, as said at
        construction; 0 for items whose t is not a multiple of `coarse_every` (V2's alpha). Cross-entropy without Dice
        counts `border_weight` times near the truth's borders (see `near_borders`)."""
        if self.coarse_kind == "bce_dice" or (dice and self.coarse_kind == "bce"):
            loss = bce_dice(logits, mask, self.coarse_ce, self.exclusive)
        elif self.coarse_kind == "bce":
            weights = 1 + (self.border_weight - 1) * near_borders(mask) if self.border_weight != 1 else None
            loss = bce(logits, mask, self.exclusive, weights)
        else:
            loss = mean_flat((class_probabilities(logits, self.exclusive) - mask) ** 2)
        return loss * (t % self.coarse_every == 0)

    def variational_term(self, x0, x_t, t, value, variance=None):
        """Per item [N], bits per dimension: KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t)), at t = 0 -log p(x_0|x_1)
        (DDPM eq. 5). value: activated prediction; variance: the network's, or None for the fixed (posterior) one."""
        predicted = self.to_x0(value, x_t, t)
        steps = t.cpu().numpy()
        of_x0, of_xt, _, _ = self.schedule.posterior(steps, steps - 1)
        smallest, largest = (_per_row(v, x0) for v in self.schedule.log_variances(steps, steps - 1))
        log_variance = smallest.expand_as(x0)
        if variance is not None:
            fraction = (variance + 1) / 2
            log_variance = fraction * largest + (1 - fraction) * smallest
        true_mean = _per_row(of_x0, x0) * x0 + _per_row(of_xt, x0) * x_t
        mean = _per_row(of_x0, x0) * predicted + _per_row(of_xt, x0) * x_t
        kl = mean_flat(normal_kl(true_mean, smallest, mean, log_variance)) / math.log(2)
        nll = mean_flat(-discretised_gaussian_log_likelihood(x0, mean, 0.5 * log_variance)) / math.log(2)
        return torch.where(t == 0, nll, kl)


def build_diffusion(options):
    """The `GaussianDiffusion` that `options` (`config.DiffusionOptions`) describe."""
    return GaussianDiffusion(
        noise_schedule(options.noise_schedule, options.diffusion_steps, options.input_scale),
        objective=options.objective,
        mask_loss=options.mask_loss,
        logit_skip=options.logit_skip,
        class_activation="sigmoid" if options.class_activation == "auto" else options.class_activation,
        coarse_weight=options.coarse_weight,
        coarse_loss=None if options.coarse_loss == "auto" else options.coarse_loss,
        coarse_ce=options.coarse_ce,
        coarse_every=options.coarse_every,
        border_weight=options.border_weight,
        rescale_timesteps=options.rescale_timesteps,
        rescale_learned_sigmas=options.rescale_learned_sigmas,
        use_kl=options.use_kl,
    )


def cut_dynamically(x0, share):
    """Dynamic thresholding (arXiv 2205.11487, section 2.3): x_0 cut to [-s, s] and divided by s, per item of a batch.

    s is the value that a `share` in (0, 1] of the item's |x_0| stay below, and at least 1: what reaches beyond [-1, 1]
    in bulk is scaled into it, outliers are clipped. x0: [N, K, H, W].
    """
    size = x0.abs().flatten(1).sort(dim=1).values  # torch.quantile refuses large batches
    place = share * (size.shape[1] - 1)
    below = int(place)
    above = min(below + 1, size.shape[1] - 1)
    s = torch.lerp(size[:, below], size[:, above], place - below).clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s


def normal_kl(mean1, log_variance1, mean2, log_variance2):
    """KL(N(mean1, var1) || N(mean2, var2)) elementwise, in nats."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def discretised_gaussian_log_likelihood(x, mean, log_scale):
    """log of N(mean, exp(log_scale)^2)'s mass in the bin of x, for values in 256 levels over [-1, 1] (DDPM eq. 13).

    The outermost bins, which hold the masks' own values -1 and 1, reach to infinity.
    """
    inverse = torch.exp(-log_scale)
    upper, lower = (x - mean + 1 / 255) * inverse, (x - mean - 1 / 255) * inverse
    inside = torch.log((torch.special.ndtr(upper) - torch.special.ndtr(lower)).clamp(min=1e-12))
    # The logarithm of a tail is taken directly: the tail itself underflows a few deviations out, and its gradient.
    above = torch.where(x > 0.999, torch.special.log_ndtr(-lower), inside)
    return torch.where(x < -0.999, torch.special.log_ndtr(upper), above)


def _on_host(t):
    """Time steps as an int or an int array."""
    return t.cpu().numpy() if isinstance(t, torch.Tensor) else t


def _per_row(values, like):
    """float64 values [N] as a tensor of `like`'s type that broadcasts over [N, K, H, W]; a scalar as a float, which
    unlike a tensor is not copied to the device."""
    if np.ndim(values) == 0:
        return float(values)
    tensor = torch.as_tensor(np.asarray(values), dtype=like.dtype).to(like.device)
    return tensor.reshape(-1, *[1] * (like.ndim - 1))
