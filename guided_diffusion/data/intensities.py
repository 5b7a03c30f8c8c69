"""Normalisation of volumes, z-scores for MRI and windows for CT, and whether it suits a volume's values."""

import os
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..io.nifti import nifti_sample
from ..runtime.errors import UserError

# ---- the two normalisations --------------------------------------------------------------------------------------

CLIP = 5.0  # z-scores beyond it are noise or bright vessels


def zscore(values):
    """Normalise one channel, float32 of any shape: (x - mean) / std over its non-zero values, clipped to +-5.

    Zeros (the background of skull-stripped MRI) stay 0; a channel that is zero or constant gives zeros.
    """
    return ZScore.of(values)(values)


@dataclass(frozen=True)
class ZScore:
    """The z-scores of a channel with this mean and standard deviation of its non-zero values; std 0: zeros."""

    mean: float
    std: float

    @classmethod
    def of(cls, values):
        """The `ZScore` of a channel, float32 of any shape."""
        count, total = 0, 0.0
        for inside in map(_non_zero, slabs(values)):
            count, total = count + inside.size, total + inside.sum(dtype=np.float64)
        if count == 0:
            return cls(0.0, 0.0)
        mean, squares = total / count, 0.0
        for inside in map(_non_zero, slabs(values)):
            squares += np.square(inside - mean, dtype=np.float64).sum()
        std = float(np.sqrt(squares / count))
        return cls(float(mean), 0.0 if std <= 1e-6 * abs(mean) else std)  # constant, up to rounding

    def __call__(self, values):
        """Float32 of any shape -> the same shape."""
        if not self.std:
            return np.zeros_like(values)
        scores = (values - np.float32(self.mean)) / np.float32(self.std)
        return np.where(values != 0, np.clip(scores, -CLIP, CLIP), np.float32(0))


SLAB = 2**22  # values that are normalised at once: a volume's temporary arrays would take several times its size


def slabs(values, like=None):
    """Views that together hold an array, of about `SLAB` values each, cut along the axis that is slowest in memory.

    like: an array of the same shape that is to be cut in the same places.
    """
    like = values if like is None else like
    if values.size <= SLAB:
        return [values]
    axis = int(np.argmax(np.abs(like.strides)))
    return np.array_split(values, min(values.shape[axis], -(-values.size // SLAB)), axis=axis)


def _non_zero(values):
    flat = values.ravel(order="K")  # in the order of memory, which is several times as fast
    return flat[flat != 0]


@dataclass(frozen=True)
class CTWindow:
    """Normalises CT: HU from `low` to `high` become -1 to 1, and values beyond are clipped."""

    low: float
    high: float

    def __call__(self, values):
        """Float32 of any shape, in HU -> the same shape in [-1, 1]."""
        return (np.clip(values, self.low, self.high) - self.low) * np.float32(2 / (self.high - self.low)) - 1


def normaliser(window):
    """The `CTWindow` of (low, high), or `zscore` without a window."""
    return CTWindow(*map(float, window)) if window else zscore


def normalised(values, normalise=zscore, out=None):
    """A normalised channel as float16, the type of the caches; it is exact enough within +-5.

    out: float16 of the same shape, which is filled and returned.
    """
    out = np.empty(values.shape, np.float16) if out is None else out
    step = ZScore.of(values) if normalise is zscore else normalise
    if not isinstance(step, (ZScore, CTWindow)):  # a loader's own, which may need the whole channel
        out[...] = step(values)
        return out
    for own, part in zip(slabs(out, values), slabs(values), strict=True):
        own[...] = step(part)
    return out


def normalised_channels(raw, normalise=zscore):
    """An image or volume [C, ...] with raw values, normalised by channel as `VolumeReader` does: float32 [C, ...].

    normalise: a function for all channels, or a tuple of one for each.
    """
    raw = np.asarray(raw, dtype=np.float32)
    steps = normalise if isinstance(normalise, tuple) else (normalise,) * len(raw)
    return np.stack([normalised(channel, step) for channel, step in zip(raw, steps, strict=True)]).astype(np.float32)


def normalisation_text(normalise):
    """Text that identifies a normalisation in the cache's keys."""
    if isinstance(normalise, tuple):
        return " ".join(map(normalisation_text, normalise))
    return getattr(normalise, "__name__", repr(normalise))


# ---- which of them the values suit -------------------------------------------------------------------------------

LOOKED_AT = 2**20  # voxels of a channel: decompressed in some 10 ms, and their slices show the air around the patient
AIR_HU = (-1300, -750, -500)  # air, lung: noise makes some of the air lower than -1000
TOO_LOW = -50  # values this low, and not a mere undershoot of interpolation, are neither MRI nor z-scores
UNDERSHOOT = 0.1  # of the highest value


@dataclass(frozen=True)
class ValueRange:
    """The values of one channel, from the first `LOOKED_AT` voxels of a file.

    low, high: the least and the largest finite value. air, lung: the shares of values as of air in CT, and of those
    above, up to -500 HU. below: the share of lower values, without the least, which pads the field of view in CT.
    """

    low: float
    high: float
    air: float = 0.0
    lung: float = 0.0
    below: float = 0.0

    @classmethod
    def of(cls, values):
        """The `ValueRange` of an array, zeros where it is empty."""
        if values.size == 0:
            return cls(0.0, 0.0)
        low, high = float(values.min()), float(values.max())
        lowest, middle, highest = AIR_HU
        air, lung = (values >= lowest) & (values <= middle), (values > middle) & (values <= highest)
        below = (values < lowest) & (values > low)
        return cls(low, high, *(float(part.mean()) for part in (air, lung, below)))

    @property
    def is_like_ct(self):
        """Whether the values are like Hounsfield units: some are of air, few of them only nearly, as at the edge of
        a distribution around 0, and hardly any are lower."""
        return self.air >= 0.01 and 2 * self.air >= self.lung and self.below <= 0.01

    def __str__(self):
        return f"values from {self.low:.6g} to {self.high:.6g}"


def ranges_of(path):
    """The `ValueRange` of each channel of a NIfTI file; () for a file that cannot be read, which reading all of it
    says."""
    try:
        stat = os.stat(path)
        return _cached_ranges(path, stat.st_size, stat.st_mtime_ns)
    except (UserError, OSError):
        return ()


@lru_cache(maxsize=256)  # the data sets of a command's splits look at the same files
def _cached_ranges(path, _size, _time):
    return tuple(map(ValueRange.of, nifti_sample(path, LOOKED_AT)))


SOFT_TISSUE, LUNG = (-160, 240), (-1000, 400)  # usual CT windows, HU


def usual_window(task):
    """The usual CT window for a task or folder of this name: that of the lung if the name says so."""
    return LUNG if "lung" in str(task).lower() else SOFT_TISSUE


def window_for(asked, images, folder, strict):
    """(the CT window for NIfTI images of an unknown kind, or () for z-scores; lines that say so).

    asked: the window of `--ct_window`, () for none, None where the flag is empty: values like Hounsfield units then
    get the usual window, since z-scores leave out voxels of 0 HU. A few images, spread over the data, are looked at.
    strict: whether to raise `UserError`, rather than to take z-scores, where only some of them are like CT.
    """
    if asked is not None:
        return asked, ()
    looked = [(path, found) for path in spread(images) for found in ranges_of(path)]
    like = [(path, found) for path, found in looked if found.is_like_ct]
    unlike = [(path, found) for path, found in looked if not found.is_like_ct]
    if not like:
        return (), ()
    (path, found), remedy = like[0], "--ct_window LOW,HIGH reads all as CT, --ct_window none takes z-scores"
    if unlike:
        other, values = unlike[0]
        other = "another channel of it" if other == path else other.name
        text = f"{path}: has {found}, as CT in Hounsfield units, but {other} has {values}: {remedy}"
        if strict:
            raise UserError(text)
        return (), (f"warning: {text}",)
    low, high = usual_window(folder.resolve().name)
    return (low, high), (
        f"CT: {path.name} has {found}, as Hounsfield units: {low:g} to {high:g} HU become -1 to 1 ({remedy})",
    )


def first_like_ct(images):
    """(path, its `ValueRange`) of the first of a few images, spread over these, that is like CT; None without one."""
    return next(((path, found) for path in spread(images) for found in ranges_of(path) if found.is_like_ct), None)


SPREAD_FILES = 3


def spread(items):
    """Up to `SPREAD_FILES` of these items, evenly spaced."""
    places = {round(k * (len(items) - 1) / (SPREAD_FILES - 1)) for k in range(SPREAD_FILES)}
    return [items[place] for place in sorted(places)] if items else []


def doubt_of(path, found, step, is_chosen=False):
    """A warning where the values of a channel do not suit its normalisation, or "".

    found: its `ValueRange`. step: `zscore` or a `CTWindow`. is_chosen: whether the user chose z-scores.
    """
    if isinstance(step, CTWindow) and step.low < 0 <= found.low:
        offset = ", perhaps HU + 1024: subtract the offset" if found.high > 1000 else ""
        return (
            f"warning: {path}: has {found} and none below 0, which is no CT in Hounsfield units{offset}; the window "
            f"{step.low:g} to {step.high:g} cuts them (--ct_window)"
        )
    if step is zscore and not is_chosen and found.low <= min(TOO_LOW, -UNDERSHOOT * found.high):
        return (
            f"warning: {path}: has {found}; z-scores take 0 for the background. If it is CT, in Hounsfield units, add "
            "--ct_window LOW,HIGH, as -160,240"
        )
    return ""
