"""Several checkpoints as one ensemble: they agree in their data, and each of them draws its share of the members."""

import os
from dataclasses import replace

from ..checkpoint import resolved_path
from ..config.settings import settle
from ..data.compatibility import trained_window
from ..runtime.console import console, counted
from ..runtime.errors import UserError

FITTED = ("calibration", "masks")  # of a checkpoint's config: fitted to its own answers, so not to those of several


def settle_several(options, given, checkpoints, paths):
    """The `Settings` of a sampling command for each of several `Checkpoint`s; see `settings.settle`.

    paths: the checkpoints' names in messages. What was fitted for one checkpoint alone is not applied to their mean; a
    line says so. Raises `UserError` for checkpoints that do not agree in their data or that would be sampled otherwise.
    """
    check_agreement(checkpoints, paths)
    settled = [settle(options, given, one.saved(path)) for one, path in zip(checkpoints, paths, strict=True)]
    if len(settled) == 1:
        return settled
    for own, path in zip(settled[1:], paths[1:], strict=True):
        first = settled[0]
        compared = {"image_size": (first.image_size, own.image_size)}
        for name in ("num_ensemble", "tile"):
            compared[name] = (getattr(first.sample, name), getattr(own.sample, name))
        for name, (one, other) in compared.items():
            _check_equal(f"would be sampled with --{name}", one, other, paths[0], path, f"add --{name}")
    if any(one.config.get(name) for one in checkpoints for name in FITTED):
        console().info(
            "several checkpoints: the temperature and the clean-up that were fitted for one of them are not applied"
        )
    return [_without_fitted(one, given) for one in settled]


def _without_fitted(settings, given):
    if "temperature" in given and settings.sample.temperature:
        return settings
    return replace(settings, sample=replace(settings.sample, temperature=1.0))


def checkpoint_files(paths, flag=""):
    """The file of each checkpoint, see `checkpoint.resolved_path`.

    flag: the beginning of messages. Raises `UserError` where two are one file, perhaps by two names, as best.pt and
    last.pt may be, and for an empty list.
    """
    if not paths:
        raise UserError(f"{flag or 'Segmenter.load: '}the list of checkpoints is empty; name one or several")
    files = [resolved_path(path, f"{flag}{path}") for path in paths]
    for number, file in enumerate(files):
        for other in files[:number]:
            if file == other or (os.path.exists(file) and os.path.exists(other) and os.path.samefile(file, other)):
                raise UserError(f"--model_path: {other} and {file} are one file, which would count twice; name it once")
    return files


def check_agreement(checkpoints, paths):
    """Raise `UserError` where checkpoints were trained on data of different kinds.

    They must all have a diffusion, or none, and agree in channels, classes, class labels, loader, normalisation and
    image size.
    """
    first = _training_facts(checkpoints[0])
    for checkpoint, path in zip(checkpoints[1:], paths[1:], strict=True):
        for what, other in _training_facts(checkpoint).items():
            _check_equal(what, first[what], other, paths[0], path, "name checkpoints of one kind")


def _training_facts(checkpoint):
    """What checkpoints must agree in, {description: value}."""
    config, classes = checkpoint.config, checkpoint.classes
    kept = {name: value for name, value in config.get("loader", {}).items() if name != "class_values"}
    return {
        "is": "a plain U-Net" if config["model"]["version"] == "unet" else "a diffusion model",
        "has image channels:": checkpoint.image_channels,
        "has the classes": classes.described(),
        "has the class labels": ", ".join(checkpoint.label_names) if config["model"]["class_cond"] else "none",
        "was trained with --data_name": config["data"]["data_name"].upper(),
        "was trained with --ct_window": trained_window(config) or "none",
        "was trained with --image_size": config["model"]["image_size"],
        "has the normalisation": ", ".join(f"{name} {_without_tuples(value)}" for name, value in sorted(kept.items())),
    }


def _without_tuples(value):
    return list(map(_without_tuples, value)) if isinstance(value, (list, tuple)) else value


def _check_equal(what, one, other, first, second, remedy):
    if one != other:
        raise UserError(f"--model_path: {first} {what} {one}, {second} {what} {other}; {remedy}")


def dealt(members, checkpoints):
    """How many members each checkpoint draws: tuple of ints, which differ by one at most; the first have more.

    members: of all together; 0: each answers in one pass, which counts as one. Raises `UserError` for fewer members
    than checkpoints.
    """
    if not members:
        return (1,) * checkpoints
    if members < checkpoints:
        raise UserError(
            f"--num_ensemble {members}: --model_path names {counted(checkpoints, 'checkpoint')}, and each draws one "
            f"member at least; give {checkpoints} or more"
        )
    each, more = divmod(members, checkpoints)
    return tuple(each + (number < more) for number in range(checkpoints))
