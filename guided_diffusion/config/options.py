"""Every option once: a dataclass field with its help is a flag, a YAML key and an entry in the checkpoint.

Here are those of data, network, diffusion and device; those of single scripts are in `train_options` and
`run_options`.
"""

import os
import re
from dataclasses import dataclass, field, fields, replace

from ..runtime.errors import UserError
from .presets import PRESETS

VERSIONS = {"v1": "v1", "v2": "v2", "unet": "unet", "1": "v1", "2": "v2", "new": "v2"}  # and their synonyms

# Options that this version no longer has, each with the values at which it did nothing; (): it did nothing by itself.
REMOVED = {
    "self_condition": (False,),
    "nbp_activation": ("sigmoid",),
    "concat_image": (True,),
    "condition_labels": (True,),
    "zero_terminal_snr": (False,),
    "loss_weighting": ("none",),
    "min_snr_gamma": (),
    "own_predictions": (0,),
    "solver_type": ("ode", None),
    "time_spacing": ("uniform", None),
    "begin_at": (1,),
    "dynamic_threshold": (0,),
    "neighbours": (0,),
    "noise_draws": (1,),
}
# These changed the loss alone: sampling needs none of them.
ONLY_LEARNED_BY = ("loss_weighting", "own_predictions", "noise_draws")
LAST_VERSION = "0.1.0"  # has them all


def option(
    default, help, *, choices=None, minimum=None, above=None, maximum=None, required=False, remote=False, needs=None
):
    """A dataclass field with its help and what its value must satisfy (`above` is an open lower bound).

    required: a command needs it, and its help says so; the command itself refuses to run without it.
    remote: it is a path that may be in a blob store (see `storage`).
    needs: {name of another option: the values beside which this one has an effect}.
    """
    rules = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum}
    known = {"help": help, "required": required, "remote": remote, "needs": needs or {}}
    return field(default=default, metadata=known | rules)


def absolute_loader(data_name):
    """`data_name` with the path of a loader of one's own, path/to/file.py:Class, made absolute."""
    return os.path.abspath(data_name) if ".py:" in data_name else data_name


def check_group_key(group_key):
    """Raise `UserError` for a `--group_key` that is no regular expression."""
    try:
        re.compile(group_key)
    except re.error as error:
        raise UserError(f"--group_key {group_key}: is no regular expression ({error})") from None


@dataclass(frozen=True)
class DataOptions:
    """Which data, and where."""

    data_name: str = option(
        "BRATS",
        "kind of data: BRATS (MRI, four modalities), ISIC (dermoscopy), LIDC (CT patches with several readers' masks), "
        "MSD (Medical Segmentation Decathlon and nnU-Net), FOLDER (images/ and masks/ paired by name), AUTO (what the "
        "folder looks like), a name that an installed package registers, or path/to/my_loader.py:MyDataset",
    )
    data_dir: str = option(
        "",
        "folder that holds the data; one on gs:// or az:// is fetched to this machine first, into "
        "$MEDSEGDIFF_CACHE or ~/.cache/medsegdiff",
        required=True,
        remote=True,
    )
    val_fraction: float = option(
        0.0,
        "hold about this share of the training cases out for validation, where the data are not divided; data that "
        "has no test cases is then sampled and evaluated on those; 0: none",
        minimum=0,
        maximum=0.9,
    )
    group_key: str = option(
        "",
        "regular expression searched in the names of cases: those in which it (its first parenthesis, if it has one) "
        "finds the same are of one patient and stay on one side of --val_fraction, as '^(P[0-9]+)'; sampling and "
        "check_data take it alone too, to count patients; empty: as the loader says, else each image or volume by "
        "itself",
    )
    split_seed: int = option(0, "which groups --val_fraction holds out; apart from --seed, to compare runs", minimum=0)
    classes: str = option(
        "",
        "which classes the masks are read in, by their values in label maps. liver=1,tumour=2: one of many, trained by "
        "softmax. WT=1+2+4,TC=1+4,ET=4: regions, which overlap since values are in several. auto: the values that the "
        "training masks hold, called as dataset.json says. BRATS: regions (WT, TC, ET) or labels (NCR, ED, ET), by the "
        "values of its layout. Results are label maps in the same values. Empty: one class, all that is not 0",
    )
    ct_window: str = option(
        "",
        "CT volumes (MSD, FOLDER): LOW,HIGH in HU that become -1 and 1, what lies beyond is cut off, as -160,240; "
        "empty: in sampling and going on that of the checkpoint's training; else for MSD by its task, and FOLDER takes "
        "volumes as MRI, by z-scores",
    )
    num_workers: int = option(
        2, "processes that read and resize images beside the network; 0 reads in the main process", minimum=0
    )
    cache_dir: str = option(
        "auto",
        "folder of volumes decompressed once for all runs, from which slices are then read (BraTS: 80 MB a case; it "
        "may be removed at any time); auto: in training volumes/ in $MEDSEGDIFF_CACHE or ~/.cache/medsegdiff, in "
        "sampling none; none: each process decompresses volumes itself and keeps 4 GB of them",
    )

    def resolve(self, given):
        """Paths become absolute: checkpoints and manifests are read from other folders as well."""
        if not self.cache_dir:
            raise UserError("--cache_dir: is empty; name a folder, auto or none")
        cache_dir = self.cache_dir if self.cache_dir in ("auto", "none") else os.path.abspath(self.cache_dir)
        check_group_key(self.group_key)
        self.window()
        return replace(self, data_name=absolute_loader(self.data_name), cache_dir=cache_dir)

    def complete(self, given):
        """Refuse flags that another one leaves without effect."""
        if self.split_seed and not self.val_fraction:
            raise UserError("--split_seed belongs to --val_fraction; leave it out")
        return self

    def window(self):
        """`ct_window` as (low, high), None when it is empty."""
        bounds = numbers("ct_window", self.ct_window, float)
        if bounds and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            raise UserError(f"--ct_window {self.ct_window}: must be two numbers, the lower one first, as -160,240")
        return bounds or None


@dataclass(frozen=True)
class ModelOptions:
    """The network. Fixed for a checkpoint; sampling takes them from there."""

    version: str = option(
        "v2",
        "model variant: v2 (MedSegDiff-V2), v1 (MedSegDiff) or unet (the same U-Net without diffusion, the baseline); "
        "also written 1, 2 and new (v2)",
        choices=tuple(VERSIONS),
    )
    preset: str = option(
        "",
        "sizes as published: S, B, L (4, 5, 6 downsamplings) or ++ set the model flags below; explicit flags win",
        choices=("", *PRESETS),
    )
    image_size: int = option(256, "images are resized to this many pixels square; the levels must divide it", above=0)
    patch_size: int = option(
        1,
        "pixels along each side of the patches that are one pixel of the network's first level each (space to depth): "
        "2 with twice the --image_size takes hardly longer and draws masks twice as fine",
        above=0,
    )
    num_channels: int = option(128, "width of the first level", above=0)
    num_res_blocks: int = option(2, "residual blocks per level", above=0)
    num_heads: int = option(1, "attention heads (when --num_head_channels is not set)", above=0)
    num_head_channels: int = option(-1, "channels per attention head; sets the number of heads; -1: use --num_heads")
    channel_mult: str = option("", "width of each level in units of --num_channels, as 1,1,2,4; empty: by image size")
    attention_resolutions: str = option(
        "16", "feature-map sizes (pixels) at which blocks have self-attention, as 32,16; sizes no level has add nothing"
    )
    dropout: float = option(0.0, "dropout inside residual blocks", minimum=0, maximum=0.99)
    class_cond: bool = option(False, "condition on the case's class label; needs data with labels (ISIC with its CSV)")
    learn_sigma: bool = option(False, "learn the variance of the reverse process beside its mean")
    use_scale_shift_norm: bool = option(True, "the time embedding scales and shifts features instead of adding to them")
    resblock_updown: bool = option(False, "resample by residual blocks instead of convolutions")
    use_checkpoint: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    anchor_levels: int = option(
        1, "v2: first levels that the condition model anchors (U-SA); 0: none", minimum=0, needs={"version": ("v2",)}
    )
    ss_former: str = option(
        "fourier",
        "v2: how the condition's embedding meets the diffusion's: fourier (the paper's SS-Former), cross (plain "
        "cross-attention) or add (their sum alone)",
        choices=("fourier", "cross", "add"),
        needs={"version": ("v2",)},
    )
    ss_blocks: int = option(
        2,
        "v2: blocks of the SS-Former, or of plain cross-attention",
        above=0,
        needs={"version": ("v2",), "ss_former": ("fourier", "cross")},
    )
    nbp_filter: bool = option(
        True,
        "v2: the SS-Former filters its affinity maps by frequency and time step",
        needs={"version": ("v2",), "ss_former": ("fourier",)},
    )
    concat_features: bool = option(
        False,
        "v2: the diffusion's encoder also sees the condition model's first-level decoder features",
        needs={"version": ("v2",)},
    )
    diffusion_level: int = option(
        0,
        "v2: the level at which the diffusion's U-Net begins; 1: at half the image's resolution, where 2 x 2 pixels "
        "are channels of one, which takes a fraction of the time",
        minimum=0,
        needs={"version": ("v2",)},
    )
    diffusion_channels: int = option(
        0,
        "v2: --num_channels of the diffusion's U-Net; 0: as the condition model's, -1: half of them",
        minimum=-1,
        needs={"version": ("v2",)},
    )

    def resolve(self, given):
        """Synonyms take one form, the preset sets the sizes that were not given, and lists are checked."""
        sizes = {name: value for name, value in PRESETS.get(self.preset, {}).items() if name not in given}
        options = replace(self, version=VERSIONS[self.version], **sizes)
        options.multipliers()
        options.attention_sizes()
        if options.num_head_channels == 0 or options.num_head_channels < -1:
            raise UserError(f"--num_head_channels {options.num_head_channels}: must be -1 or above 0")
        return options

    def complete(self, given):
        """The width of the diffusion's U-Net follows from that of the condition model."""
        return (
            replace(self, diffusion_channels=max(1, self.num_channels // 2)) if self.diffusion_channels == -1 else self
        )

    def multipliers(self):
        """`channel_mult` as a tuple of floats, empty when it is left to the image size."""
        values = numbers("channel_mult", self.channel_mult, float)
        if any(value * self.num_channels < 1 for value in values):
            raise UserError(f"--channel_mult {self.channel_mult}: every level needs at least one channel")
        return values

    def attention_sizes(self):
        """`attention_resolutions` as a tuple of ints."""
        return numbers("attention_resolutions", self.attention_resolutions, int)


@dataclass(frozen=True)
class DiffusionOptions:
    """The diffusion process that is trained. Fixed for a checkpoint."""

    diffusion_steps: int = option(1000, "length T of the noise schedule", minimum=2)
    noise_schedule: str = option("cosine", "how noise grows with t", choices=("linear", "cosine"))
    objective: str = option(
        "x0",
        "what the network predicts: x0 (the mask), eps (the noise, as published) or v. Masks are learned many times "
        "faster with x0",
        choices=("eps", "x0", "v"),
    )
    predict_xstart: bool = option(True, "True: the same as --objective x0; False: as --objective eps")
    input_scale: float = option(
        0.0,
        "scale b of the mask in the noise: below 1 makes a harder schedule; 0: 1 for eps, 0.1 for x0 and v",
        minimum=0,
        maximum=1,
    )
    mask_loss: str = option(
        "auto",
        "mse, bce (binary cross-entropy on the predicted mask) or bce_dice (the same + Dice); those two go with x0 "
        "alone; auto: bce_dice for x0, else mse",
        choices=("auto", "mse", "bce", "bce_dice"),
    )
    logit_skip: str = option(
        "none",
        "what is added to the predicted mask's logits, so that the network learns the rest alone (x0 only): noise "
        "(each pixel's own evidence in x_t, by Bayes' rule), coarse (the coarse mask's logits), both or none",
        choices=("none", "noise", "coarse", "both"),
    )
    class_activation: str = option(
        "auto",
        "how the logits of several --classes become probabilities: softmax (with the background's, which is 0: one of "
        "many, by categorical cross-entropy; x0 only), sigmoid (each class by itself) or auto: softmax for x0 where "
        "the classes exclude one another, else sigmoid",
        choices=("auto", "softmax", "sigmoid"),
    )
    coarse_weight: float = option(
        1.0,
        "weight of the loss on the condition branch's own, coarse mask (published: 10 for v1)",
        minimum=0,
        needs={"version": ("v1", "v2")},
    )
    coarse_loss: str = option(
        "auto",
        "loss on the coarse mask: bce_dice (Dice + --coarse_ce times cross-entropy, v2's anchor loss), bce or mse; "
        "auto: the kind of --mask_loss",
        choices=("auto", "mse", "bce", "bce_dice"),
        needs={"version": ("v1", "v2")},
    )
    coarse_ce: float = option(
        1.0,
        "weight of the cross-entropy beside Dice in --coarse_loss bce_dice",
        minimum=0,
        needs={"version": ("v1", "v2"), "coarse_loss": ("bce_dice",)},
    )
    border_weight: float = option(
        1.0,
        "--coarse_loss bce: how many times the pixels near the truth's borders count (within 3 % of the image's side); "
        "there the coarse mask is then as sure as it is right, at the cost of the easy background",
        above=0,
        needs={"version": ("v1", "v2"), "coarse_loss": ("bce",)},
    )
    coarse_every: int = option(
        1,
        "items count in the loss on the coarse mask when this divides their time step (V2's paper: 5)",
        above=0,
        needs={"version": ("v1", "v2")},
    )
    rescale_timesteps: bool = option(False, "give the network time steps scaled to 0..1000 whatever T is")
    rescale_learned_sigmas: bool = option(False, "scale the variational term of --learn_sigma by T/1000")
    use_kl: bool = option(False, "train on the full variational bound instead of --mask_loss")

    def resolve(self, given):
        """What is left to auto follows from the objective; flags that contradict each other are refused."""
        objective = self.objective
        if "predict_xstart" in given:
            if "objective" not in given:
                objective = "x0" if self.predict_xstart else "eps"
            elif (objective == "x0") != self.predict_xstart:
                raise UserError(f"--predict_xstart {self.predict_xstart} contradicts --objective {objective}")
        input_scale = self.input_scale or (1.0 if objective == "eps" else 0.1)
        mask_loss = self.mask_loss
        if mask_loss == "auto":
            mask_loss = "bce_dice" if objective == "x0" and not self.use_kl else "mse"
        for flag, value, neutral in (
            ("mask_loss", mask_loss, ("mse",)),
            ("logit_skip", self.logit_skip, ("none",)),
            ("class_activation", self.class_activation, ("auto", "sigmoid")),
        ):
            if value not in neutral and objective != "x0":
                raise UserError(f"--{flag} {value} goes with --objective x0, not {objective}")
        if mask_loss != "mse" and self.use_kl:
            raise UserError("--use_kl True replaces --mask_loss; leave one of them out")
        return replace(
            self,
            objective=objective,
            predict_xstart=objective == "x0",
            input_scale=input_scale,
            mask_loss=mask_loss,
            coarse_loss=mask_loss if self.coarse_loss == "auto" else self.coarse_loss,
        )

    def activation_for(self, classes, count, is_exclusive):
        """`class_activation` for so many classes, of which auto is resolved.

        classes: as --classes is written. is_exclusive: whether a pixel has one of them at most. Raises `UserError` for
        softmax over classes that overlap.
        """
        if self.class_activation == "softmax" and not is_exclusive:
            raise UserError(f"--class_activation softmax: the classes {classes} overlap; leave it out")
        if self.class_activation != "auto":
            return self.class_activation
        return "softmax" if count > 1 and is_exclusive and self.objective == "x0" else "sigmoid"


@dataclass(frozen=True)
class DeviceOptions:
    """What the network runs on."""

    gpu_dev: str = option("0", "number of the GPU to use, or cpu; without any GPU the CPU is used")
    precision: str = option(
        "auto",
        "fp32, bf16 or fp16 (mixed precision); auto: bf16 where the processor computes in it, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    use_fp16: bool = option(False, "the same as --precision fp16 (on a CPU, which lacks fast fp16: bf16)")

    def resolve(self, given):
        """`use_fp16` is a synonym of --precision fp16."""
        if self.use_fp16 and self.precision not in ("auto", "fp16"):
            raise UserError(f"--use_fp16 True contradicts --precision {self.precision}")
        if self.gpu_dev != "cpu" and not self.gpu_dev.isdigit():
            raise UserError(f"--gpu_dev {self.gpu_dev}: must be the number of one GPU, or cpu")
        precision = "fp16" if self.use_fp16 else self.precision
        return replace(self, precision=precision, use_fp16=precision == "fp16")


@dataclass(frozen=True)
class ProcessOptions(DeviceOptions):
    """What the network runs on, in one process or several."""

    multi_gpu: str = option(
        "",
        "GPUs to share the work among, one process each, as 0,1,2; torchrun starts processes on several machines",
    )


def build(group, values, *, whole=True):
    """An instance of an options class with these values by name, resolved: `resolve` sees which were given.

    whole: whether no further values come from a checkpoint. Else `complete`, which needs them all, is left to
    `settings.settle`.
    """
    options = group(**values)
    for step in ("resolve", "complete") if whole else ("resolve",):
        options = getattr(options, step)(set(values)) if hasattr(options, step) else options
    return options


def unused_flags(*groups):
    """The flags that have no effect beside the others: {name: what they belong to}, by the options' own `needs`.

    groups: instances of option classes; a need that none of them has counts as met.
    """
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    unused = {}
    for item in (item for group in groups for item in fields(group)):
        for other, allowed in item.metadata["needs"].items():
            if values.get(other, allowed[0]) not in allowed and item.name not in unused:
                unused[item.name] = f"belongs to --{other} {' or '.join(allowed)}, not {values[other]}"
    return unused


def check_variant(*groups, given=()):
    """Raise `UserError` for flags that have no effect beside the others, and for a U-Net with flags of a diffusion.

    groups: instances of option classes, with those of the network and the diffusion. given: names given explicitly.
    """
    unused = unused_flags(*groups)
    for name in sorted(unused.keys() & set(given)):
        raise UserError(f"--{name} {unused[name]}; leave it out")
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    if values["version"] != "unet":
        return
    for name, plain in (("objective", "x0"), ("use_kl", False), ("learn_sigma", False), ("logit_skip", "none")):
        if values[name] != plain:
            flag = f"--{name} {values[name]}"
            raise UserError(f"--version unet has no diffusion: it predicts the mask itself; leave out {flag}")


def without_removed(values, who, keep=()):
    """A dict of option values without those of `REMOVED`. Options named in `keep` stay where they are in use.

    who: the beginning of the error message, such as "run.pt: was trained with". Raises `UserError` for any other
    removed option that is in use; the message names it and the version to use.
    """
    gone = {name for name in REMOVED if name in values and not (name in keep and _is_in_use(name, values))}
    for name in sorted(gone):
        if _is_in_use(name, values):
            raise UserError(
                f"{who} {name} {values[name]}, which this version no longer has: use version {LAST_VERSION}"
            )
    return {name: value for name, value in values.items() if name not in gone}


def _is_in_use(name, values):
    if name == "condition_labels" and not (values.get("class_cond", True) and values.get("version", "v2") == "v2"):
        return False  # no condition model that could see labels
    value, idle = values[name], REMOVED[name]
    return bool(idle) and value not in idle and str(value).lower() not in [str(other).lower() for other in idle]


def numbers(name, text, kind):
    """A list in a flag's text, "1,2,4", as a tuple of `kind`s. Raises `UserError` that names the flag."""
    try:
        return tuple(kind(part) for part in str(text).split(",") if part.strip())
    except ValueError:
        raise UserError(f"--{name} {text}: must be numbers separated by commas") from None
