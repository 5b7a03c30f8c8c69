"""Accuracy at equal time: train every contender for the same minutes on fixed splits, sample, evaluate, and tabulate.

Contenders of a fixed size are compared by the method alone: all have the same network's size, steps that fit --minutes,
and the same test-time augmentation. The contenders `auto`, `auto_unet` and `nnunet` are compared as a user meets them:
they get data, a seed and --minutes, and choose the rest themselves.

Each finished run is one JSON line of --record, so the table can grow over several sittings: a run that has its line is
not done again. A run of a fixed size that was stopped continues from its last checkpoint; another begins anew.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from accuracy_nnunet import MIRROR, nnunet_version, run_nnunet
from accuracy_runs import SECONDS, append, call_script, is_recorded, machine, outcome, records
from accuracy_sets import KNOWN, chosen_sets
from accuracy_table import write_tables
from accuracy_user import run_as_user
from torch.utils.benchmark import timer
from workloads import training_loop

from guided_diffusion.checkpoint import checkpoint_path
from guided_diffusion.config.command_line import parse
from guided_diffusion.config.fields import option
from guided_diffusion.config.options import DataOptions, DeviceOptions, DiffusionOptions, ModelOptions
from guided_diffusion.config.train_options import CONDITION_SHARE, TrainOptions
from guided_diffusion.config.values import numbers
from guided_diffusion.data.batches import training_batches
from guided_diffusion.evaluation.controls import fit_copula_length
from guided_diffusion.io.files import check_writable, write_json
from guided_diffusion.io.images import read_picture, write_png
from guided_diffusion.io.texts import read_json
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.runtime.console import console
from guided_diffusion.runtime.distributed import keep_freed_memory, pick_device, pick_precision
from guided_diffusion.runtime.errors import UserError, run_script

MEASURED_TURNS = 11  # of a training step

# ---- the contenders ------------------------------------------------------------------------------------------------

# The same for all: the size of the network, and what a trainer of any network would set.
SIZE = (
    "--image_size 128 --patch_size 4 --num_channels 16 --channel_mult 1,2,4,8 --num_res_blocks 1 "
    "--attention_resolutions 8"
)
TRAINING = "--dropout 0.1 --batch_size 8 --lr 1e-3 --augment light --val_fraction 0"
FITTED_ON = 40  # training cases, for the length of the copula
LATE = 0.67  # of the steps of `unet_mean`: from there on cross-entropy alone
DEEP = 4  # networks of the deep ensemble


class Contender(NamedTuple):
    """training: its own flags. sampling: flags that win over `DataSet.sampling`. weights_of: whose trained
    weights it samples with; empty: its own. as_fast_as: whose steps take as long; empty: its own are measured.
    networks: above 1, as many networks share the steps, and their mean probability is the answer. evaluation: flags of
    the evaluation. program: "" for a contender of a fixed size, "user" for our commands as a user gives them, or
    "nnunet"; these have no networks, as_fast_as or evaluation.
    """

    training: str
    sampling: str = ""
    weights_of: str = ""
    as_fast_as: str = ""
    networks: int = 1
    evaluation: str = ""
    program: str = ""


# As the published commands have it; but the average at a fixed rate of 0.9999 still holds the random start.
SOLVER = "--num_ensemble 5 --diffusion_steps 20 --dpm_solver True --weights model"
UNET_MEAN = f"--version unet --mask_loss bce --raters mean --dice_steps {LATE:.0%}"
CONTENDERS = {  # lr_anneal_steps is set to the number of steps, except as published
    "unet": Contender("--version unet --mask_loss bce_dice"),
    "unet_mse": Contender("--version unet --mask_loss mse", as_fast_as="unet"),
    "unet_mean": Contender(UNET_MEAN, as_fast_as="unet"),
    "unet_mean_x4": Contender(UNET_MEAN, as_fast_as="unet", networks=DEEP),
    "v1_published": Contender("--version v1 --recipe published", SOLVER),
    "v2_published": Contender("--version v2 --recipe published", SOLVER),
    # The patches of `SIZE` are coarse enough for the diffusion's first level.
    "v2": Contender("--version v2 --recipe staged --condition_steps 85% --diffusion_level 0"),
    "auto": Contender("", program="user"),
    "auto_unet": Contender("--version unet", program="user"),
    "nnunet": Contender("", program="nnunet"),
}


def resampled(name, sampling, known=CONTENDERS):
    """The `Contender` that samples with the weights of another, `name`, with more flags."""
    base = known[name]
    sampling = f"{base.sampling} {sampling}".strip()
    return base._replace(sampling=sampling, weights_of=base.weights_of or name, as_fast_as="")


CONTENDERS |= {
    "v2_members": resampled("v2", "--num_ensemble 16"),
    "v2_members_64": resampled("v2", "--num_ensemble 64")._replace(evaluation="--ensemble_curve True"),
    "v2_members_128": resampled("v2", "--num_ensemble 128")._replace(evaluation="--ensemble_curve True"),
    "auto_members": resampled("auto", "--num_ensemble 16 --save_samples True"),
    "nnunet_mirrored": resampled("nnunet", MIRROR),
}


@dataclass
class AccuracyOptions:
    """The comparison."""

    out_dir: str = option("./runs/accuracy/", "folder for checkpoints and results; may be deleted when all is recorded")
    record: str = option("docs/record/accuracy.jsonl", "file of one JSON line per finished run; tables lie beside it")
    ph2_dir: str = option("../shared/data/ph2", "dermoscopic images: a folder that --data_name FOLDER reads")
    lidc4_dir: str = option("../shared/data/lidc4", "lung nodules: a folder that --data_name LIDC reads")
    drive_dir: str = option("../shared/data/drive", "retinal vessels: a folder that --data_name FOLDER reads")
    em_dir: str = option("../shared/data/em", "membranes: a folder that --data_name FOLDER reads")
    sets: str = option(
        "ph2,lidc4,drive,em",
        f"which data sets, separated by commas: {', '.join(KNOWN)}, and any folder that --data_name AUTO reads, "
        "as PATH or NAME=PATH",
    )
    test_fraction: float = option(
        0.2,
        "share of the patients or cases that is held out for testing from a folder without test cases of its own",
        above=0,
        maximum=0.9,
    )
    contenders: str = option(
        "unet_mean,unet,unet_mse,unet_mean_x4,v1_published,v2_published,v2,v2_members",
        f"which of {', '.join(CONTENDERS)}, separated by commas. Or separated by semicolons, with some of your own: "
        "'NAME=flags' of training, 'NAME=v2 flags' for v2 trained with these too, 'NAME=v2: flags' for v2's weights "
        "sampled with these. auto: training with nothing but data, seed and time; auto_unet: the same with --version "
        "unet; auto_members: auto's weights, 16 members; nnunet: nnU-Net v2, see --nnunet_python; nnunet_mirrored: its "
        "weights with test-time augmentation",
    )
    seeds: str = option("0,1,2", "seeds of the runs, separated by commas")
    split: str = option(
        "test",
        "what is reported on: test, or tuning (train on three quarters of the training split, report on the fourth)",
        choices=("test", "tuning"),
    )
    minutes: float = option(12.0, "minutes of training each run is given", above=0)
    steps: int = option(0, "give every run of a fixed size this many optimizer steps instead of --minutes", minimum=0)
    threads: int = option(0, "CPU threads of the network; 0: as torch chooses", minimum=0)
    size: str = option(SIZE, "flags of the network's size, the same for all contenders of a fixed size")
    sampling: str = option("", "more flags of sampling, the same for all contenders of a fixed size")
    only_train: bool = option(False, "train what is not trained, and leave the rest for later")
    nnunet_python: str = option(
        "", "python of an environment of its own that has nnunetv2, for the contenders nnunet and nnunet_mirrored"
    )
    nnunet_memory: float = option(
        0.1,
        "GB of GPU memory for which nnU-Net plans patches and batches. By its own default, 8, patches are as large as "
        "images, and a processor core trains on a few a minute; 0: that default",
        minimum=0,
    )
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
        for data in sets:
            sized = {name: how for name, how in contenders.items() if not how.program}
            steps = steps_of(options, data, sized) if sized else {}
            for seed in seeds:
                for contender, how in contenders.items():
                    if how.program:
                        PROGRAMS[how.program](options, data, contender, how, seed)
                    else:
                        run(options, data, contender, how, seed, steps[contender])
    path = Path(options.record).with_suffix(".md")
    console().info(f"{write_tables(records(options.record), path)}\nwritten: {path}")


PROGRAMS = {"user": run_as_user, "nnunet": run_nnunet}


def chosen(options):
    """The `DataSet`s, {name: `Contender`} and seeds asked for.

    Raises `UserError` for what does not exist, and for contenders that do not go with a set or with the flags.
    """
    folders = {name: getattr(options, f"{name}_dir") for name in KNOWN}
    sets = chosen_sets(options.sets, folders, options.test_fraction, look=not options.table)
    contenders = {}
    for word in options.contenders.split(";" if "=" in options.contenders else ","):
        name, own, flags = word.strip().partition("=")
        contenders[name] = own_contender(flags, CONTENDERS | contenders) if own else CONTENDERS.get(name)
        if contenders[name] is None:
            raise UserError(f"--contenders: {name!r} is none of {', '.join(CONTENDERS)}; write NAME=flags for your own")
    if not options.table:
        check_contenders(options, sets, contenders)
    return sets, contenders, numbers("seeds", options.seeds, int)


def check_contenders(options, sets, contenders):
    """Raise `UserError` for contenders that do not go with a set or with the flags, before anything is trained."""
    sized = [name for name, how in contenders.items() if not how.program]
    free = [name for name in contenders if name not in sized]
    if options.steps and free:
        raise UserError(f"--steps {options.steps}: {free[0]} chooses its steps; give it --minutes")
    if any(how.program == "nnunet" for how in contenders.values()):
        nnunet_version(options.nnunet_python)
    for data in sets:
        if options.split == "tuning" and (not data.kind or data.test_fraction):
            raise UserError(
                f"--split tuning: {data.data_dir} is not divided, or in a layout of its own; give it a split.json and "
                "images/, masks/"
            )
        if sized and not data.kind:
            raise UserError(
                f"--contenders: {sized[0]} reads folders of pairs and LIDC, and {data.data_dir} is of another layout; "
                f"name some of {', '.join(name for name, how in CONTENDERS.items() if how.program)}"
            )


def own_contender(flags, known):
    """The `Contender` of "flags", "BASE flags" or "BASE: flags", see --contenders; known: {name: `Contender`}."""
    first, _, rest = flags.strip().partition(" ")
    name = first.removesuffix(":")
    base = known.get(name)
    if base and base.program == "nnunet":
        raise UserError(f"--contenders {flags}: {name} takes no flags of ours")
    if base and first.endswith(":"):
        return resampled(name, rest.strip(), known)
    if base:
        return Contender(f"{base.training} {rest}".strip(), base.sampling, program=base.program)
    return Contender(flags.strip())


# ---- how many steps ------------------------------------------------------------------------------------------------


def steps_of(options, data, contenders):
    """{contender: optimizer steps}: --steps, or as many as fit --minutes by the seconds of a step on this machine.

    The seconds are measured by turns, so that other work on the machine slows all alike, and recorded once: a later
    sitting on the same kind of machine takes the same steps. Contenders that come later are measured by turns with one
    of `REFERENCES` whose seconds are known, and scaled by it to the machine as it was then.
    """
    if options.steps:
        return dict.fromkeys(contenders, options.steps)
    every = CONTENDERS | contenders
    twins = {c: how.weights_of or how.as_fast_as or c for c, how in contenders.items()}
    flags = {twin: trained_with(options, data, every[twin].training) for twin in twins.values()}
    known = {}
    for line in records(options.record):
        if line["kind"] == "speed" and line["machine"] == machine() and line["set"] == data.name:
            known[line["contender"], line["flags"]] = line["seconds_per_step"]
    lacking = {twin: words for twin, words in flags.items() if (twin, words) not in known}
    if lacking:
        reference = next((c for c in REFERENCES if (c, _as_trained(options, data, c)) in known), None)
        others = {reference: _as_trained(options, data, reference)} if reference else {}
        seconds = measure(options, data, lacking | others)
        scale = known[reference, others[reference]] / seconds[reference] if reference else 1.0
        for twin, words in lacking.items():
            known[twin, words] = seconds[twin] * scale
            line = {"kind": "speed", "set": data.name, "contender": twin, "flags": words, "machine": machine()}
            line["seconds_per_step"] = known[twin, words]
            append(
                options.record, line | ({"scaled_by": f"{reference}, measured in the same turns"} if reference else {})
            )
    return {c: max(1, int(options.minutes * 60 / known[twin, flags[twin]])) for c, twin in twins.items()}


REFERENCES = ("unet", "v2")


def _as_trained(options, data, contender):
    return trained_with(options, data, CONTENDERS[contender].training)


def measure(options, data, flags):
    """{contender: seconds of a training step, reading included}: medians of `MEASURED_TURNS` turns after a first one.

    flags: {contender: all flags of its training}. A step of a run in two stages is the mean of both, weighted by their
    shares of the run.
    """
    console().info(f"=== {data.name}: seconds of a training step, measured by turns")
    loops = {contender: loop_of(options, data, words) for contender, words in flags.items()}
    seconds = {contender: [] for contender in flags}
    for turn in range(MEASURED_TURNS + 1):
        for contender, (loop, batches) in loops.items():
            share, took = CONDITION_SHARE if loop.options.condition_steps else 0, 0
            for loop.step, weight in ((0, share), (1, 1 - share)):  # step 1 is in the second stage: the first has one
                if weight:
                    began = timer()  # waits for the device
                    loop.train_step(next(batches)).read()
                    took += weight * (timer() - began)
            if turn:
                seconds[contender].append(took)
    for contender, values in seconds.items():
        console().info(f"{contender}: {median(values):.3f} s ({min(values):.3f} to {max(values):.3f})")
    return {contender: median(values) for contender, values in seconds.items()}


def loop_of(options, data, flags):
    """A `TrainLoop` as the training script builds it, and its batches, read in this process."""
    groups = [DataOptions, TrainOptions, ModelOptions, DiffusionOptions, DeviceOptions]
    (_, train, network, diffusion, devices), _ = parse(__doc__, groups, shlex.split(in_steps(flags, 1)))
    dataset = data.build("train", network.image_size, split=options.split, kept=True, need_masks=True)
    device = pick_device(devices.gpu_dev)
    model = build_model(network, dataset.image_channels, len(dataset.class_names)).to(device)
    precision = pick_precision(devices.precision, device)
    loop = training_loop(model, network, diffusion, train, precision, dataset)
    return loop, training_batches(dataset, train.batch_size, seed=0, augment=train.augment)


def trained_with(options, data, flags):
    """The flags of a contender's training on a set, later ones winning over earlier ones."""
    common = "--val_fraction 0" if "--recipe published" in flags else TRAINING
    return " ".join(f"{common} {options.size} {data.training} {flags}".split())


def in_steps(flags, steps):
    """The flags with a share of the steps, such as "--dice_steps 67%", as a number of at least 1."""
    return re.sub(r"\b(\d+)%", lambda found: str(max(1, round(int(found[1]) / 100 * steps))), flags)


# ---- one run -------------------------------------------------------------------------------------------------------


def run(options, data, contender, how, seed, steps):
    """Train, sample and evaluate one contender, unless its line is there; append the line.

    how: its `Contender`. Where the training is finished, be it another contender's with the same weights, only the
    sampling is done, and the line lacks the training's seconds.
    """
    trained, flags = how.weights_of or contender, trained_with(options, data, how.training)
    sampling = " ".join(f"{data.sampling} {options.sampling} {how.sampling}".split())
    what = {"kind": "run", "split": options.split, "set": data.name, "contender": contender, "seed": seed}
    what |= {"minutes": None if options.steps else options.minutes, "steps": steps}
    what |= {"flags": flags, "sampling": sampling}
    if is_recorded(options, what):
        return
    console().info(f"\n=== {data.name}, {contender}, seed {seed}: {steps} steps")
    folder = Path(options.out_dir) / f"{options.split}_{data.name}_{trained}_{seed}_{steps}"
    where = ["--data_name", data.loader(options.split), "--data_dir", data.data_dir, "--num_workers", "1"]
    flags = " ".join([flags, *data.held_out()])
    if how.networks == 1:
        checkpoints = [train(options, where, flags, folder, seed, steps)]
    else:
        each, parts = max(1, steps // how.networks), range(how.networks)
        checkpoints = [train(options, where, flags, folder / str(n), 1000 * (seed + 1) + n, each) for n in parts]
    if options.only_train:
        return
    parts = [checkpoint.parent / f"results_{contender}" for checkpoint in checkpoints]
    for checkpoint, results in zip(checkpoints, parts, strict=True):
        words = [*where, "--model_path", str(checkpoint), "--out_dir", str(results)]
        call_script(options, "segmentation_sample.py", [*words, "--save_samples", "True", *shlex.split(sampling)])
    results = parts[0] if how.networks == 1 else mean_of(parts, folder / "results")
    length = copula_length(options, data, checkpoints[0], where, sampling)
    words = ["--pred_dir", str(results), *where, "--copula_length", str(length)]
    call_script(options, "segmentation_eval.py", [*words, *shlex.split(f"{data.evaluation} {how.evaluation}")])
    append(
        options.record,
        what
        | {"machine": machine()}
        | seconds_of(folder)
        | outcome(results, data.build("test", split=options.split, kept=True)),
    )


def train(options, where, flags, folder, seed, steps):
    """Train a network into `folder`, unless it is trained. Returns its checkpoint."""
    checkpoint = checkpoint_path(folder, steps)
    if checkpoint.is_file():
        return checkpoint
    words = [*where, "--out_dir", str(folder), "--seed", str(seed), "--max_steps", str(steps)]
    words += shlex.split(in_steps(flags, steps))
    words += [] if "--recipe published" in flags else ["--lr_anneal_steps", str(steps)]
    words += ["--resume_checkpoint", "auto", "--save_interval", "1000", "--sample_interval", "0"]
    seconds, processor_seconds = call_script(options, "segmentation_train.py", words)
    write_json(folder / SECONDS, {"train_seconds": seconds, "train_cpu_seconds": processor_seconds})
    return checkpoint


def mean_of(parts, results):
    """Write the results folder `results`: the mean probability of the folders `parts`, and its masks.

    Its manifest is that of the first part, so it has one answer a case, without members. Returns `results`.
    """
    for path in sorted((parts[0] / "probability").glob("*.png")):
        mean = np.mean([read_picture(part / "probability" / path.name)[0] for part in parts], axis=0)
        for kind, values in (("probability", (257 * mean).round().astype(np.uint16)), ("masks", 255 * (mean > 127.5))):
            (results / kind).mkdir(parents=True, exist_ok=True)
            write_png(results / kind / path.name, values.astype(np.uint16 if kind == "probability" else np.uint8))
    write_json(results / "manifest.json", read_json(parts[0] / "manifest.json"))
    return results


def copula_length(options, data, checkpoint, where, sampling):
    """The copula's correlation length in pixels, fitted once for each set on training cases and recorded.

    checkpoint: of the first contender that asks; its probabilities of training cases are the margins.
    """
    for line in records(options.record):
        if line["kind"] == "copula" and (line["set"], line["split"]) == (data.name, options.split):
            return line["length"]
    results = checkpoint.parent / "results_train"
    words = [*where, "--model_path", str(checkpoint), "--out_dir", str(results), "--split", "train"]
    call_script(options, "segmentation_sample.py", [*words, "--num_samples", str(FITTED_ON), *shlex.split(sampling)])
    dataset = data.build("train", split=options.split, kept=True, need_masks=True)
    probabilities, raters = [], []
    for case in dataset.cases[:FITTED_ON]:
        probabilities.append(read_picture(results / "probability" / f"{case.name}.png")[0] / 255)
        raters.append(dataset.load_mask(case)[:, 0])
    length = fit_copula_length(probabilities, raters)
    append(options.record, {"kind": "copula", "set": data.name, "split": options.split, "length": length})
    return length


def seconds_of(folder):
    """The sums of what `train` noted in a folder and below it."""
    noted = [read_json(path) for path in sorted(folder.rglob(SECONDS))]
    return {key: sum(seconds[key] for seconds in noted) for key in (noted[0] if noted else ())}


if __name__ == "__main__":
    run_script(main)
