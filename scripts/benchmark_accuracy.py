"""Accuracy at equal time: train every contender for the same minutes on fixed splits, sample, evaluate, and tabulate.

Each finished run is one JSON line of --record, so the table can be built up over several sittings: runs that have
their line are not done again, and a run that was stopped goes on from its last checkpoint.
"""

import csv
import json
import math
import platform
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import segmentation_sample
import segmentation_train
import torch

from guided_diffusion.accuracy_table import write_tables
from guided_diffusion.batches import training_batches
from guided_diffusion.benchmark import cpu_facts
from guided_diffusion.checkpoint import checkpoint_path
from guided_diffusion.command_line import parse
from guided_diffusion.config import DataOptions, DeviceOptions, DiffusionOptions, ModelOptions, option
from guided_diffusion.custom_dataset_loader import FolderDataset
from guided_diffusion.data import build_dataset
from guided_diffusion.dist_util import keep_freed_memory, pick_device, pick_precision
from guided_diffusion.errors import UserError, run_script
from guided_diffusion.files import atomic_path, check_writable, read_json
from guided_diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.lidcloader import LIDCDataset
from guided_diffusion.logger import console
from guided_diffusion.medsegdiff import build_model
from guided_diffusion.stages import CONDITION_SHARE
from guided_diffusion.train_options import TrainOptions
from guided_diffusion.train_util import TrainLoop

# The same for all: the size of the network, and what a trainer of any network would set.
SIZE = (
    "--image_size 128 --patch_size 2 --num_channels 16 --channel_mult 1,2,4,8 --num_res_blocks 1 "
    "--attention_resolutions 16"
)
OF_64 = "--image_size 64 --patch_size 1"  # as published; its first level, and so its time, is of the same size
TRAINING = "--dropout 0.1 --batch_size 8 --lr 1e-3 --augment light --orientation any --val_fraction 0"
CONTENDERS = {  # lr_anneal_steps is set to the number of steps, except as published
    "unet": "--version unet --mask_loss bce_dice",
    "unet_mse": "--version unet --mask_loss mse",
    "unet_bce": "--version unet --mask_loss bce",
    "unet_64": f"--version unet --mask_loss bce_dice {OF_64}",
    "v1_published": f"--version v1 --recipe published {OF_64}",
    "v2_published": f"--version v2 --recipe published {OF_64}",
    "v2": "--version v2 --recipe staged --condition_steps 85%",
}
SAMPLING = {
    "ph2": "--num_ensemble 8 --diffusion_steps 5 --dpm_solver True",
    "lidc4": "--num_ensemble 16 --diffusion_steps 5 --dpm_solver True",
}
KINDS = {"ph2": "FOLDER", "lidc4": "LIDC"}
ABLATIONS = {  # of v2: what each part of the recipe brings
    "v2_no_stages": "--condition_steps 0",
    "v2_border_1": "--border_weight 1",
    "v2_border_50": "--border_weight 50",
    "v2_one_lr_no_border": "--border_weight 1 --second_stage_lr 1",
    "v2_one_lr": "--second_stage_lr 1",
    "v2_no_skip": "--logit_skip none",
    "v2_skip_noise": "--logit_skip noise",
    "v2_bce_dice": "--mask_loss bce_dice",
    "v2_tanh_mse": "--mask_loss mse --coarse_loss bce",
    "v2_v": "--objective v --coarse_loss bce",
    "v2_coarse_mse": "--coarse_loss mse",
    "v2_coarse_dice": "--coarse_loss bce_dice",
    "v2_min_snr": "--loss_weighting min_snr",
    "v2_loss_timesteps": "--schedule_sampler loss-second-moment",
    "v2_self_condition": "--self_condition True",
    "v2_own_predictions": "--own_predictions 0.5",
    "v2_b_0.1": "--input_scale 0.1",
    "v2_one_draw": "--noise_draws 1",
    "v2_level_0": "--diffusion_level 0",
    "v2_full_width": "--diffusion_channels 0",
    "v2_no_features": "--concat_features False",
    "v2_no_augment": "--augment none",
    "v2_add": "--ss_former add",
}
CONTENDERS |= {name: f"{CONTENDERS['v2']} {flags}" for name, flags in ABLATIONS.items()}
SAMPLED = {  # whose weights, and how they are sampled otherwise than by SAMPLING
    "v1_published": ("v1_published", "--diffusion_steps 20"),  # eps takes more steps
    "v2_published": ("v2_published", "--diffusion_steps 20"),
    "unet_looks": ("unet", "--symmetries all --scales 0.9,1.1"),
    "v2_own": ("v2", "--coupling own"),
    "v2_by_pixel": ("v2", "--coupling_sigma 0"),
    "v2_no_scales": ("v2", "--scales none"),
    "v2_one_look": ("v2", "--scales none --symmetries none"),
    "v2_20_steps": ("v2", "--diffusion_steps 20"),
    "v2_no_average": ("v2", "--weights model"),
    "v2_from_coarse": ("v2", "--begin_at 0.5"),
    "v2_own_from_coarse": ("v2", "--coupling own --begin_at 0.5"),
    "v1_from_coarse": ("v1_published", "--diffusion_steps 10 --begin_at 0.25"),
}
CONTENDERS |= {name: CONTENDERS[trained] for name, (trained, _) in SAMPLED.items()}
AS_FAST_AS = {"unet_mse": "unet", "unet_bce": "unet", "unet_64": "unet"}  # another loss or grid: measured as one
AS_FAST_AS |= dict.fromkeys(("v2_border_1", "v2_border_50", "v2_one_lr_no_border", "v2_one_lr"), "v2")
AS_FAST_AS |= dict.fromkeys(("v2_coarse_mse", "v2_coarse_dice", "v2_min_snr", "v2_loss_timesteps"), "v2")
# These differ from the recipe in what the diffusion learns alone: with as many steps their first stage is the recipe's
# to the bit, and so is the coarse mask but for its last layer, beside whose chance their effect would not be seen.
SAME_NETWORK = ("v2_no_skip", "v2_skip_noise", "v2_b_0.1", "v2_tanh_mse", "v2_v", "v2_own_predictions")
AS_FAST_AS |= dict.fromkeys(SAME_NETWORK, "v2")
AS_FAST_AS |= {name: trained for name, (trained, _) in SAMPLED.items()}
MEASURED_STEPS = 11
FIGURES = {  # of summary.json
    "dice": ("ensemble", "dice", "mean"),
    "iou": ("ensemble", "iou", "mean"),
    "sample_dice": ("sample", "mean"),
    "sample_iou": ("sample_iou", "mean"),
    "coarse_dice": ("coarse", "mean"),
    "coarse_iou": ("coarse_iou", "mean"),
    "ece_band": ("calibration", "ece_band"),
    "ece": ("calibration", "ece"),
    "brier_band": ("calibration", "brier_band"),
    "coarse_ece_band": ("calibration", "coarse_ece_band"),
    "ged2": ("diversity", "ged2", "mean"),
    "matched_iou": ("diversity", "matched_iou", "mean"),
    "rater_dice": ("diversity", "rater_dice", "mean"),
}
PER_CASE = ("dice", "sample_dice", "coarse_dice", "ged2", "matched_iou")


@dataclass
class AccuracyOptions:
    """The comparison."""

    out_dir: str = option("./runs/accuracy/", "folder for checkpoints and results; may be deleted when all is recorded")
    record: str = option("docs/accuracy.jsonl", "file of one JSON line per finished run")
    ph2_dir: str = option("../shared/data/ph2", "dermoscopic images: a folder that --data_name FOLDER reads")
    lidc4_dir: str = option("../shared/data/lidc4", "lung nodules: a folder that --data_name LIDC reads")
    sets: str = option("ph2,lidc4", "which data sets, separated by commas")
    contenders: str = option(
        "unet,unet_mse,v1_published,v2_published,v2",
        f"which of {', '.join(CONTENDERS)}, separated by commas; or, separated by semicolons, also NAME=flags, "
        "contenders of your own",
    )
    seeds: str = option("0,1", "seeds of the runs, separated by commas")
    split: str = option(
        "test",
        "what is reported on: test, or tuning (train on three quarters of the training split, report on the fourth)",
        choices=("test", "tuning"),
    )
    minutes: float = option(12.0, "minutes of training each run is given", above=0)
    threads: int = option(0, "CPU threads of the network; 0: as torch chooses", minimum=0)
    size: str = option(SIZE, "flags of the network's size, the same for all contenders")
    sampling: str = option("", "more flags of sampling, the same for all contenders")
    measure: bool = option(False, "measure the seconds per step anew, though --record has them for this machine")
    table: bool = option(False, "only write the tables of what --record has")


def main(argv=None):
    """Do the runs that have no line yet, and write the tables beside the record."""
    (options,), _ = parse(__doc__, [AccuracyOptions], argv)
    sets, contenders, seeds = chosen(options)
    check_writable(Path(options.record).parent)
    if not options.table:
        keep_freed_memory()
        if options.threads:
            torch.set_num_threads(options.threads)
        for name in sets:
            steps = steps_of(options, name, contenders)
            for seed in seeds:
                for contender, flags in contenders.items():
                    run(options, name, contender, flags, seed, steps[contender])
    path = Path(options.record).with_suffix(".md")
    console().info(write_tables(records(options.record), path))
    console().info(f"written: {path}")


def chosen(options):
    """The data sets, {contender: flags} and seeds asked for."""
    sets = options.sets.split(",")
    for name in sets:
        if name not in KINDS:
            raise UserError(f"--sets {options.sets}: {name!r} is none of {', '.join(KINDS)}")
    contenders = {}
    for word in options.contenders.split(";" if "=" in options.contenders else ","):
        name, own, flags = word.strip().partition("=")
        if not own and name not in CONTENDERS:
            raise UserError(f"--contenders: {name!r} is none of {', '.join(CONTENDERS)}; write NAME=flags for your own")
        contenders[name] = flags if own else CONTENDERS[name]
    try:
        seeds = [int(part) for part in options.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {options.seeds}: must be whole numbers separated by commas") from None
    return sets, contenders, seeds


# ---- what the runs are given ---------------------------------------------------------------------------------------


def steps_of(options, name, contenders):
    """{contender: optimizer steps} that fit the minutes, by the seconds a step takes on this machine.

    The seconds are measured by turns, so that other work on the machine slows all alike, and recorded once: a later
    sitting on the same kind of machine takes the same steps. Contenders that come later are measured by turns with the
    recipe, where its seconds are known, and scaled by it to the machine as it was then.
    """
    measured_as = {contender: AS_FAST_AS.get(contender, contender) for contender in contenders}
    flags = {twin: trained_with(options, CONTENDERS.get(twin, contenders.get(twin))) for twin in measured_as.values()}
    flags |= {own: trained_with(options, contenders[own]) for own in set(contenders) & set(flags)}
    known = {}
    for line in records(options.record):
        if line["kind"] == "speed" and line["machine"] == machine(options) and line["set"] == name:
            known[line["contender"], line["flags"]] = line["seconds_per_step"]
    lacking = {twin: words for twin, words in flags.items() if options.measure or (twin, words) not in known}
    known |= measured(options, name, lacking, known) if lacking else {}
    return {c: max(1, int(options.minutes * 60 / known[twin, flags[twin]])) for c, twin in measured_as.items()}


def measured(options, name, lacking, known):
    """{(contender, flags): seconds of a step} of those in `lacking`, {contender: flags}, which are recorded.

    known: those that are known. With the recipe among them, which is then measured too, they are scaled by it.
    """
    recipe = "v2", trained_with(options, CONTENDERS["v2"])
    is_scaled = recipe in known and not options.measure
    seconds = measure(options, name, lacking | ({"v2": recipe[1]} if is_scaled else {}))
    scale, found = known[recipe] / seconds["v2"] if is_scaled else 1.0, {}
    for contender, flags in lacking.items():
        found[contender, flags] = seconds[contender] * scale
        line = {"kind": "speed", "set": name, "contender": contender, "flags": flags, "machine": machine(options)}
        line["seconds_per_step"] = found[contender, flags]
        append(options.record, line | ({"scaled_by": "v2, measured in the same turns"} if is_scaled else {}))
    return found


def measure(options, name, flags):
    """{contender: seconds of a training step, reading included}: medians of `MEASURED_STEPS` turns, the first aside.

    flags: {contender: all flags of its training}.
    """
    console().info(f"=== {name}: seconds of a training step, measured by turns")
    loops = {contender: loop_of(options, name, words) for contender, words in flags.items()}
    seconds = {contender: [] for contender in flags}
    for turn in range(MEASURED_STEPS + 1):
        for contender, (loop, batches) in loops.items():
            share, took = CONDITION_SHARE if loop.options.condition_steps else 0, 0
            for loop.step, weight in ((0, share), (1, 1 - share)):  # the stage of the condition model, and the other
                if weight:
                    began = time.perf_counter()
                    loop.train_step(next(batches))
                    took += weight * (time.perf_counter() - began)
            if turn:
                seconds[contender].append(took)
    for contender, values in seconds.items():
        console().info(f"{contender}: {np.median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")
    return {contender: float(np.median(values)) for contender, values in seconds.items()}


def loop_of(options, name, flags):
    """A `TrainLoop` as the training script builds it, and its batches, read in this process."""
    groups = [DataOptions, TrainOptions, ModelOptions, DiffusionOptions, DeviceOptions]
    (_, train, model_options, diffusion_options, device_options), _ = parse(
        __doc__, groups, shlex.split(in_steps(flags, 1))
    )
    dataset = build_dataset(*data_of(options, name), model_options.image_size, split="train", need_masks=True)
    device = pick_device(device_options.gpu_dev)
    model = build_model(model_options, dataset.image_channels, len(dataset.class_names)).to(device)
    precision = pick_precision(device_options.precision, device)
    loop = TrainLoop(
        model, build_diffusion(diffusion_options), dataset, train, config={}, device=device, precision=precision
    )
    return loop, training_batches(dataset, train.batch_size, seed=0, augment=train.augment)


def trained_with(options, flags):
    """The flags of a contender's training, later ones winning over earlier ones."""
    common = "" if "--recipe published" in flags else TRAINING
    return " ".join(f"{common} {options.size} {flags}".split())


def in_steps(flags, steps):
    """The flags with the share of the steps that is the condition model's, "85%", as a number of at least 1."""
    return flags.replace(f"{CONDITION_SHARE:.0%}", str(max(1, round(CONDITION_SHARE * steps))))


def data_of(options, name):
    """--data_name and --data_dir of a set."""
    kind = KINDS[name] if options.split == "test" else f"{Path(__file__).resolve()}:Tuning{KINDS[name]}"
    return kind, getattr(options, f"{name}_dir")


def machine(options):
    """What the times belong to, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    precision = pick_precision("auto", torch.device("cpu"))
    return f"{cpu_name()}, {torch.get_num_threads()} threads, {precision}"


def cpu_name():
    """The processor's name, as the system tells it."""
    facts = cpu_facts()
    if not facts:
        return platform.processor() or platform.machine()
    return f"{facts.get('model name', platform.machine())} (family {facts.get('cpu family')}, {facts.get('model')})"


# ---- one run -------------------------------------------------------------------------------------------------------


def run(options, name, contender, flags, seed, steps):
    """Train, sample and evaluate one contender, unless its line is there; append the line. One that has the weights of
    another (see `SAMPLED`) goes on with the other's finished training, whose seconds its line then lacks."""
    trained, otherwise = SAMPLED.get(contender, (contender, ""))
    flags = trained_with(options, flags)
    sampling = " ".join(f"{SAMPLING[name]} {options.sampling} {otherwise}".split())
    what = {"kind": "run", "split": options.split, "set": name, "contender": contender, "seed": seed}
    what |= {"minutes": options.minutes, "steps": steps, "flags": flags, "sampling": sampling}
    if any(all(line.get(key) == value for key, value in what.items()) for line in records(options.record)):
        console().info(f"=== {name}, {contender}, seed {seed}: done before")
        return
    console().info(f"\n=== {name}, {contender}, seed {seed}: {steps} steps")
    folder = Path(options.out_dir) / f"{options.split}_{name}_{trained}_{seed}_{steps}"
    kind, data_dir = data_of(options, name)
    where = ["--data_name", kind, "--data_dir", data_dir, "--num_workers", "1"]
    decay = [] if "--recipe published" in flags else ["--lr_anneal_steps", str(steps)]
    words = [*where, "--out_dir", str(folder), "--seed", str(seed), "--max_steps", str(steps)]
    words += shlex.split(in_steps(flags, steps))
    began, used = time.perf_counter(), time.process_time()
    resume = ["--resume_checkpoint", "auto", "--save_interval", "100", "--sample_interval", "0"]
    segmentation_train.main([*words, *decay, *resume])
    seconds, results = {}, folder / f"results_{contender}"
    if trained == contender:
        seconds = {"train_seconds": time.perf_counter() - began, "train_cpu_seconds": time.process_time() - used}
    checkpoint = str(checkpoint_path(folder, steps))
    segmentation_sample.main(
        [*where, "--model_path", checkpoint, "--out_dir", str(results), "--save_samples", "True"]
        + shlex.split(sampling)
    )
    append(options.record, what | {"machine": machine(options)} | seconds | outcome(results, *data_of(options, name)))


def outcome(results, data_name, data_dir):
    """What a results folder says: the means `FIGURES`, seconds per case, and the figures `PER_CASE` of each case."""
    summary, manifest = read_json(results / "summary.json"), read_json(results / "manifest.json")
    dataset = build_dataset(data_name, data_dir, image_size=1, split="test")
    groups = {case.name: case.group or case.name for case in dataset.cases}
    figures = {}
    for key, path in FIGURES.items():
        value = summary
        for part in path:
            value = None if value is None else value.get(part)
        figures[key] = None if value is None or math.isnan(value) else round(value, 5)
    with open(results / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cases = {key: [round(float(row[key]), 4) if row[key] else None for row in rows] for key in PER_CASE}
    return {
        "seconds_per_case": round(manifest["seconds"] / manifest["cases_sampled"], 3),
        "figures": figures,
        "groups": [groups[row["name"]] for row in rows],
        "cases": {key: values for key, values in cases.items() if any(value is not None for value in values)},
    }


# ---- the record ----------------------------------------------------------------------------------------------------


def records(path):
    """The record's lines as dicts; none where there is no file yet."""
    path = Path(path)
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: line {error.lineno} is not JSON; repair or remove it") from None


def append(path, line):
    """Add a line to the record; the file is replaced whole."""
    path = Path(path)
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    with atomic_path(path) as temporary:
        temporary.write_text(before + json.dumps(line) + "\n", encoding="utf-8")


class _Tuning:
    """A loader of the training split alone: of four groups (patients, or cases) one is for testing."""

    finds_validation = False

    def find_cases(self):
        asked, self.split = self.split, "train"
        cases = super().find_cases()
        self.split = asked
        groups = sorted({case.group or case.name for case in cases})
        held_out = set(np.random.default_rng(0).permutation(groups)[: len(groups) // 4].tolist())
        return [case for case in cases if ((case.group or case.name) in held_out) == (asked == "test")]


class TuningFOLDER(_Tuning, FolderDataset):
    """`_Tuning` of a folder of pairs."""


class TuningLIDC(_Tuning, LIDCDataset):
    """`_Tuning` of LIDC patches."""


if __name__ == "__main__":
    run_script(main)
