"""The options of sampling, evaluation and the check of data (see `config`)."""

import math
from dataclasses import dataclass, replace

from ..io.storage import join
from ..runtime.errors import UserError
from .options import absolute_loader, check_group_key, numbers, option
from .recipe import RECIPES

FUSE = ("staple", "mean", "vote")


@dataclass(frozen=True)
class SampleOptions:
    """What is sampled and how. The network and its diffusion come from the checkpoint."""

    model_path: str = option("", "checkpoint to sample from, also on gs:// or az://", required=True, remote=True)
    out_dir: str = option(
        "./results/", "results folder, also on gs:// or az://; finished cases in it are skipped", remote=True
    )
    split: str = option(
        "test",
        "which cases of the data are sampled: test (all where they are not divided), val (validation), train or all",
        choices=("test", "val", "train", "all"),
    )
    num_ensemble: int = option(5, "masks drawn for each image", above=0)
    num_samples: int = option(0, "sample only this many cases, the first; 0: all", minimum=0)
    sample_batch_size: str = option(
        "auto",
        "images x ensemble members in one pass of the network; auto: as many as suit the machine, fewer when memory "
        "runs out. Masks do not depend on it",
    )
    batch_size: int = option(
        0, "images read at once, split by --sample_batch_size; 0: as many as fit a pass", minimum=0
    )
    compile: bool = option(
        False, "compile the network by torch.compile: minutes of warm-up, which is reported, then faster steps on a GPU"
    )
    diffusion_steps: int = option(
        0,
        "number of steps through the checkpoint's schedule of T: T is full DDPM, fewer strided DDPM (or DDIM or "
        "DPM-Solver++ by the flags below); 0: 20 steps of DPM-Solver++",
        minimum=0,
    )
    sampler: str = option(
        "auto",
        "how the steps are taken; auto: as --use_ddim, --dpm_solver and --diffusion_steps say",
        choices=("auto", "ddpm", "ddim", "dpm_solver"),
    )
    use_ddim: bool = option(False, "take the steps by DDIM (50 steps unless --diffusion_steps says otherwise)")
    dpm_solver: bool = option(False, "take the steps by DPM-Solver++ (20 unless --diffusion_steps says otherwise)")
    solver_order: int = option(2, "order of DPM-Solver++, 1 to 3", minimum=1, maximum=3)
    timestep_respacing: str = option(
        "", "the same in one word: 50 (DDPM, 50 steps), ddim50, or 10,20,30 (steps in each third of the schedule)"
    )
    tile: bool = option(
        False,
        "predict images larger than --image_size in overlapping tiles of that size and blend them, instead of making "
        "images smaller and masks larger again. The network then sees the images' own scale: for checkpoints trained "
        "with --crop True, where it is the default",
    )
    tile_overlap: float = option(0.25, "overlap of neighbouring tiles in parts of their side", minimum=0, maximum=0.9)
    clip_denoised: bool = option(True, "clip the predicted mask to [-1, 1] at each step")
    symmetries: str = option(
        "auto",
        "members see the image turned and mirrored, each another way by turns, which is encoded once for each: all "
        "(eight), none, or auto (all where the checkpoint was trained with --augment on images of any --orientation). "
        "For a plain U-Net, which has one member, all gives the mean over them; auto is none",
        choices=("auto", "all", "none"),
    )
    scales: str = option(
        "auto",
        "the coarse mask is the mean over the image at these scales too, as 0.9,1.1, which makes it less sure where "
        "it is wrong; none: at its own scale alone; auto: 0.9,1.1 where the checkpoint was trained with --augment. For "
        "a plain U-Net its answer is that mean; auto is none",
    )
    coupling: str = option(
        "auto",
        "whose probability the members have at each pixel: own, or coarse (that of the condition branch's mask; the "
        "diffusion decides which members have the pixel, so how pixels go together); auto: coarse for checkpoints "
        "trained in stages (--condition_steps), whose coarse mask was trained for that, else own",
        choices=("auto", "own", "coarse"),
    )
    coupling_sigma: float = option(
        1 / 64,
        "with --coupling coarse: by how large a neighbourhood members are ranked at each pixel, the standard deviation "
        "of a Gaussian in parts of the network's side; larger: smoother outlines, members more alike; 0: each pixel by "
        "itself",
        minimum=0,
        maximum=1,
    )
    fuse: str = option(
        "auto",
        "how members become one mask: staple (Warfield's EM), mean of their soft masks, vote of those cut at 0.5, or "
        "auto (mean where --coupling is coarse, else staple)",
        choices=("auto", *FUSE),
    )
    temperature: float = option(
        0.0,
        "temperature T of the probability, sigmoid(logit(p) / T), which changes no mask; 0: the checkpoint's, as "
        "segmentation_eval.py --fit_temperature fitted it, or 1",
        minimum=0,
    )
    weights: str = option(
        "ema", "weights to use: ema (the first rate trained with), model (not averaged), or a rate such as 0.999"
    )
    save_samples: bool = option(False, "also write every member's mask and the coarse mask")
    uncertainty_maps: bool = option(
        False, "also write each pixel's variance, entropy and mutual information over the members, 16 bit"
    )
    debug: bool = option(False, "also write an animation of the denoising, debug/NAME.gif")
    seed: int = option(0, "seed of the noise; a result depends on it, the case's name and the member alone", minimum=0)

    def resolve(self, given):
        """Check what a single bound cannot."""
        if self.sample_batch_size != "auto" and not (self.sample_batch_size.isdigit() and int(self.sample_batch_size)):
            raise UserError(f"--sample_batch_size {self.sample_batch_size}: must be auto or a number above 0")
        self.other_scales()
        return self

    def other_scales(self):
        """--scales as numbers; none of auto."""
        scales = () if self.scales in ("auto", "none") else numbers("scales", self.scales, float)
        if not all(0.5 <= scale <= 2 and scale != 1 for scale in scales):
            raise UserError(f"--scales {self.scales}: must be auto, none, or numbers from 0.5 to 2 other than 1")
        return scales


@dataclass(frozen=True)
class EvalOptions:
    """What is evaluated."""

    pred_dir: str = option(
        "",
        "results folder of segmentation_sample.py, or any folder of masks named like the cases (NAME.png, "
        "NAME_mask.png, NAME_seg.nii.gz, ...), also on gs:// or az://",
        required=True,
        remote=True,
    )
    data_name: str = option("", "kind of data that holds the truth; empty: as the results folder's manifest says")
    data_dir: str = option("", "folder that holds the truth; empty: as the results folder's manifest says", remote=True)
    split: str = option(
        "",
        "which cases of that folder are scored: test, val, train or all; empty: those that were sampled, as the "
        "results folder's manifest says, also of another --data_dir, else test",
        choices=("", "test", "val", "train", "all"),
    )
    group_key: str = option(
        "",
        "regular expression that finds the patient in the names of cases, as '^(P[0-9]+)', to count patients in "
        "intervals and comparisons; empty: as the results folder's manifest says, else as the loader does",
    )
    classes: str = option(
        "",
        "classes to score in label maps, as in training: liver=1,tumour=2, WT=1+2+4,TC=1+4,ET=4, regions, labels or "
        "auto; they may be others than were trained; empty: as the results folder's manifest says",
    )
    out_dir: str = option(
        "", "folder for metrics.csv, summary.json and curves.json; empty: the results folder", remote=True
    )
    nsd_tolerance: str = option(
        "1,2",
        "distances within which two surfaces count as the same in the normalised surface Dice: one or several, in mm "
        "where the voxel size is known, else in pixels",
    )
    ensemble_curve: bool = option(
        False,
        "also tell how the ensemble's Dice grows with its size, 1 to all members: a table and, in report.html, a plot; "
        "needs --save_samples True in sampling",
    )
    compare: str = option(
        "",
        "results folder of another run on the same cases: gives the paired differences of figures with their intervals "
        "and Wilcoxon's p",
        remote=True,
    )
    card: bool = option(
        False, "also write model_card.md: data, configuration, metrics with intervals, calibration, limits, citation"
    )
    fit_temperature: str = option(
        "",
        "checkpoint that made these results: the temperature of least log loss on them goes into that file, and "
        "sampling applies it to probabilities; use results of validation cases (segmentation_sample.py --split val)",
    )
    lesion_iou: float = option(
        0.1,
        "least IoU of a predicted and a true connected component that counts as a lesion found",
        above=0,
        maximum=1,
    )

    def resolve(self, given):
        """Check what a single bound cannot."""
        check_group_key(self.group_key)
        if not self.tolerances() or not all(0 <= tolerance < math.inf for tolerance in self.tolerances()):
            raise UserError(f"--nsd_tolerance {self.nsd_tolerance}: must be distances of 0 or more, such as 1,2")
        return self

    def tolerances(self):
        """--nsd_tolerance as numbers, each once, in their order."""
        return tuple(dict.fromkeys(numbers("nsd_tolerance", self.nsd_tolerance, float)))


@dataclass(frozen=True)
class CheckOptions:
    """What is checked."""

    data_name: str = option(
        "AUTO",
        "kind of data: AUTO (what the folder looks like), BRATS, ISIC, LIDC, MSD, FOLDER, a name that an installed "
        "package registers, or path/to/my_loader.py:MyDataset",
    )
    out_dir: str = option("data_check", "folder for contact_sheet.png")
    num_shown: int = option(32, "cases of each split that the contact sheet shows, spread over it", above=0)

    def resolve(self, given):
        """The path of a loader becomes absolute."""
        return replace(self, data_name=absolute_loader(self.data_name))


# ---- The options of a training run (see `config`) -------------------------------------------------------------------


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
