"""Train a diffusion model that segments medical images; see README.md for the commands."""

from guided_diffusion.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # those below take seconds

import dataclasses
import os
import sys
from contextlib import nullcontext

import torch

from guided_diffusion.checkpoint import Checkpoint, checkpoint_path, load_checkpoint, newest_name, step_of
from guided_diffusion.checkpoint_folder import CheckpointFolder
from guided_diffusion.command_line import parse
from guided_diffusion.config import (
    DataOptions,
    DiffusionOptions,
    ModelOptions,
    ProcessOptions,
    build,
    check_variant,
    saved_options,
)
from guided_diffusion.config_file import as_yaml, run_values, write_config
from guided_diffusion.data import SegmentationDataset, build_dataset, recognised, suggested
from guided_diffusion.dist_util import (
    Processes,
    joined_processes,
    keep_freed_memory,
    launch_on_gpus,
    pick_device,
    pick_precision,
    training_memory_format,
)
from guided_diffusion.dry_run import estimate_training
from guided_diffusion.errors import NoCasesError, UserError
from guided_diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.logger import console, counted, quiet
from guided_diffusion.medsegdiff import build_model
from guided_diffusion.next_command import sampling_command
from guided_diffusion.run_options import TrainOptions
from guided_diffusion.selection import select_slices
from guided_diffusion.sessions import FILE as SESSIONS
from guided_diffusion.sessions import recorded
from guided_diffusion.sharding import sharded_as_built
from guided_diffusion.storage import absolute, fetch_file, fetch_folder, is_remote
from guided_diffusion.train_util import TrainLoop
from guided_diffusion.validation import Validation, spread_cases
from guided_diffusion.validation_data import ValidationData, find_validation
from guided_diffusion.views import View
from guided_diffusion.volume_store import chosen_folder, use_cache
from guided_diffusion.watching import Watch
from guided_diffusion.work_folder import WorkFolder, work_folder

EXAMPLE = """python scripts/segmentation_train.py --data_name ISIC --data_dir ISIC/Train --out_dir runs/isic \\
      --image_size 64 --num_channels 32 --channel_mult 1,2,3,4 --num_res_blocks 1 --batch_size 16 --lr 5e-4"""


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


@dataclasses.dataclass(frozen=True)
class Run:
    """What is about to run, as flags and, where it goes on, a checkpoint say. start: that checkpoint, or None."""

    data: DataOptions
    train: TrainOptions
    model: ModelOptions
    diffusion: DiffusionOptions
    precision: str
    dataset: SegmentationDataset
    start: Checkpoint | None
    folder: WorkFolder
    validation: ValidationData | None

    @property
    def config(self):
        """The option values that are kept in checkpoints: a dict for each group."""
        train = dataclasses.asdict(self.train)
        del train["dry_run"]
        if train["val_dir"]:
            train["val_dir"] = absolute(train["val_dir"])
        return {
            "data": dataclasses.asdict(self.data) | {"data_dir": absolute(self.data.data_dir)},
            "model": dataclasses.asdict(self.model),
            "diffusion": dataclasses.asdict(self.diffusion),
            "train": train,
            "device": {"precision": self.precision, "use_fp16": self.precision == "fp16"},
        }

    @property
    def values(self):
        """The same as one dict, for a file of options."""
        return run_values(self.config, self.model, self.diffusion, self.train.out_dir)


def settle(options, given, processes):
    """The `Run` that the options ask for, checked; nothing is written."""
    data, train, model_options, diffusion_options, process_options = options
    folder = begun_folder(train.out_dir, processes)
    start = find_start(train, folder, processes)
    if start is not None:
        model_options = saved_options(ModelOptions, start.config["model"], model_options, given, "to go on from")
        diffusion_options = saved_options(
            DiffusionOptions, start.config["diffusion"], diffusion_options, given, "to go on from"
        )
        data, train = (
            go_on_with(options, start.config[key], given) for options, key in ((data, "data"), (train, "train"))
        )
        folder = begun_folder(train.out_dir, processes)  # the checkpoint's, unless the flag was given
        check_not_behind(folder, start, processes)
    check_variant(model_options, diffusion_options, given)
    if not data.data_dir:
        raise UserError("--data_dir: is needed; it names the folder that holds the training data")
    precision = pick_precision(process_options.precision, processes.device)
    data_dir = processes.by_machine(lambda: fetch_folder(data.data_dir)) if is_remote(data.data_dir) else data.data_dir
    data = dataclasses.replace(data, data_name=recognised(data.data_name, data_dir))  # what a checkpoint is to name
    here = dataclasses.replace(data, data_dir=data_dir)
    view = View(neighbours=model_options.neighbours, keep_size=train.crop)
    dataset = find_data(here, model_options.image_size, view, chosen="data_name" in given or start is not None)
    if train.orientation == "auto":
        train.orientation = dataset.orientation  # for those who go on from here, and for sampling
    dataset.orientation = train.orientation
    check_dataset(dataset, model_options, start)
    if data.classes == "auto":
        data.classes = here.classes = str(dataset.classes)  # what was found, for those who go on from here
    if start is None:
        diffusion_options.settle_activation(dataset.classes)
    if train.overfit:
        dataset.cases = [dataset.cases[index] for index in spread_cases(dataset, train.overfit)]
        model_options = dataclasses.replace(model_options, dropout=0.0)
    validation = None
    if train.sample_interval:
        val_dir = train.val_dir
        val_dir = processes.by_machine(lambda: fetch_folder(val_dir)) if is_remote(val_dir) else val_dir
        validation = find_validation(here, train, dataset, val_dir)
    return Run(data, train, model_options, diffusion_options, precision, dataset, start, folder, validation)


def train_model(options, given, processes):
    """Build or resume the run and train it, this process on its share of every batch. Returns the exit status."""
    run = settle(options, given, processes)
    train, dataset, start, folder = run.train, run.dataset, run.start, run.folder
    if processes.is_first:  # one checks for all; they would trip over each other's trial file
        folder.check_writable()
        folder.pull(lambda name: name in ("log.jsonl", SESSIONS))  # a resumed run goes on with it
    cache = chosen_folder(run.data.cache_dir, training=True)
    if cache is not None:
        workers = run.data.num_workers
        processes.by_machine(lambda: use_cache(dataset, cache, workers=workers, show=processes.is_first))

    torch.manual_seed(train.seed)
    sharded = train.fsdp and processes.count > 1
    if train.fsdp and not sharded:
        console().info("--fsdp True: there is one process alone, which keeps all weights whole")
    with sharded_as_built(processes) if sharded else nullcontext():
        if start is None:
            num_labels = len(dataset.label_names)
            model = build_model(run.model, dataset.image_channels, len(dataset.class_names), num_labels)
            diffusion = build_diffusion(run.diffusion)
        else:
            model, diffusion = start.build(run.model)
    if not sharded:  # what is gathered of shards is contiguous
        model.to(processes.device, memory_format=training_memory_format(processes.device))
    if processes.is_first:
        write_config(run.values, folder.path)
    place = f"{processes.place}, in shards" if sharded else processes.place
    describe(dataset, model, train, place, run.precision, start, run.validation)
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
    with recorded(loop) if processes.is_first else nullcontext():
        last = loop.run()
    if processes.is_first:
        command = sampling_command(run.data.data_dir, dataset.data_dir, folder, checkpoint_path("", last))
        folder.finish()
    if train.overfit:
        return loop.watch.verdict(last)
    told = counted(last, "step")
    if last < loop.last_step:
        told += f" of {loop.last_step}; to go on, add --resume_checkpoint auto to the same command"
    if processes.is_first:
        best = "" if loop.watch is None else loop.watch.told_best()
        console().info(f"trained {told}{best}\nsample with: {command}")
    return 0


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
    """Print the options as YAML, and as comments below what training would take; write nothing. Returns 0."""
    if os.environ.get("RANK", "0") != "0":  # torchrun's others would say the same
        return 0
    process_options = options[-1]
    listed = process_options.multi_gpu.count(",") + 1 if process_options.multi_gpu else 0
    count = listed or int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(process_options.gpu_dev)
    run = settle(options, given, Processes(0, 1, device))
    own = Processes(count - 1, count, device).share(run.train.batch_size)  # the last share is never the smaller one
    images = own.stop - own.start
    if run.train.microbatch > 0:
        images = min(images, run.train.microbatch)
    memory = estimate_training(
        run.model,
        run.dataset.image_channels,
        len(run.dataset.class_names),
        len(run.dataset.label_names),
        images=images,
        precision=run.precision,
        averages=len(run.train.ema_rates()),
        processes=count,
        shards=run.train.fsdp,
    )
    place = str(device) if count == 1 else f"each of {count} processes"
    lines = [*memory.told(place, images, run.precision), *told_data(run.dataset)]
    if run.validation is not None:
        lines.append(run.validation.told(run.train))
    if run.start is not None:
        lines.append(f"goes on from step {run.start.step}")
    comments = "".join(f"# {line}\n" for text in [*lines, "dry run: nothing was written"] for line in text.splitlines())
    sys.stdout.write(as_yaml(run.values) + comments)
    return 0


def find_data(data, image_size, view, chosen):
    """The training data, shown as `view` says. chosen: whether --data_name was, rather than left at its default."""
    try:
        options = {"split": "train", "need_masks": True, "view": view, **data.loading}
        return build_dataset(data.data_name, data.data_dir, image_size, **options)
    except NoCasesError as error:
        if chosen:
            raise
        raise UserError(
            f"{error}; {data.data_name} is the default of --data_name: {suggested(data.data_dir)}"
        ) from None


def begun_folder(out_dir, processes):
    """The `WorkFolder` of --out_dir; the first process, which alone asks it for names, has looked what is there."""
    folder = work_folder(out_dir, "training")
    if processes.is_first:
        folder.begin()
    return folder


def find_start(train, folder, processes):
    """The `Checkpoint` to go on from, or None for a new run. Refuses to start a new run over an old one."""
    newest = newest_of(folder, processes)
    if train.resume_checkpoint == "auto":
        return None if newest is None else load_checkpoint(bring(folder, newest, processes))
    if train.resume_checkpoint:
        path = train.resume_checkpoint
        return load_checkpoint(processes.by_machine(lambda: fetch_file(path)) if is_remote(path) else path)
    if newest is not None:
        raise UserError(
            f"--out_dir holds a run already ({folder.shown(newest)}): add --resume_checkpoint auto or choose another"
        )
    return None


def newest_of(folder, processes):
    """The name of the newest checkpoint in a `WorkFolder` or None, as the first process sees it, in all of them."""
    return processes.from_first(lambda: newest_name(folder.names()))  # or some might see a later one


def bring(folder, name, processes):
    """The local path of a checkpoint in a `WorkFolder`. The first process may have one that was not pushed yet."""
    if not is_remote(folder.shown()):
        return folder.path / name
    processes.from_first(folder.push)
    if processes.is_first:
        folder.pull(lambda other: other == name)
    return processes.by_machine(lambda: folder.path / name if processes.is_first else fetch_file(folder.shown(name)))


def check_not_behind(folder, start, processes):
    """Refuse to go on where --out_dir holds later checkpoints: they would be overwritten one by one."""
    newest = newest_of(folder, processes)
    if newest is not None and step_of(newest) > start.step:
        raise UserError(
            f"--out_dir holds a later checkpoint ({folder.shown(newest)}) than the one to go on from, of step "
            f"{start.step}: remove the later ones or choose another"
        )


def go_on_with(options, saved, given):
    """A resumed run's options: as before, but for the flags given now."""
    names = {item.name for item in dataclasses.fields(options)}
    values = {name: value for name, value in saved.items() if name in names}
    values |= {name: getattr(options, name) for name in names & given}
    return build(type(options), values)


def check_dataset(dataset, model_options, start):
    """Raise `UserError` where the data does not fit the model that is asked for or gone on with."""
    if model_options.class_cond:
        check_labels(dataset, start)
    if start is None:
        return
    if dataset.image_channels != start.image_channels:
        raise UserError(
            f"{dataset.data_dir}: images have {dataset.image_channels} channels, the checkpoint was trained with "
            f"{start.image_channels}"
        )
    if list(dataset.class_names) != start.class_names or dataset.classes.is_exclusive != start.classes.is_exclusive:
        raise UserError(
            f"{dataset.data_dir}: has the classes {dataset.classes.described()}, the checkpoint was trained with "
            f"{start.classes.described()}"
        )


def check_labels(dataset, start):
    """Raise `UserError` unless every case has one of the class labels that a class-conditional model is built for."""
    names = list(dataset.label_names)
    for case in dataset.cases:
        if case.label not in range(len(names)):
            has = "no class label" if case.label is None else f"the class label {case.label} of {len(names)}"
            raise UserError(f"{case.images[0]}: has {has}, which --class_cond True needs; set it False")
    if start is not None and names != start.label_names:
        raise UserError(
            f"{dataset.data_dir}: has the labels {', '.join(names)}, the checkpoint was trained with "
            f"{', '.join(start.label_names)}"
        )


def describe(dataset, model, train, place, precision, start, validation):
    """Say what is about to run."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    for line in told_data(dataset):
        console().info(line)
    console().info(f"model: {parameters / 1e6:.4g} M parameters, on {place} in {precision}")
    if validation is not None:
        console().info(validation.told(train))
    if train.augment != "none":
        console().info(f"augmentation: {train.augment}, {dataset.orientation} orientation")
    if start is not None:
        console().info(f"going on from step {start.step}")
    kept = "; each save brings them there" if is_remote(train.out_dir) else ""
    console().info(
        f"logs: {train.out_dir} (training.html, log.csv, log.jsonl; tensorboard --logdir {train.out_dir}){kept}"
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
