"""How the values of volumes are brought to the network's range: z-scores for MRI, windows for CT."""

from dataclasses import dataclass

import numpy as np

CLIP = 5.0  # z-scores beyond this are noise or bright vessels; the network does better without them


def zscore(values):
    """Normalise one channel, float32 of any shape: (x - mean) / std over its non-zero values, clipped to +-5.

    Zeros (the background of skull-stripped MRI) stay 0; a channel that is zero or constant gives zeros.
    """
    foreground = values != 0
    inside = values[foreground]
    if inside.size == 0:
        return np.zeros_like(values)
    mean, std = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    if std <= 1e-6 * abs(mean):  # constant, up to rounding
        return np.zeros_like(values)
    scores = (values - np.float32(mean)) / np.float32(std)
    return np.where(foreground, np.clip(scores, -CLIP, CLIP), np.float32(0))


@dataclass(frozen=True)
class CTWindow:
    """Normalises CT: HU from `low` to `high` become -1 to 1, what lies beyond is cut off."""

    low: float
    high: float

    def __call__(self, values):
        """float32 of any shape -> the same in [-1, 1]."""
        return (np.clip(values, self.low, self.high) - self.low) * np.float32(2 / (self.high - self.low)) - 1


def normaliser(window):
    """`zscore`, or the `CTWindow` of (low, high) where there is one."""
    return CTWindow(*window) if window else zscore


def normalised(values, normalise=zscore):
    """A channel normalised, as float16, which suffices within +-5: how they are kept in memory."""
    return normalise(values).astype(np.float16)


def normalised_channels(raw, normalise=zscore):
    """`normalised` of each channel of an image or volume [C, ...] from elsewhere, as float32.

    normalise: of all channels, or a tuple with one for each.
    """
    raw = np.asarray(raw, dtype=np.float32)
    steps = normalise if isinstance(normalise, tuple) else (normalise,) * len(raw)
    return np.stack([normalised(channel, step) for channel, step in zip(raw, steps, strict=True)]).astype(np.float32)


def normalisation_text(normalise):
    """A way of normalising as text, different for each."""
    if isinstance(normalise, tuple):
        return " ".join(map(normalisation_text, normalise))
    return getattr(normalise, "__name__", repr(normalise))
