"""The options of a training run."""

from dataclasses import dataclass, replace

from ..io.storage import join
from ..io.texts import shown
from ..runtime.errors import UserError
from .fields import option
from .options import MAX_SEED, SEED_REASON
from .recipe import RECIPES
from .values import numbers

MAX_RUN, RUN_REASON = 10**12, "at a thousand steps a second that many take 30 years"
MAX_BATCH, BATCH_REASON = 65536, "the images of a batch are in memory at once"
MAX_CASES, CASES_REASON = 100_000, "each is sampled at every validation"
MAX_RATES = 10  # of --ema_rate
CONDITION_SHARE = 0.85  # the default of --condition_share
OVERFIT_STEPS, OVERFIT_INTERVAL = 2000, 100  # --max_steps and --sample_interval of --overfit


@dataclass(frozen=True)
class TrainOptions:
    """The training run."""

    recipe: str = option(
        "auto",
        "a named set of flags; explicit flags win. staged (v2): the condition model learns first, as a plain U-Net, "
        "then a light diffusion learns on it. published (v1, v2): the published pipeline, as far as the published "
        "code goes; docs/paper_to_code.md lists what differs. none: each flag's own default. auto: staged for a v2 "
        "that predicts the mask, as it does by default, else none",
        choices=("", "auto", "none", *RECIPES),  # "" is what none was called once
    )
    out_dir: str = option(
        "./results/",
        "folder for checkpoints and logs; one on gs:// or az:// is brought up to date at each save and at the end",
        remote=True,
    )
    max_steps: int = option(
        100000, "stop after this many optimizer steps in all", above=0, maximum=MAX_RUN, why=RUN_REASON
    )
    max_minutes: float = option(
        0.0,
        "stop after this many minutes; a resumed run keeps the limit and counts anew. 0: no limit",
        minimum=0,
        maximum=1e7,
        why="that is 19 years; 0 means no limit",
    )
    batch_size: int = option(
        8, "images per optimizer step, over all processes", above=0, maximum=MAX_BATCH, why=BATCH_REASON
    )
    microbatch: int = option(
        -1,
        "images per forward pass; gradients are summed over the passes of a process's share of the batch. -1: the "
        "whole share",
        maximum=MAX_BATCH,
        why=BATCH_REASON,
    )
    lr: float = option(
        1e-4, "learning rate of AdamW", above=0, maximum=100, why="AdamW moves each weight by about this much a step"
    )
    weight_decay: float = option(
        0.0,
        "weight decay of AdamW",
        minimum=0,
        maximum=1e6,
        why="times --lr it is the share of each weight that a step takes away",
    )
    lr_anneal_steps: int = option(
        0,
        "decay the learning rate to 0 over this many steps, then stop; 0: constant. -1: over the whole run, by the "
        "share of --max_minutes or --max_steps that has passed, whichever is larger",
        minimum=-1,
        maximum=MAX_RUN,
        why=RUN_REASON,
    )
    lr_decay: str = option(
        "linear",
        "decay over --lr_anneal_steps: linear, cosine, or none (constant; no --lr_anneal_steps)",
        choices=("none", "linear", "cosine"),
    )
    warmup_steps: int = option(
        0, "steps over which the learning rate first rises linearly", minimum=0, maximum=MAX_RUN, why=RUN_REASON
    )
    grad_clip: float = option(
        0.0,
        "clip the gradient's norm, over all weights, to this; 0: off",
        minimum=0,
        maximum=1e30,
        why="single precision ends at 3e38; 0 means off",
    )
    ema_rate: str = option("0.9999", "decay rate of the averaged weights, or several as 0.99,0.9999")
    ema_warmup: bool = option(
        True,
        "the decay of the averaged weights rises to --ema_rate, so that short runs lose their random start; False: it "
        "is fixed, as published",
    )
    condition_steps: int = option(
        0,
        "v2: steps of a first stage, in which the condition model learns alone, as a plain U-Net, on the mean of the "
        "raters' masks (see --dice_steps). Then all of it but its last layer is frozen and the diffusion learns. 0: "
        "both learn from the start; -1: --condition_share of the run's steps, or of --max_minutes if they end first",
        minimum=-1,
        maximum=MAX_RUN,
        why=RUN_REASON,
        needs={"version": ("v2",)},
    )
    condition_share: float = option(
        CONDITION_SHARE,
        "v2: the share of the run that --condition_steps -1 gives to the first stage",
        minimum=0.05,
        maximum=0.99,
        why="the diffusion learns in the rest",
        needs={"version": ("v2",)},
    )
    second_stage_lr: float = option(
        1.0,
        "learning rate of the second stage of --condition_steps, in units of --lr; few layers learn there",
        above=0,
        maximum=1e6,
        why="times --lr it is the learning rate",
        needs={"version": ("v2",)},
    )
    dice_steps: int = option(
        -1,
        "steps, from the first, in which Dice is added to --coarse_loss bce (--version unet: to --mask_loss bce). "
        "Dice finds small objects sooner; the steps after it calibrate. -1: 85 % of the first stage of "
        "--condition_steps; 300 without stages",
        minimum=-1,
        maximum=MAX_RUN,
        why=RUN_REASON,
    )
    dice_share: float = option(
        0.85,
        "with --dice_steps -1 the share of the first stage in which Dice is added; 0.6 up to version 0.7.0",
        minimum=0,
        maximum=1,
        is_flag=False,
    )
    schedule_sampler: str = option(
        "uniform",
        "how training time steps are drawn: uniform, or loss-second-moment (more often where the loss is large)",
        choices=("uniform", "loss-second-moment"),
    )
    raters: str = option(
        "random",
        "target for images with several raters: random (one rater's mask, drawn anew each time) or mean (the mean of "
        "the masks, a soft target)",
        choices=("random", "mean"),
    )
    augment: str = option(
        "none",
        "random changes of images and masks in training, as far as the kind of data allows: light (mirror, rotate, "
        "scale, contrast), strong (more of these, elastic deformation, noise and blur) or none",
        choices=("none", "light", "strong"),
    )
    slices: str = option(
        "all",
        "slices (or images) to train on: all, nonempty (with something marked) or balanced (as many with as without; "
        "each epoch draws anew from the more numerous kind). Sampling always uses all",
        choices=("all", "nonempty", "balanced"),
    )
    crop: bool = option(
        False,
        "train on random squares of --image_size, cut from larger images, instead of resizing images. Every third "
        "holds something marked, see --crop_foreground. Sampling then defaults to --tile True",
    )
    crop_foreground: str = option(
        "class",
        "what every third square of --crop holds. class: a pixel of a random class that the image has, so that rare "
        "classes come as often as others; with volumes, of a class that the volume has, from another of its slices "
        "where need be. none: squares lie anywhere, so probabilities follow the data's own share of foreground. pixel: "
        "as up to version 0.6.0, whose runs go on with it: by chance a third, of any marked pixel",
        choices=("class", "none", "pixel"),
        needs={"crop": (True,)},
    )
    soft_masks: bool = option(
        True,
        "masks shrink by area and are warped bilinearly, into the share of each pixel that is marked; False: by "
        "nearest neighbour, as up to version 0.6.0",
        is_flag=False,
    )
    orientation: str = option(
        "auto",
        "what images may look like, for --augment and for test-time augmentation in sampling: any (rotations and "
        "mirror images are as likely: dermoscopy, microscopy, CT patches), upright (they have a top) or auto (from the "
        "loader)",
        choices=("auto", "any", "upright"),
    )
    log_interval: int = option(50, "steps between lines of the log", above=0, maximum=MAX_RUN, why=RUN_REASON)
    track: str = option(
        "",
        "a service that gets the figures and options of the run too, without folders: wandb, mlflow or trackio, each "
        "set up by its own environment variables. Its failure ends no training. Empty: none",
        choices=("", "wandb", "mlflow", "trackio"),
    )
    save_interval: int = option(
        5000, "steps between checkpoints; one is also written at the end", above=0, maximum=MAX_RUN, why=RUN_REASON
    )
    fsdp: bool = option(
        False,
        "shard weights, gradients, averages and the optimizer's state over the processes (torch's FSDP2), for "
        "networks that do not fit on one device; consider --use_checkpoint True too. The checkpoint files are the "
        "same",
    )
    compile: bool = option(
        False,
        "compile the network with torch.compile: the first step takes minutes, later ones less on a GPU. Needs a C++ "
        "compiler; not with --fsdp True",
    )
    keep_checkpoints: int = option(
        0,
        "keep only the N newest model*.pt; best.pt (by validation log loss) and last.pt are never removed. 0: all",
        minimum=0,
        maximum=MAX_RUN,
        why=RUN_REASON,
    )
    sample_interval: int = option(
        1000,
        "steps between validations; one is also made at the end. Each samples a few fixed cases with the averaged "
        "weights, for log loss, Dice and a picture; training does not depend on it. 0: never",
        minimum=0,
        maximum=MAX_RUN,
        why=RUN_REASON,
    )
    val_cases: int = option(
        8,
        "cases to sample at each validation: always the same ones, spread over all",
        above=0,
        maximum=MAX_CASES,
        why=CASES_REASON,
    )
    val_dir: str = option(
        "",
        "folder of validation cases, of the same kind as --data_dir; empty: the cases held out of training, or "
        "training cases if none are",
        remote=True,
    )
    overfit: int = option(
        0,
        "check that training works: learn N cases by heart, without augmentation, dropout and stages, sample them and "
        "print pass or fail (exit status 1). Stops as soon as it passes, at the latest after 2000 steps or "
        "--max_steps; writes to overfit/ in --out_dir, and no checkpoint. 0: normal training",
        minimum=0,
        maximum=MAX_CASES,
        why=CASES_REASON,
    )
    resume_checkpoint: str = option(
        "",
        "continue from this checkpoint, or from last.pt of a run's folder; auto: from the newest in --out_dir, or from "
        "the start if there is none",
        remote=True,
    )
    init_from: str = option(
        "",
        "begin a new run with the weights of this checkpoint, run's folder, exported model or hf://OWNER/NAME, where "
        "names and shapes agree: the first layer adapts to other channels, and the last starts anew for other classes. "
        "The network's and the diffusion's flags, and --crop, default to that model's",
        remote=True,
        hub=True,
    )
    encoder_weights: str = option(
        "",
        "weights for --encoder in timm's names: a file (.safetensors, or of torch.save), a folder with "
        "model.safetensors, or hf://OWNER/NAME. A new run begins with them",
        remote=True,
        hub=True,
    )
    freeze_encoder: bool = option(False, "leave the weights of --encoder as they are; the rest learns")
    dry_run: bool = option(False, "print the settled options, the number of parameters and the data; write nothing")
    seed: int = option(
        0, "seed of the weights, the noise and the order of the data", minimum=0, maximum=MAX_SEED, why=SEED_REASON
    )

    def resolve(self, given):
        """Check values that a single bound cannot; with --overfit, set its options."""
        if self.microbatch == 0 or self.microbatch < -1:
            raise UserError(f"--microbatch {self.microbatch}: must be -1 or above 0")
        self.ema_rates()
        if self.compile and self.fsdp:
            raise UserError("--compile True does not go with --fsdp True; leave one of them out")
        return self._for_overfit(given) if self.overfit else self

    def _for_overfit(self, given):
        """The options of `--overfit`, which checks training and so replaces some of the run's own."""
        if "sample_interval" in given and not self.sample_interval:
            raise UserError("--sample_interval 0: --overfit needs to sample; leave it out")
        return replace(
            self,
            augment="none",
            resume_checkpoint="",
            condition_steps=0,  # so that the check includes the diffusion from the first step
            out_dir=str(join(self.out_dir, "overfit")),
            max_steps=self.max_steps if {"max_steps", "max_minutes"} & given else OVERFIT_STEPS,
            sample_interval=self.sample_interval if "sample_interval" in given else OVERFIT_INTERVAL,
            val_cases=self.overfit,
            val_dir="",
        )

    def complete(self, given):
        """Check the flags of the learning rate's decay."""
        total, alone = self.lr_anneal_steps, "lr_decay" in given and "lr_anneal_steps" not in given
        if not total and (self.lr_decay == "cosine" or (self.lr_decay == "linear" and alone)):
            raise UserError(f"--lr_decay {self.lr_decay}: needs --lr_anneal_steps, the steps over which it decays")
        if total and self.lr_decay == "none":
            raise UserError(f"--lr_anneal_steps {total} contradicts --lr_decay none; stop a run by --max_steps")
        if 0 < total <= self.warmup_steps:
            raise UserError(f"--warmup_steps {self.warmup_steps}: must be below --lr_anneal_steps {total}")
        return self

    @property
    def last_step(self):
        """The last optimizer step of the run."""
        return min(self.max_steps, self.lr_anneal_steps if self.lr_anneal_steps > 0 else self.max_steps)

    @property
    def ending_flags(self):
        """The flags that set `last_step`, as text: "--max_steps and --lr_anneal_steps". A longer run raises them."""
        names = ("max_steps", "lr_anneal_steps")
        return " and ".join(f"--{name}" for name in names if getattr(self, name) == self.last_step)

    def ema_rates(self):
        """`ema_rate` as a tuple of floats."""
        rates, flag = numbers("ema_rate", self.ema_rate, float), f"--ema_rate {shown(self.ema_rate)}"
        if not rates:
            raise UserError("--ema_rate: needs at least one rate, such as 0.9999")
        if not all(0 <= rate < 1 for rate in rates):
            raise UserError(f"{flag}: every rate must be at least 0 and below 1")
        if len(set(rates)) < len(rates):
            raise UserError(f"{flag}: names a rate twice; each rate has its own copy of the weights, so keep one")
        if len(rates) > MAX_RATES:
            raise UserError(f"{flag}: has {len(rates)} rates; {MAX_RATES} are the most: each has a copy of the weights")
        return rates
