"""Random fields that are smooth in space, for masks whose neighbouring pixels are drawn alike."""

from functools import lru_cache

import numpy as np
import torch

KERNEL_STEP = 0.5  # correlation lengths between kernels: closer ones change the correlation by less than 1e-8
KERNEL_REACH = 3.0  # correlation lengths beyond the border at which kernels still count, exp(-9) of their height


def field_factor(size, length):
    """A matrix F float32 [size, n] whose F F^T is the correlation exp(-(i - j)^2 / (2 length^2)) of `size` pixels.

    A field of independent standard normal numbers, multiplied by such a matrix along each axis, has that correlation
    and unit variance at every pixel, at the border of the image as well. length: in pixels; 0: no correlation.

    The columns are Gaussian kernels exp(-(x / length)^2) on a grid, whose products sum up to that correlation.
    """
    return torch.from_numpy(_kernels(size, length))


@lru_cache(maxsize=64)  # of arrays: a tensor made while memory is estimated would have no values ever after
def _kernels(size, length):
    if length <= 0:
        return np.eye(size, dtype=np.float32)
    grid = np.arange(-KERNEL_REACH * length, size - 1 + (KERNEL_REACH + KERNEL_STEP) * length, KERNEL_STEP * length)
    kernels = np.exp(-(((np.arange(size)[:, None] - grid) / length) ** 2))
    return (kernels / np.linalg.norm(kernels, axis=1, keepdims=True)).astype(np.float32)


def smooth_uniform(normal, rows, columns):
    """Numbers from [0, 1), float32 [..., H, W], each uniform, whose normal scores are correlated in space.

    They are a Gaussian copula. rows, columns: the `field_factor` of H and of W, [H, m] and [W, n], on the device of
    `normal`, which holds independent standard normal numbers [..., m, n].
    """
    with torch.autocast(normal.device.type, enabled=False):  # bf16 would round every 500th number to 1
        return torch.special.ndtr(rows @ normal @ columns.T).clamp(max=1 - 2**-24)
