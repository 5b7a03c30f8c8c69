"""Gaussian diffusion of masks: q(x_t | x_0), what the network predicts, and its training losses."""

import math
from dataclasses import KW_ONLY, InitVar, dataclass, field, fields
from typing import NamedTuple

import numpy as np
import torch

from .level_posterior import exclusive_level_logits, level_set_logits
from .losses import (
    CROSS_ENTROPIES,
    bce,
    bce_dice,
    class_probabilities,
    discretised_gaussian_log_likelihood,
    mean_flat,
    normal_kl,
)
from .schedule import Schedule, noise_schedule

OBJECTIVES = ("eps", "x0", "v")
MASK_LOSSES = ("mse", "bce", "bce_dice")
LOGIT_SKIPS = ("none", "noise", "coarse", "both", "levels")
WITH_EVIDENCE = ("noise", "both", "levels")  # the skips in which x_t counts
ACTIVATIONS = ("auto", "sigmoid", "softmax")
MASK_RANGES = {"signed": (-1, 1), "unit": (0, 1)}  # of the clean mask x_0
LARGEST_GAIN = 4.0  # of the network's output: at low noise the evidence would magnify its errors


class Denoised(NamedTuple):
    """What a denoiser makes of x_t.

    x0: the predicted mask [N, K, H, W], in [-1, 1] when it is clipped (see `GaussianDiffusion.from_mask`).
    eps: the noise that goes with it, [N, K, H, W].
    variance_fraction: [N, K, H, W], the learned log variance's place between its bounds, 0 to 1, or None.
    coarse: the condition branch's mask logits [N, K, H, W], or None.
    """

    x0: torch.Tensor
    eps: torch.Tensor
    variance_fraction: torch.Tensor | None
    coarse: torch.Tensor | None


@dataclass(eq=False)
class GaussianDiffusion:
    """The forward process over T steps, and the network's part of the reverse process.

    alphas_bar: float64 [T], see `noise_schedule`.
    objective: what the network predicts, one of `OBJECTIVES`.
    mask_loss: one of `MASK_LOSSES`; the cross-entropies need the objective x0.
    logit_skip: what is added to the logits of an x0 prediction, see `skipped_logits`.
    mask_range: the values of the clean mask x_0, one of `MASK_RANGES`; the pixel's own evidence needs "signed".
    class_activation: "softmax" where classes exclude one another, else "sigmoid" or "auto"; see `class_probabilities`.
    coarse_weight: weight of the coarse mask's loss in the sum. coarse_loss: one of `MASK_LOSSES`, or "auto": as
    mask_loss. coarse_ce, coarse_every: see `coarse_mask_loss`.
    rescale_timesteps: the network sees t scaled to 0..1000. rescale_learned_sigmas: the variational term is scaled by
    T / 1000. use_kl: the variational bound replaces the mask loss.

    Raises ValueError for values that do not go together.
    """

    alphas_bar: InitVar[np.ndarray]
    _: KW_ONLY
    objective: str = "eps"
    mask_loss: str = "mse"
    logit_skip: str = "none"
    mask_range: str = "signed"
    class_activation: str = "auto"
    coarse_weight: float = 1.0
    coarse_loss: str = "auto"
    coarse_ce: float = 1.0
    coarse_every: int = 1
    rescale_timesteps: bool = False
    rescale_learned_sigmas: bool = False
    use_kl: bool = False
    schedule: Schedule = field(init=False)
    _tables: dict = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self, alphas_bar):
        self.schedule = Schedule(alphas_bar)
        objective, mask_loss, skip = self.objective, self.mask_loss, self.logit_skip
        if objective not in OBJECTIVES or mask_loss not in MASK_LOSSES or skip not in LOGIT_SKIPS:
            raise ValueError(f"unknown objective {objective!r}, mask loss {mask_loss!r} or skip {skip!r}")
        if (mask_loss != "mse" or skip != "none") and objective != "x0":
            raise ValueError(f"the mask loss {mask_loss} with the skip {skip} needs the objective x0")
        if self.mask_range not in MASK_RANGES or (self.mask_range == "unit" and skip in WITH_EVIDENCE):
            raise ValueError(f"the mask range {self.mask_range!r} does not go with the skip {skip}")
        if self.class_activation not in ACTIVATIONS or (self.exclusive and objective != "x0"):
            raise ValueError(
                f"the class activation {self.class_activation!r} does not go with the objective {objective}"
            )

    @property
    def num_timesteps(self):
        """T."""
        return len(self.schedule)

    @property
    def exclusive(self):
        """Whether classes exclude one another, so that their probabilities are a softmax."""
        return self.class_activation == "softmax"

    # ---- the forward process -----------------------------------------------------------------------------------

    def q_sample(self, x0, t, noise):
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM eq. 4). x0, noise: [N, K, H, W]; t: int [N]."""
        signal, deviation = self._levels(t, x0)
        return signal * x0 + deviation * noise

    def _levels(self, t, like):
        """sqrt(abar_t) and sqrt(1 - abar_t), which broadcast over `like` [N, K, H, W]. t: int [N] or one int."""
        return self._per_row(self.schedule.levels, t, like)

    def _per_row(self, function, t, like):
        """The values that function(t) returns, of `like`'s type, each broadcasting over `like` [N, K, H, W].

        function: from int [...] to a tuple of float64 [...]. t: one int, which gives floats, or int [N] on the device
        of `like`. The values of all T steps go to that device once, as a table from which it reads its rows itself. So
        neither waits for the other, and float64 stays on the host.
        """
        if not isinstance(t, torch.Tensor):
            return tuple(float(values) for values in function(t))
        key = (function, like.dtype, like.device)
        if key not in self._tables:
            with torch.inference_mode(False):  # a table of an inference could not be used in training
                rows = np.stack(function(np.arange(self.num_timesteps)), axis=-1)
                self._tables[key] = torch.from_numpy(rows).to(like.dtype).to(like.device)
        rows = self._tables[key].index_select(0, t)  # [N, values]
        return tuple(values.reshape(-1, *[1] * (like.ndim - 1)) for values in rows.unbind(dim=1))

    # ---- what the network predicts -----------------------------------------------------------------------------

    def model_time(self, t):
        """The time steps that the network sees: t, or t scaled to 0..1000."""
        return t.float() * (1000 / self.num_timesteps) if self.rescale_timesteps else t

    def target(self, x0, t, noise):
        """What the network should predict: eps, x0, or v = sqrt(abar) eps - sqrt(1 - abar) x_0; [N, K, H, W]."""
        if self.objective == "eps":
            return noise
        if self.objective == "x0":
            return x0
        signal, deviation = self._levels(t, x0)
        return signal * noise - deviation * x0

    def prediction(self, output, x_t, t):
        """The prediction before its activation, [N, K, H, W]: the network's output plus the `skipped_logits`.

        For x0 it is mask logits, or half of them where the activation is tanh (tanh z = 2 sigmoid(2 z) - 1).
        With the skip "noise" the output is in units of the pixel's evidence, up to `LARGEST_GAIN`. The evidence of
        neighbours is a weighted sum of their x_t in these units, so one set of weights serves every t.
        t: int [N], or one int for all rows.
        """
        skip = self.skipped_logits(output, x_t, t)
        if skip is None:
            return output.prediction
        prediction = output.prediction
        if self.logit_skip in WITH_EVIDENCE:
            prediction = prediction * self._evidence(t, x_t)[1]
        return prediction + (0.5 * skip if self.mask_loss == "mse" else skip)

    def _evidence(self, t, like):
        """The logits that one unit of x_t is worth at t, and the unit of the network's output with the skip "noise".

        They broadcast over `like` [N, K, H, W]. t: int [N] or one int.
        """
        return self._per_row(self._evidence_at, t, like)

    def _evidence_at(self, t):
        evidence = self.schedule.evidence(t)
        return evidence, np.minimum(evidence, LARGEST_GAIN)

    def skipped_logits(self, output, x_t, t):
        """The part of the mask logits that needs no network: [N, K, H, W] like x_t, or None.

        The noise of different pixels is independent, so for a binary mask Bayes' rule gives exactly
            logit p(x_0,i = 1 | x_t, I) = 2 sqrt(abar) x_t,i / (1 - abar) + logit p(x_0,i = 1 | x_t elsewhere, I).
        The first term is the pixel's own evidence (the skip "noise"). The network learns the second; the coarse mask's
        logits are its part without x_t (the skip "coarse"). The skip "levels" has the whole answer, of the pixel's x_t
        and those around it, if masks are level sets of the coarse mask near each pixel: see `level_set_logits`; without
        a coarse mask it is the pixel's own evidence. For classes that exclude one another the same holds of each
        class's logit against the background's, which is 0; "levels" then compares each class with all others (see
        `exclusive_level_logits`).
        """
        own = self._evidence(t, x_t)[0] * x_t if self.logit_skip in WITH_EVIDENCE else None
        if output.coarse is None or self.logit_skip in ("none", "noise"):
            return own
        if self.logit_skip == "levels":
            return (exclusive_level_logits if self.exclusive else level_set_logits)(output.coarse, own)
        coarse = output.coarse.detach()
        return coarse if own is None else own + coarse

    def activate(self, prediction):
        """The value of the target from its prediction, [N, K, H, W].

        An x0 prediction z becomes the `class_probabilities` of z with a cross-entropy, of 2 z with the loss "mse"
        (tanh z = 2 sigmoid(2 z) - 1), in the range of x_0.
        """
        if self.objective != "x0":
            return prediction
        logits = 2 * prediction if self.mask_loss == "mse" else prediction
        return self.from_mask(class_probabilities(logits, self.exclusive))

    def to_x0(self, value, x_t, t):
        """x_0 from an activated prediction at x_t, [N, K, H, W]. t: int [N], or one int for all rows."""
        if self.objective == "x0":
            return value
        signal, deviation = self._levels(t, x_t)
        if self.objective == "eps":
            return (x_t - deviation * value) / signal
        return signal * x_t - deviation * value

    def to_eps(self, x0, x_t, t):
        """The noise in x_t if x_0 is the clean mask, [N, K, H, W]. t: int [N], or one int for all rows."""
        signal, deviation = self._levels(t, x_t)
        return (x_t - signal * x0) / deviation

    def denoiser(self, model, condition, *, clip=True, dynamic_threshold=0.0):
        """A function (x_t, t) -> `Denoised` that closes over the condition; samplers see nothing else.

        t is int [N], or one int for all rows: sampling passes an int, so that it never waits for the GPU.
        clip: x_0 is cut to [-1, 1], as in the published code also for masks of 0 and 1. dynamic_threshold: above 0,
        `threshold_dynamically` replaces the cut.
        eps follows from the clipped x_0, so that the two agree.
        """

        def denoise(x_t, t):
            times = t if isinstance(t, torch.Tensor) else torch.full((len(x_t),), int(t), device=x_t.device)
            output = model(x_t, self.model_time(times), condition)
            x0 = self.to_x0(self.activate(self.prediction(output, x_t, t)), x_t, t)
            if dynamic_threshold:
                x0 = threshold_dynamically(x0, dynamic_threshold)
            elif clip:
                x0 = x0.clamp(-1, 1)
            fraction = None if output.variance is None else (output.variance + 1) / 2
            return Denoised(x0, self.to_eps(x0, x_t, t), fraction, output.coarse)

        return denoise

    # ---- from predictions to masks -----------------------------------------------------------------------------

    def to_mask(self, x0):
        """A mask in [0, 1] from x_0, [..., K, H, W]; values outside the range of masks are cut."""
        low, high = MASK_RANGES[self.mask_range]
        return (x0.clamp(low, high) - low) / (high - low)

    def from_mask(self, mask):
        """The inverse of `to_mask`."""
        low, high = MASK_RANGES[self.mask_range]
        return mask * (high - low) + low

    def draw(self, x0, uniform):
        """Clean masks x_0 whose pixels are drawn independently with the means x0, [N, K, H, W].

        Each class of a pixel is Bernoulli; with exclusive classes a pixel is of one class or of the background.
        uniform: from [0, 1), [N, 1, H, W], of which one number decides all classes of a pixel, so that a region inside
        another one stays inside. With exclusive classes it may be [N, K + 1, H, W], see `drawn_classes`.
        """
        return self.from_mask(self.draw_mask(self.to_mask(x0), uniform))

    def draw_mask(self, probability, uniform):
        """Masks in {0, 1}, drawn as `draw` does with these probabilities in [0, 1]; both [N, K, H, W].

        uniform: as of `draw`, or [N, 1, 1, 1]: one number for all pixels gives a level set of the probability.
        Raises ValueError for another number of channels.
        """
        channels = uniform.shape[1] if uniform.ndim == probability.ndim else 1
        if channels != 1 and not self.exclusive:
            raise ValueError(f"classes that may overlap share one uniform number a pixel, not {channels}")
        if channels != 1:
            return drawn_classes(probability, uniform)
        low, high = 0, probability
        if self.exclusive:
            high = probability.cumsum(dim=1)
            low = torch.cat([torch.zeros_like(high[:, :1]), high[:, :-1]], dim=1)
        return ((uniform >= low) & (uniform < high)).to(probability.dtype)

    def uniform_channels(self, classes):
        """The uniform numbers that `draw` needs at each pixel so that the order of the K classes decides nothing."""
        return classes + 1 if self.exclusive else 1

    # ---- losses ------------------------------------------------------------------------------------------------

    def training_losses(
        self, model, mask, condition, t, noise, coarse_target=None, *, dice=False, known=None, coarse_known=None
    ):
        """The losses of each item, at x_t drawn from q(x_t | mask).

        mask: [N, K, H, W] in [0, 1]; condition: `model.encode(image)`; t: int [N]; noise: like mask. coarse_target: the
        coarse mask's target, like mask; None: the mask. dice: adds Dice to the cross-entropy of the mask that depends
        on the image alone, which is the coarse mask if there is one.
        known: bool [N, 1, H, W], the pixels whose truth is known, or None for all; coarse_known: of the coarse target.
        Elsewhere x_0 is unknown: x_t is the noise alone there, and no loss has a gradient.
        Returns a dict of float32 [N]. "loss": the sum to train on. "mask": the loss of the target (DDPM eq. 14 for
        eps), or the bound with `use_kl`. "vb": the variational term, with a learned variance. "coarse": the coarse
        mask's loss, with a coarse mask.
        Raises ValueError for outputs of another shape than the mask's.
        """
        x0 = self.from_mask(mask)
        x_t = self.q_sample(x0, t, noise)
        if known is not None:
            x_t = x_t.where(known, noise)
        output = model(x_t, self.model_time(t), condition)
        if any(part is not None and part.shape != mask.shape for part in output):  # they would broadcast silently
            raise ValueError(f"the network's outputs have other shapes than the masks' {tuple(mask.shape)}")
        prediction = self.prediction(output, x_t, t)
        value = self.activate(prediction)
        losses = {}
        if self.use_kl:
            losses["mask"] = self.num_timesteps * self.variational_term(x0, x_t, t, value, output.variance, known)
        elif self.mask_loss in CROSS_ENTROPIES:
            kind = "bce_dice" if dice and output.coarse is None else self.mask_loss
            losses["mask"] = CROSS_ENTROPIES[kind](prediction, mask, exclusive=self.exclusive, known=known)
        else:
            losses["mask"] = mean_flat((value - self.target(x0, t, noise)) ** 2, known)
        total = losses["mask"]
        if output.variance is not None and not self.use_kl:
            # The term trains the variance alone: L_hybrid of arXiv 2102.09672 (eq. 16), with a weight of 1.
            losses["vb"] = self.variational_term(x0, x_t, t, value.detach(), output.variance, known)
            if self.rescale_learned_sigmas:
                losses["vb"] = losses["vb"] * (self.num_timesteps / 1000)
            total = total + losses["vb"]
        if output.coarse is not None and self.coarse_weight:
            target, where = (mask, known) if coarse_target is None else (coarse_target, coarse_known)
            losses["coarse"] = self.coarse_mask_loss(output.coarse, target, t, dice, where)
            total = total + self.coarse_weight * losses["coarse"]
        return {"loss": total, **losses}

    def coarse_mask_loss(self, logits, mask, t, dice=False, known=None):
        """The coarse mask's loss per item [N], of the kind `coarse_loss`; V2's (t mod alpha = 0)(L_dice + beta L_ce).

        beta is `coarse_ce`, alpha `coarse_every`: items whose t it does not divide have loss 0. dice: adds Dice to
        cross-entropy alone.
        logits: [N, K, H, W]; mask: [N, K, H, W] in [0, 1]; t: int [N]. known: see `training_losses`.
        """
        kind = self.mask_loss if self.coarse_loss == "auto" else self.coarse_loss
        if kind == "bce_dice" or (dice and kind == "bce"):
            loss = bce_dice(logits, mask, self.coarse_ce, self.exclusive, known)
        elif kind == "bce":
            loss = bce(logits, mask, self.exclusive, known)
        else:
            loss = mean_flat((class_probabilities(logits, self.exclusive) - mask) ** 2, known)
        return loss * (t % self.coarse_every == 0)

    def variational_term(self, x0, x_t, t, value, variance=None, known=None):
        """One term of the variational bound (DDPM eq. 5) per item [N], in bits per dimension.

        It is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and -log p(x_0 | x_1) at t = 0.
        value: the activated prediction; variance: the network's, in about [-1, 1], or None for the posterior's.
        """
        predicted = self.to_x0(value, x_t, t)
        of_x0, of_xt, smallest, largest = self._per_row(self.schedule.step_back, t, x0)
        log_variance = smallest.expand_as(x0)
        if variance is not None:
            fraction = (variance + 1) / 2
            log_variance = fraction * largest + (1 - fraction) * smallest
        true_mean = of_x0 * x0 + of_xt * x_t
        mean = of_x0 * predicted + of_xt * x_t
        kl = mean_flat(normal_kl(true_mean, smallest, mean, log_variance), known) / math.log(2)
        nll = mean_flat(-discretised_gaussian_log_likelihood(x0, mean, 0.5 * log_variance), known) / math.log(2)
        return torch.where(t == 0, nll, kl)


def build_diffusion(options):
    """The `GaussianDiffusion` of `options` (`config.DiffusionOptions`), whose fields of the same names it takes."""
    alphas_bar = noise_schedule(options.noise_schedule, options.diffusion_steps, options.input_scale)
    names = (setting.name for setting in fields(GaussianDiffusion) if setting.init)
    return GaussianDiffusion(alphas_bar, **{name: getattr(options, name) for name in names})


def drawn_classes(probability, uniform):
    """Masks in {0, 1} of K classes that exclude one another, drawn with these probabilities; both [N, K, H, W].

    uniform: from [0, 1), independent over its K + 1 channels [N, K + 1, H, W], the background's first; they may depend
    on one another in space. Exponential variables -log(1 - u_k) / p_k of the rates p_k race, and the least one wins:
    class k does with probability p_k exactly, the background with 1 minus their sum (the Gumbel-max trick). Between two
    classes only their own two numbers decide, by the ratio of p. So of uniform numbers that are smooth in space the
    borders are smooth between any two classes, and no third class lies between them because of its number. To cut
    cumulative sums of p at a single smooth number would put it there.
    Raises ValueError for another number of channels.
    """
    if uniform.shape[1] != probability.shape[1] + 1:
        raise ValueError(f"{probability.shape[1]} exclusive classes need one uniform number more, not {uniform.shape}")
    rates = torch.cat([(1 - probability.sum(dim=1, keepdim=True)).clamp(min=0), probability], dim=1)
    times = (-torch.log1p(-uniform) / rates).where(rates > 0, torch.inf)
    winner = times.argmin(dim=1, keepdim=True)
    return (winner == torch.arange(1, rates.shape[1], device=winner.device)[:, None, None]).to(probability.dtype)


def threshold_dynamically(x0, share):
    """Dynamic thresholding (arXiv 2205.11487, section 2.3): each item's x_0 cut to [-s, s] and divided by s.

    s is the `share` quantile of the item's |x_0|, at least 1. x0: [N, K, H, W]; share: in (0, 1].
    """
    size = x0.abs().flatten(1).sort(dim=1).values  # torch.quantile refuses large batches
    place = share * (size.shape[1] - 1)
    below = int(place)
    above = min(below + 1, size.shape[1] - 1)
    s = torch.lerp(size[:, below], size[:, above], place - below).clamp(min=1).reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-s, s) / s
