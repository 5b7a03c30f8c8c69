"""Which flags belong to which variant of the network: those that would be left unheeded are refused."""

from .errors import UserError

V2_FLAGS = (
    "anchor_levels",
    "ss_former",
    "ss_blocks",
    "nbp_filter",
    "nbp_activation",
    "concat_image",
    "concat_features",
    "condition_labels",
    "diffusion_level",
    "diffusion_channels",
)


def unheeded_flags(model, diffusion):
    """The flags that the variant would leave unheeded: a dict of name -> what they belong to, in words."""
    of_v2 = (*V2_FLAGS, "condition_steps", "second_stage_lr")
    unheeded = {name: f"belongs to --version v2, not {model.version}" for name in of_v2 if model.version != "v2"}
    if not model.class_cond:
        unheeded.setdefault("condition_labels", "belongs to --class_cond True")
    if model.ss_former != "fourier":
        unheeded |= dict.fromkeys(("nbp_filter", "nbp_activation"), "belongs to --ss_former fourier")
    if model.ss_former == "add":
        unheeded["ss_blocks"] = "belongs to --ss_former fourier or cross"
    if model.version == "unet":
        unheeded |= dict.fromkeys(("self_condition", "own_predictions"), "belongs to --version v1 or v2")
        coarse = ("coarse_weight", "coarse_loss", "coarse_ce", "coarse_every", "border_weight")
        unheeded |= dict.fromkeys(coarse, "belongs to --version v1 or v2: the plain U-Net has no coarse mask")
        unheeded["noise_draws"] = "belongs to --version v1 or v2: the plain U-Net sees no noise"
    if diffusion.coarse_loss != "bce_dice":
        unheeded.setdefault("coarse_ce", "belongs to --coarse_loss bce_dice")
    if diffusion.coarse_loss != "bce":
        unheeded.setdefault("border_weight", "belongs to --coarse_loss bce")
    if diffusion.loss_weighting != "min_snr":
        unheeded["min_snr_gamma"] = "belongs to --loss_weighting min_snr"
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
        (diffusion.zero_terminal_snr, "--zero_terminal_snr True"),
        (model.learn_sigma, "--learn_sigma True"),
        (diffusion.logit_skip != "none", f"--logit_skip {diffusion.logit_skip}"),
        (diffusion.loss_weighting != "none", f"--loss_weighting {diffusion.loss_weighting}"),
    ):
        if asked:
            raise UserError(f"--version unet has no diffusion: it predicts the mask itself; leave out {flag}")
