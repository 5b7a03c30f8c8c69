"""What `--recipe` stands for beside the flags that are given, which win over it."""

import dataclasses

from .config import VERSIONS, DiffusionOptions, ModelOptions, build
from .presets import DEFAULT_RECIPE, RECIPES
from .runtime.errors import UserError
from .variants import unheeded_flags

# Of the recipes: what goes only with a network that predicts x0 by --mask_loss, not with --objective eps or --use_kl.
_OF_MASKS = (("mask_loss", "bce"), ("logit_skip", "both"))


def chosen_recipe(asked, given):
    """The name of the recipe for `--recipe`, of which auto is settled. given: values by name."""
    if asked != "auto":
        return asked or "none"
    return DEFAULT_RECIPE if _version(given) in RECIPES[DEFAULT_RECIPE] and _predicts_masks(given) else "none"


def recipe_values(name, given):
    """The values that a recipe stands for beside those given: those that would contradict one of them, or that one of
    them leaves without use, are not among them."""
    if name == "none":
        return {}
    version = _version(given)
    if version not in RECIPES[name]:
        raise UserError(f"--recipe {name} goes with --version {' or '.join(RECIPES[name])}, not {version}")
    values = {flag: value for flag, value in RECIPES[name][version].items() if flag not in given}
    if "predict_xstart" in given:
        values.pop("objective", None)  # is its synonym
    if not _predicts_masks(values | given):
        values = {flag: value for flag, value in values.items() if (flag, value) not in _OF_MASKS}
    unheeded = unheeded_flags(*(_part(group, values | given) for group in (ModelOptions, DiffusionOptions)))
    return {flag: value for flag, value in values.items() if flag not in unheeded}


def _version(given):
    return VERSIONS.get(given.get("version", ModelOptions.version))


def _predicts_masks(given):
    """Whether the flags leave it open, or say, that the network predicts x0 by --mask_loss."""
    objective = given.get("objective", "x0" if given.get("predict_xstart", True) else "eps")
    return objective == "x0" and not given.get("use_kl", False)


def _part(group, values):
    names = {item.name for item in dataclasses.fields(group)}
    return build(group, {name: value for name, value in values.items() if name in names}, whole=False)
