"""Train a diffusion model that segments medical images; see README.md for the commands."""

import os
import sys
from contextlib import nullcontext

import torch

from ..checkpoint import CheckpointFolder, checkpoint_path
from ..config.command_line import as_yaml, parse, write_config
from ..config.options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from ..config.script_options import TrainOptions
from ..data.batches import select_slices
from ..data.inspection import like_photograph, mask_pictures
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
    pick_device,
    training_memory_format,
)
from ..runtime.errors import run_script
from ..training.hints import sampling_command
from ..training.loop import TrainLoop
from ..training.run import settle
from ..training.validation import Validation, marked_cases, spread_cases
from ..training.watch import Watch

EXAMPLE = """python scripts/segmentation_train.py --data_name FOLDER --data_dir MY_DATA --val_fraction 0.2 \\
      --out_dir runs/first --image_size 128 --patch_size 2 --num_channels 16 --channel_mult 1,2,4,8 \\
      --num_res_blocks 1 --lr 1e-3 --lr_anneal_steps 2400"""
MASKS_LOOKED_AT = 4  # places in the data, at each of which some are tried


def main(argv=None):
    """Parse the command line and train, in this process or in one for each GPU that is asked for."""
    groups = [DataOptions, TrainOptions, ModelOptions, DiffusionOptions, ProcessOptions]
    options, given = parse(__doc__, groups, argv, example=EXAMPLE)
    process_options = options[-1]
    if options[1].dry_run:
        return dry_run(options, given)
    if process_options.multi_gpu:
        return launch_on_gpus(process_options.multi_gpu, __file__, sys.argv[1:] if argv is None else argv)
    with joined_processes(process_options.gpu_dev, "gpu_dev" in given, exchange_tensors=True) as processes:
        quiet(not processes.is_first)
        keep_freed_memory()
        return train_model(options, given, processes)


def train_model(options, given, processes):
    """Build or resume the run and train it, this process on its share of every batch. Returns the exit status."""
    run = settle(options, given, processes)
    train, dataset, start, folder = run.train, run.dataset, run.start, run.folder
    checkpoints = CheckpointFolder(folder)
    if run.is_complete and processes.from_first(lambda: checkpoints.has(start.step)):
        if processes.is_first:
            say_complete(run, checkpoints)
        return 0
    if processes.is_first:  # one checks for all; they would trip over each other's trial file
        folder.check_writable()
        folder.pull(lambda name: name == "log.jsonl")  # a resumed run goes on with it
    cache = chosen_folder(run.data.cache_dir, training=True)
    if cache is not None:
        workers = run.data.num_workers
        processes.by_machine(lambda: use_cache(dataset, cache, workers=workers, show=processes.is_first))

    model, diffusion = build_networks(run, processes)
    if processes.is_first:
        write_config(run.values, folder.path)
    place = f"{processes.place}, in shards" if train.fsdp and processes.count > 1 else processes.place
    describe(run, model, place)
    if processes.is_first:
        warn_of_masks(dataset)
    if start is not None and train.max_minutes and "max_minutes" not in given:
        console().info(f"--max_minutes {train.max_minutes:g} is kept from before, counted anew; 0 lifts it")
    loop = TrainLoop(
        model,
        diffusion,
        dataset,
        train,
        config=run.config,
        device=processes.device,
        precision=run.precision,
        num_workers=run.data.num_workers,
        start=start,
        processes=processes,
        folder=folder,
        watch=watch_of(run, diffusion, processes),
        selection=select_slices(dataset, train.slices, processes),
    )
    last = loop.run()
    if processes.is_first:
        command = command_to_sample(run, last)
        folder.finish()
    if train.overfit:
        return loop.watch.verdict(last)
    told = f"trained {counted(last, 'step')}"
    if run.is_complete:
        told = run.told_complete
    elif last < loop.last_step:
        told += f" of {loop.last_step}; to go on, add --resume_checkpoint auto to the same command"
    if processes.is_first:
        best = "" if loop.watch is None else checkpoints.told_best(loop.watch.best)
        console().info(f"{told}{best}\nsample with: {command}")
    return 0


def say_complete(run, checkpoints):
    """Say that there is nothing left to train, and what to do now; the run's folder, `checkpoints`, stays as it is."""
    best = checkpoints.best_so_far(run.start)
    command = command_to_sample(run, run.start.step)
    run.folder.finish()  # an earlier run may have left files that the store lacks
    console().info(f"{run.told_complete}{checkpoints.told_best(best)}\nsample with: {command}")


def command_to_sample(run, step):
    """The command that samples a run's checkpoint of this step."""
    return sampling_command(run.data.data_dir, run.dataset.data_dir, run.folder, checkpoint_path("", step))


def build_networks(run, processes):
    """The model, on this process's device, and its `GaussianDiffusion`: new, or those of the checkpoint."""
    dataset = run.dataset
    torch.manual_seed(run.train.seed)
    sharded = run.train.fsdp and processes.count > 1
    if run.train.fsdp and not sharded:
        console().info("--fsdp True: there is one process alone, which keeps all weights whole")
    with sharded_as_built(processes) if sharded else nullcontext():
        if run.start is None:
            num_labels = len(dataset.label_names)
            model = build_model(run.model, dataset.image_channels, len(dataset.class_names), num_labels)
            diffusion = build_diffusion(run.diffusion)
        else:
            model, diffusion = run.start.build(run.model)
    if not sharded:  # what is gathered of shards is contiguous
        model.to(processes.device, memory_format=training_memory_format(processes.device))
    return model, diffusion


def watch_of(run, diffusion, processes):
    """The `Watch` over a run, or None without validation."""
    if run.validation is None:
        return None
    dataset = run.validation.dataset
    validation = Validation(
        dataset,
        spread_cases(dataset, run.train.val_cases),
        run.validation.noun,
        diffusion,
        processes.device,
        run.precision,
        has_diffusion=run.model.version != "unet",
        seed=run.train.seed,
        processes=processes,
        rows=run.train.microbatch if run.train.microbatch > 0 else None,  # what training itself does at once
        train=run.config["train"],
    )
    best = processes.from_first(lambda: CheckpointFolder(run.folder).best_so_far(run.start))
    return Watch(validation, run.train, run.config, run.folder, best)


def dry_run(options, given):
    """Print the options as YAML, and as comments below the network's size and the data; write nothing. Returns 0."""
    if os.environ.get("RANK", "0") != "0":  # torchrun's others would say the same
        return 0
    run = settle(options, given, Processes(0, 1, pick_device(options[-1].gpu_dev)))
    dataset = run.dataset
    with torch.device("meta"):  # its shapes alone
        model = build_model(run.model, dataset.image_channels, len(dataset.class_names), len(dataset.label_names))
    lines = [f"model: {size_of(model)}", *told_data(dataset)]
    if run.validation is not None:
        lines.append(run.validation.told(run.train))
    if run.start is not None:
        lines.append(run.told_complete if run.is_complete else f"goes on from step {run.start.step}")
    lines.extend(run.warnings)
    comments = "".join(f"# {line}\n" for text in [*lines, "dry run: nothing was written"] for line in text.splitlines())
    sys.stdout.write(as_yaml(run.values) + comments)
    return 0


def describe(run, model, place):
    """Say what is about to run."""
    for line in told_data(run.dataset):
        console().info(line)
    console().info(f"model: {size_of(model)}, on {place} in {run.precision}")
    if run.validation is not None:
        console().info(run.validation.told(run.train))
    if run.train.augment != "none":
        console().info(f"augmentation: {run.train.augment}, {run.dataset.orientation} orientation")
    if run.start is not None:
        console().info(f"going on from step {run.start.step}")
    for warning in run.warnings:
        console().warning(warning)
    out_dir = run.train.out_dir
    kept = "; each save brings them there" if is_remote(out_dir) else ""
    console().info(f"logs: {out_dir} (training.html, log.jsonl; tensorboard --logdir {out_dir}){kept}")


def size_of(model):
    """The number of a network's parameters, as "1.234 M parameters"."""
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.4g} M parameters"


def warn_of_masks(dataset):
    """Look at a few masks, spread over the cases, and warn where nothing can be learned from such: nothing is marked,
    or they are no masks but photographs."""
    marked = marked_cases(dataset, MASKS_LOOKED_AT)
    first = next(marked, None)
    if first is None:
        classes = "" if dataset.classes.is_binary else f" by --classes {dataset.classes}"
        console().warning(
            f"warning: nothing is marked{classes} in any mask looked at, spread over the training cases, and nothing "
            "can be learned from such. python scripts/check_data.py tells which values the masks hold"
        )
    elif dataset.classes.is_binary and (pictures := mask_pictures(first)):  # else one look is enough
        looked_at = [(first, pictures), *((case, mask_pictures(case)) for case in marked)]
        photographs = [case.masks[0] for case, pictures in looked_at if any(map(like_photograph, pictures))]
        if 2 * len(photographs) >= len(looked_at):
            console().warning(
                f"warning: {len(photographs)} of {counted(len(looked_at), 'mask')} looked at have the many greys of a "
                f"photograph, as {photographs[0]}: are images/ and masks/ swapped, or these the wrong files? "
                "python scripts/check_data.py draws them"
            )


def told_data(dataset):
    """Lines that say what data were found."""
    channels = counted(dataset.image_channels, "channel")
    layout = [f"layout: {dataset.layout}"] if dataset.layout else []
    classes = [] if dataset.classes.is_binary else [f"classes: {dataset.classes.described()}"]
    found = f"data: {counted(len(dataset), 'case')} of {dataset.data_dir}, {channels}"
    return [found, *layout, *classes, *dataset.notes]


if __name__ == "__main__":
    run_script(main)
