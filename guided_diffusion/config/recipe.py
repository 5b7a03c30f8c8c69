"""What `--recipe` stands for beside the flags that are given, which win over it."""

import dataclasses

from ..runtime.errors import UserError
from .options import VERSIONS, DiffusionOptions, ModelOptions, build
from .presets import DEFAULT_RECIPE, RECIPES

# ---- Which flags belong to which variant of the network: those that would be left unheeded are refused --------------


V2_FLAGS = (
    "anchor_levels",
    "ss_former",
    "ss_blocks",
    "nbp_filter",
    "concat_features",
    "diffusion_level",
    "diffusion_channels",
)


def unheeded_flags(model, diffusion):
    """The flags that the variant would leave unheeded: a dict of name -> what they belong to, in words."""
    of_v2 = (*V2_FLAGS, "condition_steps", "second_stage_lr")
    unheeded = {name: f"belongs to --version v2, not {model.version}" for name in of_v2 if model.version != "v2"}
    if model.ss_former != "fourier":
        unheeded["nbp_filter"] = "belongs to --ss_former fourier"
    if model.ss_former == "add":
        unheeded["ss_blocks"] = "belongs to --ss_former fourier or cross"
    if model.version == "unet":
        coarse = ("coarse_weight", "coarse_loss", "coarse_ce", "coarse_every", "border_weight")
        unheeded |= dict.fromkeys(coarse, "belongs to --version v1 or v2: the plain U-Net has no coarse mask")
        unheeded["noise_draws"] = "belongs to --version v1 or v2: the plain U-Net sees no noise"
    if diffusion.coarse_loss != "bce_dice":
        unheeded.setdefault("coarse_ce", "belongs to --coarse_loss bce_dice")
    if diffusion.coarse_loss != "bce":
        unheeded.setdefault("border_weight", "belongs to --coarse_loss bce")
    return unheeded


def check_variant(model, diffusion, given=()):
    """Raise `UserError` for flags that the variant would leave unheeded. given: names given explicitly."""
    unheeded = unheeded_flags(model, diffusion)
    for name in sorted(unheeded.keys() & set(given)):
        raise UserError(f"--{name} {unheeded[name]}; leave it out")
    if model.version != "unet":
        return
    for asked, flag in (
        (diffusion.objective != "x0", f"--objective {diffusion.objective}"),
        (diffusion.use_kl, "--use_kl True"),
        (model.learn_sigma, "--learn_sigma True"),
        (diffusion.logit_skip != "none", f"--logit_skip {diffusion.logit_skip}"),
    ):
        if asked:
            raise UserError(f"--version unet has no diffusion: it predicts the mask itself; leave out {flag}")


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
