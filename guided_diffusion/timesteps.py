"""How the time steps of training are drawn: uniformly, or more often where the loss is large."""

import numpy as np
import torch


class UniformTimesteps:
    """Every time step is equally likely."""

    learns = False  # whether `update` changes anything

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
        """Learn from the losses [N] at time steps t [N] (a uniform sampler has nothing to learn)."""

    def state_dict(self):
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state):
        """Undo `state_dict`."""


class LossSecondMomentTimesteps(UniformTimesteps):
    """Time steps in proportion to sqrt(E[loss^2]) (arXiv 2102.09672 sec. 3.3) of their last `history` losses, mixed
    with a thousandth of uniform; uniform until every time step has a full history."""

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
