"""The memory of a pass of sampling, estimated before the first, and how many rows of members fit."""

import copy
from dataclasses import replace

import torch
from torch import nn

from ..io.memory import free_memory_on
from ..runtime.distributed import autocast, memory_format
from ..runtime.errors import UserError
from ..runtime.live_memory import USABLE, followed_on, gigabytes, with_overhead, without_values
from .members import answer_in_one_pass, draw_members

MAPS_OF_LEVEL = 24  # in units of a feature map of the level's width, more than are alive at once without gradients
PAIRS_OF_LEVEL = 12  # in units of a map of all pairs of positions of the attention's levels, likewise


def fitting_rows(sampler, image_channels, sharing=1):
    """How many rows pass the networks of an `EnsembleSampler` at once: its `rows`, halved until they fit.

    image_channels: C. sharing: the number of processes that share the memory of a CPU. An estimate is made only where
    a generous bound does not fit half of the free memory. Raises `UserError` for rows that do not fit and that
    --sample_batch_size sets, and for a single row that does not, with what would fit.
    """
    size, rows, device = sampler.image_size, sampler.rows, sampler.device
    free = free_memory_on(device, sharing)
    if sampler.options.compile or bound(sampler, rows, size) <= free / 2:
        return rows
    usable, fixed = USABLE * free, sampler.options.sample_batch_size != "auto"
    need = first = pass_bytes(sampler, image_channels, rows, size)
    while need > usable and rows > 1:
        rows //= 2
        need = pass_bytes(sampler, image_channels, rows, size)
    has = f"about {gigabytes(first)} of memory, and {gigabytes(free)} are free on {device.type}"
    if need <= usable:
        if fixed and rows < sampler.rows:
            raise UserError(f"--sample_batch_size {sampler.rows}: a pass needs {has}; give {rows}, or leave it out")
        return rows
    smallest = sampler.model.shape.patch * 2 ** (len(sampler.model.shape.multipliers) - 1)
    for smaller in (size // 2, size // 4):
        if smaller % smallest == 0 and smaller and pass_bytes(sampler, image_channels, 1, smaller) <= usable:
            remedy = f"give --image_size {smaller}, with --tile True to keep the scale"
            break
    else:
        remedy = "sample on a device with more memory"
    raise UserError(
        f"--image_size {size}: one row alone needs about {gigabytes(need)} of memory, and {gigabytes(free)} "
        f"are free on {device.type}; {remedy}"
    )


def bound(sampler, rows, size):
    """More than a pass of `rows` rows of `size` pixels takes, from the networks' shapes alone, in bytes."""
    most = 0
    for model, _ in sampler.networks:
        shape, maps = model.shape, 0
        for level, width in enumerate(shape.widths):
            pixels = (size / shape.patch / 2**level) ** 2
            maps += MAPS_OF_LEVEL * pixels * width
            if level in shape.attention_levels or level == len(shape.widths) - 1:
                maps += PAIRS_OF_LEVEL * shape.attention_heads(width) * pixels**2
        weights = sum(parameter.numel() for parameter in model.parameters())  # in half precision, beside themselves
        most = max(most, 4 * rows * maps + 2 * weights)
    return with_overhead(most, sampler.device)


def pass_bytes(sampler, image_channels, rows, size):
    """What encoding and two denoising steps of `rows` rows take beside the weights, in bytes: the most of a network.

    It is of one batch of the sampler, with its test-time augmentation. Images in tiles count as one tile for each row.
    """
    device, plan = followed_on(sampler.device), replace(sampler.plan, timesteps=sampler.plan.timesteps[:2])
    peak = 0
    for (model, diffusion), share in zip(sampler.networks, sampler.shares, strict=True):
        images = max(1, rows // sampler.masks)
        with without_values(device) as memory:
            model = _without_values(model, device)
            weights = memory.now
            image = torch.zeros(images, image_channels, size, size, device=device)
            image = image.to(memory_format=memory_format(sampler.precision, device))
            label = torch.zeros(images, dtype=torch.int64, device=device) if model.label_embedding is not None else None
            with autocast(sampler.precision, device):
                if sampler.options.num_ensemble:
                    names = [str(number) for number in range(images)]
                    draw_members(model, diffusion, plan, image, names, members=share, label=label, rows=rows)
                else:
                    answer_in_one_pass(model, diffusion, plan, image, label=label, rows=rows)
        peak = max(peak, memory.peak - weights)
    return with_overhead(peak, sampler.device)


def _without_values(model, device):
    """A copy of the network whose weights have no values."""
    known = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        known[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, known)
