"""Brain MRI phantoms in the layouts of BraTS: 3-D cases and 2-D slices."""

from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ...io.files import naming
from ..loaders.brats import MODALITIES
from .common import smooth_noise, splits

AIR, FLUID, GREY, WHITE, OEDEMA, ENHANCING, NECROSIS, VESSEL, CYST, ARTEFACT = range(10)

# Signal of each tissue (rows, by code) in each modality, relative to white matter in T1. Only the tumour is bright in
# both T2 and FLAIR: a fluid-filled cyst shows in T2 alone, a signal artefact in FLAIR alone.
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

    Each modality is zero outside the brain and has its own scale and bias field. seg holds 0, 1 (necrotic core),
    2 (oedema) and 4 (enhancing rim). The outermost slices have no tumour.
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
    """Draw a tumour into the tissue codes: oedema around `centre`, and inside an enhancing rim and a necrotic core."""
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
    """Return a centre (x, y, z) in the brain, away from those in `taken`, and add it to them."""
    angles, reach = rng.uniform(0, 2 * np.pi, 12), rng.uniform(0.3, 0.55, 12)
    points = np.stack([0.8 * reach * np.cos(angles), reach * np.sin(angles), rng.uniform(-0.3, 0.3, 12)], axis=1)
    room = [min((np.hypot(*(point - other)[:2]) for other in taken), default=0) for point in points]
    taken.append(points[int(np.argmax(room))])
    return taken[-1]


def _blob(rng, grid, centre, radii, shape):
    """Return a level function [X, Y, Z], below 1 inside a lumpy ellipsoid of similar width in most of its slices."""
    x, y, z = ((axis - c) / r for axis, c, r in zip(grid, centre, radii, strict=True))
    lumps = smooth_noise(rng, shape, (shape[0] / 14, shape[1] / 14, 1.5))
    return np.sqrt(x**2 + y**2 + z**4) + 0.2 * lumps


# ---- writing -----------------------------------------------------------------------------------------------------


def write_brats(folder, num_train, num_test, size=64, num_slices=16, seed=0):
    """Write MRI phantoms as BraTS-2021 cases: folder/{training,testing}/BraTS2021_NNNNN/BraTS2021_NNNNN_*.nii.gz.

    Each case has t1, t1ce, t2 and flair (int16) and seg (uint8, labels 0, 1, 2, 4), all [size, size, num_slices].
    A volume has the extent of BraTS, 240 x 240 x 155 mm, and its orientation.
    """
    for part, _, indices in splits(num_train, num_test, ("training", "testing")):
        for index in indices:
            name = f"BraTS2021_{index:05d}"
            for kind, volume in brats_case(index, size, num_slices, seed).items():
                _save_nifti(Path(folder) / part / name / f"{name}_{kind}.nii.gz", volume, size, num_slices)


def write_brats_slices(folder, num_train, num_test, size=64, seed=0):
    """Write MRI phantoms as 2-D slices: folder/{training,testing}/sliceNNNN/brats_train_NNN_t1_ZZZ_w.nii.gz.

    Each slice comes from a different case of `write_brats` with 16 slices. One slice in eight has no tumour.
    """
    for part, _, indices in splits(num_train, num_test, ("training", "testing")):
        for index in indices:
            volumes = brats_case(index, size, 16, seed)
            z = _pick_slice(volumes["seg"], index, seed)
            for kind, volume in volumes.items():
                name = f"brats_train_{index + 1:03d}_{kind}_{z:03d}_w.nii.gz"
                _save_nifti(Path(folder) / part / f"slice{index + 1:04d}" / name, volume[..., z], size, 16)


def _pick_slice(seg, index, seed):
    """A random slice with a tumour, or for one case in eight without."""
    has_tumour = seg.any(axis=(0, 1))
    wanted = has_tumour if index % 8 != 7 else ~has_tumour
    return int(np.random.default_rng([seed, index, 1]).choice(np.flatnonzero(wanted)))


def _save_nifti(path, volume, size, num_slices):
    import nibabel as nib  # slow to import

    spacing = (240 / size, 240 / size, 155 / num_slices)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # axes point left, back and up, as in BraTS
    affine[1, 3] = spacing[1] * (size - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.header.set_xyzt_units("mm")
    with naming(path):
        nib.save(image, path)
