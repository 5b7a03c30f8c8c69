"""What `medsegdiff sample` does: it draws, fuses and writes the masks of each image, then evaluates and reports."""

import platform
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..checkpoint import Checkpoint, checkpoint_digest, load_checkpoint
from ..config.config_file import record_beside
from ..config.fields import named_by
from ..config.options import DataOptions
from ..config.places import folders_around, with_folders
from ..config.sample_options import SampleOptions
from ..config.settings import HOLD_OUT_FLAGS, Settings
from ..config.values import path_list
from ..data.cases import check_volumes, group_cases
from ..data.compatibility import (
    used_window,
)
from ..data.dataset import SegmentationDataset
from ..data.splits import group_of
from ..data.volume_cache import chosen_folder, use_cache
from ..evaluation.evaluate import EvaluationSettings, evaluate
from ..evaluation.summary_table import format_summary
from ..inference.mask_rules import tiling
from ..inference.plan import describe_augmentation
from ..inference.results import ResultsFolder, check_name_lengths
from ..inference.sampler import EnsembleSampler, build_sampler, share_of
from ..inference.several import checkpoint_files, settle_several
from ..inference.writer import ReadableRaters, ResultWriter
from ..io.pictures import MAX_MEGAPIXELS, allow_megapixels
from ..io.storage import WorkFolder, fetch_data, fetch_file, is_remote, on_this_machine
from ..report.results_page import try_report
from ..runtime.console import console, counted, quiet
from ..runtime.distributed import joined_processes, keep_freed_memory, launch_on_gpus, pick_precision
from ..runtime.errors import UserError
from ..runtime.threads import use_threads
from .sample_data import check_data, find_cases
from .sample_lines import (
    print_sampling_plan,
    print_sampling_summary,
    print_unsampled,
    warn_if_empty,
    warn_of_outdated,
)


@dataclass(frozen=True)
class SamplingRun:
    """Everything that sampling needs.

    checkpoints: by their files, as --model_path names them. units: the images and volumes of the data set to sample.
    """

    settings: Settings
    checkpoints: dict[str, Checkpoint]
    sampler: EnsembleSampler
    dataset: SegmentationDataset
    units: list

    @property
    def checkpoint(self):
        """The first of `checkpoints`, with which all agree in their data."""
        return next(iter(self.checkpoints.values()))

    @property
    def draws_members(self):
        """Whether the diffusion draws members; else the plain U-Net or the condition model answers in one pass."""
        return self.settings.model.version != "unet" and self.settings.sample.num_ensemble > 0


def run_sampling(options, given, words):
    """Sample in this process or in one for each GPU of --multi_gpu. Returns the exit status.

    options, given: see `command_line.parse`. words: the command line that they are from.
    """
    process_options = options[-1]
    if process_options.multi_gpu:
        return launch_on_gpus(process_options.multi_gpu, "sample", words)
    with joined_processes(process_options.gpu_dev, "gpu_dev" in given) as processes:
        quiet(not processes.is_first)
        keep_freed_memory()
        use_threads(process_options.threads)
        return sample(options, given, processes)


def sample(options, given, processes):
    """Sample this process's share of the unfinished cases; the first process then evaluates all that have truth.

    Returns the exit status.
    """
    run = prepare_sampling(options, given, processes)
    out = WorkFolder(run.settings.sample.out_dir, "sampling")
    # Only one process takes the lock, and tries to write: they would be in each other's way.
    with out.held() if processes.is_first else nullcontext():
        return sample_into(out, run, processes)


def sample_into(out, run, processes):
    """`sample` after its checks, into the `WorkFolder` of --out_dir."""
    open_results_store(out, processes)
    folder = open_results(run, out, processes)
    waiting = unfinished(run, folder, processes)
    print_sampling_summary(run, waiting, processes)
    if processes.is_first:
        warn_of_outdated(run, folder, waiting)
    cache_sampled_volumes(run, waiting, processes)
    began, raters = time.monotonic(), ReadableRaters()
    empty, unread = sample_share(run, waiting, folder, raters, processes)
    if is_remote(run.settings.sample.out_dir) and processes.count > 1:
        gather_results(out, processes)
    if not processes.is_first:
        return 0
    return conclude_sampling(run, out, folder, waiting, empty, unread, raters, time.monotonic() - began)


# ---- the steps -----------------------------------------------------------------------------------------------------


def prepare_sampling(options, given, processes):
    """The checked `SamplingRun` for these options; writes nothing. Raises `UserError` for data that do not fit."""
    options = [with_checkpoint_files(part) if isinstance(part, SampleOptions) else part for part in options]
    checkpoints = load_checkpoints(options, processes)
    path, checkpoint = next(iter(checkpoints.items()))
    every = settle_several(options, given, list(checkpoints.values()), list(checkpoints))
    settings = every[0]
    allow_megapixels(settings.data.max_megapixels)
    precision = pick_precision(settings.device.precision, processes.device)
    sampler = build_sampler(list(checkpoints.values()), every, processes.device, precision, processes.on_machine)
    if sampler.others and settings.sample.debug:
        raise UserError("--debug True: shows how one checkpoint draws; name one with --model_path")
    print_sampling_plan(settings, checkpoints, sampler)
    here = replace(settings.data, data_dir=on_this_machine(settings.data.data_dir, fetch_data, processes))
    origin = named_by("data_name", given, f"--model_path {path}")
    dataset, data_name = find_cases(here, sampler, settings, checkpoint.config, origin)
    data = replace(settings.data, data_name=data_name)
    settings = replace(settings, data=data)
    check_data(dataset, checkpoint)
    if "group_key" in given:  # raises its error now rather than after the last case
        for case in dataset.cases:
            group_of(case, data.group_key)
    units = group_cases(dataset.cases)[: settings.sample.num_samples or None]
    if not check_volumes(dataset, units, to_write=True):
        dataset.volumes.check_readable()
    answers = settings.sample.num_ensemble or len(sampler.others) and sampler.masks
    check_name_lengths(units, dataset.classes, settings.sample, answers)
    return SamplingRun(settings, checkpoints, sampler, dataset, units)


def load_checkpoints(options, processes):
    """The `Checkpoint`s that --model_path names, by their files. Raises `UserError` for one that cannot be read."""
    files = path_list(next(part for part in options if isinstance(part, SampleOptions)).model_path)
    data_dir = next(part for part in options if isinstance(part, DataOptions)).data_dir
    loaded = {}
    for file in files:
        checkpoint = load_checkpoint(on_this_machine(file, fetch_file, processes), where=f"--model_path {file}")
        checkpoint.config = with_folders(checkpoint.config, record_beside(file), folders_around(data_dir))
        loaded[file] = checkpoint
    return loaded


def with_checkpoint_files(sample):
    """The `SampleOptions` with --model_path as files, where it names folders of runs."""
    return replace(sample, model_path=",".join(checkpoint_files(path_list(sample.model_path), "--model_path ")))


def open_results_store(out, processes):
    """Begin with the `WorkFolder` of --out_dir on each machine."""
    if processes.is_first_here:
        out.begin()
    if processes.is_first:
        out.pull()


def open_results(run, out, processes):
    """The `ResultsFolder` with its manifest; in a store the manifest comes before the masks."""
    folder = ResultsFolder(
        out.path,
        manifest_of(run, processes),
        save_samples=run.settings.sample.save_samples,
        begin=processes.is_first,
        written=out.try_push,
        classes=run.dataset.classes,
    )
    if processes.is_first:
        for name, target in folder.links().items():
            console().warning(
                f"warning: {out.shown(name)}: is a link, and results are written where it leads: {target}"
            )
        out.push([out.path / "manifest.json"])
    return folder


def unfinished(run, folder, processes):
    """The units without a mask, which all processes take from the first."""
    finished = processes.from_first(lambda: [folder.finished(unit.name, unit.is_volume) for unit in run.units])
    return [unit for unit, done in zip(run.units, finished, strict=True) if not done]


def cache_sampled_volumes(run, waiting, processes):
    """Decompress the volumes to sample once on each machine, if --cache_dir names a folder."""
    data = run.settings.data
    cache = chosen_folder(data.cache_dir, training=False)
    if cache is not None:
        needed = [index for unit in waiting for index in unit.indices]
        options = {"indices": needed, "workers": data.num_workers, "show": processes.is_first, "skip_damaged": True}
        processes.by_machine(lambda: use_cache(run.dataset, cache, **options))


def sample_share(run, waiting, folder, raters, processes):
    """Sample this process's share of the units.

    Returns, over all processes, the number of empty masks, and {name: reason} of the units that could not be read or
    written.
    """
    sampler, options = run.sampler, run.settings.sample
    writer = ResultWriter(run.dataset, [], folder, options, sampler.plan, raters)
    unread = {}
    if waiting:
        members = counted(options.num_ensemble, "member")
        how = f"{members} by {sampler.plan}" if run.draws_members else "one pass"
        augmentation = describe_augmentation(sampler.plan.settings())
        if augmentation:
            how += f"; {augmentation}{' (not of tiled images)' if options.tile else ''}"
        console().info(f"{how}, on {processes.place} in {sampler.precision}")
        own = share_of(waiting, sampler.images, processes.rank, processes.count)
        writer = ResultWriter(run.dataset, own, folder, options, sampler.plan, raters)
        try:
            unread = sampler.run(run.dataset, writer, run.settings.data.num_workers, show=processes.is_first)
        except KeyboardInterrupt:
            done = sum(folder.finished(unit.name, unit.is_volume) for unit in run.units)
            console().info(
                f"{done} of {counted(len(run.units), 'case')} finished; the same command continues from here"
            )
            raise
    shares = processes.gather((writer.empty, unread))  # waits for all processes
    return sum(empty for empty, _ in shares), {name: why for _, share in shares for name, why in share.items()}


def gather_results(out, processes):
    """Bring the results of all machines to the first process's machine, through the blob store."""
    if processes.is_first_here and not processes.is_first:
        out.finish()
    processes.gather(None)
    if processes.is_first:
        out.begin()
        out.pull()


def conclude_sampling(run, out, folder, waiting, empty, unread, raters, seconds):
    """Complete the manifest, evaluate the cases with truth, write the report, print where the results are.

    Returns the exit status, 1 if some cases could not be read. Raises `UserError` if none could be.
    """
    units, sample = run.units, run.settings.sample
    if len(unread) == len(units):
        first = next(iter(unread.values()))
        raise UserError(
            first if len(units) == 1 else f"none of {len(units)} cases could be sampled; the first: {first}"
        )
    drawn, left_out = len(waiting) - len(unread), [unit.name for unit in units if unit.name in unread]
    warn_if_empty(empty, drawn, run.checkpoint.step)
    folder.complete(seconds, drawn, cases=len(units), unread=left_out)
    max_misses = run.sampler.plan.max_misses
    settings = EvaluationSettings(group_key=run.settings.data.group_key, max_misses=max_misses)
    if any(case.masks for unit in units for case in unit.cases):
        try:
            console().info(format_summary(evaluate(out.path, run.dataset, read_raters=raters, settings=settings)))
        except UserError as error:  # the masks are useful without it
            console().warning(f"warning: not evaluated: {error}")
    report = try_report(out.path, run.dataset, units, read_raters=raters)
    out.finish()
    console().info(f"masks: {sample.out_dir}" + (f"   report: {out.shown(report.name)}" if report else ""))
    print_unsampled(left_out, len(units))
    return 1 if left_out else 0


def manifest_of(run, processes):
    """The manifest as a dict: the settings that decide the results, the data, the checkpoint and the versions."""
    sample, data, dataset, checkpoint = run.settings.sample, run.settings.data, run.dataset, run.checkpoint
    names = (
        *("num_ensemble", "temperature", "weights", "seed"),
        *("save_samples", "uncertainty_maps", "debug"),
    )
    decisive = {name: getattr(sample, name) for name in names}
    decisive |= {} if dataset.classes.is_binary else {"classes": str(dataset.classes)}
    decisive |= {"image_size": run.settings.image_size, "precision": run.sampler.precision}
    decisive |= run.sampler.plan.settings()
    decisive["tile"] = tiling(sample)
    if not run.draws_members:  # without an effect, so a rerun may have others
        del decisive["seed"]
        if not run.sampler.others:
            del decisive["fuse"]
    kind = processes.device.type
    data_dir = data.data_dir if is_remote(data.data_dir) else str(dataset.data_dir.resolve())
    return {
        "status": "running",
        "checkpoint": ",".join(run.checkpoints),
        "checkpoint_sha256": ",".join(map(checkpoint_digest, run.checkpoints)),
        "step": checkpoint.step,
        **({"further": further_checkpoints(run)} if run.sampler.others else {}),
        "settings": decisive,
        "data": {
            "data_name": data.data_name,
            "data_dir": data_dir,
            "split": sample.split,
            "ct_window": used_window(dataset.kept_values(), data.ct_window),
            "classes": str(dataset.classes) if data.classes == "auto" else data.classes,
            **({"ignore_label": data.ignore_label} if data.ignore_label else {}),
            **{name: getattr(data, name) for name in HOLD_OUT_FLAGS},
            **({"max_megapixels": data.max_megapixels} if data.max_megapixels != MAX_MEGAPIXELS else {}),
        },
        "config": checkpoint.config,
        "class_names": checkpoint.class_names,
        "device": torch.cuda.get_device_name(processes.device) if kind == "cuda" else kind,
        "processes": processes.count,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def further_checkpoints(run):
    """What the manifest says of each checkpoint but the first, which evaluation needs to know what was trained on."""
    others = list(run.checkpoints.items())[1:]
    return [{"checkpoint": file, "step": one.step, "data": one.config["data"]} for file, one in others]
