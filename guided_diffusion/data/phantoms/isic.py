"""Dermoscopy phantoms in the folder layout of ISIC 2016."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from ...io.files import naming
from .common import smooth_noise, splits

# Absorption of red, green and blue light per unit of optical density.
MELANIN = np.array([0.62, 1.0, 1.25])
BLOOD = np.array([0.15, 1.0, 0.85])
INK = np.array([1.3, 1.15, 0.55])
SHADE = np.array([0.92, 1.0, 1.04])
HAIR = np.array([0.68, 0.71, 0.71])  # the share of light that a hair absorbs


def isic_case(index, size=64, seed=0):
    """Return dermoscopy phantom `index`: image uint8 [H, W, 3], mask bool [H, W], malignant (bool).

    H is `size`, W is 1.25 times that. Lesions cover 5 to 35 % of the picture. An irregular border makes malignancy
    more likely.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size, round(1.25 * size)
    unit = size / 64  # lengths below are in pixels of a picture 64 high
    y, x = np.mgrid[:height, :width] / unit
    frame = (x, y, width / unit, height / unit)

    irregularity = rng.uniform(0.0, 1.0)
    malignant = bool(rng.random() < 1 / (1 + np.exp(-10 * (irregularity - 0.6))))
    depth, centre = _lesion_outline(rng, frame, irregularity)
    # The border is sharp on one side and fades on the other, where experts would differ too.
    fade = smooth_noise(rng, (height, width), 10 * unit).clip(-1.5, 1.5)
    opacity = 1 / (1 + np.exp(-depth / (rng.uniform(0.6, 1.6) * np.exp(0.4 * fade))))

    density = _skin(rng, (height, width), unit)
    density += opacity[..., None] * _lesion_pigment(rng, (height, width), unit, irregularity)
    density += _coloured_decoys(rng, frame, centre, depth)
    density += _shadows(rng, frame, centre)[..., None] * SHADE
    image = np.exp(-density)
    image *= 1 - _hair(rng, height, width, unit)[..., None] * HAIR
    image = _bubbles(rng, frame, image)
    image = gaussian_filter(image, (0.45 * unit, 0.45 * unit, 0)) + rng.normal(0, 0.012, image.shape)
    return (255 * image.clip(0, 1)).round().astype(np.uint8), depth > 0, malignant


def _lesion_outline(rng, frame, irregularity):
    """Return each pixel's depth inside the lesion [H, W] (pixels; negative outside) and the lesion's centre (x, y)."""
    x, y, width, height = frame
    area = width * height * rng.uniform(0.07, 0.31)
    aspect, tilt = rng.uniform(1.0, 1.5), rng.uniform(0, np.pi)
    orders = np.arange(2, 8)
    amplitude = (0.03 + 0.22 * irregularity) * rng.normal(0, 1, orders.size) / orders
    phase = rng.uniform(0, 2 * np.pi, orders.size)

    def radius(angle):
        ellipse = 1 / np.hypot(np.cos(angle - tilt) / aspect, np.sin(angle - tilt))
        waves = amplitude * np.cos(orders * angle[..., None] + phase)
        return ellipse * (1 + waves.sum(-1)).clip(0.5, 1.6)

    scale = np.sqrt(area / (np.pi * np.mean(radius(np.linspace(0, 2 * np.pi, 256, endpoint=False)) ** 2)))
    reach = scale * 0.95
    cx = rng.uniform(min(reach, width / 2), max(width - reach, width / 2))
    cy = rng.uniform(min(reach, height / 2), max(height - reach, height / 2))
    angle = np.arctan2(y - cy, x - cx)
    return scale * radius(angle) - np.hypot(x - cx, y - cy), (cx, cy)


def _skin(rng, shape, unit):
    """Return the optical density [H, W, 3] of plain skin: its tone, blotches and fine grain."""
    tone = 0.06 + rng.uniform(0.1, 0.4) * MELANIN + rng.uniform(0.08, 0.2) * BLOOD
    blotches = 0.05 * smooth_noise(rng, shape, 6 * unit)[..., None] * BLOOD
    grain = 0.025 * smooth_noise(rng, shape, 0.8 * unit)[..., None]
    return tone + blotches + grain


def _lesion_pigment(rng, shape, unit, irregularity):
    """Return the density [H, W, 3] that the lesion adds: patchy melanin with a pigment network and a few dots."""
    patches = 1 + (0.12 + 0.2 * irregularity) * smooth_noise(rng, shape, 4 * unit)
    network = np.exp(-((smooth_noise(rng, shape, 1.3 * unit) / 0.4) ** 2))
    dots = (smooth_noise(rng, shape, 1.1 * unit) > 2.0).astype(float)
    melanin = rng.uniform(0.42, 0.7) * patches.clip(0.45, 2) + rng.uniform(0.1, 0.3) * network + 0.35 * dots
    return melanin[..., None] * MELANIN + rng.uniform(0, 0.2) * BLOOD


def _coloured_decoys(rng, frame, centre, depth):
    """Return the density [H, W, 3] of reddened skin and surgeon's ink outside the lesion."""
    x, y, width, height = frame
    outside = 1 / (1 + np.exp(depth + 3))
    density = np.zeros((*x.shape, 3))
    for _ in range(rng.integers(0, 3)):
        cx, cy = _far_point(rng, frame, centre, tries=2)
        spread = rng.uniform(5, 11)
        patch = np.exp(-(((x - cx) ** 2 + (y - cy) ** 2) / (2 * spread**2)))
        density += (rng.uniform(0.25, 0.5) * outside * patch)[..., None] * BLOOD
    if rng.random() < 0.35:
        cx, cy = _far_point(rng, frame, centre, tries=6)
        bend = rng.uniform(8, 25)
        ring = np.abs(np.hypot(x - cx - bend, y - cy) - bend)
        stroke = 1 / (1 + np.exp(2.5 * (ring - rng.uniform(1.2, 2.5))))
        density += (rng.uniform(0.7, 1.2) * outside * stroke)[..., None] * INK
    return density


def _shadows(rng, frame, centre):
    """Return the density [H, W] of uneven light: a ramp, dark corners and soft shadows away from the lesion."""
    x, y, width, height = frame
    u, v = 2 * x / width - 1, 2 * y / height - 1
    angle = rng.uniform(0, 2 * np.pi)
    density = rng.uniform(0.1, 0.5) * (1 + u * np.cos(angle) + v * np.sin(angle))
    density += rng.uniform(0.2, 0.8) * np.clip(np.hypot(u, v) - 0.7, 0, None) ** 2 / 0.25
    for _ in range(rng.integers(1, 3)):
        cx, cy = _far_point(rng, frame, centre, tries=4)
        sx, sy = rng.uniform(9, 20, 2)
        density += rng.uniform(0.6, 1.2) * np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))
    return density - density.min()


def _hair(rng, height, width, unit):
    """Return the coverage [H, W] in [0, 1] of a few thin curved hairs."""
    zoom = 4  # drawn large and shrunk, for smooth edges
    canvas = Image.new("L", (width * zoom, height * zoom))
    draw = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(0, 7)):
        start, bend, end = rng.uniform(-0.1, 1.1, (3, 2)) * canvas.size
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        thickness = max(1, round(rng.uniform(0.5, 1.1) * zoom * unit))
        draw.line([tuple(point) for point in curve], fill=255, width=thickness, joint="curve")
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), dtype=float) / 255


def _bubbles(rng, frame, image):
    """Return the image [H, W, 3] with a few gel bubbles: bright rings around a slightly lighter disc."""
    x, y, width, height = frame
    for _ in range(rng.integers(0, 4)):
        distance = np.hypot(x - rng.uniform(0, width), y - rng.uniform(0, height))
        radius = rng.uniform(1.5, 4.5)
        light = np.exp(-(((distance - radius) / 0.6) ** 2)) + 0.2 * (distance < radius)
        image = image + (1 - image) * (rng.uniform(0.1, 0.3) * light)[..., None]
    return image


def _far_point(rng, frame, centre, tries):
    """Return the farthest from the centre of `tries` random points (x, y) of the frame."""
    points = rng.uniform(0, 1, (tries, 2)) * frame[2:]
    return points[np.argmax(np.hypot(*(points - centre).T))]


def write_isic(folder, num_train, num_test, size=64, seed=0):
    """Write dermoscopy phantoms in the layout of ISIC 2016 Part 1, with the class labels of Part 3B.

    folder/{Train,Test} each hold JPEG images, 0/255 PNG masks of the same size and a CSV file of labels. Existing files
    of the same names are replaced. size: the images' height in pixels; their width is 1.25 times that.
    """
    for part, split, indices in splits(num_train, num_test, ("Train", "Test")):
        images = Path(folder) / part / f"ISBI2016_ISIC_Part1_{split}_Data"
        masks = Path(folder) / part / f"ISBI2016_ISIC_Part1_{split}_GroundTruth"
        images.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        lines = []
        for index in indices:
            image, mask, malignant = isic_case(index, size, seed)
            name = f"ISIC_{index:07d}"
            _save(images / f"{name}.jpg", image, quality=95)
            _save(masks / f"{name}_Segmentation.png", mask.astype(np.uint8) * 255)
            # As published: names in the training file, numbers in the test file.
            values = ("benign", "malignant") if split == "Training" else ("0.0", "1.0")
            lines.append(f"{name},{values[malignant]}\n")
        labels = Path(folder) / part / f"ISBI2016_ISIC_Part3B_{split}_GroundTruth.csv"
        with naming(labels):
            labels.write_text("".join(lines), encoding="ascii")


def _save(path, pixels, **options):
    """Write a picture through memory: Pillow does not notice a JPEG that a full disk cuts short."""
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, format={".jpg": "JPEG", ".png": "PNG"}[path.suffix], **options)
    with naming(path):
        path.write_bytes(packed.getvalue())
