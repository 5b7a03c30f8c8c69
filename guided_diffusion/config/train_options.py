"""The options of a training run."""

from dataclasses import dataclass, replace

from ..io.storage import join
from ..runtime.errors import UserError
from .options import numbers, option
from .recipe import RECIPES

OVERFIT_STEPS, OVERFIT_INTERVAL = 2000, 100


@dataclass(frozen=True)
class TrainOptions:
    """The training run."""

    recipe: str = option(
        "auto",
        "several flags in one word; explicit flags win. staged (v2): first the condition model learns as a plain "
        "U-Net, then a light diffusion on it, by cross-entropy and Bayes' rule. published (v1, v2): exactly as the "
        "published commands and code do it (eps, linear betas, learned sigma, ...). none: each flag's own default. "
        "auto: staged for v2 with --objective x0, else none",
        choices=("", "auto", "none", *RECIPES),  # "" is what none was called once
    )
    out_dir: str = option(
        "./results/",
        "folder for checkpoints and logs; on gs:// or az:// they are written there at each save and at the end",
        remote=True,
    )
    max_steps: int = option(100000, "stop after this many optimizer steps in all", above=0)
    max_minutes: float = option(
        0.0, "stop after this many minutes; a resumed run keeps the limit and counts anew; 0: none", minimum=0
    )
    batch_size: int = option(8, "images per optimizer step, of all processes together", above=0)
    microbatch: int = option(
        -1,
        "images per forward pass: gradients are summed over the parts of a process's share of the batch; -1: all at "
        "once",
    )
    lr: float = option(1e-4, "learning rate of AdamW", above=0)
    weight_decay: float = option(0.0, "weight decay of AdamW", minimum=0)
    lr_anneal_steps: int = option(
        0, "decay the learning rate to 0 over this many steps, and stop; 0: constant", minimum=0
    )
    lr_decay: str = option(
        "linear",
        "how the learning rate falls over --lr_anneal_steps: linear, cosine, or none (constant; no --lr_anneal_steps)",
        choices=("none", "linear", "cosine"),
    )
    warmup_steps: int = option(0, "steps over which the learning rate rises linearly, before it decays", minimum=0)
    grad_clip: float = option(
        0.0, "scale the gradient down to this norm, over all weights, where it is longer; 0: off", minimum=0
    )
    ema_rate: str = option(
        "0.9999", "decay of the averaged weights, or several as 0.99,0.9999; short runs warm up to it"
    )
    condition_steps: int = option(
        0,
        "v2: steps, from the first, in which the condition model learns alone, as a plain U-Net by --coarse_loss and "
        "Dice on the mean of the raters' masks; then it stays as it is, but for its last layer, and the diffusion "
        "learns on it. 0: both from the first; -1: 85 % of the run's steps, or of --max_minutes if they are over first",
        minimum=-1,
        needs={"version": ("v2",)},
    )
    second_stage_lr: float = option(
        1.0,
        "learning rate of the second stage of --condition_steps, in which few layers learn, in units of --lr",
        above=0,
        needs={"version": ("v2",)},
    )
    noise_draws: int = option(
        1,
        "time steps, noises and raters drawn for each image of a batch, which shares its condition",
        above=0,
        needs={"version": ("v1", "v2")},
    )
    dice_steps: int = option(
        300,
        "steps, from the first, in which Dice is added to --coarse_loss bce (for --version unet: to --mask_loss bce): "
        "small objects are found sooner, and the steps after them calibrate",
        minimum=0,
    )
    schedule_sampler: str = option(
        "uniform",
        "how training time steps are drawn: uniform, or loss-second-moment (more often where the loss is large)",
        choices=("uniform", "loss-second-moment"),
    )
    raters: str = option(
        "random",
        "what is learned where several raters marked an image: random (one rater's mask, drawn anew for each item) or "
        "mean (the mean of their masks, a soft target)",
        choices=("random", "mean"),
    )
    augment: str = option(
        "none",
        "change images and masks at random while training, within what the kind of data allows: light (mirror, rotate, "
        "scale, contrast), strong (more of it, elastic deformation, noise and blur) or none",
        choices=("none", "light", "strong"),
    )
    slices: str = option(
        "all",
        "which slices (or images) are trained on: all, nonempty (those in which anything is marked) or balanced (as "
        "many with as without, of the more numerous kind others in each epoch). Sampling always takes all",
        choices=("all", "nonempty", "balanced"),
    )
    crop: bool = option(
        False,
        "train on squares of --image_size cut at random from larger images, of which a third are around something that "
        "is marked, instead of on whole images made smaller; sampling such a checkpoint takes --tile True by itself",
    )
    orientation: str = option(
        "auto",
        "what images may look like, for --augment and for --symmetries of sampling: any (dermoscopy, microscopy, CT "
        "patches: turned and mirrored as one likes), upright (they have a top), or auto (as the loader says)",
        choices=("auto", "any", "upright"),
    )
    log_interval: int = option(50, "steps between lines of the log", above=0)
    save_interval: int = option(5000, "steps between checkpoints (one is also written at the end)", above=0)
    fsdp: bool = option(
        False,
        "split weights, gradients, averages and the optimizer's state among the processes, for networks that do not "
        "fit on one device (torch's FSDP2); --use_checkpoint True goes well with it. Checkpoints are the same files",
    )
    compile: bool = option(
        False,
        "compile the network by torch.compile: the first step takes minutes, the others less on a GPU; needs a C++ "
        "compiler. Not with --fsdp True",
    )
    keep_checkpoints: int = option(
        0,
        "keep only this many of the newest model*.pt; best.pt (by validation Dice) and last.pt always stay; 0: all",
        minimum=0,
    )
    sample_interval: int = option(
        1000,
        "steps between validations, one is also made at the end: a few fixed cases are sampled with the averaged "
        "weights, for Dice and a picture; 0: never. The weights that are learned do not depend on it",
        minimum=0,
    )
    val_cases: int = option(8, "cases that are sampled at each validation, the same ones, spread over all", above=0)
    val_dir: str = option(
        "",
        "folder of cases for validation, of the same kind as --data_dir; empty: those that are held out of training, "
        "or training cases where none are",
        remote=True,
    )
    overfit: int = option(
        0,
        "check that training works: learn this many cases by heart, without augmentation, dropout and stages, sample "
        "them, and say pass or fail (exit status 1). Stops as soon as it passes, else after 2000 steps or --max_steps; "
        "writes to overfit/ in --out_dir, and no checkpoint; 0: a usual training",
        minimum=0,
    )
    resume_checkpoint: str = option(
        "",
        "go on from this checkpoint; auto: from the newest in --out_dir, or from the start if there is none",
        remote=True,
    )
    dry_run: bool = option(
        False, "print the options as they are settled, the number of parameters and the data; write nothing"
    )
    seed: int = option(0, "seed of the weights, the noise and the order of the data", minimum=0)

    def resolve(self, given):
        """Check what a single bound cannot."""
        if self.microbatch == 0 or self.microbatch < -1:
            raise UserError(f"--microbatch {self.microbatch}: must be -1 or above 0")
        for rate in self.ema_rates():
            if not 0 <= rate < 1:
                raise UserError(f"--ema_rate {self.ema_rate}: every rate must be at least 0 and below 1")
        if self.compile and self.fsdp:
            raise UserError("--compile True does not go with --fsdp True, which gathers blocks anew; leave one out")
        return self._for_overfit(given) if self.overfit else self

    def _for_overfit(self, given):
        """What a check of training needs, whatever the run that is checked is to do."""
        if "sample_interval" in given and not self.sample_interval:
            raise UserError("--sample_interval 0: --overfit needs to sample; leave it out")
        return replace(
            self,
            augment="none",
            resume_checkpoint="",
            condition_steps=0,  # the diffusion is checked too, and from the first step
            out_dir=str(join(self.out_dir, "overfit")),
            max_steps=self.max_steps if {"max_steps", "max_minutes"} & given else OVERFIT_STEPS,
            sample_interval=self.sample_interval if "sample_interval" in given else OVERFIT_INTERVAL,
            val_cases=self.overfit,
            val_dir="",
        )

    def complete(self, given):
        """Check what the learning rate follows from."""
        total, alone = self.lr_anneal_steps, "lr_decay" in given and "lr_anneal_steps" not in given
        if not total and (self.lr_decay == "cosine" or (self.lr_decay == "linear" and alone)):
            raise UserError(f"--lr_decay {self.lr_decay}: needs --lr_anneal_steps, the steps over which it decays")
        if total and self.lr_decay == "none":
            raise UserError(f"--lr_anneal_steps {total} contradicts --lr_decay none; stop a run by --max_steps")
        if total and self.warmup_steps >= total:
            raise UserError(f"--warmup_steps {self.warmup_steps}: must be below --lr_anneal_steps {total}")
        return self

    @property
    def last_step(self):
        """The step after which the run is complete."""
        return min(self.max_steps, self.lr_anneal_steps or self.max_steps)

    @property
    def ending_flags(self):
        """The flags that say so, in words: to go on for longer each of them has to be larger."""
        names = ("max_steps", "lr_anneal_steps")
        return " and ".join(f"--{name}" for name in names if getattr(self, name) == self.last_step)

    def ema_rates(self):
        """`ema_rate` as a tuple of floats."""
        rates = numbers("ema_rate", self.ema_rate, float)
        if not rates:
            raise UserError("--ema_rate: needs at least one rate, such as 0.9999")
        return rates
