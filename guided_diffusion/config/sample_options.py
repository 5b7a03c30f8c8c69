"""The options of sampling, of evaluation and of the check of data."""

import math
from dataclasses import dataclass, replace

from ..runtime.errors import UserError
from .options import absolute_loader, check_group_key, numbers, option

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
