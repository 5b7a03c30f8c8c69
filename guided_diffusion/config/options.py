"""The options of data, network, diffusion and device, and the rules between them.

Every option is one dataclass field with its help; it is a flag, a YAML key and an entry in the checkpoint. Options of
single commands are in `train_options` and `sample_options`.
"""

import os
import re
from dataclasses import dataclass, replace

from ..io.pictures import MAX_MEGAPIXELS
from ..io.texts import shown
from ..runtime.errors import UserError
from ..runtime.threads import MAX_THREADS
from .fields import option
from .presets import PRESETS
from .values import numbers

LARGEST_LABEL = 2**31 - 1  # that a label map may hold
NO_WINDOW = "none"  # of --ct_window: z-scores, whatever the values look like
VERSIONS = {"v1": "v1", "v2": "v2", "unet": "unet", "1": "v1", "2": "v2", "new": "v2"}  # by synonym


def absolute_loader(data_name):
    """`data_name` with an absolute path if it names a user's loader, path/to/file.py:Class."""
    return os.path.abspath(data_name) if ".py:" in data_name else data_name


def check_group_key(group_key):
    """Raise `UserError` for a `--group_key` that is no regular expression."""
    try:
        re.compile(group_key)
    except (re.error, OverflowError, RecursionError) as error:
        raise UserError(f"--group_key {shown(group_key)}: is no regular expression ({error})") from None


MAX_HELD = 0.9  # of the cases, for validation and testing
FOLD, MAX_FOLDS = re.compile("([0-9]{1,4})/([0-9]{1,4})"), 1000
MAX_SEED, SEED_REASON = 2**63 - 1, "the generators of random numbers take 64 bits"
MAX_SIDE = 8192
MAX_CHANNELS, CHANNEL_REASON = 8192, "one convolution of that many channels has 600 million weights"
MAX_WEIGHTS, MAX_MAP_BYTES = 100e9, 64e9  # the published ++ has ten billion weights
MAX_LEVELS, LEVEL_REASON = 13, "each level halves the image, whose side is 8192 at most"
MAX_STEPS_OF_NOISE = 100_000
NOISE_REASON = "the schedule's tables have a number for each step, and with that many neighbours hardly differ"
MAX_WEIGHT, WEIGHT_REASON = 1e6, "beside it no other loss counts in single precision"


def fold_of(text):
    """A value of `--fold`, "2/5", as (2, 5); None if it is empty. Raises `UserError` for anything else."""
    if not text:
        return None
    found, flag = FOLD.fullmatch(text), f"--fold {shown(text)}"
    if not found:
        raise UserError(f"{flag}: write K/N, the fold and the number of folds, as 1/5")
    fold, folds = int(found[1]), int(found[2])
    if not 2 <= folds <= MAX_FOLDS:
        raise UserError(f"{flag}: the number of folds must be from 2 to {MAX_FOLDS}")
    if not 1 <= fold <= folds:
        raise UserError(f"{flag}: folds are counted from 1: name one of 1/{folds} to {folds}/{folds}")
    return fold, folds


def ignored_values(text):
    """The label values of `--ignore_label`, a tuple. Raises `UserError` for anything else than whole numbers from 0 to
    `LARGEST_LABEL`."""
    return numbers("ignore_label", text, int, minimum=0, maximum=LARGEST_LABEL)


@dataclass(frozen=True)
class DataOptions:
    """The data."""

    data_name: str = option(
        "AUTO",
        "kind of data: AUTO (recognised from the folder), BRATS (MRI, four modalities), ISIC (dermoscopy), LIDC (CT "
        "patches, several readers' masks), MSD (Decathlon, nnU-Net), FOLDER (images/ and masks/, paired by name) or "
        "path/to/my_loader.py:MyDataset. Also a name that an installed package registers",
    )
    data_dir: str = option(
        "",
        "folder of the data; for sampling it may be the file of one image. A folder on gs:// or az:// is first copied "
        "to $MEDSEGDIFF_CACHE or ~/.cache/medsegdiff",
        required=True,
        remote=True,
    )
    val_fraction: float = option(
        0.0,
        "share of the patients or cases to hold out of training for validation, for data without a division of their "
        "own. Without test cases, sampling and evaluation use the cases held out; 0: none",
        minimum=0,
        maximum=MAX_HELD,
    )
    test_fraction: float = option(
        0.0,
        "share of the patients or cases to keep for testing, beside --val_fraction: they neither train the network "
        "nor select best.pt, and are sampled and evaluated; 0: none",
        minimum=0,
        maximum=MAX_HELD,
    )
    fold: str = option(
        "",
        "K/N, as 1/5: divide the patients or cases into N folds and hold fold K out of training for validation, "
        "instead of --val_fraction. Runs with 1/N to N/N hold out every case once",
    )
    group_key: str = option(
        "",
        "regular expression that finds the patient in a case's name, as '^(P[0-9]+)'. Cases with the same match (of "
        "its first group, if it has one) stay in one part of --val_fraction, --fold and --test_fraction. Sampling and "
        "the check of data use it to count patients. Empty: the loader's groups, else each image or volume by itself",
    )
    split_seed: int = option(
        0,
        "seed that decides which groups --val_fraction, --fold and --test_fraction hold out. It is not --seed, so that "
        "runs with other seeds have the same split",
        minimum=0,
        maximum=MAX_SEED,
        why=SEED_REASON,
    )
    classes: str = option(
        "",
        "classes of the masks, by their values in label maps. liver=1,tumour=2: classes that exclude one another "
        "(softmax). WT=1+2+4,TC=1+4,ET=4: regions that overlap. cell=1-250: a range of values, such as instances. "
        "auto: the values in the training masks, with the names of dataset.json. BRATS also takes regions (WT, TC, ET) "
        "and labels (NCR, ED, ET). Results are label maps with the same values. Empty: one class, masks with one value "
        "besides 0 (MSD and BRATS: every value but 0)",
    )
    ignore_label: str = option(
        "",
        "label values of pixels without truth, as 255 or 254,255: they count neither in the loss nor in any figure. "
        "Masks are then read as label maps, by exact values. Empty: the label that dataset.json calls ignore, or none",
    )
    ct_window: str = option(
        "",
        "CT volumes (MSD, FOLDER): LOW,HIGH in HU, mapped to -1 and 1 and clipped there, as -160,240. none: z-scores, "
        "as for MRI. Empty: the checkpoint's window when sampling or resuming; in a new run, MSD takes the task's "
        "window, and FOLDER -160,240 (-1000,400 in a folder named lung) where the values are like Hounsfield units",
    )
    max_megapixels: float = option(
        float(MAX_MEGAPIXELS),
        "pictures with more million pixels are refused, since a small file may decode to more than the memory holds; "
        "the free memory is checked as well",
        above=0,
        maximum=1_000_000,
        why="a million megapixels are a terabyte",
    )
    num_workers: int = option(
        2,
        "processes that read and resize images; 0: the main process reads them",
        minimum=0,
        maximum=512,
        why="each is a process of its own with about 300 MB",
    )
    cache_dir: str = option(
        "auto",
        "folder of decoded data, shared by all runs: volumes, from which slices are read (BraTS: 80 MB a case), and in "
        "training pictures at the network's size (0.8 MB each at 256 x 256). Safe to delete. auto: volumes/ and "
        "pictures/ in $MEDSEGDIFF_CACHE or ~/.cache/medsegdiff for training, none for sampling. none: each process "
        "decompresses volumes itself and keeps up to 4 GB of them, and each epoch decodes the pictures again",
        path=True,
    )

    def resolve(self, given):
        """Paths become absolute, since commands read checkpoints and manifests from other folders too."""
        if not self.cache_dir:
            raise UserError("--cache_dir: is empty; name a folder, auto or none")
        cache_dir = self.cache_dir if self.cache_dir in ("auto", "none") else os.path.abspath(self.cache_dir)
        check_group_key(self.group_key)
        if fold_of(self.fold) and self.val_fraction:
            raise UserError(
                f"--fold {self.fold} --val_fraction {self.val_fraction:g}: both name the validation cases; leave one "
                "out"
            )
        self.window()
        self.ignored_values()
        return replace(self, data_name=absolute_loader(self.data_name), cache_dir=cache_dir)

    def complete(self, given):
        """Raise `UserError` for --split_seed without a part to hold out, and for shares that leave no case."""
        if self.split_seed and not (self.val_fraction or self.test_fraction or self.fold):
            raise UserError("--split_seed belongs to --val_fraction, --fold and --test_fraction; leave it out")
        if self.val_fraction + self.test_fraction > MAX_HELD:
            raise UserError(
                f"--val_fraction {self.val_fraction:g} --test_fraction {self.test_fraction:g}: together must be at "
                f"most {MAX_HELD}"
            )
        return self

    def ignored_values(self):
        """`ignore_label` as a tuple of label values."""
        return ignored_values(self.ignore_label)

    def window(self):
        """`ct_window` as (low, high) in HU, () for none, or None if it is empty."""
        if self.ct_window.strip().lower() == NO_WINDOW:
            return ()
        bounds = numbers("ct_window", self.ct_window, float)
        if bounds and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            raise UserError(
                f"--ct_window {shown(self.ct_window)}: must be two numbers, the lower one first, as -160,240, or none"
            )
        return bounds or None


@dataclass(frozen=True)
class ModelOptions:
    """The network. A checkpoint fixes it, and sampling takes it from there."""

    version: str = option(
        "v2",
        "the network: v2 (MedSegDiff-V2), v1 (MedSegDiff) or unet (the same U-Net without diffusion, the baseline). "
        "1, 2 and new (v2) are accepted too",
        choices=tuple(VERSIONS),
    )
    preset: str = option(
        "",
        "a size: XS (a first run on a CPU), or a published one, S, B, L (4, 5, 6 downsamplings) or ++. It sets "
        "--image_size, --num_channels and the other sizes of the network; explicit flags win",
        choices=("", *PRESETS),
    )
    image_size: int = option(
        256,
        "side of the network's square input in pixels; images are resized to it, and the levels must divide it",
        above=0,
        maximum=MAX_SIDE,
        why="at this side one feature map of 32 channels has 8 GB; --tile True samples larger images",
    )
    patch_size: int = option(
        1,
        "side of the patch of pixels that becomes one pixel of the network's first level (space to depth). 2 with "
        "twice the --image_size takes about the same time and draws masks at twice the resolution",
        above=0,
        maximum=64,
        why="its square is the number of channels of the input",
    )
    num_channels: int = option(
        128, "channels of the network's first level", above=0, maximum=MAX_CHANNELS, why=CHANNEL_REASON
    )
    num_res_blocks: int = option(
        2, "residual blocks per level", above=0, maximum=100, why="the published ++ has 12; each block adds its time"
    )
    num_heads: int = option(
        1,
        "attention heads, unless --num_head_channels is set",
        above=0,
        maximum=MAX_CHANNELS,
        why="a head needs a channel at least",
    )
    num_head_channels: int = option(
        -1,
        "channels per attention head, which sets the number of heads; -1: use --num_heads",
        maximum=MAX_CHANNELS,
        why=CHANNEL_REASON,
    )
    channel_mult: str = option(
        "", "channels of each level in units of --num_channels, as 1,1,2,4; empty: by --image_size"
    )
    attention_resolutions: str = option(
        "16",
        "feature-map sides in pixels at which blocks have self-attention, as 32,16; a size that no level has adds "
        "nothing",
    )
    dropout: float = option(0.0, "dropout rate inside residual blocks", minimum=0, maximum=0.99)
    class_cond: bool = option(
        False, "condition the network on the case's class label; needs data with labels (ISIC with its CSV)"
    )
    encoder: str = option(
        "",
        "v2, unet: a network of the library timm, such as resnet18, that sees the image too; its features are added to "
        "the condition model's. --encoder_weights has weights for it; nothing is downloaded by itself. Empty: none",
        needs={"version": ("v2", "unet")},
    )
    learn_sigma: bool = option(False, "learn the variance of the reverse process as well as its mean")
    use_scale_shift_norm: bool = option(
        True, "the time embedding scales and shifts features instead of being added to them"
    )
    resblock_updown: bool = option(False, "resample with residual blocks instead of convolutions")
    use_checkpoint: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    anchor_levels: int = option(
        1,
        "v2: number of levels, from the first, that the condition model anchors (U-SA); 0: none",
        minimum=0,
        maximum=MAX_LEVELS,
        why=LEVEL_REASON,
        needs={"version": ("v2",)},
    )
    ss_former: str = option(
        "fourier",
        "v2: how the condition's and the diffusion's embeddings are combined: fourier (the paper's SS-Former), cross "
        "(plain cross-attention) or add (their sum)",
        choices=("fourier", "cross", "add"),
        needs={"version": ("v2",)},
    )
    ss_blocks: int = option(
        2,
        "v2: blocks of the SS-Former, or of plain cross-attention",
        above=0,
        maximum=100,
        why="each block adds its time; the default has 2",
        needs={"version": ("v2",), "ss_former": ("fourier", "cross")},
    )
    nbp_filter: bool = option(
        True,
        "v2: the SS-Former filters its affinity maps by frequency and time step",
        needs={"version": ("v2",), "ss_former": ("fourier",)},
    )
    nbp_factor: str = option(
        "doubled",
        "v2: the NBP-filter's factor: doubled (2 sigmoid, starts at 1) or sigmoid, as up to version 0.4.0",
        choices=("doubled", "sigmoid"),
        needs={"version": ("v2",), "ss_former": ("fourier",), "nbp_filter": (True,)},
        is_flag=False,
    )
    head_padding: str = option(
        "edges",
        "what the last convolution sees beyond the image: edges (the outermost pixels again), or zeros, as up to "
        "version 0.7.0, which raise the probability at the image's edge",
        choices=("edges", "zeros"),
        is_flag=False,
    )
    concat_features: bool = option(
        False,
        "v2: the diffusion's encoder also sees the features of the condition model's first decoder level",
        needs={"version": ("v2",)},
    )
    diffusion_level: int = option(
        0,
        "v2: level at which the diffusion's U-Net begins. 1: at half the image's resolution, with 2 x 2 pixels as "
        "channels of one, which takes a fraction of the time",
        minimum=0,
        maximum=MAX_LEVELS,
        why=LEVEL_REASON,
        needs={"version": ("v2",)},
    )
    diffusion_channels: int = option(
        0,
        "v2: --num_channels of the diffusion's U-Net; 0: the condition model's, -1: half of it",
        minimum=-1,
        maximum=MAX_CHANNELS,
        why=CHANNEL_REASON,
        needs={"version": ("v2",)},
    )

    def resolve(self, given):
        """Replace synonyms, apply the preset below the given sizes, check lists."""
        sizes = {name: value for name, value in PRESETS.get(self.preset, {}).items() if name not in given}
        options = replace(self, version=VERSIONS[self.version], **sizes)
        options.multipliers()
        options.attention_sizes()
        if options.num_head_channels == 0 or options.num_head_channels < -1:
            raise UserError(f"--num_head_channels {options.num_head_channels}: must be -1 or above 0")
        options.check_size()
        return options

    def complete(self, given):
        """Replace --diffusion_channels -1 by half of --num_channels."""
        if self.diffusion_channels != -1:
            return self
        return replace(self, diffusion_channels=max(1, self.num_channels // 2))

    def check_size(self):
        """Raise `UserError` for a network that no machine of today holds, before its memory is asked for."""
        widths = [multiplier * self.num_channels for multiplier in self.multipliers() or (1.0,)]
        weights = sum(width**2 for width in widths) * 36 * self.num_res_blocks  # 3 x 3, two convolutions, down and up
        if weights > MAX_WEIGHTS:
            raise UserError(
                f"--num_channels {self.num_channels} --num_res_blocks {self.num_res_blocks}: the network would have "
                f"more than {weights / 1e9:.0f} billion weights; {MAX_WEIGHTS / 1e9:.0f} billion are the most"
            )
        bytes_needed = 4 * (self.image_size / self.patch_size) ** 2 * widths[0]
        if bytes_needed > MAX_MAP_BYTES:
            raise UserError(
                f"--image_size {self.image_size} --num_channels {self.num_channels}: one feature map would take "
                f"{bytes_needed / 1e9:.0f} GB; {MAX_MAP_BYTES / 1e9:.0f} GB are the most: choose smaller ones"
            )

    def multipliers(self):
        """`channel_mult` as a tuple of floats; empty: the image size decides."""
        values = numbers("channel_mult", self.channel_mult, float)
        flag = f"--channel_mult {shown(self.channel_mult)}"
        if len(values) > MAX_LEVELS:
            raise UserError(f"{flag}: has {len(values)} levels; {MAX_LEVELS} are the most, since each halves the image")
        if any(value * self.num_channels < 1 for value in values):
            raise UserError(f"{flag}: every level needs at least one channel")
        if any(value * self.num_channels > MAX_CHANNELS for value in values):
            raise UserError(f"{flag}: a level has at most {MAX_CHANNELS} channels: {CHANNEL_REASON}")
        return values

    def attention_sizes(self):
        """`attention_resolutions` as a tuple of ints."""
        return numbers("attention_resolutions", self.attention_resolutions, int, minimum=1, maximum=MAX_SIDE)


@dataclass(frozen=True)
class DiffusionOptions:
    """The diffusion. A checkpoint fixes it, and sampling takes it from there."""

    diffusion_steps: int = option(
        1000, "length T of the noise schedule", minimum=2, maximum=MAX_STEPS_OF_NOISE, why=NOISE_REASON
    )
    noise_schedule: str = option(
        "cosine", "how the noise grows with t: linear betas (DDPM) or cosine", choices=("linear", "cosine")
    )
    objective: str = option(
        "x0",
        "what the network predicts: x0 (the mask), eps (the noise, as published) or v",
        choices=("eps", "x0", "v"),
    )
    predict_xstart: bool = option(True, "True: --objective x0; False: --objective eps")
    input_scale: float = option(
        0.0,
        "factor of the mask when noise is added, up to 1; a smaller one makes the schedule harder. 0: by --objective",
        minimum=0,
        maximum=1,
        shown="0.1 for x0 and v, 1 for eps",
    )
    mask_loss: str = option(
        "auto",
        "loss on the prediction: mse, bce (binary cross-entropy) or bce_dice (cross-entropy + Dice); the last two "
        "with x0 only. auto: bce_dice for x0, else mse",
        choices=("auto", "mse", "bce", "bce_dice"),
    )
    logit_skip: str = option(
        "none",
        "what is added to the predicted mask's logits, so that the network learns only the rest (x0 only): noise "
        "(each pixel's own evidence in x_t, by Bayes' rule), coarse (the coarse mask's logits), both or none",
        choices=("none", "noise", "coarse", "both"),
    )
    mask_range: str = option(
        "signed",
        "values of the masks to which noise is added: signed (-1 and 1) or unit (0 and 1, as published; without "
        "--logit_skip noise)",
        choices=("signed", "unit"),
    )
    class_activation: str = option(
        "auto",
        "from logits to probabilities with several --classes: softmax (exclusive classes, 0 as the background's "
        "logit, categorical cross-entropy; x0 only) or sigmoid (each class by itself). auto: softmax for x0 with "
        "exclusive classes, else sigmoid",
        choices=("auto", "softmax", "sigmoid"),
    )
    coarse_weight: float = option(
        1.0,
        "weight of the loss on the coarse mask, which the condition branch predicts (published: 10 for v1)",
        minimum=0,
        maximum=MAX_WEIGHT,
        why=WEIGHT_REASON,
        needs={"version": ("v1", "v2")},
    )
    coarse_loss: str = option(
        "auto",
        "loss on the coarse mask: bce_dice (Dice + --coarse_ce times cross-entropy, v2's anchor loss), bce or mse; "
        "auto: as --mask_loss",
        choices=("auto", "mse", "bce", "bce_dice"),
        needs={"version": ("v1", "v2")},
    )
    coarse_ce: float = option(
        1.0,
        "weight of the cross-entropy in --coarse_loss bce_dice",
        minimum=0,
        maximum=MAX_WEIGHT,
        why=WEIGHT_REASON,
        needs={"version": ("v1", "v2"), "coarse_loss": ("bce_dice",)},
    )
    coarse_every: int = option(
        1,
        "the loss on the coarse mask counts only items whose time step is a multiple of this (V2's paper: 5)",
        above=0,
        maximum=MAX_STEPS_OF_NOISE,
        why="there are at most as many time steps",
        needs={"version": ("v1", "v2")},
    )
    rescale_timesteps: bool = option(False, "scale the network's time steps to 0..1000 whatever T is")
    rescale_learned_sigmas: bool = option(False, "scale the variational term of --learn_sigma by T/1000")
    use_kl: bool = option(False, "train on the full variational bound instead of --mask_loss")

    def resolve(self, given):
        """Replace auto by what the objective needs. Raises `UserError` for flags that contradict each other."""
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
        if self.mask_range == "unit" and self.logit_skip in ("noise", "both"):
            raise UserError(f"--logit_skip {self.logit_skip} goes with --mask_range signed, not unit")
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
        """`class_activation`, "softmax" or "sigmoid", for the data's classes.

        classes: the text of --classes. count: their number. is_exclusive: whether a pixel has at most one of them.
        Raises `UserError` for softmax over classes that overlap.
        """
        if self.class_activation == "softmax" and not is_exclusive:
            raise UserError(f"--class_activation softmax: the classes {classes} overlap; leave it out")
        if self.class_activation != "auto":
            return self.class_activation
        return "softmax" if count > 1 and is_exclusive and self.objective == "x0" else "sigmoid"


def threads_option():
    """The option `--threads` of a command, see `runtime.threads.use_threads`."""
    return option(
        0,
        "threads that compute on the CPU; 0: OMP_NUM_THREADS if it is set, else the cores that this machine or "
        "container allows, shared by the processes of torchrun",
        minimum=0,
        maximum=MAX_THREADS,
        why="more threads than cores wait for one another",
    )


@dataclass(frozen=True)
class DeviceOptions:
    """The device."""

    gpu_dev: str = option("0", "number of the GPU to use, mps (Apple's) or cpu; without a GPU the CPU is used")
    precision: str = option(
        "auto",
        "fp32, or mixed precision in bf16 or fp16; auto: bf16 where the device computes in it, else fp32",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    use_fp16: bool = option(False, "the same as --precision fp16; on a CPU, which lacks fast fp16, bf16")

    def resolve(self, given):
        """Let --use_fp16 and --precision fp16 mean the same."""
        if self.use_fp16 and self.precision not in ("auto", "fp16"):
            raise UserError(f"--use_fp16 True contradicts --precision {self.precision}")
        if self.gpu_dev not in ("cpu", "mps") and not re.fullmatch("[0-9]{1,4}", self.gpu_dev):
            raise UserError(f"--gpu_dev {shown(self.gpu_dev)}: must be the number of one GPU, mps or cpu")
        precision = "fp16" if self.use_fp16 else self.precision
        return replace(self, precision=precision, use_fp16=precision == "fp16")


@dataclass(frozen=True)
class ProcessOptions(DeviceOptions):
    """The devices, with one process for each."""

    multi_gpu: str = option(
        "",
        "GPUs that share the work, one process each, as 0,1,2; for several machines use torchrun",
    )
    threads: int = threads_option()
