"""The randomness of a training step: time steps, raters and noise, each item's from a generator of its own."""

import numpy as np
import torch

from ..runtime.seeds import seeded_generator


class UniformTimesteps:
    """Draws every time step with the same probability."""

    learns = False  # whether `update` has an effect

    def __init__(self, num_timesteps):
        self.num_timesteps = num_timesteps

    def probabilities(self):
        """float64 [T], summing to 1."""
        return np.full(self.num_timesteps, 1 / self.num_timesteps)

    def draw(self, uniforms):
        """Time steps int64 [N] by inverse CDF from uniforms [N] in [0, 1), and the weights float32 [N] that make the
        weighted loss an unbiased estimate of the uniform mean."""
        probabilities = self.probabilities()
        cdf = np.cumsum(probabilities)
        t = np.searchsorted(cdf / cdf[-1], np.asarray(uniforms), side="right").clip(max=self.num_timesteps - 1)
        weights = 1 / (self.num_timesteps * probabilities[t])
        return torch.from_numpy(t), torch.from_numpy(weights).float()

    def update(self, t, losses):
        """Learn from the losses [N] at time steps t [N]."""

    def state_dict(self):
        """The state for a checkpoint."""
        return {}

    def load_state_dict(self, state):
        """Take the state of a checkpoint."""


class LossSecondMomentTimesteps(UniformTimesteps):
    """Draws time steps in proportion to sqrt(E[loss^2]) over their last `history` losses (arXiv 2102.09672 sec. 3.3).

    A share `uniform_share` of draws is uniform, and all are until every time step has a full history. A draw needs the
    losses of the step before, so each step waits for a GPU; `UniformTimesteps` never does.
    """

    learns = True

    def __init__(self, num_timesteps, history=10, uniform_share=0.001):
        super().__init__(num_timesteps)
        self.uniform_share = uniform_share
        self.losses = np.zeros((num_timesteps, history))
        self.counts = np.zeros(num_timesteps, dtype=np.int64)

    def probabilities(self):
        if (self.counts < self.losses.shape[1]).any():
            return super().probabilities()
        weights = np.sqrt((self.losses**2).mean(axis=1)) + 1e-12
        return weights / weights.sum() * (1 - self.uniform_share) + self.uniform_share / self.num_timesteps

    def update(self, t, losses):
        for step, loss in zip(t.tolist(), losses.tolist(), strict=True):
            self.losses[step, self.counts[step] % self.losses.shape[1]] = loss
            self.counts[step] += 1

    def state_dict(self):
        return {"losses": torch.from_numpy(self.losses.copy()), "counts": torch.from_numpy(self.counts.copy())}

    def load_state_dict(self, state):
        self.losses, self.counts = state["losses"].numpy().copy(), state["counts"].numpy().copy()


TIMESTEP_SAMPLERS = {"uniform": UniformTimesteps, "loss-second-moment": LossSecondMomentTimesteps}


# ---- the draws of a step -------------------------------------------------------------------------------------------


def item_generator(seed, step, index):
    """The CPU generator of item `index` of the global batch of `step`, which decides its rater, time step and noise."""
    return seeded_generator("train", seed, step, index)


def draw_for_items(masks, options, timesteps, step, first):
    """The draws for each of N items: mask [N, K, H, W], time step [N], loss weight [N], noise [N, K, H, W] and the
    level [N] in [0, 1) at which a soft mask is cut (see `GaussianDiffusion.training_losses`).

    masks: the items' masks, each [raters, K, H, W], from item `first` of the global batch on. options: the run's
    `TrainOptions`; by `raters` a mask is a random rater's or the mean. timesteps: an instance of one of
    `TIMESTEP_SAMPLERS`.
    """
    chosen, uniforms, noise, levels = [], [], [], []
    for index, mask in enumerate(masks, start=first):
        generator = item_generator(options.seed, step, index)
        # The rater is drawn even if the mean is used, so that `raters` changes neither time steps nor noise.
        rater = torch.randint(len(mask), (1,), generator=generator).item()
        chosen.append(mask[rater])
        uniforms.append(torch.rand((), generator=generator, dtype=torch.float64).item())
        noise.append(torch.randn(mask.shape[1:], generator=generator))
        levels.append(torch.rand((), generator=generator))  # last, so that older runs draw the rest as before
    t, weights = timesteps.draw(uniforms)
    mask = mean_masks(masks) if options.raters == "mean" else torch.stack(chosen)
    return mask, t, weights, torch.stack(noise), torch.stack(levels)


def mean_masks(masks):
    """The mean over the raters of each of N items' masks [raters, K, H, W]: [N, K, H, W] in [0, 1]."""
    return torch.stack([mask.mean(dim=0) for mask in masks])
