"""Which flags belong to which variant of the network: those that would be left unheeded are refused."""

from .runtime.errors import UserError

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
