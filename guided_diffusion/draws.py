"""What a training step draws at random: for each item its mask, time steps and noise, by a generator of its own."""

import torch

from .runtime.seeds import seeded_generator


def item_generator(seed, step, index):
    """The CPU generator of item `index` of the global batch of `step`: its noise, time step and rater follow."""
    return seeded_generator("train", seed, step, index)


def rows(drawn, part):
    """Of what was drawn for each item, [N, R, ...], that of the slice `part` of items as rows [n * R, ...]."""
    return drawn[part].flatten(0, 1)


def draw_for_items(masks, options, timesteps, step, first):
    """For each item R draws of a mask [N, R, K, H, W] (of a rater, or the raters' mean), time step [N, R], loss weight
    and noise.

    masks: a list of [raters, K, H, W], of the items from number `first` of the global batch on. options: the run's
    `TrainOptions`. timesteps: one of `timesteps.TIMESTEP_SAMPLERS`. All are drawn by the item's own generator, also the
    rater that the mean does without: so runs that differ in `raters` alone see the same time steps and noise. An item's
    time steps are R equal parts of the whole apart.
    """
    draws = options.noise_draws
    chosen, uniforms, noise = [], [], []
    for index, mask in enumerate(masks, start=first):
        generator = item_generator(options.seed, step, index)
        raters = torch.randint(len(mask), (draws,), generator=generator)
        chosen.append(mask.mean(dim=0).expand(draws, -1, -1, -1) if options.raters == "mean" else mask[raters])
        start = torch.rand((), generator=generator, dtype=torch.float64).item()
        uniforms += [(start + draw / draws) % 1 for draw in range(draws)]
        noise.append(torch.randn(draws, *mask.shape[1:], generator=generator))
    t, weights = (drawn.unflatten(0, (-1, draws)) for drawn in timesteps.draw(uniforms))
    return torch.stack(chosen), t, weights, torch.stack(noise)
