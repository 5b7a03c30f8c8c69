"""Cardiac MRI phantoms with three classes that exclude one another, in the folder layout of FOLDER."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from ...io.files import naming
from .common import smooth_noise

CLASS_LABELS = {"right ventricle": 1, "myocardium": 2, "left ventricle": 3}
SLICES = 8  # of a patient, from the base to beyond the apex
AIR_SIGNAL, LUNG_SIGNAL, MUSCLE_SIGNAL, FAT_SIGNAL, BLOOD_SIGNAL, WALL_SIGNAL = 0.02, 0.1, 0.42, 0.85, 0.75, 0.3


def cardiac_case(index, size=96, seed=0):
    """Return short-axis slice `index`: image uint8 [size, size], labels uint8 [size, size] of `CLASS_LABELS`.

    Slice index % `SLICES` of patient index // `SLICES`. The left ventricle lies inside the ring of the myocardium, the
    right one beside it, as bright as the left. Towards the apex the right ventricle shrinks and ends first; the last
    slice has no heart. Vessels as bright as the ventricles and a bright organ lead a threshold astray.
    """
    patient, level = divmod(index, SLICES)
    heart, rng = np.random.default_rng([seed, patient]), np.random.default_rng([seed, patient, level])
    row, column = np.mgrid[:size, :size] / size - 0.5
    image = _chest(heart, rng, row, column)
    labels = _heart(heart, rng, row, column, depth=level / (SLICES - 1))
    papillary = (smooth_noise(rng, (size, size), 0.012 * size) > 1.3) & (labels == 3)
    for label, signal in ((1, BLOOD_SIGNAL), (2, WALL_SIGNAL), (3, BLOOD_SIGNAL)):
        image[labels == label] = signal
    image[papillary] = WALL_SIGNAL
    image = gaussian_filter(image, 0.006 * size) * (1 + 0.06 * smooth_noise(rng, (size, size), 0.02 * size))
    image *= np.exp(0.25 * smooth_noise(rng, (size, size), size / 4))
    image = np.hypot(image + rng.normal(0, 0.04, image.shape), rng.normal(0, 0.04, image.shape))  # Rician noise
    return (255 * (image / image.max()).clip(0, 1)).round().astype(np.uint8), labels


def _chest(heart, rng, row, column):
    """The signal [size, size] of the body without the heart: fat, muscle, lungs, vessels and an organ."""
    shape = row.shape
    wall = np.hypot(row / heart.uniform(0.4, 0.46), column / heart.uniform(0.46, 0.5)) + 0.02 * smooth_noise(
        heart, shape, shape[0] / 12
    )
    image = np.where(wall < 1, FAT_SIGNAL, AIR_SIGNAL)
    image[wall < heart.uniform(0.86, 0.93)] = MUSCLE_SIGNAL
    for side in (-1, 1):
        lung = np.hypot((row + 0.02) / heart.uniform(0.2, 0.28), (column - side * 0.24) / heart.uniform(0.12, 0.17))
        image[lung + 0.05 * smooth_noise(rng, shape, shape[0] / 16) < 1] = LUNG_SIGNAL
    organ = np.hypot((row - 0.24) / 0.13, (column + 0.14) / heart.uniform(0.18, 0.26))
    image[(organ < 1) & (wall < 0.86)] = heart.uniform(0.5, 0.7)
    for _ in range(heart.integers(2, 5)):  # the aorta and other vessels
        y, x = heart.uniform(-0.3, 0.3, 2)
        image[np.hypot(row - y, column - x) < heart.uniform(0.015, 0.05)] = BLOOD_SIGNAL
    return image


def _heart(heart, rng, row, column, depth):
    """The labels uint8 [size, size] at a depth from 0, the base, to 1, beyond the apex."""
    centre, angle = heart.uniform(-0.08, 0.08, 2), heart.uniform(-0.8, 0.8)
    radius, thickness = heart.uniform(0.09, 0.13), heart.uniform(0.022, 0.045)
    length, reach = heart.uniform(0.86, 0.96), heart.uniform(0.65, 0.8)
    centre = centre + depth * heart.uniform(-0.03, 0.03, 2)
    y, x = row - centre[0], column - centre[1]
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x  # u points to the right heart
    lumps = 1 + 0.04 * smooth_noise(rng, row.shape, row.shape[0] / 10)
    labels = np.zeros(row.shape, np.uint8)
    shrunk = 1 - (depth / reach) ** 2
    if shrunk > 0:  # a crescent around the left heart
        across = np.sqrt(shrunk)
        outer = np.hypot((u - 0.75 * radius - thickness) / (1.35 * radius * across), v / (1.5 * radius * across))
        labels[outer * lumps < 1] = 1
    shrunk = 1 - (depth / length) ** 2
    if shrunk > 0:
        inner = radius * np.sqrt(shrunk)
        distance = np.hypot(u, v * heart.uniform(0.9, 1.1)) * lumps
        labels[distance < inner + thickness] = 2
        labels[distance < inner] = 3
    return labels


def write_cardiac(folder, num_patients, size=96, seed=0):
    """Write the slices of these patients: folder/{images,masks}/patientNNN_sliceN.png and dataset.json, which names
    the classes. `--group_key '^(patient[0-9]+)'` keeps a patient's slices together."""
    folder = Path(folder)
    for index in range(num_patients * SLICES):
        name = f"patient{index // SLICES:03d}_slice{index % SLICES}.png"
        for part, picture in zip(("images", "masks"), cardiac_case(index, size, seed), strict=True):
            path = folder / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with naming(path):
                Image.fromarray(picture).save(path)
    with naming(folder / "dataset.json"):
        (folder / "dataset.json").write_text(
            json.dumps({"labels": {"background": 0, **CLASS_LABELS}}), encoding="utf-8"
        )
