"""Synthetic data sets with known truth ("phantoms"), written in the folder layouts of ISIC 2016, BraTS and LIDC.

The phantoms look like small dermoscopy, MRI and CT pictures and are made to be learnt in minutes, but not to be solved
by a grey value: light, shadows and decoys outweigh the lesion's own contrast, and each MRI modality alone misleads.
Case `index` follows from (seed, index) and the size alone, so it is the same whatever the number of cases.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from ..io.files import atomic_path
from .loaders.brats import MODALITIES

TEST_START = 5000  # test cases are numbered from here on, training cases from 0


# ---- data sets on disk -------------------------------------------------------------------------------------------


def write_isic(folder, num_train, num_test, size=64, seed=0):
    """Write dermoscopy phantoms in the layout of ISIC 2016 Part 1, with the class labels of Part 3B.

    folder/{Train,Test} each get the JPEG images, the 0/255 PNG masks of the same size and one CSV of labels.
    size: the images' height in pixels; their width is 1.25 times that. The cases written are replaced if they
    exist; other files in the folder stay.
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
            Image.fromarray(image).save(images / f"{name}.jpg", quality=95)
            Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{name}_Segmentation.png")
            # As published: words in the training file, numbers in the test file.
            words = ("benign", "malignant") if split == "Training" else ("0.0", "1.0")
            lines.append(f"{name},{words[malignant]}\n")
        labels = Path(folder) / part / f"ISBI2016_ISIC_Part3B_{split}_GroundTruth.csv"
        labels.write_text("".join(lines), encoding="ascii")


def write_brats(folder, num_train, num_test, size=64, num_slices=16, seed=0):
    """Write MRI phantoms as BraTS-2021 cases: folder/{training,testing}/BraTS2021_NNNNN/BraTS2021_NNNNN_*.nii.gz.

    Each case has t1, t1ce, t2 and flair (int16) and seg (uint8, labels 0, 1, 2, 4), all [size, size, num_slices].
    The voxels share out the 240 x 240 x 155 mm of a BraTS volume, with its orientation.
    """
    for part, _, indices in splits(num_train, num_test, ("training", "testing")):
        for index in indices:
            name = f"BraTS2021_{index:05d}"
            for kind, volume in brats_case(index, size, num_slices, seed).items():
                _save_nifti(Path(folder) / part / name / f"{name}_{kind}.nii.gz", volume, size, num_slices)


def write_brats_slices(folder, num_train, num_test, size=64, seed=0):
    """Write MRI phantoms as 2-D slices: folder/{training,testing}/sliceNNNN/brats_train_NNN_t1_ZZZ_w.nii.gz.

    Each slice is of a case of its own, as in `write_brats` with 16 slices. One slice in eight has no tumour.
    """
    for part, _, indices in splits(num_train, num_test, ("training", "testing")):
        for index in indices:
            volumes = brats_case(index, size, 16, seed)
            z = _pick_slice(volumes["seg"], index, seed)
            for kind, volume in volumes.items():
                name = f"brats_train_{index + 1:03d}_{kind}_{z:03d}_w.nii.gz"
                _save_nifti(Path(folder) / part / f"slice{index + 1:04d}" / name, volume[..., z], size, 16)


def write_lidc(folder, num_train, num_test, size=64, seed=0):
    """Write nodule phantoms as folder/lidc4_phantom.npz, in the layout that `lidcloader.LIDCDataset` reads.

    Cases 0, 1 are patches of one patient, 2, 3 of the next, and so on. size: height and width in pixels.
    The file is replaced if it exists.
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


def splits(num_train, num_test, parts):
    """Yield (part, name as ISIC has it, case numbers) of training and of testing; parts: their two names."""
    if num_train > TEST_START:
        raise ValueError(f"num_train is {num_train}; case numbers from {TEST_START} on belong to the test cases")
    yield parts[0], "Training", range(num_train)
    yield parts[1], "Test", range(TEST_START, TEST_START + num_test)


def _pick_slice(seg, index, seed):
    has_tumour = seg.any(axis=(0, 1))
    wanted = has_tumour if index % 8 != 7 else ~has_tumour
    return int(np.random.default_rng([seed, index, 1]).choice(np.flatnonzero(wanted)))


def _save_nifti(path, volume, size, num_slices):
    import nibabel as nib  # slow to import, and only needed here

    spacing = (240 / size, 240 / size, 155 / num_slices)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # axes run left, back, up: as BraTS
    affine[1, 3] = spacing[1] * (size - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


# ---- how far a grey value gets -----------------------------------------------------------------------------------


def best_threshold_dice(image, mask):
    """Return the highest Dice that a threshold on one channel reaches when it is chosen with the truth in hand.

    image: [C, H, W]; mask: bool [H, W]. Every distinct value of every channel is tried, keeping the pixels at or
    above it as well as those at or below it. NaN where the mask is empty: Dice is undefined there.
    """
    truth = np.asarray(mask, dtype=bool).ravel()
    if not truth.any():
        return float("nan")
    best = 0.0
    for channel in np.asarray(image).reshape(len(image), -1):
        order = np.argsort(channel, kind="stable")
        values, hits = channel[order], np.cumsum(truth[order])
        last = np.flatnonzero(np.append(values[1:] != values[:-1], True))  # the last pixel of each distinct value
        below = 2 * hits[last] / (last + 1 + hits[-1])
        first = np.append(0, last[:-1] + 1)
        above_hits = hits[-1] - np.append(0, hits[last[:-1]])
        above = 2 * above_hits / (truth.size - first + hits[-1])
        best = max(best, below.max(), above.max())
    return float(best)


# ---- dermoscopy --------------------------------------------------------------------------------------------------

# How strongly each pigment, and a shadow, weakens red, green and blue light per unit of density.
MELANIN = np.array([0.62, 1.0, 1.25])


BLOOD = np.array([0.15, 1.0, 0.85])


INK = np.array([1.3, 1.15, 0.55])


SHADE = np.array([0.92, 1.0, 1.04])


HAIR = np.array([0.68, 0.71, 0.71])  # the share of light that a hair takes


def isic_case(index, size=64, seed=0):
    """Return dermoscopy phantom `index`: image uint8 [H, W, 3], mask bool [H, W], malignant (bool).

    H is `size`, W is 1.25 times that. Lesions cover 5 to 35 % of the picture. The more irregular a lesion's border,
    the likelier it is malignant.
    """
    rng = np.random.default_rng([seed, index])
    height, width = size, round(1.25 * size)
    unit = size / 64  # lengths below are in pixels of a picture 64 high
    y, x = np.mgrid[:height, :width] / unit
    frame = (x, y, width / unit, height / unit)

    irregularity = rng.uniform(0.0, 1.0)
    malignant = bool(rng.random() < 1 / (1 + np.exp(-10 * (irregularity - 0.6))))
    depth, centre = _lesion_outline(rng, frame, irregularity)
    # A border that is sharp on one side and fades on the other: where it fades, experts would differ too.
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
    """Return how deep each pixel lies inside the lesion (pixels; negative outside) and the lesion's centre."""
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
    """Return the density of reddened skin and of surgeon's ink, which keep off the lesion."""
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
    """Return the one of `tries` random points of the frame that is farthest from the centre."""
    points = rng.uniform(0, 1, (tries, 2)) * frame[2:]
    return points[np.argmax(np.hypot(*(points - centre).T))]


def smooth_noise(rng, shape, sigma):
    """Return Gaussian noise of zero mean and unit variance that varies over `sigma` pixels (one value, or per axis)."""
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


# ---- MRI ---------------------------------------------------------------------------------------------------------

# Signal of each tissue (rows, by code) in each modality, with white matter of T1 at 1. Only the tumour is bright in T2
# and in FLAIR: a fluid-filled cyst shows in T2 alone, a signal artefact in FLAIR alone.
AIR, FLUID, GREY, WHITE, OEDEMA, ENHANCING, NECROSIS, VESSEL, CYST, ARTEFACT = range(10)


SIGNAL = np.array(
    [  # t1   t1ce    t2  flair
        [0.00, 0.00, 0.00, 0.00],
        [0.32, 0.34, 1.05, 0.22],
        [0.70, 0.74, 0.64, 0.64],
        [1.00, 1.02, 0.46, 0.50],
        [0.72, 0.74, 0.86, 0.90],
        [0.70, 1.45, 0.80, 0.84],
        [0.48, 0.52, 1.00, 0.78],
        [0.80, 1.40, 0.40, 0.45],
        [0.50, 0.52, 0.95, 0.45],
        [0.88, 0.92, 0.50, 0.95],
    ]
)


SEG_LABELS = {NECROSIS: 1, OEDEMA: 2, ENHANCING: 4}


def brats_case(index, size=64, num_slices=16, seed=0):
    """Return MRI phantom `index`: a dict of t1, t1ce, t2, flair (int16) and seg (uint8), [size, size, num_slices].

    The four modalities are zero outside the brain, and each has a scale and a bias field of its own. seg holds 0, 1
    (necrotic core), 2 (oedema) and 4 (enhancing rim). Some slices at either end have no tumour.
    """
    rng = np.random.default_rng([seed, index])
    shape = (size, size, num_slices)
    tissue = _anatomy(rng, shape)
    brain = tissue != AIR
    case = {}
    for column, kind in enumerate(MODALITIES):
        signal = gaussian_filter(SIGNAL[tissue, column], (0.6 * size / 64, 0.6 * size / 64, 0))
        texture = 1 + 0.05 * smooth_noise(rng, shape, (size / 50, size / 50, 0.5))
        bias = np.exp(0.22 * smooth_noise(rng, shape, (size / 4, size / 4, num_slices / 3)))
        noise = rng.normal(0, 0.03, shape)
        scale = rng.uniform(300, 1500)
        case[kind] = np.where(brain, (scale * (signal * texture * bias + noise)).clip(1), 0).round().astype(np.int16)
    seg = np.zeros(shape, np.uint8)
    for code, label in SEG_LABELS.items():
        seg[tissue == code] = label
    case["seg"] = seg
    return case


def _anatomy(rng, shape):
    """Return the tissue code of every voxel: a brain with ventricles, vessels, decoys and one tumour."""
    size, _, num_slices = shape
    half = (size - 1) / 2
    x, y, z = np.mgrid[:size, :size, :num_slices].astype(float)
    grid = ((x - half) / half, (y - half) / half, (z + 0.5) / num_slices * 2 - 1)
    tissue = _brain(rng, grid, shape)
    deep = (tissue != AIR) & (tissue != FLUID)
    taken = []
    tumour_at = _place(rng, taken)
    for code, extent in ((ARTEFACT, (0.2, 0.38)), (CYST, (0.12, 0.25))):
        for _ in range(rng.integers(1, 3)):
            radii = (*rng.uniform(*extent, 2), rng.uniform(0.5, 0.9))
            tissue[deep & (_blob(rng, grid, _place(rng, taken), radii, shape) < 1)] = code
    for _ in range(rng.integers(3, 7)):
        cx, cy = rng.uniform(-0.6, 0.6, 2)
        near = np.hypot(grid[0] - cx - 0.1 * grid[2], grid[1] - cy + 0.1 * grid[2]) < 0.045
        tissue[deep & near] = VESSEL
    _add_tumour(rng, tissue, grid, tumour_at)
    return tissue


def _add_tumour(rng, tissue, grid, centre):
    """Put oedema around `centre` into the tissue codes, in it an off-centre enhancing rim around a necrotic core."""
    shape, size = tissue.shape, tissue.shape[0]
    radii = np.array([*rng.uniform(0.24, 0.42, 2), rng.uniform(0.35, 0.6)])
    extent = _blob(rng, grid, centre, radii, shape)
    core_at = centre + 0.25 * radii * rng.uniform(-1, 1, 3)
    core = _blob(rng, grid, core_at, radii * rng.uniform(0.55, 0.75), shape)
    hollow = core + 0.12 * smooth_noise(rng, shape, (size / 24, size / 24, 1)) - rng.uniform(0.55, 0.75)
    tumour = (tissue != AIR) & (extent < 1)
    tissue[tumour] = OEDEMA
    tissue[tumour & (core < 1)] = ENHANCING
    tissue[tumour & (core < 1) & (hollow < 0)] = NECROSIS


def _brain(rng, grid, shape):
    """Return the tissue codes of a healthy brain: white matter, folded cortex, sulci, midline and ventricles."""
    size = shape[0]
    x, y, z = grid
    wide, long = rng.uniform(0.68, 0.76), rng.uniform(0.84, 0.92)
    profile = np.sqrt(np.clip(1 - np.abs(z * 0.92) ** 2.5, 0, None)) + 1e-6
    radius = np.hypot(x / wide, y / long) / profile
    folds = smooth_noise(rng, shape, (size / 32, size / 32, 1))
    depth = (1 - radius) * profile
    tissue = np.full(shape, WHITE)
    tissue[depth + 0.08 * folds < 0.2] = GREY
    tissue[(np.abs(folds) < 0.22) & (depth < 0.2)] = FLUID
    tissue[(np.abs(x + 0.015 * folds) < 0.02) & (np.abs(y) > 0.45)] = FLUID
    swell = rng.uniform(0.8, 1.3)
    for side in (-1, 1):
        horn = (side * x - 0.13 - 0.15 * y**2) / (0.085 * swell)
        tissue[np.hypot(horn, y / 0.38) ** 2 + (z / 0.6) ** 2 < 1] = FLUID
        nucleus = np.hypot((side * x - 0.3) / 0.1, (y + 0.02) / 0.2) ** 2 + ((z + 0.1) / 0.4) ** 2
        tissue[(nucleus < 1) & (tissue == WHITE)] = GREY
    tissue[radius > 1] = AIR
    return tissue


def _place(rng, taken):
    """Return a centre (x, y, z) in the brain, away from those in `taken`, which it joins."""
    angles, reach = rng.uniform(0, 2 * np.pi, 12), rng.uniform(0.3, 0.55, 12)
    points = np.stack([0.8 * reach * np.cos(angles), reach * np.sin(angles), rng.uniform(-0.3, 0.3, 12)], axis=1)
    room = [min((np.hypot(*(point - other)[:2]) for other in taken), default=0) for point in points]
    taken.append(points[int(np.argmax(room))])
    return taken[-1]


def _blob(rng, grid, centre, radii, shape):
    """Return a level function, below 1 inside a lumpy ellipsoid that keeps its width over most of its slices."""
    x, y, z = ((axis - c) / r for axis, c, r in zip(grid, centre, radii, strict=True))
    lumps = smooth_noise(rng, shape, (shape[0] / 14, shape[1] / 14, 1.5))
    return np.sqrt(x**2 + y**2 + z**4) + 0.2 * lumps


# ---- CT of lung nodules -------------------------------------------------------------------------------------------

READERS = 4


def lidc_case(index, size=64, seed=0):
    """Return nodule phantom `index`: image uint8 [size, size] and the readers' masks bool [4, size, size].

    A bright blob in a faint haze, on dark lung with vessels, which are as bright, and in some patches the chest wall.
    The readers agree on where the nodule is and differ in how generous they are, in where they wander along a faint
    border, and in whether they count the haze as part of it. So their masks are several distinct answers, not one
    answer with noise, and a model that gives a single mask cannot match them all. Every reader marks something.
    """
    rng = np.random.default_rng([seed, index])
    unit = size / 64  # lengths below are in pixels of a patch of 64
    y, x = np.mgrid[:size, :size] / unit
    centre = rng.uniform(26, 38, 2)
    distance = np.hypot(x - centre[0], y - centre[1])
    angle = np.arctan2(y - centre[1], x - centre[0])
    waves = sum(rng.normal(0, 0.14 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    radius = rng.uniform(4.5, 10)
    depth = radius * (1 + waves).clip(0.6, 1.5) - distance  # how deep inside the nodule, in pixels
    haze = rng.uniform(2, 6)  # how far the haze reaches beyond the nodule
    solid, faint = 1 / (1 + np.exp(-depth / 0.7)), 1 / (1 + np.exp(-(depth + haze) / 1.2))
    image = _lung(rng, (x, y), size, unit) + rng.uniform(0.35, 0.5) * solid + rng.uniform(0.1, 0.16) * faint
    image = gaussian_filter(image, 0.5 * unit) + rng.normal(0, 0.025, image.shape)
    includes_haze = rng.uniform(0.2, 0.6)  # the share of readers who would
    masks = [_outline(rng, depth, haze * (rng.random() < includes_haze), size, unit) for _ in range(READERS)]
    return (255 * image.clip(0, 1)).round().astype(np.uint8), np.array(masks)


def _outline(rng, depth, haze, size, unit):
    """One reader's mask: the nodule and `haze` pixels around it, drawn more or less widely and not quite steadily."""
    wander = 0.7 * smooth_noise(rng, (size, size), 4 * unit)
    own = depth + 0.8 * haze + rng.normal(0, 0.6) + wander
    return (own > 0) | (depth > 0.8 * depth.max())  # at least the nodule's very middle


def _lung(rng, grid, size, unit):
    """The density [size, size] of lung with vessels and, in two patches of five, chest wall at one side."""
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
