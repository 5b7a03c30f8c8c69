"""Breast ultrasound phantoms with small, faint lesions, as a folder that `--data_name FOLDER` reads."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from ...io.files import write_json
from ...io.images import write_png
from .common import smooth_noise, splits

IMAGES_PER_PATIENT = 2
SHARES = (0.008, 0.07)  # of the picture that is lesion
COUNTS = (0.12, 0.7, 0.18)  # the probabilities of none, one and two lesions
SKIN, FAT, GLAND, MUSCLE = range(4)  # from the top
BRIGHTNESS = np.array([0.9, -0.55, 0.25, -0.45])  # of each layer, in units of the logarithm of the echo


def ultrasound_case(index, size=600, seed=0):
    """Return ultrasound phantom `index`: image uint8 [H, W] and mask bool [H, W].

    H and W are drawn from size / 2 to `size`. One case in eight has no lesion, one in six has two. Lesions cover
    0.5 to 8 % of the picture. They lie in the gland below the fat, darker than it, with a blurred border and a shadow
    or a bright trail below. Fat lobules, the muscle and shadows of the skin are as dark, speckle covers all, and the
    echo fades with the depth.
    """
    patient = np.random.default_rng([seed, index // IMAGES_PER_PATIENT, IMAGES_PER_PATIENT])
    rng = np.random.default_rng([seed, index])
    height, width = rng.integers(size // 2, size, 2, endpoint=True)
    y, x = np.mgrid[:height, :width] / size  # lengths below are in units of `size`
    frame = (x, y, width / size, height / size)

    depths = np.array([0.03, patient.uniform(0.16, 0.28), patient.uniform(0.72, 0.85)]) * frame[3]
    layer = _layers(rng, frame, depths)
    echo = BRIGHTNESS[layer] + _texture(rng, x.shape, size, layer) + _lobules(rng, frame, depths)
    absorbed = np.full(x.shape, patient.uniform(1.0, 2.2))  # per unit of depth, in the units of `echo`
    lesions, mask = _lesions(rng, patient, frame, depths)
    for opacity, level, shadow in lesions:
        echo += opacity * (level - echo)
        absorbed += shadow * opacity
    absorbed += _skin_shadows(rng, frame)
    echo -= np.cumsum(absorbed, axis=0) / size
    echo += patient.uniform(0.7, 1.0) * absorbed.mean() * y  # what the machine's gain makes up for
    echo += np.log(_speckle(rng, x.shape, size))
    image = patient.uniform(85, 120) + patient.uniform(38, 48) * echo
    return image.clip(0, 255).round().astype(np.uint8), mask


def _layers(rng, frame, depths):
    """The layer of each pixel [H, W]: borders between layers at these depths, each with waves of its own."""
    width = frame[0].shape[1]
    layer = np.zeros(frame[0].shape, dtype=int)
    for depth, height in zip(depths, (0.1, 0.15, 0.08), strict=True):
        layer += frame[1] > depth * (1 + height * smooth_noise(rng, width, width / 8))
    return layer


def _texture(rng, shape, size, layer):
    """The tissue's own variation [H, W]: clouds in every layer, and bright strands in fat and muscle."""
    clouds = coarse_noise(rng, shape, size * 0.03, size * 0.06)
    strands = coarse_noise(rng, shape, size * 0.012, size * 0.1)
    bright = np.clip(strands - 1, 0, 1.5)
    return 0.22 * clouds + 0.9 * bright * np.isin(layer, (FAT, MUSCLE))


def _lobules(rng, frame, depths):
    """What lobules of fat add to the echo [H, W]: ellipses as dark as lesions, with a thin bright rim."""
    x, y, width, _ = frame
    added = np.zeros(x.shape)
    for _ in range(rng.integers(2, 6)):
        centre = rng.uniform(0, width), rng.uniform(depths[0], depths[1])
        wide, tall = rng.uniform(0.05, 0.13), rng.uniform(0.02, 0.05)
        inside = 1 - np.hypot((x - centre[0]) / wide, (y - centre[1]) / tall)
        added -= rng.uniform(0.3, 0.8) * sigmoid(inside / 0.08) - 0.6 * np.exp(-((inside / 0.1) ** 2))
    return added


def _lesions(rng, patient, frame, depths):
    """The lesions, each as (opacity [H, W] in [0, 1], its echo, what it absorbs), and the mask of all, bool [H, W].

    The lesions of a patient look alike.
    """
    x, y, width, height = frame
    contrast, firm = patient.uniform(0.55, 1.0), patient.uniform(-3, 9)
    count, lesions, mask = rng.choice(3, p=COUNTS), [], np.zeros(x.shape, dtype=bool)
    total = np.exp(rng.uniform(*np.log(SHARES)))
    for part in range(count):
        share = total if count == 1 else total * (0.35, 0.65)[part]
        # Two lesions lie on two sides, so that they stay two.
        left, right = (0.0, 1.0) if count == 1 else ((0.0, 0.5), (0.5, 1.0))[part]
        aspect, tilt = rng.uniform(1.1, 1.9), rng.normal(0, 0.25)
        room = 0.42 * min((right - left) * width, depths[2] - depths[1])
        reach = min(np.sqrt(share * width * height / np.pi), room)  # the radius of the disk of its area
        centre = (
            rng.uniform(left * width + 1.3 * reach, max(right * width - 1.3 * reach, left * width + 1.3 * reach)),
            rng.uniform(depths[1] + 0.6 * reach, max(depths[2] - 0.6 * reach, depths[1] + 0.6 * reach)),
        )
        angle, distance = np.arctan2(y - centre[1], x - centre[0]), np.hypot(x - centre[0], y - centre[1])
        waves = sum(rng.normal(0, 0.14 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 7))
        ellipse = 1 / np.hypot(np.cos(angle - tilt) / aspect, np.sin(angle - tilt)) / np.sqrt(aspect)
        inside = ellipse * (1 + waves).clip(0.6, 1.5) - distance / reach
        level = BRIGHTNESS[GLAND] - contrast * rng.uniform(0.85, 1.15)
        lesions.append((sigmoid(inside / rng.uniform(0.06, 0.2)), level, firm))
        mask |= inside > 0
    return lesions, mask


def _skin_shadows(rng, frame):
    """What gaps and ligaments near the skin absorb [H, W]: up to three dark columns below the place of each."""
    x, y, width, height = frame
    absorbed = np.zeros(x.shape)
    for _ in range(rng.integers(0, 4)):
        begin, thick = rng.uniform(0, 0.4 * height), rng.uniform(0.02, 0.05)
        column = np.exp(-(((x - rng.uniform(0, width)) / rng.uniform(0.015, 0.05)) ** 2))
        absorbed += rng.uniform(0.4, 0.9) / thick * column * ((y > begin) & (y < begin + thick))
    return absorbed


def _speckle(rng, shape, size):
    """The amplitude of coherent speckle [H, W], Rayleigh-distributed, of mean square 1: wider than it is deep."""
    sigma = (size * 0.0025, size * 0.005)
    parts = [smooth_noise(rng, shape, sigma) for _ in range(2)]
    return np.hypot(*parts).clip(0.02) / np.sqrt(2)


def coarse_noise(rng, shape, *sigmas):
    """`smooth_noise` [H, W] over `sigmas` pixels down and across, drawn on a coarser grid: for large ones."""
    step = [max(1, int(sigma / 2)) for sigma in sigmas]
    coarse = [side // s + 2 for side, s in zip(shape, step, strict=True)]
    noise = gaussian_filter(rng.normal(size=coarse), [g / s for g, s in zip(sigmas, step, strict=True)], mode="wrap")
    noise = zoom(noise, step, order=1, grid_mode=True, mode="nearest")[: shape[0], : shape[1]]
    return (noise - noise.mean()) / noise.std()


def sigmoid(x):
    """1 / (1 + exp(-x)), elementwise."""
    return 0.5 * (1 + np.tanh(x / 2))


def write_ultrasound(folder, num_train, num_test, size=600, seed=0):
    """Write ultrasound phantoms as folder/images/PATIENT/NAME.png, folder/masks/PATIENT/NAME.png and split.json.

    A patient has two images, cases 2 n and 2 n + 1. size: the largest side of an image in pixels.
    """
    folder, names = Path(folder), {}
    for part, _, indices in splits(num_train, num_test, ("train", "test")):
        names[part] = []
        for index in indices:
            image, mask = ultrasound_case(index, size, seed)
            patient = f"P{index // IMAGES_PER_PATIENT:04d}"
            name = f"{patient}_{index % IMAGES_PER_PATIENT}"
            for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
                (folder / kind / patient).mkdir(parents=True, exist_ok=True)
                write_png(folder / kind / patient / f"{name}.png", pixels)
            names[part].append(name)
    write_json(folder / "split.json", names)
