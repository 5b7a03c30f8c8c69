"""Fits a temperature to results of validation cases and writes it into their checkpoint, where sampling finds it."""

import math
from dataclasses import dataclass

import numpy as np

from ..checkpoint import file_hash, load_checkpoint, save_checkpoint
from ..inference.temperature import apply_temperature
from ..runtime.errors import UserError
from .calibration import ReliabilityTable

PROBABILITY_LEVELS = 65535  # above 0: probabilities as 16-bit pictures hold them


BOUNDS = (0.05, 20.0)


@dataclass(frozen=True)
class LevelTable:
    """Sums over pixels by their probability in 65535ths: count int64 [65536], truth float64 [65536]. They add up by
    `+`."""

    count: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(cls, probability, truth):
        """probability, truth: arrays of equal shape in [0, 1]; of several raters the truth is their fraction."""
        level = np.rint(np.asarray(probability, dtype=np.float64).ravel() * PROBABILITY_LEVELS).astype(np.int64)
        truth = np.asarray(truth, dtype=np.float64).ravel()
        return cls(
            np.bincount(level, minlength=PROBABILITY_LEVELS + 1), np.bincount(level, truth, PROBABILITY_LEVELS + 1)
        )

    def __add__(self, other):
        return LevelTable(self.count + other.count, self.truth + other.truth)

    def _present(self):
        """(p, count, truth) of the levels that occur; p kept half a level from 0 and 1."""
        there = np.flatnonzero(self.count)
        p = np.clip(there / PROBABILITY_LEVELS, 0.5 / PROBABILITY_LEVELS, 1 - 0.5 / PROBABILITY_LEVELS)
        return p, self.count[there], self.truth[there]

    def log_loss(self, temperature=1.0):
        """The mean of -y log p - (1 - y) log(1 - p) in nats, of the probabilities scaled by a temperature."""
        p, count, truth = self._present()
        odds = (np.log(p) - np.log1p(-p)) / temperature
        # log(1 + e^x) - y x, written so that nothing overflows
        return float((count * np.logaddexp(0, odds) - truth * odds).sum() / count.sum())

    def ece(self, temperature=1.0):
        """The expected calibration error (`calibration.ReliabilityTable.ece`) at a temperature."""
        p, count, truth = self._present()
        return ReliabilityTable.weighted(apply_temperature(p, temperature), count, truth).ece

    def fit(self):
        """The temperature of least log loss, between 0.05 and 20."""
        from scipy.optimize import minimize_scalar

        low, high = np.log(BOUNDS)
        found = minimize_scalar(lambda x: self.log_loss(math.exp(x)), bounds=(low, high), method="bounded")
        return math.exp(found.x)


def check_origin(path, manifest):
    """Raise `UserError` unless the results with this manifest are those of the checkpoint file at `path`.

    Returns the `Checkpoint` and its hash before any temperature went into it.
    """
    checkpoint, digest = load_checkpoint(path), file_hash(path)
    known = checkpoint.config.get("calibration", {}).get("checkpoint_sha256", digest)
    if manifest.get("checkpoint_sha256") not in (digest, known):
        raise UserError(
            f"--fit_temperature {path}: the results were made with {manifest.get('checkpoint', 'another program')}, "
            "not with this file as it is; sample with it first"
        )
    return checkpoint, known


def fit_into_checkpoint(path, manifest, levels, cases):
    """Fit a temperature to the results of a checkpoint and write it into that file, whole or not at all.

    It is fitted to all pixels: fitted to the boundary band alone it would spoil the certain background around.
    manifest: that of the results; levels: {"", "_band": `LevelTable`} of their pixels; cases: how many
    they are. Returns what is written to its config's "calibration": "temperature", "cases", "split",
    "checkpoint_sha256" (before), "log_loss", "log_loss_before", "ece_band", "ece_band_before". Raises `UserError`
    where the results are not that checkpoint's or have no probabilities.
    """
    checkpoint, known = check_origin(path, manifest)
    if not levels:
        raise UserError(f"--fit_temperature {path}: the results hold no probabilities; sample again")
    before = manifest["settings"].get("temperature", 1.0)  # of results that were scaled: temperatures multiply
    factor = levels[""].fit()
    calibration = {
        "temperature": round(factor * before, 4),
        "cases": cases,
        "split": manifest["data"].get("split", "test"),
        "checkpoint_sha256": known,
        "log_loss_before": levels[""].log_loss(),
        "log_loss": levels[""].log_loss(factor),
        "ece_band_before": levels["_band"].ece(),
        "ece_band": levels["_band"].ece(factor),
    }
    checkpoint.config["calibration"] = calibration
    save_checkpoint(checkpoint, path)
    return calibration


def format_fit(fitted, path):
    """What was fitted, for the console."""
    which = "validation" if fitted["split"] == "val" else "test"
    lines = [
        f"temperature {fitted['temperature']:g} of least log loss on {fitted['cases']} {which} masks, now in {path}: "
        f"log loss {fitted['log_loss_before']:.5f} -> {fitted['log_loss']:.5f}, ECE in the boundary band "
        f"{fitted['ece_band_before']:.4f} -> {fitted['ece_band']:.4f}; segmentation_sample.py applies it from now on"
    ]
    if which == "test":
        lines.append("these were test cases: what is reported on them afterwards is too good; fit on --split val")
    return "\n".join(lines)
