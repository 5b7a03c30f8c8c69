"""Recipes: the YAML files in recipes/; `--recipe NAME` puts their values below the flags, as `--config FILE` does."""

from dataclasses import fields
from pathlib import Path

from ..runtime.errors import UserError
from .config_file import read_config
from .fields import build, unused_flags
from .options import VERSIONS, DiffusionOptions, ModelOptions

FOLDER = Path(__file__).with_name("recipes")
RECIPES = tuple(sorted({path.stem.partition("_v")[0] for path in FOLDER.glob("[!_]*.yaml")}))
DEFAULT_RECIPE = "staged"
_OF_MASKS = (("mask_loss", "bce"), ("logit_skip", "levels"))  # only for a network that predicts x_0


def recipe_file(name, version):
    """The YAML file of a recipe for a version of the network: NAME.yaml, or NAME_v1.yaml beside NAME_v2.yaml.

    Raises `UserError` if the recipe has none for that version.
    """
    for path in (FOLDER / f"{name}_{version}.yaml", FOLDER / f"{name}.yaml"):
        if path.is_file() and read_config(path)["version"] == version:
            return path
    versions = sorted({read_config(path)["version"] for path in FOLDER.glob(f"{name}*.yaml")})
    raise UserError(f"--recipe {name} goes with --version {' or '.join(versions)}, not {version}")


def chosen_recipe(asked, given):
    """The name of the recipe that `--recipe` asks for: for auto the default recipe if a V2 predicts masks, else none.

    given: the values of the given flags by name.
    """
    if asked != "auto":
        return asked or "none"
    return DEFAULT_RECIPE if _version(given) == "v2" and _predicts_masks(given) else "none"


def recipe_values(name, given):
    """The values that a recipe adds to those given, by name.

    It leaves out values that contradict a given flag or have no effect beside one.
    """
    if name == "none":
        return {}
    recipe = read_config(recipe_file(name, _version(given)))
    values = {flag: value for flag, value in recipe.items() if flag not in given and flag != "version"}
    if "predict_xstart" in given:
        values.pop("objective", None)  # its synonym was given
    if not _predicts_masks(values | given):
        values = {flag: value for flag, value in values.items() if (flag, value) not in _OF_MASKS}
    unused = unused_flags(*(_part(group, values | given) for group in (ModelOptions, DiffusionOptions)))
    return {flag: value for flag, value in values.items() if flag not in unused}


def _version(given):
    return VERSIONS.get(given.get("version", ModelOptions.version))


def _predicts_masks(given):
    """Whether a network with these values predicts x_0 and learns by --mask_loss."""
    objective = given.get("objective", "x0" if given.get("predict_xstart", True) else "eps")
    return objective == "x0" and not given.get("use_kl", False)


def _part(group, values):
    names = {item.name for item in fields(group)}
    return build(group, {name: value for name, value in values.items() if name in names}, whole=False)
