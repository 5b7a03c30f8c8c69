"""Draw an ensemble of masks for each image from a trained checkpoint, fuse them, and write a results folder."""

import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..checkpoint import Checkpoint, checkpoint_digest, load_checkpoint
from ..config.command_line import parse
from ..config.config_file import record_beside
from ..config.fields import named_by
from ..config.help import COMMON
from ..config.options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from ..config.places import folders_around, with_folders
from ..config.sample_options import SampleOptions
from ..config.settings import HOLD_OUT_FLAGS, Settings
from ..config.values import path_list
from ..data.accounting import warn_of_left_over
from ..data.cases import check_volumes, group_cases
from ..data.compatibility import (
    check_channels,
    check_reading,
    is_read_alike,
    leakage_warning,
    selection_warning,
    used_window,
)
from ..data.dataset import SegmentationDataset
from ..data.registry import ANY_FOLDER, AUTO, build_dataset, recognised
from ..data.splits import given_split, group_of, loading_of
from ..data.truth import raters_of
from ..data.volume_cache import chosen_folder, use_cache
from ..evaluation.evaluate import EvaluationSettings, evaluate
from ..evaluation.summary_table import format_summary
from ..inference.cleanup import CLEANING_FLAGS, described_rules
from ..inference.mask_rules import tiling
from ..inference.plan import describe_augmentation
from ..inference.results import ResultsFolder, check_name_lengths
from ..inference.sampler import EnsembleSampler, build_sampler, share_of
from ..inference.several import checkpoint_files, settle_several
from ..inference.writer import ReadableRaters, ResultWriter
from ..io.pictures import MAX_MEGAPIXELS, allow_megapixels, turning_tag
from ..io.storage import WorkFolder, fetch_data, fetch_file, is_remote, on_this_machine
from ..report.results_page import try_report
from ..runtime.console import console, counted, listed, quiet
from ..runtime.distributed import joined_processes, keep_freed_memory, launch_on_gpus, pick_precision
from ..runtime.errors import NoCasesError, UserError, run_script
from ..runtime.program import command
from ..runtime.threads import use_threads

DRAWING_FLAGS = (  # without effect where no members are drawn
    *("diffusion_steps", "sampler", "use_ddim", "dpm_solver", "solver_order", "timestep_respacing", "clip_denoised"),
    *("fuse", "seed", "compile"),
)
EXAMPLE = "--model_path runs/first --data_dir MY_DATA --out_dir runs/first/results"


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


def main(argv=None):
    """Parse the command line and sample, in this process or in one for each GPU of --multi_gpu."""
    groups = [SampleOptions, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions]
    saved = (ModelOptions, DiffusionOptions)
    example = f"{command('sample')} {EXAMPLE}"
    options, given = parse(__doc__, groups, argv, example=example, saved=saved, common=COMMON["sample"])
    process_options = options[-1]
    for name in ("model_path", "data_dir"):
        if name not in given:
            raise UserError(f"--{name}: is needed; see --help")
    if process_options.multi_gpu:
        return launch_on_gpus(process_options.multi_gpu, "sample", sys.argv[1:] if argv is None else argv)
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
    sampler = build_sampler(list(checkpoints.values()), every, processes.device, precision)
    if sampler.others and settings.sample.debug:
        raise UserError("--debug True: shows how one checkpoint draws; name one with --model_path")
    if settings.model.version == "unet":
        augmented = " except --symmetries and --scales" if sampler.plan.symmetric or sampler.plan.scales else ""
        console().info(f"a plain U-Net has one answer: the flags of sampling have no effect{augmented}")
    if not settings.sample.num_ensemble:
        console().info(one_pass_line(settings, several=bool(sampler.others)))
    for line in mask_lines(sampler.plan, checkpoint, settings.given):
        console().info(line)
    if sampler.others:
        console().info(
            f"{len(checkpoints)} checkpoints, which give {' + '.join(map(str, sampler.shares))} members: the mean of "
            "their probabilities is the answer"
        )
    for one in checkpoints.values():
        if not one.has_learned_diffusion and settings.sample.num_ensemble:
            console().warning(
                f"warning: the checkpoint, of step {one.step}, is from training's first stage, in which the condition "
                "model learns alone: members are its probabilities drawn pixel by pixel. Train on, end the stage "
                "sooner (--resume_checkpoint auto --max_steps N), name a later checkpoint such as last.pt, or leave "
                "out --num_ensemble for its own answer"
            )
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


def find_cases(data, sampler, settings, config, origin):
    """The data to sample and the name of their loader: --data_name's, else training's, else one that recognises them.

    data: the `DataOptions` with a local data_dir. config: the checkpoint's. origin: see `fields.named_by`. A single
    file is read as FOLDER reads it. Raises `UserError` where another loader than training's may normalise the images
    otherwise.
    """
    split, chosen = given_split(settings.sample.split), "data_name" in settings.given

    def build(name, named_by=""):
        options = {"split": split, "view": sampler.view, "keep_unreadable": True, **loading_of(data)}
        return build_dataset(name, data.data_dir, sampler.image_size, named_by=named_by, **options), name

    if Path(data.data_dir).is_file():
        check_reads_a_file(data, chosen, config)
        return build(ANY_FOLDER)
    name = recognised(data.data_name, data.data_dir)
    if name != data.data_name:
        console().info(f"--data_name {name}")
    try:
        return build(name, origin)
    except NoCasesError as error:
        advice = f"{error}; the checkpoint was trained on {name}: for other data add --data_name"
        if chosen:
            raise
        if not is_read_alike(config):
            raise UserError(advice) from None
    try:
        other = recognised(AUTO, data.data_dir)
    except UserError:
        raise UserError(advice) from None
    console().info(f"--data_name {other}: {data.data_dir} has no cases for {name}, on which the checkpoint was trained")
    return build(other)


def check_reads_a_file(data, chosen, config):
    """Raise `UserError` unless a single file may be read as FOLDER reads it.

    chosen: whether the user set --data_name. config: the checkpoint's.
    """
    if chosen and data.data_name.upper() not in (AUTO, ANY_FOLDER):
        raise UserError(f"{data.data_dir}: is a file, which only FOLDER reads; leave out --data_name {data.data_name}")
    if not chosen and not is_read_alike(config):
        raise UserError(
            f"{data.data_dir}: is a file, but only {data.data_name} reads images as in training; name a folder in its "
            f"layout, or add --data_name {ANY_FOLDER} if you know that the values are alike"
        )


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


def warn_of_outdated(run, folder, waiting):
    """Warn of finished cases whose images changed since: their masks are kept."""
    if is_remote(run.settings.sample.out_dir) or is_remote(run.settings.data.data_dir):
        return  # fetched files have the time of their copying
    names = {unit.name for unit in waiting}
    finished = [unit for unit in run.units if unit.name not in names]
    outdated = [u.name for u in finished if folder.is_outdated(u.name, u.is_volume, u.cases[0].images)]
    if outdated:
        has = "has an image" if len(outdated) == 1 else "have images"
        console().warning(
            f"warning: {counted(len(outdated), 'finished case')}, as {outdated[0]}, {has} newer than the mask: where "
            "it was changed, remove the mask, and the case is sampled again"
        )


def print_sampling_summary(run, waiting, processes):
    """Print the number of cases to sample, the data's layout, and warnings."""
    dataset, units = run.dataset, run.units
    everything = len(group_cases(dataset.cases))
    asked_for = "" if len(units) == everything else f", of which --num_samples takes the first {len(units)}"
    done = len(units) - len(waiting)
    console().info(f"{counted(everything, 'case')} of {dataset.data_dir}{asked_for}; {done} finished already")
    if dataset.layout:
        console().info(f"layout: {dataset.layout}")
    trained = [one.config["data"] for one in run.checkpoints.values()]
    leaks = dict.fromkeys(leakage_warning(dataset, units, data) for data in trained)
    turned = turned_line(waiting) if processes.is_first else ""  # it opens every image, and only the first prints
    for line in (*dataset.notes, turned, selection_warning(dataset), *leaks):
        if line:
            console().warning(line)
    if processes.is_first:
        warn_of_left_over(dataset)
    if waiting and run.draws_members and not run.settings.sample.save_samples and processes.is_first:
        warn_of_raters(dataset, waiting[0].cases[:1])


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
    if left_out:
        has, them = ("has", "it") if len(left_out) == 1 else ("have", "them")
        print(
            f"error: {len(left_out)} of {counted(len(units), 'case')} could not be sampled and {has} no mask: "
            f"{listed(left_out)}; repair {them}, then the same command samples {them}",
            file=sys.stderr,
        )
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


# ---- checks and warnings -------------------------------------------------------------------------------------------


def one_pass_line(settings, several=False):
    """The line that says that the diffusion is not used, which of the given flags have no effect, and how to draw.

    several: whether several checkpoints answer, whose answers are fused and saved as members are.
    """
    flags = [name for name in DRAWING_FLAGS if not (several and name == "fuse")]
    unused = [f"--{name}" for name in flags if name in settings.given]
    if settings.sample.save_samples and not several:
        unused.append("--save_samples (but for the coarse mask)")
    without = f"; {', '.join(unused)} {'has' if len(unused) == 1 else 'have'} no effect" if unused else ""
    return (
        "the condition model answers in one pass, the diffusion is not used: to draw members by it, add "
        f"--num_ensemble 5{without}"
    )


def mask_lines(plan, checkpoint, given):
    """Lines on the clean-up and the threshold of the masks. given: the names of the given flags."""
    lines, fits = [], checkpoint.config.get("masks", {})
    if plan.cleanup:
        line = f"clean-up of the masks: {described_rules(plan.cleanup, checkpoint.classes)}"
        if "cleanup" in fits and not given.intersection(CLEANING_FLAGS):
            cases = counted(fits["cleanup"]["cases"], "case")
            line += f", chosen on {cases}; without it: --fill_holes False --keep_largest False --min_size 0"
        lines.append(line)
    if plan.max_misses and "cleanup" in fits and not plan.cleanup:
        lines.append("the clean-up that was chosen for the checkpoint is not applied: the threshold's masks stay whole")
    if plan.max_misses:
        values = ", ".join(f"{value:.4g}" for value in plan.threshold)
        lines.append(
            f"threshold {values}: at most {plan.max_misses:.3g} of a patient's lesion pixels are missed on average, "
            "where the cases are like those on which it was fitted"
        )
    return lines


def turned_line(units):
    """A line on the images that an EXIF tag turns, over which the results lie as they are shown; "" without any."""
    turned = [unit.name for unit in units if not unit.is_volume and turning_tag(unit.cases[0].images[0])[0] != 1]
    if not turned:
        return ""
    return (
        f"{counted(len(turned), 'image')} with an EXIF tag that turns or mirrors them ({listed(turned)}): they are "
        "read, and their masks written, as they are shown, not as they are stored"
    )


def warn_of_raters(dataset, cases):
    """Warn if several raters marked these cases and the members, needed to compare with them, are not saved."""
    try:
        raters = raters_of(dataset, cases)
    except (UserError, OSError):  # sampling will report it
        return
    if raters is not None and len(raters) > 1:
        console().warning(
            "warning: several raters: GED2, matched IoU and collective insight compare the members with them; for "
            "these figures add --save_samples True"
        )


def warn_if_empty(empty, count, step):
    """Warn of empty masks, a sign that training may have been too short."""
    if empty:
        console().warning(
            f"warning: {empty} of {counted(count, 'mask')} {'is' if empty == 1 else 'are'} empty. The checkpoint was "
            f"trained for {counted(step, 'step')}: if that is few, train on; else compare the overlays with the images "
            "that it was trained on"
        )


def check_data(dataset, checkpoint):
    """Raise `UserError` if the data do not fit the checkpoint in channels, classes or labels."""
    check_channels(dataset, checkpoint.image_channels)
    check_reading(dataset, checkpoint.config)
    old, new = checkpoint.classes, dataset.classes
    if len(old) != len(new) or ((old.values or new.values) and old.names != new.names):
        raise UserError(
            f"{dataset.data_dir}: has the classes {new.described()}, the checkpoint was trained with {old.described()}"
        )
    if old.is_exclusive != new.is_exclusive:
        raise UserError(
            f"--classes {new}: the checkpoint was trained with {old.described()}; the classes must overlap in both "
            "or in neither"
        )
    if checkpoint.config["model"]["class_cond"]:
        if list(dataset.label_names) != checkpoint.label_names:
            raise UserError(
                f"{dataset.data_dir}: has the labels {list(dataset.label_names)}, the class-conditional checkpoint was "
                f"trained with {checkpoint.label_names}"
            )
        for case in dataset.cases:
            if case.label is None:
                raise UserError(f"{case.images[0]}: has no class label, which this class-conditional checkpoint needs")


if __name__ == "__main__":
    run_script(main)
