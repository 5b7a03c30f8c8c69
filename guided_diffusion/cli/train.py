"""What `medsegdiff train` does: it prepares a run, trains it, and names the next command."""

import os
import sys
from contextlib import nullcontext

import torch

from ..checkpoint import LAST, STAGE, CheckpointFolder, checkpoint_path
from ..config.config_file import as_yaml, write_config
from ..config.train_options import TrainOptions
from ..data.accounting import warn_of_left_over
from ..data.cases import Unit, spread_indices
from ..data.check import training_findings
from ..data.inspection import Part, inspect_unit
from ..data.loader_checks import case_remedy
from ..data.mask_checks import check_foreground
from ..data.picture_cache import use_picture_cache
from ..data.volume_cache import chosen_folder, use_cache
from ..diffusion.gaussian_diffusion import build_diffusion
from ..io.storage import is_remote
from ..models.medsegdiff import build_model
from ..models.sharding import sharded_as_built
from ..runtime.console import console, counted, quiet
from ..runtime.distributed import (
    Processes,
    joined_processes,
    keep_freed_memory,
    launch_on_gpus,
    memory_format,
    pick_device,
)
from ..runtime.errors import UserError
from ..runtime.program import command
from ..runtime.threads import use_threads
from ..training.encoder_weights import load_encoder
from ..training.hints import resuming_command, sampling_command
from ..training.initial import initialise
from ..training.loop import TrainLoop
from ..training.run import check_unchanged, prepare_run
from ..training.step_memory import estimate_line, fitted_to_memory
from ..training.trackers import KNOWN_RUNS
from ..training.training_plan import short_lines
from ..training.validation import Validation, marked_cases, spread_cases
from ..training.watch import Watch

MASKS_LOOKED_AT = 4  # masks with something marked to look for, spread over the data
CASES_LOOKED_AT = 8  # cases that are checked as check_data does, spread over the data


def run_training(options, given, words):
    """Train in this process or in one for each GPU of --multi_gpu. Returns the exit status.

    options, given: see `command_line.parse`. words: the command line that they are from.
    """
    process_options = options[-1]
    if options[1].dry_run:
        return dry_run(options, given)
    if process_options.multi_gpu:
        return launch_on_gpus(process_options.multi_gpu, "train", words)
    with joined_processes(process_options.gpu_dev, "gpu_dev" in given, exchange_tensors=True) as processes:
        quiet(not processes.is_first)
        keep_freed_memory()
        use_threads(process_options.threads)
        return train(options, given, processes)


def train(options, given, processes):
    """Begin or resume a run and train it, this process with its share of every batch. Returns the exit status."""
    run = prepare_run(options, given, processes)
    if is_complete(run, processes):
        return 0
    run, memory = fitted_to_memory(run, processes)
    # Only one process takes the lock, and tries to write: they would be in each other's way.
    with run.folder.held() if processes.is_first else nullcontext():
        check_unchanged(run, processes)
        if processes.is_first:
            run.folder.pull(lambda name: name in ("log.jsonl", KNOWN_RUNS))  # which a resumed run goes on with
        cache_training_data(run, processes)
        model, diffusion = build_networks(run, processes)
        if processes.is_first:
            write_config(run.values, run.folder.path)
        print_run_summary(run, model, processes, memory)
        watch = build_watch(run, diffusion, processes)
        loop = TrainLoop(run, model, diffusion, processes, watch)
        last = loop.run()
        return conclude_training(run, watch, last, processes, stage_end=loop.stages.ended)


# ---- the steps -----------------------------------------------------------------------------------------------------


def is_complete(run, processes):
    """Whether the run has its last step already; if so, print that and how to continue."""
    checkpoints = CheckpointFolder(run.folder)
    if not (run.is_complete and processes.from_first(lambda: checkpoints.has(run.start.step))):
        return False
    if processes.is_first:
        best = checkpoints.describe_best(checkpoints.best_so_far(run.start))
        command = command_to_sample(run, run.start.step)
        run.folder.finish()  # the store may lack files of an interrupted run
        console().info(f"{run.complete_line}{best}\nsample with: {command}")
    return True


def cache_training_data(run, processes):
    """Decompress the volumes of the training data once, on each machine; pictures are decoded at their first use."""
    data = run.settings.data
    cache = chosen_folder(data.cache_dir, training=True)
    if cache is not None:
        options = {"workers": data.num_workers, "show": processes.is_first}
        processes.by_machine(lambda: use_cache(run.dataset, cache, **options))
        pictures = chosen_folder(data.cache_dir, training=True, kind="pictures")
        use_picture_cache(run.dataset, pictures, asked=data.cache_dir != "auto", show=processes.is_first)


def build_networks(run, processes):
    """The model on this process's device and its `GaussianDiffusion`: new, or from the checkpoint to resume."""
    dataset, settings = run.dataset, run.settings
    torch.manual_seed(settings.train.seed)
    sharded = settings.train.fsdp and processes.count > 1
    if settings.train.fsdp and not sharded:
        console().info("--fsdp True has no effect: one process alone keeps all weights")
    with sharded_as_built(processes) if sharded else nullcontext():
        if run.start is None:
            num_labels = len(dataset.label_names)
            model = build_model(settings.model, dataset.image_channels, len(dataset.class_names), num_labels)
            diffusion = build_diffusion(settings.diffusion)
            if run.encoder_weights is not None:
                where = f"--encoder_weights {settings.train.encoder_weights}"
                console().info(load_encoder(model, run.encoder_weights, where))
            if run.initial is not None:
                console().info(initialise(model, run.initial, dataset, f"--init_from {settings.train.init_from}"))
        else:
            model, diffusion = run.start.build(settings.model)
    if not sharded:  # a sharded model is on its device, and gathers its weights in contiguous memory
        model.to(processes.device, memory_format=memory_format(run.precision, processes.device))
    return model, diffusion


def print_run_summary(run, model, processes, memory=""):
    """Print the data, the model, how it will be trained, and warnings. memory: a line of `fitted_to_memory`."""
    train = run.settings.train
    for line in data_lines(run.dataset):
        console().info(line)
    if run.plan is not None:
        for line in short_lines(run.plan):
            console().info(line)
    sharded = ", in shards" if train.fsdp and processes.count > 1 else ""
    console().info(f"model: {size_of(model)}, on {processes.place}{sharded} in {run.precision}")
    if memory:
        console().info(memory)
    if run.validation is not None:
        console().info(run.validation.summary_line(train))
    if train.augment != "none":
        console().info(f"augmentation: {train.augment}, {run.dataset.orientation} orientation")
    if run.start is not None:
        console().info(f"going on from step {run.start.step}")
    for warning in run.warnings:
        console().warning(warning)
    kept = "; updated there at each save" if is_remote(train.out_dir) else ""
    console().info(f"logs: {train.out_dir} (training.html, log.jsonl; tensorboard --logdir {train.out_dir}){kept}")
    if processes.is_first:
        warn_of_left_over(run.dataset, *([] if run.validation is None else [run.validation.dataset]))
        warn_of_data(run.dataset, None if run.validation is None else run.validation.dataset)
    if run.start is not None and train.max_minutes and "max_minutes" not in run.settings.given:
        console().info(f"--max_minutes {train.max_minutes:g} is kept from before, counted anew; 0 lifts it")


def build_watch(run, diffusion, processes):
    """The `Watch` over a run, or None without validation."""
    if run.validation is None:
        return None
    settings, dataset = run.settings, run.validation.dataset
    at_once = settings.train.microbatch if settings.train.microbatch > 0 else settings.train.batch_size
    validation = Validation(
        dataset,
        spread_cases(dataset, settings.train.val_cases),
        run.validation.noun,
        diffusion,
        processes.device,
        run.precision,
        version=settings.model.version,
        seed=settings.train.seed,
        processes=processes,
        rows=2 * at_once,  # without gradients two need less memory than one does in training
        train=run.config["train"],
    )
    best = processes.from_first(lambda: CheckpointFolder(run.folder).best_so_far(run.start))
    return Watch(validation, settings.train, run.config, run.folder, best)


def conclude_training(run, watch, last, processes, stage_end=None):
    """Push files that a store still lacks; print how the run ended and the next command. Returns the exit status.

    last: the last step. stage_end: see `checkpoint.Checkpoint`.
    """
    if processes.is_first:
        command = command_to_sample(run, last)
        run.folder.finish()
    train = run.settings.train
    if train.overfit:
        return watch.verdict(last)
    line = f"trained {counted(last, 'step')}"
    if run.is_complete:
        line = run.complete_line
    elif last < train.last_step:
        if not train.max_minutes or train.last_step != TrainOptions().last_step:  # else the time is the run's end
            line += f" of {train.last_step}"
        if stage_end is None or STAGE not in run.folder.names():  # else both ways to go on follow
            line += "; to go on, add --resume_checkpoint auto to the same command"
    if processes.is_first:
        best = "" if watch is None else CheckpointFolder(run.folder).describe_best(watch.best)
        console().info(f"{line}{best}\nsample with: {command}")
        if stage_end is not None and STAGE in run.folder.names():
            console().info(choice_after_time_limit(run, stage_end))
    return 0


def dry_run(options, given):
    """Print the settled options as YAML, and as comments the network's size and the data; write nothing. Returns 0."""
    if os.environ.get("RANK", "0") != "0":  # torchrun's other processes would print the same
        return 0
    processes = Processes(0, 1, pick_device(options[-1].gpu_dev))
    run = prepare_run(options, given, processes)
    dataset, train = run.dataset, run.settings.train
    with torch.device("meta"):  # shapes without memory
        labels = len(dataset.label_names)
        model = build_model(run.settings.model, dataset.image_channels, len(dataset.class_names), labels)
    lines = [] if run.plan is None else short_lines(run.plan)
    lines += [f"model: {size_of(model)}", estimate_line(run, processes.device), *data_lines(dataset)]
    if run.validation is not None:
        lines.append(run.validation.summary_line(train))
    if run.start is not None:
        lines.append(run.complete_line if run.is_complete else f"goes on from step {run.start.step}")
    lines.extend(run.warnings)
    comments = "".join(f"# {line}\n" for text in [*lines, "dry run: nothing was written"] for line in text.splitlines())
    sys.stdout.write(as_yaml(run.values) + comments)
    return 0


# ---- lines for the user --------------------------------------------------------------------------------------------


def command_to_sample(run, step):
    """The command line that samples a run's checkpoint of this step."""
    data = run.settings.data
    checkpoint = checkpoint_path("", step)
    return sampling_command(data.data_dir, run.dataset.data_dir, run.folder, checkpoint, data.data_name)


def choice_after_time_limit(run, stage_end):
    """Lines on the two ways to go on with a run whose first stage a time limit ended, each with its command."""
    folder, name, minutes = run.folder, run.settings.data.data_name, run.settings.train.max_minutes
    on, longer = (
        resuming_command(folder, LAST, name, minutes),
        resuming_command(folder, STAGE, name, minutes, f"{folder.shown()}_longer"),
    )
    return (
        f"the time limit ended the first stage, and the condition model is fixed since step {stage_end}. To go on, "
        f"for as many minutes as you set:\nthe diffusion alone: {on}\n"
        f"both stages, from step {stage_end}, in a folder of its own: {longer}"
    )


def size_of(model):
    """The number of a network's parameters, as "1.234 M parameters"."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.4g} M parameters"


def data_lines(dataset):
    """Lines that describe the data found."""
    channels = counted(dataset.image_channels, "channel")
    layout = [f"layout: {dataset.layout}"] if dataset.layout else []
    classes = [] if dataset.classes.is_binary else [f"classes: {dataset.classes.described()}"]
    found = f"data: {counted(len(dataset), 'case')} of {dataset.data_dir}, {channels}, read as {dataset.shown_name()}"
    return [found, *layout, *classes, *dataset.notes]


def warn_of_data(dataset, validation=None):
    """Warn if no mask of a few, spread over the cases, has anything marked, and of what check_data finds in a few.

    validation: the data set of the validation cases, whose masks must write their foreground alike.
    Raises `UserError` for what it calls an error, and the error of a file that cannot be read.
    """
    if next(marked_cases(dataset, MASKS_LOOKED_AT), None) is None:
        classes = "" if dataset.classes.is_binary else f" by --classes {dataset.classes}"
        console().warning(
            f"warning: nothing is marked{classes} in any mask looked at, of training cases from all over the data; "
            f"nothing can be learned from such masks. {command('check')} lists the values in all masks"
        )
    indices = spread_indices(len(dataset), CASES_LOOKED_AT)
    units = [Unit(dataset.cases[index].name, (dataset.cases[index],), (index,)) for index in indices]
    count = len(units)
    found = training_findings(Part("train", dataset, [inspect_unit(dataset, unit, strict=True) for unit in units]))
    if validation is not None and validation is not dataset and len(dataset.class_names) == 1:
        check_foreground([note for note in [dataset.foreground] if note], validation.foreground)
    for finding in found:
        text = finding.text.removeprefix("train: ")
        if finding.is_error:
            raise UserError(text + case_remedy())
        console().warning(f"warning: {text} (of {counted(count, 'case')} looked at; {command('check')} reads all)")
