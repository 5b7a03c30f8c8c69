"""Phantoms of lung nodules in CT, in the file layout of `loaders.lidc.LIDCDataset`."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ...io.files import atomic_path
from .common import smooth_noise, splits

READERS = 4


def lidc_case(index, size=64, seed=0):
    """Return nodule phantom `index`: image uint8 [size, size] and the readers' masks bool [4, size, size].

    A bright nodule in a faint haze lies in dark lung, with vessels as bright as the nodule and in some patches the
    chest wall. The readers agree on the place of the nodule. They differ in its size, in the course of its border and
    in whether the haze belongs to it. So there are several distinct answers, and no single mask matches all readers.
    Every reader marks something.
    """
    rng = np.random.default_rng([seed, index])
    unit = size / 64  # lengths below are in pixels of a patch of 64
    y, x = np.mgrid[:size, :size] / unit
    centre = rng.uniform(26, 38, 2)
    distance = np.hypot(x - centre[0], y - centre[1])
    angle = np.arctan2(y - centre[1], x - centre[0])
    waves = sum(rng.normal(0, 0.14 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    radius = rng.uniform(4.5, 10)
    depth = radius * (1 + waves).clip(0.6, 1.5) - distance  # inside the nodule, pixels
    haze = rng.uniform(2, 6)  # its width around the nodule, pixels
    solid, faint = 1 / (1 + np.exp(-depth / 0.7)), 1 / (1 + np.exp(-(depth + haze) / 1.2))
    image = _lung(rng, (x, y), size, unit) + rng.uniform(0.35, 0.5) * solid + rng.uniform(0.1, 0.16) * faint
    image = gaussian_filter(image, 0.5 * unit) + rng.normal(0, 0.025, image.shape)
    includes_haze = rng.uniform(0.2, 0.6)  # the probability that a reader does
    masks = [_outline(rng, depth, haze * (rng.random() < includes_haze), size, unit) for _ in range(READERS)]
    return (255 * image.clip(0, 1)).round().astype(np.uint8), np.array(masks)


def _outline(rng, depth, haze, size, unit):
    """One reader's mask, bool [size, size]: the nodule and 0.8 `haze` pixels around it, with a random margin."""
    wander = 0.7 * smooth_noise(rng, (size, size), 4 * unit)
    own = depth + 0.8 * haze + rng.normal(0, 0.6) + wander
    return (own > 0) | (depth > 0.8 * depth.max())  # at least the nodule's centre


def _lung(rng, grid, size, unit):
    """The density [size, size] of lung with vessels and, in 40 % of the patches, the chest wall at one side."""
    x, y = grid
    density = 0.16 + 0.03 * smooth_noise(rng, (size, size), 3 * unit)
    for _ in range(rng.integers(3, 7)):
        angle, offset, bend = rng.uniform(0, np.pi), rng.uniform(-26, 26), rng.uniform(-0.012, 0.012)
        along = (x - 32) * np.cos(angle) + (y - 32) * np.sin(angle)
        across = (y - 32) * np.cos(angle) - (x - 32) * np.sin(angle) - offset - bend * along**2
        density += rng.uniform(0.2, 0.5) * np.exp(-((across / rng.uniform(0.8, 1.6)) ** 2))
    if rng.random() < 0.4:
        angle = rng.uniform(0, 2 * np.pi)
        beyond = (x - 32) * np.cos(angle) + (y - 32) * np.sin(angle) - rng.uniform(20, 26)
        density += 0.55 / (1 + np.exp(-beyond))
    return density


def write_lidc(folder, num_train, num_test, size=64, seed=0):
    """Write nodule phantoms as folder/lidc4_phantom.npz, replacing an existing file.

    Cases 0 and 1 are patches of one patient, 2 and 3 of the next, and so on. size: height and width in pixels.
    """
    images, masks, patients, is_test = [], [], [], []
    for test, _, indices in splits(num_train, num_test, (False, True)):
        for index in indices:
            image, marks = lidc_case(index, size, seed)
            images.append(image)
            masks.append(marks)
            patients.append(f"PHANTOM-{index // 2:04d}")
            is_test.append(test)
    with atomic_path(Path(folder) / "lidc4_phantom.npz") as temporary:
        np.savez_compressed(
            temporary,
            images=np.array(images),
            masks=np.packbits(np.array(masks), axis=-1),
            patient=np.array(patients),
            is_test=np.array(is_test),
        )
