"""The options of sampling, of evaluation and of the check of data."""

import re
from dataclasses import dataclass

from ..io.texts import shown
from ..runtime.errors import UserError
from .fields import option
from .options import (
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS_OF_NOISE,
    NOISE_REASON,
    SEED_REASON,
    ModelOptions,
    check_group_key,
    threads_option,
)
from .train_options import BATCH_REASON, MAX_BATCH
from .values import numbers

MAX_TEMPERATURE = 1000
MAX_TOLERANCE = 10_000  # of --nsd_tolerance, in mm or pixels
FUSE = ("staple", "mean", "vote")


@dataclass(frozen=True)
class SampleOptions:
    """Sampling. The network and its diffusion come from the checkpoint."""

    model_path: str = option(
        "",
        "checkpoint, run's folder (best.pt, else last.pt), exported model or hf://OWNER/NAME; also on gs:// or az://. "
        "Several, A,B,C, share the members; the mean of their probabilities is the answer",
        required=True,
        remote=True,
        hub=True,
        several=True,
    )
    out_dir: str = option(
        "./results/", "results folder, also on gs:// or az://; cases that are finished in it are skipped", remote=True
    )
    split: str = option(
        "test",
        "cases to sample: test (all cases of data without a division), val (validation), train or all",
        choices=("test", "val", "train", "all"),
    )
    num_ensemble: int = option(
        0,
        "members of the ensemble: masks drawn for each image by the diffusion. 0: for a V2 that was trained in stages "
        "the condition model answers in one pass, without the diffusion; other checkpoints draw 5",
        minimum=0,
        maximum=10_000,
        why="all members of an image are in memory at once",
        shown="by the checkpoint",
    )
    num_samples: int = option(
        0, "sample only the first N cases; 0: all", minimum=0, maximum=10**9, why="no data set has as many; 0 means all"
    )
    sample_batch_size: str = option(
        "auto",
        "images x ensemble members in one pass of the network; auto: as many as suit the machine, fewer when memory "
        "runs out. Masks do not depend on it",
    )
    batch_size: int = option(
        0,
        "images read at once; --sample_batch_size divides them into passes. 0: as many as fit one pass",
        minimum=0,
        maximum=MAX_BATCH,
        why=BATCH_REASON,
    )
    compile: bool = option(
        False, "compile the network with torch.compile: minutes of warm-up, then faster steps on a GPU"
    )
    diffusion_steps: int = option(
        0,
        "number of sampling steps. Alone it means the default sampler, for checkpoints that predict eps or v strided "
        "DDPM; with --dpm_solver True DPM-Solver++. At most T, the steps of the checkpoint's schedule. 0: 10 of "
        "bernoulli, 20 of DPM-Solver++, 50 of DDIM, T of DDPM",
        minimum=0,
        maximum=MAX_STEPS_OF_NOISE,
        why=NOISE_REASON,
    )
    sampler: str = option(
        "auto",
        "sampling method. bernoulli draws the clean mask at each step, which keeps the network's probabilities; auto: "
        "bernoulli for checkpoints that predict x0, else DPM-Solver++, or DDPM with --diffusion_steps alone",
        choices=("auto", "bernoulli", "ddpm", "ddim", "dpm_solver"),
    )
    use_ddim: bool = option(False, "sample with DDIM, in 50 steps unless --diffusion_steps is given")
    dpm_solver: bool = option(False, "sample with DPM-Solver++, in 20 steps unless --diffusion_steps is given")
    solver_order: int = option(2, "order of DPM-Solver++, 1 to 3", minimum=1, maximum=3)
    timestep_respacing: str = option(
        "",
        "method and steps in one word: 50 (DDPM, 50 steps), ddim50, or 10,20,30 (steps in each third of the schedule)",
    )
    tile: bool = option(
        False,
        "predict images larger than --image_size in overlapping tiles of that size and blend them, instead of "
        "resizing images. The network then sees images at their own scale, as in training on squares cut from larger "
        "images",
        shown="as the checkpoint was trained",
    )
    tile_overlap: float = option(
        0.25, "overlap of neighbouring tiles as a fraction of their side", minimum=0, maximum=0.9
    )
    clip_denoised: bool = option(True, "clip the predicted mask to [-1, 1] at each step")
    symmetries: str = option(
        "auto",
        "test-time augmentation. all: members take turns over the image's eight rotations and mirror images; none: all "
        "see it as it is. auto: all if training augmented images without a top, such as dermoscopy, else none. "
        "A plain U-Net's mask is the mean over the eight; its auto is none",
        choices=("auto", "all", "none"),
    )
    scales: str = option(
        "auto",
        "test-time augmentation: the coarse mask is the mean over the image at its own and at these scales, as "
        "0.9,1.1, which makes it less confident where it is wrong. none: its own scale only; auto: 0.9,1.1 if the "
        "checkpoint was trained with --augment. A plain U-Net's mask is that mean; its auto is none",
    )
    fuse: str = option(
        "auto",
        "how members become one mask: staple (Warfield's EM), mean (of the soft masks) or vote (of the masks cut at "
        "0.5). auto: mean with --sampler bernoulli, else staple",
        choices=("auto", *FUSE),
    )
    temperature: float = option(
        0.0,
        "temperature T of the probability map, sigmoid(logit(p) / T); masks do not change. 0: the checkpoint's, "
        "fitted by --fit_temperature of the evaluation, or 1",
        minimum=0,
        maximum=MAX_TEMPERATURE,
        why="every probability is 0.5 then",
    )
    threshold: str = option(
        "0.5",
        "probability above which a pixel is foreground, or one for each class. guaranteed: the checkpoint's, "
        "fitted by --fit_threshold of the evaluation, by which at most a given share of lesion pixels is missed on "
        "average. Other than 0.5 it cuts the members' mean",
    )
    fill_holes: str = option(
        "auto",
        "fill the holes in the fused mask: True, False, or the names of the classes. auto: as fitted for the "
        "checkpoint by --fit_cleanup of the evaluation, else False",
        alone="True",
    )
    keep_largest: str = option(
        "auto",
        "then keep only the largest connected component of the fused mask, in volumes in 3-D; values as of "
        "--fill_holes",
        alone="True",
    )
    min_size: str = option(
        "auto",
        "last, remove connected components of fewer pixels, or voxels, of the input: one number, or one for each "
        "class. auto: as fitted for the checkpoint, else 0",
    )
    weights: str = option(
        "ema",
        "weights to use: ema (the first averaging rate of training), model (not averaged), or a rate such as 0.999",
    )
    save_samples: bool = option(False, "also write each member's mask and the coarse mask")
    uncertainty_maps: bool = option(
        False,
        "also write the variance, the entropy and the mutual information of the members at each pixel, in 16 bits. Of "
        "several checkpoints also data_entropy, the part of the entropy that is due to the data",
    )
    debug: bool = option(False, "also write an animation of the denoising, debug/NAME.gif")
    seed: int = option(
        0,
        "seed of the noise. A result depends only on it, on the name of the case or volume and on the member's number",
        minimum=0,
        maximum=MAX_SEED,
        why=SEED_REASON,
    )

    def resolve(self, given):
        """Check values that a single bound cannot."""
        size = self.sample_batch_size
        if size != "auto" and not (re.fullmatch("0*[1-9][0-9]{0,9}", size) and int(size) <= MAX_BATCH):
            raise UserError(
                f"--sample_batch_size {shown(size)}: must be auto or a number above 0, at most {MAX_BATCH}: "
                f"{BATCH_REASON}"
            )
        if 0 < self.temperature < 1 / MAX_TEMPERATURE:
            raise UserError(f"--temperature {self.temperature:g}: must be 0 or at least {1 / MAX_TEMPERATURE:g}")
        self.other_scales()
        return self

    def other_scales(self):
        """`scales` as a tuple of floats; empty for auto and none."""
        scales = () if self.scales in ("auto", "none") else numbers("scales", self.scales, float)
        if not all(0.5 <= scale <= 2 and scale != 1 for scale in scales):
            raise UserError(f"--scales {shown(self.scales)}: must be auto, none, or numbers from 0.5 to 2 other than 1")
        if len(set(scales)) < len(scales):
            raise UserError(f"--scales {shown(self.scales)}: names a scale twice, which would count twice; keep one")
        return scales


@dataclass(frozen=True)
class EvalOptions:
    """Evaluation."""

    pred_dir: str = option(
        "",
        "results folder of sampling, or a folder of masks named like the cases (NAME.png, "
        "NAME_mask.png, NAME_seg.nii.gz, ...), also on gs:// or az://. Several, A,B,C, as of the folds of a "
        "cross-validation, are evaluated as one",
        required=True,
        remote=True,
        several=True,
    )
    data_name: str = option("", "kind of data that holds the truth; empty: from the results folder's manifest")
    data_dir: str = option("", "folder that holds the truth; empty: from the results folder's manifest", remote=True)
    split: str = option(
        "",
        "cases of --data_dir to score: test, val, train or all; empty: the split in the results folder's manifest, "
        "also for another --data_dir, else test",
        choices=("", "test", "val", "train", "all"),
    )
    group_key: str = option(
        "",
        "regular expression that finds the patient in a case's name, as '^(P[0-9]+)', so that intervals and "
        "comparisons count patients; empty: from the results folder's manifest, else the loader's",
    )
    classes: str = option(
        "",
        "classes to score in label maps: liver=1,tumour=2, WT=1+2+4,TC=1+4,ET=4, regions, labels or auto, as in "
        "training. They need not be the trained ones; empty: from the results folder's manifest",
    )
    ignore_label: str = option(
        "",
        "label values of pixels without truth, which count in no figure; empty: from the results folder's manifest",
    )
    max_megapixels: float = option(
        0.0,
        "pictures with more million pixels are refused; 0: as when sampling, by default 179",
        minimum=0,
        maximum=1_000_000,
        why="a million megapixels are a terabyte",
    )
    num_workers: int = option(
        2, "processes that share the cases; 0: the main process evaluates them; figures do not depend on it", minimum=0
    )
    threads: int = threads_option()
    out_dir: str = option(
        "", "folder for metrics.csv, summary.json and curves.json; empty: the results folder", remote=True
    )
    nsd_tolerance: str = option(
        "1,2",
        "distances within which surfaces agree in the normalised surface Dice, one or several; in mm if the voxel "
        "size is known, else in pixels",
    )
    ensemble_curve: bool = option(
        False,
        "also show how the ensemble's Dice grows with its size, from 1 to all members, as a table and as a plot in "
        "report.html; needs --save_samples True in sampling",
    )
    copula_length: float = option(
        0.0,
        "also compare with masks of a Gaussian copula of this correlation length in pixels, drawn from the probability "
        "alone; fit the length on training cases; 0: without",
        minimum=0,
        maximum=100_000,
        why="no image is as wide",
    )
    topology: bool = option(
        False,
        "also compare the topology of the mask and of up to 8 members with the truth's: clDice, Betti errors, "
        "variation of information",
    )
    compare: str = option(
        "",
        "results folder of another run on the same cases: print the paired differences of the figures, their "
        "intervals and Wilcoxon's p. With several folders in --pred_dir name as many here, in the same "
        "order",
        remote=True,
        several=True,
    )
    card: bool = option(
        False, "also write model_card.md: data, configuration, metrics with intervals, calibration, limits, citation"
    )
    fit_temperature: str = option(
        "",
        "checkpoint that made these results, or its run's folder: find the temperature of the least log loss and store "
        "it in that file; sampling then applies it to the probability. Use results of validation cases (sampled with "
        "--split val)",
        path=True,
    )
    fit_cleanup: str = option(
        "",
        "the same for --fill_holes, --keep_largest and --min_size: what raises the Dice of a class is stored, and "
        "sampling then applies it",
        path=True,
    )
    fit_threshold: str = option(
        "",
        "the same for the highest threshold by which at most --max_misses of lesion pixels are missed on average "
        "(conformal risk control); sampling takes it with --threshold guaranteed",
        path=True,
    )
    max_misses: float = option(
        0.1,
        "share of a patient's lesion pixels that may be missed on average by the threshold of --fit_threshold",
        above=0,
        maximum=0.9,
    )
    lesion_iou: float = option(
        0.1,
        "least IoU of a predicted and a true connected component for the lesion to count as found",
        above=0,
        maximum=1,
    )

    def resolve(self, given):
        """Check values that a single bound cannot."""
        check_group_key(self.group_key)
        if not self.tolerances():
            raise UserError("--nsd_tolerance: must be distances of 0 or more, such as 1,2")
        return self

    def tolerances(self):
        """`nsd_tolerance` as a tuple of different floats, in the order given."""
        return tuple(dict.fromkeys(numbers("nsd_tolerance", self.nsd_tolerance, float, 0, MAX_TOLERANCE)))


@dataclass(frozen=True)
class CheckOptions:
    """The check of data."""

    out_dir: str = option("data_check", "folder for contact_sheet.png", path=True)
    num_shown: int = option(
        32,
        "cases of each split that the contact sheet shows, spread over the split",
        above=0,
        maximum=10_000,
        why="the sheet is one picture",
    )
    image_size: int = option(
        ModelOptions.image_size,
        "--image_size of the network to train: the table shows the Dice of the masks with themselves, shrunk to it and "
        "enlarged again",
        above=0,
        maximum=MAX_SIDE,
        why="images are resized to it",
    )
