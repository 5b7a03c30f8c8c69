"""Draw an ensemble of masks for each image from a trained checkpoint, fuse them, and write a results folder."""

import dataclasses
import platform
import sys
import time

import numpy as np
import torch

from ..checkpoint import file_hash, load_checkpoint
from ..config.command_line import parse
from ..config.options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from ..config.script_options import SampleOptions
from ..data.cases import check_volumes, group_cases
from ..data.compatibility import check_reading, leakage_warning, trained_window, used_window
from ..data.registry import build_dataset, recognised
from ..data.splits import HOLD_OUT_FLAGS, given_split, group_of, loading_of
from ..data.truth import raters_of
from ..data.volume_cache import chosen_folder, use_cache
from ..evaluation.evaluate import EvaluationSettings, evaluate
from ..evaluation.summary_table import format_summary
from ..inference.results import ResultsFolder
from ..inference.sampler import ReadableRaters, build_sampler, share_of
from ..io.storage import cached, fetch_file, fetch_folder, is_remote, is_same_folder
from ..io.work_folder import work_folder
from ..report.results_page import try_report
from ..runtime.console import console, counted, listed, quiet
from ..runtime.distributed import joined_processes, keep_freed_memory, launch_on_gpus, pick_precision
from ..runtime.errors import NoCasesError, UserError, run_script

EXAMPLE = """python scripts/segmentation_sample.py --model_path runs/first/last.pt --data_dir MY_DATA \\
      --out_dir runs/first/results --num_ensemble 5"""


def main(argv=None):
    """Parse the command line and sample, in this process or in one for each GPU that is asked for."""
    groups = [SampleOptions, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions]
    options, given = parse(__doc__, groups, argv, example=EXAMPLE, saved=(ModelOptions, DiffusionOptions))
    process_options = options[-1]
    for name in ("model_path", "data_dir"):
        if name not in given:
            raise UserError(f"--{name}: is needed; see --help")
    if process_options.multi_gpu:
        return launch_on_gpus(process_options.multi_gpu, __file__, sys.argv[1:] if argv is None else argv)
    with joined_processes(process_options.gpu_dev, "gpu_dev" in given) as processes:
        quiet(not processes.is_first)
        keep_freed_memory()
        return sample_all(options, given, processes)


def sample_all(options, given, processes):
    """Sample every case that is not finished, this process its share; the first evaluates where truth exists. Returns
    the exit status."""
    sample, data, model_options, diffusion_options, process_options = options
    checkpoint = load_checkpoint(fetched(fetch_file, sample.model_path, processes))
    trained = checkpoint.config
    precision = pick_precision(process_options.precision, processes.device)
    sampler = build_sampler(checkpoint, sample, given, processes.device, precision, model_options, diffusion_options)
    has_diffusion = trained["model"]["version"] != "unet"
    if not has_diffusion:
        looks = " but for --symmetries and --scales" if sampler.plan.symmetric or sampler.plan.scales else ""
        console().info(f"a plain U-Net has one answer: one member in one step, whatever the sampling flags say{looks}")
    warn_of_first_stage(checkpoint)
    data, dataset, units = find_units(sample, data, given, checkpoint, sampler, processes)
    out = work_folder(sample.out_dir, "sampling")
    if processes.is_first:  # one checks for all; they would trip over each other's trial file
        out.check_writable()
        out.begin()
        out.pull()
    elif processes.is_first_here:
        out.begin()
    manifest = describe_run(sample, data, checkpoint, sampler, processes, dataset)
    folder = ResultsFolder(
        out.path,
        manifest,
        save_samples=sample.save_samples,
        begin=processes.is_first,
        written=out.try_push,
        classes=dataset.classes,
    )
    if processes.is_first:
        out.push([out.path / "manifest.json"])  # before the masks, which are nobody's without it
    finished = processes.from_first(lambda: [folder.finished(unit.name, unit.is_volume) for unit in units])
    waiting = [unit for unit, done in zip(units, finished, strict=True) if not done]
    describe(dataset, units, waiting, trained["data"])
    if waiting and has_diffusion and not sample.save_samples and processes.is_first:
        warn_of_raters(dataset, waiting[0].cases[:1])
    cache = chosen_folder(data.cache_dir, training=False)
    if cache is not None:
        needed = [index for unit in waiting for index in unit.indices]
        options = {"indices": needed, "workers": data.num_workers, "show": processes.is_first, "skip_damaged": True}
        processes.by_machine(lambda: use_cache(dataset, cache, **options))
    sampler.read_raters, began, sampled = ReadableRaters(), time.monotonic(), (0, {})
    if waiting:
        members = counted(sample.num_ensemble, "member")
        how = f"{members} by {sampler.plan}" if has_diffusion else "one pass"
        console().info(f"{how}, on {processes.place} in {precision}")
        own = share_of(waiting, sampler.images, processes.rank, processes.count)
        try:
            sampled = sampler.run(dataset, own, folder, data.num_workers, show=processes.is_first)
        except KeyboardInterrupt:
            done = sum(folder.finished(unit.name, unit.is_volume) for unit in units)
            console().info(f"{done} of {counted(len(units), 'case')} finished; the same command goes on from here")
            raise
    empty, unread = map(list, zip(*processes.gather(sampled), strict=True))  # all are done
    unread = {name: why for share in unread for name, why in share.items()}
    if is_remote(sample.out_dir) and processes.count > 1:
        gather_results(out, processes)
    if not processes.is_first:
        return 0
    if len(unread) == len(units):
        first = next(iter(unread.values()))
        raise UserError(first if len(units) == 1 else f"none of {len(units)} cases could be read; the first: {first}")
    drawn, left_out = len(waiting) - len(unread), [unit.name for unit in units if unit.name in unread]
    warn_if_empty(sum(empty), drawn, checkpoint.step)
    folder.complete(time.monotonic() - began, drawn, cases=len(units), unread=left_out)
    finish(sample, out, dataset, units, sampler.read_raters, data.group_key)
    return tell_unread(left_out, len(units))


def fetched(fetch, path, processes):
    """Where a file or folder is on this machine: `fetch(path)` where it is in a blob store."""
    return processes.by_machine(lambda: fetch(path)) if is_remote(path) else path


def gather_results(out, processes):
    """Bring to the first process's machine what the others have written to a blob store from theirs."""
    if processes.is_first_here and not processes.is_first:
        out.finish()
    processes.gather(None)
    if processes.is_first:
        out.begin()
        out.pull()


def find_units(sample, data, given, checkpoint, sampler, processes):
    """The data options as they are settled, the data set, and its units that are asked for; all of it checked."""
    data = settled_data(data, given, checkpoint.config)
    here = dataclasses.replace(data, data_dir=fetched(fetch_folder, data.data_dir, processes))
    data.data_name = here.data_name = recognised(data.data_name, here.data_dir)  # what the manifest is to name
    dataset = find_data(here, sampler, sample.split, chosen="data_name" in given)
    check_dataset(dataset, checkpoint)
    if "group_key" in given:  # refused now rather than after the last case
        for case in dataset.cases:
            group_of(case, data.group_key)
    units = group_cases(dataset.cases)[: sample.num_samples or None]
    check_volumes(dataset, units, to_write=True)
    return data, dataset, units


def find_data(data, sampler, split, chosen):
    """The data to sample. split: as --split says. chosen: whether --data_name was, not taken from the checkpoint."""
    try:
        options = {"split": given_split(split), "view": sampler.view, **loading_of(data)}
        return build_dataset(data.data_name, data.data_dir, sampler.image_size, **options)
    except NoCasesError as error:
        if chosen:
            raise
        raise UserError(
            f"{error}; the checkpoint was trained on {data.data_name}: for others add --data_name"
        ) from None


def settled_data(data, given, config):
    """The data options, those that were left open as the checkpoint's training had them, whose values `config` has. A
    folder that it held cases out of is divided likewise."""
    trained = config["data"]
    left_open = {"data_name": trained["data_name"], "classes": trained.get("classes", "")}
    left_open["ct_window"] = trained_window(config)
    values = {name: value for name, value in left_open.items() if name not in given}
    is_divided = trained.get("val_fraction") and is_same_folder(data.data_dir, trained["data_dir"])
    if "val_fraction" not in given and is_divided:
        held = {name: trained[name] for name in HOLD_OUT_FLAGS if name in trained}
        if "group_key" in given and data.group_key != held.get("group_key", ""):
            by = f"by --group_key {held['group_key']}" if held.get("group_key") else "without --group_key"
            raise UserError(
                f"--group_key {data.group_key}: training divided {data.data_dir} {by}; leave it out (to group figures "
                "otherwise give it to segmentation_eval.py), or say how to divide by --val_fraction"
            )
        values |= held
    return dataclasses.replace(data, **values)


def warn_of_first_stage(checkpoint):
    """Warn where training stopped before the diffusion's stage had begun (see `--condition_steps`)."""
    steps = checkpoint.config["train"].get("condition_steps", 0)
    if steps < 0 or checkpoint.step <= steps:
        console().warning(
            f"warning: the checkpoint, of step {checkpoint.step}, is from training's first stage, in which the "
            "condition model learns alone: members are its probabilities drawn pixel by pixel. Train on, end it sooner "
            "(--resume_checkpoint auto --max_steps N), or use the coarse mask (--save_samples True)"
        )


def describe(dataset, units, waiting, trained):
    """Say what is about to be sampled. trained: the data that the checkpoint was trained on."""
    everything = len(group_cases(dataset.cases))
    asked_for = "" if len(units) == everything else f", of which --num_samples takes the first {len(units)}"
    done = len(units) - len(waiting)
    console().info(f"{counted(everything, 'case')} of {dataset.data_dir}{asked_for}; {done} finished already")
    if dataset.layout:
        console().info(f"layout: {dataset.layout}")
    for line in (*dataset.notes, leakage_warning(dataset, units, trained)):
        if line:
            console().warning(line)


def warn_of_raters(dataset, cases):
    """Say what is lost without the members' masks where several raters marked these cases."""
    try:
        raters = raters_of(dataset, cases)
    except (UserError, OSError):  # what cannot be read is told when it is needed
        return
    if raters is not None and len(raters) > 1:
        console().warning(
            "warning: several raters: GED2, matched IoU and collective insight compare the members with them, for "
            "which these are needed: --save_samples True"
        )


def warn_if_empty(empty, count, step):
    """Warn where masks are empty, which may mean that the training was too short."""
    if empty:
        console().warning(
            f"warning: {empty} of {counted(count, 'mask')} {'is' if empty == 1 else 'are'} empty. The checkpoint was "
            f"trained for {counted(step, 'step')}: if that is few, train on; else compare the overlays with images "
            "that it was trained on"
        )


def tell_unread(names, cases):
    """Name the cases that could not be read, on stderr. Returns the exit status, 1 with such."""
    if not names:
        return 0
    has, them = ("has", "it") if len(names) == 1 else ("have", "them")
    print(
        f"error: {len(names)} of {counted(cases, 'case')} could not be read and {has} no mask: {listed(names)}; repair "
        f"{them}, and the same command goes on with {them}",
        file=sys.stderr,
    )
    return 1


def check_dataset(dataset, checkpoint):
    """Raise `UserError` where the data does not fit the checkpoint."""
    if dataset.image_channels != checkpoint.image_channels:
        raise UserError(
            f"{dataset.data_dir}: images have {dataset.image_channels} channels, the checkpoint was trained with "
            f"{checkpoint.image_channels}"
        )
    check_reading(dataset, checkpoint.config)
    old, new = checkpoint.classes, dataset.classes
    if len(old) != len(new) or ((old.values or new.values) and old.names != new.names):
        raise UserError(
            f"{dataset.data_dir}: has the classes {new.described()}, the checkpoint was trained with {old.described()}"
        )
    if old.is_exclusive != new.is_exclusive:
        raise UserError(
            f"--classes {new}: the checkpoint was trained with {old.described()}; whether values are in several "
            "classes must be the same"
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


def describe_run(sample, data, checkpoint, sampler, processes, dataset):
    """The manifest: everything that decides the results, and what they were made with."""
    names = (
        *("num_ensemble", "fuse", "temperature", "weights", "seed"),
        *("save_samples", "uncertainty_maps", "debug"),
    )
    settings = {name: getattr(sample, name) for name in names}
    settings |= {} if dataset.classes.is_binary else {"classes": str(dataset.classes)}
    settings |= {"image_size": sampler.image_size, "precision": sampler.precision, **sampler.plan.settings()}
    settings["tile"] = f"with overlap {sample.tile_overlap:g}" if sample.tile else False
    data_dir = data.data_dir if is_remote(data.data_dir) else str(dataset.data_dir.resolve())
    return {
        "status": "running",
        "checkpoint": str(sample.model_path),
        "checkpoint_sha256": file_hash(cached(sample.model_path)),
        "step": checkpoint.step,
        "settings": settings,
        "data": {
            "data_name": data.data_name,
            "data_dir": data_dir,
            "split": sample.split,
            "ct_window": used_window(dataset.kept_values(), data.ct_window),
            "classes": str(dataset.classes) if data.classes == "auto" else data.classes,
            **{name: getattr(data, name) for name in HOLD_OUT_FLAGS},
        },
        "config": checkpoint.config,
        "class_names": checkpoint.class_names,
        "device": torch.cuda.get_device_name(processes.device) if processes.device.type == "cuda" else "cpu",
        "processes": processes.count,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


def finish(sample, out, dataset, units, read_raters, group_key):
    """Evaluate where there is truth, as segmentation_eval.py would, write the report, and say where to look."""
    settings = EvaluationSettings(group_key=group_key)
    if any(case.masks for unit in units for case in unit.cases):
        try:
            console().info(format_summary(evaluate(out.path, dataset, read_raters=read_raters, settings=settings)))
        except UserError as error:  # the masks are there all the same
            console().warning(f"warning: not evaluated: {error}")
    report = try_report(out.path, dataset, units, read_raters=read_raters)
    out.finish()
    console().info(f"masks: {sample.out_dir}" + (f"   to look at: {out.shown(report.name)}" if report else ""))


if __name__ == "__main__":
    run_script(main)
