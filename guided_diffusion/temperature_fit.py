"""A temperature goes into a checkpoint, fitted on its results of validation cases, and sampling takes it from there."""

from .checkpoint import file_hash, load_checkpoint, save_checkpoint
from .errors import UserError


def temperature_of(checkpoint, asked=0.0):
    """The temperature to sample with: `--temperature`, or with 0 the one that was fitted into the checkpoint, or 1."""
    return asked or checkpoint.config.get("calibration", {}).get("temperature", 1.0)


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

    It is fitted to the pixels of the boundary band, where the answer is in doubt; over all pixels easy background
    would decide. manifest: that of the results; levels: `temperature.LevelTable` of the band's pixels, or None; cases:
    how many they are. Returns what is written to its config's "calibration": "temperature", "cases", "split",
    "checkpoint_sha256" (before), "log_loss", "log_loss_before", "ece_band", "ece_band_before". Raises `UserError`
    where the results are not that checkpoint's or have no probabilities.
    """
    checkpoint, known = check_origin(path, manifest)
    if levels is None or not levels.count.any():
        raise UserError(
            f"--fit_temperature {path}: the results hold no probabilities near a boundary of the truth; sample other "
            "validation cases"
        )
    before = manifest["settings"].get("temperature", 1.0)  # of results that were scaled: temperatures multiply
    factor = levels.fit()
    calibration = {
        "temperature": round(factor * before, 4),
        "cases": cases,
        "split": manifest["data"].get("split", "test"),
        "checkpoint_sha256": known,
        "log_loss_before": levels.log_loss(),
        "log_loss": levels.log_loss(factor),
        "ece_band_before": levels.ece(),
        "ece_band": levels.ece(factor),
    }
    checkpoint.config["calibration"] = calibration
    save_checkpoint(checkpoint, path)
    return calibration


def format_fit(fitted, path):
    """What was fitted, for the console."""
    which = "validation" if fitted["split"] == "val" else "test"
    lines = [
        f"temperature {fitted['temperature']:g} of least log loss on {fitted['cases']} {which} masks, now in {path}: "
        f"in the boundary band log loss {fitted['log_loss_before']:.4f} -> {fitted['log_loss']:.4f}, ECE "
        f"{fitted['ece_band_before']:.4f} -> {fitted['ece_band']:.4f}; segmentation_sample.py applies it from now on"
    ]
    if which == "test":
        lines.append("these were test cases: what is reported on them afterwards is too good; fit on --split val")
    return "\n".join(lines)
