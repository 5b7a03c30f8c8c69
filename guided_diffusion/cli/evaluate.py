"""What `medsegdiff evaluate` does: it scores folders of masks, prints the tables, and writes the files and pages."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..checkpoint import resolved_path
from ..config.fields import named_by
from ..config.options import ignored_values
from ..config.sample_options import FUSE
from ..config.values import path_list
from ..data.accounting import outside_line, walk
from ..data.cases import group_cases
from ..data.compatibility import leakage_warning, selection_warning
from ..data.dataset import SegmentationDataset
from ..data.division import part_of
from ..data.registry import build_dataset
from ..data.splits import given_split, hold_out_of
from ..evaluation.cleanup_fit import fit_cleanup, format_cleanup
from ..evaluation.comparison import compare_runs, format_comparison
from ..evaluation.evaluate import EvaluationSettings, evaluate_cases, write_evaluation
from ..evaluation.fits import FIT_FLAGS, check_origin
from ..evaluation.pooling import check_same_settings, fold_figures, format_folds, pooled_evaluation
from ..evaluation.risk_control import fit_threshold, format_thresholds
from ..evaluation.summary import DEFINITIONS
from ..evaluation.summary_table import format_summary
from ..evaluation.temperature_fit import fit_into_checkpoint, format_fit
from ..inference.manifest import read_manifest
from ..inference.predictions import Predictions
from ..io.pictures import MAX_MEGAPIXELS, allow_megapixels
from ..io.storage import WorkFolder, fetch_folder, is_same_folder
from ..report.model_card import write_card
from ..report.results_page import try_report
from ..runtime.console import console, counted, listed
from ..runtime.errors import UserError
from ..runtime.threads import use_threads


@dataclass
class Results:
    """One folder of --pred_dir. folder: as the user named it. pred_dir: on this machine. manifest: {} without one.
    other_dir: its folder of --compare, or None."""

    folder: str
    pred_dir: Path
    manifest: dict
    dataset: SegmentationDataset
    settings: EvaluationSettings
    other_dir: Path | None


def run_evaluation(options, given):
    """Evaluate folders of predictions: print the tables, write the files. Returns the exit status, 1 if some cases
    could not be evaluated. options: `EvalOptions`. given: see `command_line.parse`."""
    for flag in FIT_FLAGS:
        if path := getattr(options, flag):
            options = replace(options, **{flag: resolved_path(path, f"--{flag} {path}")})
    results = find_results(options, given)
    out = WorkFolder(options.out_dir or options.pred_dir, "evaluation")
    with out.held():
        return evaluate_into(out, options, results)


def evaluate_into(out, options, results):
    """`run_evaluation` after its checks, into the `WorkFolder` for the tables and pages. results: the `Results`."""
    use_threads(options.threads)
    leaks, evaluations, others, workers = [], [], [], options.num_workers
    for one in results:
        leaks.append(warn_about_data(one.dataset, one.manifest))
        found = evaluate_cases(one.pred_dir, one.dataset, progress_bar, settings=one.settings, num_workers=workers)
        evaluations.append(found)
        if one.other_dir:
            others.append(evaluate_others(one, found, workers))
    evaluation, folds = evaluations[0], None
    if len(results) > 1:
        evaluation = pooled_evaluation(evaluations, [one.folder for one in results])
        folds = fold_figures(evaluations, fold_labels(results))
    compared = compare_runs(evaluation, pooled_evaluation(others, path_list(options.compare))) if others else None
    summary = write_evaluation(evaluation, out.path, compared, folds)
    print_tables(summary, compared, options)
    pages = [] if folds else write_pages(options, out, results[0], summary, leaks[0])
    write_fits(options, results[0], evaluation, leaks[0])
    out.finish()
    written = ["metrics.csv", "summary.json", "curves.json", *pages]
    console().info(f"written: {', '.join(out.shown(name) for name in written)}")
    return report_failed(evaluation)


# ---- what is evaluated -------------------------------------------------------------------------------------------


def find_results(options, given):
    """The `Results` of each folder of --pred_dir. Raises `UserError` for folders that cannot be pooled."""
    if "max_misses" in given and not options.fit_threshold:
        raise UserError("--max_misses belongs to --fit_threshold; leave it out")
    folders = path_list(options.pred_dir)
    others = path_list(options.compare) if options.compare else [""] * len(folders)
    check_several(options, folders, others)
    results = []
    for folder, other in zip(folders, others, strict=True):
        own = replace(options, pred_dir=folder, compare=other)
        pred_dir, manifest = read_results(own)
        other_dir = fetch_predictions(other) if other else None
        dataset = find_truth(own, given, manifest)
        settings = evaluation_settings(own, given, manifest)
        if not are_classes_sampled(dataset, manifest):
            for flag in FIT_FLAGS:
                if getattr(options, flag):
                    raise UserError(f"--{flag}: fits the classes that were sampled; leave out --classes")
            settings = replace(settings, max_misses=0.0)  # which is of those classes
        results.append(Results(folder, pred_dir, manifest, dataset, settings, other_dir))
    check_same_settings([one.manifest for one in results], folders)
    return results


def check_several(options, folders, others):
    """Raise `UserError` for flags that do not go with these folders of --pred_dir and of --compare."""
    if len(others) != len(folders):
        raise UserError(
            f"--compare: names {counted(len(others), 'folder')}, --pred_dir {len(folders)}; name as many, in one order"
        )
    if len(folders) == 1:
        return
    twice = [folder for folder in folders if folders.count(folder) > 1]
    if twice:
        raise UserError(f"{twice[0]}: is named twice in --pred_dir; name each folder once")
    if not options.out_dir:
        raise UserError("--out_dir: is needed with several folders in --pred_dir, since the figures are of none alone")
    for name in (*FIT_FLAGS, "card"):
        if getattr(options, name):
            raise UserError(f"--{name}: belongs to the results of one checkpoint; name one folder with --pred_dir")


def are_classes_sampled(dataset, manifest):
    """Whether the classes to evaluate are those of the results, and not others that --classes names."""
    classes = "" if dataset.classes.is_binary else str(dataset.classes)
    return classes == manifest.get("settings", {}).get("classes", "")


def fold_labels(results):
    """The name of each of several `Results` in tables: the fold in its manifest, "2/5", else its number."""
    labels = [one.manifest.get("data", {}).get("fold") or str(number) for number, one in enumerate(results, 1)]
    return labels if len(set(labels)) == len(labels) else [str(number) for number in range(1, len(results) + 1)]


def read_results(options):
    """The folder of predictions on this machine, and its manifest, {} where it has none.

    --split replaces the recorded split. Raises `UserError` for a fit into another checkpoint.
    """
    pred_dir = fetch_predictions(options.pred_dir)
    manifest = read_manifest(pred_dir)
    if options.split:
        manifest = {**manifest, "data": {**manifest.get("data", {}), "split": options.split}}
    for flag in FIT_FLAGS:
        if getattr(options, flag):
            check_origin(getattr(options, flag), manifest, flag)
    return pred_dir, manifest


def fetch_predictions(folder):
    """A folder of predicted masks, on this machine. Raises `UserError` where it does not exist."""
    local = fetch_folder(folder, "folder of predicted masks")
    Predictions(local)  # refuses a missing folder, which --out_dir would create
    listing = walk(local)
    if line := outside_line(folder, listing.outside, len(listing.files)):
        console().warning(line)
    return local


def find_truth(options, given, manifest):
    """The data set with the truth, named by the flags or else by the manifest. given: see `command_line.parse`.

    The recorded split and hold-out also apply where --data_dir names another folder, which may be the same data after
    a move: a hold-out depends on the names of cases only.
    """
    recorded = manifest.get("data", {})
    allow_megapixels(options.max_megapixels or recorded.get("max_megapixels", MAX_MEGAPIXELS))
    data_name = options.data_name or recorded.get("data_name")
    data_dir = options.data_dir or recorded.get("data_dir")
    missing = [flag for flag, value in (("--data_name", data_name), ("--data_dir", data_dir)) if not value]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}: needed; {options.pred_dir} has no manifest.json that names the truth"
        )
    split, hold_out = recorded.get("split", "test"), hold_out_of(recorded)
    classes = options.classes or recorded.get("classes", "")
    manifest_file = f"{options.pred_dir.rstrip('/')}/manifest.json"
    origin = named_by("data_name", given, manifest_file) if options.data_name else manifest_file
    chosen = {"split": given_split(split), "hold_out": hold_out, "classes": classes, "keep_unreadable": True}
    ignored = ignored_values(options.ignore_label or recorded.get("ignore_label", ""))
    chosen |= {"ignore_label": ignored} if ignored else {}
    sampled_dir = recorded.get("data_dir")
    is_moved = bool(sampled_dir) and not is_same_folder(data_dir, sampled_dir) and not options.split
    is_part = is_moved and (hold_out is not None or split != "test")
    note = f"its {split} cases are scored, as in {sampled_dir} when sampling; --split names others, as --split all"
    try:
        dataset = build_dataset(data_name, fetch_folder(data_dir), image_size=1, named_by=origin, **chosen)
    except UserError as error:
        if not is_part:
            raise
        raise UserError(f"{error} ({note})") from None
    if not options.data_dir:
        console().info(f"truth: {data_dir}, which {manifest_file} names; --data_dir names another folder")
    if is_part:
        console().info(f"{data_dir}: {note}")
    return dataset


def evaluation_settings(options, given, manifest):
    """The `EvaluationSettings`. given: the names of the flags on the command line.

    Raises `UserError` for --ensemble_curve where the results' fusion method is no longer supported.
    """
    method = manifest.get("settings", {}).get("fuse", "staple")
    if options.ensemble_curve and method not in FUSE:
        raise UserError(
            f"--ensemble_curve True: these results were fused by {method}, which this version no longer has; leave it "
            "out, or use version 0.1.0"
        )
    recorded = manifest.get("data", {}).get("group_key", "")
    return EvaluationSettings(
        options.tolerances(),
        options.lesion_iou,
        group_key=options.group_key if "group_key" in given else recorded,
        sizes={"mean": "vote"}.get(method, method) if options.ensemble_curve else "",  # members are binary masks
        levels=bool(options.fit_temperature),
        cleanups=bool(options.fit_cleanup),
        lesions=bool(options.fit_threshold),
        max_misses=manifest.get("settings", {}).get("max_misses", 0.0),
        copula_length=options.copula_length,
        topology=options.topology,
    )


def warn_about_data(dataset, manifest):
    """Print the data set's notes, and a warning where evaluated cases were trained on; returns that warning or None."""
    trained_on = [manifest.get("config", {}).get("data", {}), *(one["data"] for one in manifest.get("further", ()))]
    units = group_cases(dataset.cases)
    leaks = list(filter(None, dict.fromkeys(leakage_warning(dataset, units, data) for data in trained_on)))
    for line in (*dataset.notes, selection_warning(dataset), *leaks):
        if line:
            console().warning(line)
    return leaks[0] if leaks else None


def evaluate_others(results, evaluation, num_workers):
    """The `Evaluation` of the predictions that `Results` are compared with, by the same rules."""
    rules = evaluation.settings
    settings = EvaluationSettings(rules.tolerances, rules.lesion_iou, rules.group_key)
    return evaluate_cases(results.other_dir, results.dataset, progress_bar, settings=settings, num_workers=num_workers)


def progress_bar(units):
    """A list of cases with a progress bar."""
    return tqdm(units, desc="evaluating", unit="case", dynamic_ncols=True)


# ---- what is written ---------------------------------------------------------------------------------------------


def print_tables(summary, compared, options):
    """Print the summary, the folds' means and the comparison where there are any."""
    console().info(format_summary(summary))
    if "folds" in summary:
        console().info(format_folds(summary["folds"], summary))
    if options.ensemble_curve and "ensemble_size" not in summary:
        console().warning("warning: no ensemble curve: no members are saved; sample with --save_samples True")
    if compared:
        console().info(format_comparison(compared, summary, options.compare))
    console().info(f"every figure is defined in {DEFINITIONS}")


def write_pages(options, out, results, summary, leak):
    """Write the model card, if requested, and the report of `Results`; returns the names of the written files."""
    dataset, part = results.dataset, part_of(results.dataset)
    card = write_card(out.path, summary, results.manifest, dataset, part, leak) if options.card else None
    report = try_report(results.pred_dir, dataset, group_cases(dataset.cases), out.path)
    return [path.name for path in (card, report) if path]


def write_fits(options, results, evaluation, leak):
    """Write what the flags ask to fit to `Results` into the checkpoint, and print it. leak: of `warn_about_data`."""
    manifest, groups = results.manifest, {row["name"]: row["group"] or row["name"] for row in evaluation.rows}
    if path := options.fit_temperature:
        fitted = fit_into_checkpoint(path, manifest, evaluation.levels, len(evaluation.rows))
        console().info(format_fit(fitted, path))
    if path := options.fit_cleanup:
        dice, own = np.stack(list(evaluation.cleanups.values())), [groups[name] for name in evaluation.cleanups]
        choices = fit_cleanup(path, manifest, dice, evaluation.class_names, own)
        console().info(format_cleanup(choices, path, manifest, len(dice)))
    if path := options.fit_threshold:
        lesions, own = list(evaluation.lesions.values()), [groups[name] for name in evaluation.lesions]
        chosen = fit_threshold(path, manifest, lesions, results.dataset.classes, own, options.max_misses)
        console().info(format_thresholds(chosen, path, manifest, options.max_misses))
        if leak:
            console().warning(
                f"warning: --fit_threshold {path}: holds for new cases only if none of these was trained on (see the "
                "warning above): a network misses fewer pixels of what it knows; fit on --split val"
            )


def report_failed(evaluation):
    """Print the number and the names of the cases that could not be evaluated; returns the exit status."""
    failed = list(evaluation.failed)
    if not failed:
        return 0
    total = len({row["name"] for row in evaluation.rows}) + evaluation.missing + evaluation.without_truth + len(failed)
    print(
        f"error: {len(failed)} of {counted(total, 'case')} could not be evaluated: {listed(failed)}; the first: "
        f"{evaluation.failed[failed[0]]}; the other cases are in the tables",
        file=sys.stderr,
    )
    return 1
