"""Fits a temperature to results on validation cases and writes it into the checkpoint, from which sampling reads it."""

import math
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np

from ..inference.temperature import with_background_first
from ..runtime.errors import UserError
from .calibration import COUNTED_AT_ONCE
from .fits import check_origin, shown_split, split_of_results, split_warning, store_fit
from .proper_scores import CLIPPED

PROBABILITY_LEVELS = 65535  # above 0, as in 16-bit pictures
BOUNDS = (0.05, 20.0)
TEMPERATURES = np.geomspace(*BOUNDS, 65)  # at which the log loss of exclusive classes is summed; 1 is in the middle


@dataclass(frozen=True)
class LevelTable:
    """Sums over pixels by probability in 65535ths: count int64 [65536], truth float64 [65536]. `+` adds tables."""

    count: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, probability, truth):
        """probability, truth: arrays of equal shape in [0, 1]; with several raters the truth is their fraction."""
        level = np.rint(np.asarray(probability, dtype=np.float64).ravel() * PROBABILITY_LEVELS).astype(np.int64)
        truth = np.asarray(truth, dtype=np.float64).ravel()
        return cls(
            np.bincount(level, minlength=PROBABILITY_LEVELS + 1), np.bincount(level, truth, PROBABILITY_LEVELS + 1)
        )

    def __add__(self, other):
        return LevelTable(self.count + other.count, self.truth + other.truth)

    def _present(self):
        """(p, count, truth) of the levels that occur; p is clipped by `proper_scores.CLIPPED`."""
        levels = np.flatnonzero(self.count)
        p = np.clip(levels / PROBABILITY_LEVELS, CLIPPED, 1 - CLIPPED)
        return p, self.count[levels], self.truth[levels]

    def log_loss(self, temperature=1.0):
        """The mean of -y log p - (1 - y) log(1 - p), in nats, with p scaled by a temperature."""
        p, count, truth = self._present()
        odds = (np.log(p) - np.log1p(-p)) / temperature
        # log(1 + e^x) - y x without overflow
        return float((count * np.logaddexp(0, odds) - truth * odds).sum() / count.sum())

    def fit(self):
        """The temperature of least log loss, in [0.05, 20]."""
        from scipy.optimize import minimize_scalar

        low, high = np.log(BOUNDS)
        minimum = minimize_scalar(lambda x: self.log_loss(math.exp(x)), bounds=(low, high), method="bounded")
        return math.exp(minimum.x)


@dataclass(frozen=True)
class ExclusiveLosses:
    """Sums over pixels of classes that exclude one another: the log loss at each of `TEMPERATURES`, float64 [65], and
    the number of pixels. `+` adds."""

    losses: np.ndarray
    count: float

    @classmethod
    def of(cls, probability, truth):
        """probability, truth: [K, ...] in [0, 1]; with several raters the truth is their fraction."""
        flat = [np.asarray(x).reshape(len(x), -1) for x in (probability, truth)]
        starts = range(0, max(1, flat[0].shape[1]), COUNTED_AT_ONCE)
        return reduce(add, (cls._of_part(*(x[:, low : low + COUNTED_AT_ONCE] for x in flat)) for low in starts))

    @classmethod
    def _of_part(cls, *pair):
        p, y = (with_background_first(x.astype(np.float64)) for x in pair)
        certain, likeliest = p.max(axis=0) > 1 - CLIPPED, p.argmax(axis=0)
        # The certain pixels of a class, nearly all of a volume, have the same p: one column stands for all of them.
        same = [y[:, certain & (likeliest == k)].sum(axis=1) for k in range(len(p))]
        p, y = np.hstack([p[:, ~certain], np.eye(len(p))]), np.hstack([y[:, ~certain], np.stack(same, axis=1)])
        logits, weights = np.log(np.clip(p, CLIPPED, 1 - CLIPPED)), y.sum(axis=0)
        of_truth = (y * logits).sum()
        losses = [(logsumexp(logits / t) * weights).sum() - of_truth / t for t in TEMPERATURES]
        return cls(np.array(losses), float(weights.sum()))

    def __add__(self, other):
        return ExclusiveLosses(self.losses + other.losses, self.count + other.count)

    def _curve(self):
        from scipy.interpolate import CubicSpline

        return CubicSpline(np.log(TEMPERATURES), self.losses / self.count)

    def log_loss(self, temperature=1.0):
        """The mean over pixels of -log p of the true class or background, in nats, with p scaled by a temperature."""
        return float(self._curve()(math.log(temperature)))

    def fit(self):
        """The temperature of least log loss, in [0.05, 20]."""
        curve, least = self._curve(), TEMPERATURES[np.argmin(self.losses)]
        step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
        near = math.log(least) + np.linspace(-step, step, 1001)
        near = near.clip(*np.log(BOUNDS))
        return math.exp(near[np.argmin(curve(near))])


def logsumexp(logits):
    """log of the sum over the first axis of exp(logits), without overflow."""
    largest = logits.max(axis=0)
    return largest + np.log(np.exp(logits - largest).sum(axis=0))


def fit_into_checkpoint(path, manifest, levels, cases):
    """Fit a temperature to results and write it into their checkpoint at `path`, whole or not at all.

    manifest: of the results. levels: the `LevelTable` or `ExclusiveLosses` of all pixels, or None. cases: the number of
    masks. Returns the checkpoint's new config["calibration"]: "temperature", "cases", "split", "checkpoint_sha256"
    (before), "log_loss", "log_loss_before". Raises `UserError` where the results were not sampled with that checkpoint
    or hold no probabilities.
    """
    checkpoint, original = check_origin(path, manifest)
    if levels is None:
        raise UserError(f"--fit_temperature {path}: the results hold no probabilities; sample again")
    before = manifest.get("settings", {}).get("temperature", 1.0)  # temperatures multiply
    factor = levels.fit()
    calibration = {
        "temperature": round(factor * before, 4),
        "cases": cases,
        "split": split_of_results(manifest),
        "checkpoint_sha256": original,
        "log_loss_before": levels.log_loss(),
        "log_loss": levels.log_loss(factor),
    }
    checkpoint.config["calibration"] = calibration
    store_fit(checkpoint, path, manifest)
    return calibration


def format_fit(fitted, path):
    """The fit of `fit_into_checkpoint`, for the console."""
    line = (
        f"temperature {fitted['temperature']:g} fitted by log loss on {fitted['cases']} {shown_split(fitted['split'])}"
        f"masks and written to {path}: log loss {fitted['log_loss_before']:.5f} -> {fitted['log_loss']:.5f}; sampling "
        "applies it from now on"
    )
    return "\n".join(filter(None, [line, split_warning(fitted["split"])]))
