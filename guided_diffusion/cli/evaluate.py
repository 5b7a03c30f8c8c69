"""Compare predicted masks with the truth: overlap, surfaces, lesions, calibration and uncertainty, case by case."""

import sys
from dataclasses import replace

from tqdm import tqdm

from ..checkpoint import checkpoint_file
from ..config.command_line import parse
from ..config.fields import named_by
from ..config.sample_options import FUSE, EvalOptions
from ..data.accounting import outside_line, walk
from ..data.cases import group_cases
from ..data.compatibility import leakage_warning, selection_warning
from ..data.division import part_of
from ..data.registry import build_dataset
from ..data.splits import given_split, hold_out_of
from ..evaluation.comparison import compare_runs, format_comparison
from ..evaluation.evaluate import EvaluationSettings, evaluate_cases, write_evaluation
from ..evaluation.summary import DEFINITIONS
from ..evaluation.summary_table import format_summary
from ..evaluation.temperature_fit import check_origin, fit_into_checkpoint, format_fit
from ..inference.manifest import read_manifest
from ..inference.predictions import Predictions
from ..io.pictures import MAX_MEGAPIXELS, allow_megapixels
from ..io.storage import WorkFolder, fetch_folder, is_same_folder
from ..report.model_card import write_card
from ..report.results_page import try_report
from ..runtime.console import console, counted, listed
from ..runtime.errors import UserError, run_script
from ..runtime.program import command

EXAMPLE = "--pred_dir runs/first/results"


def main(argv=None):
    """Evaluate a folder of predictions: print the tables, write the files. Returns the exit status, 1 if some cases
    could not be evaluated."""
    (options,), given = parse(__doc__, [EvalOptions], argv, example=f"{command('evaluate')} {EXAMPLE}")
    if options.fit_temperature:
        file = checkpoint_file(options.fit_temperature, f"--fit_temperature {options.fit_temperature}")
        options = replace(options, fit_temperature=str(file))
    pred_dir, manifest = read_results(options)
    other_dir = fetch_predictions(options.compare) if options.compare else None
    dataset = find_truth(options, given, manifest)
    settings = evaluation_settings(options, given, manifest)
    out = WorkFolder(options.out_dir or options.pred_dir, "evaluation")
    with out.held():
        return evaluate_into(out, options, settings, pred_dir, other_dir, dataset, manifest)


def evaluate_into(out, options, settings, pred_dir, other_dir, dataset, manifest):
    """`main` after its checks, into the `WorkFolder` for the tables and pages. other_dir: of --compare, or None."""
    leak = warn_about_data(dataset, manifest)
    evaluation = evaluate_cases(pred_dir, dataset, progress_bar, settings=settings, num_workers=options.num_workers)
    compared = compare_with(other_dir, evaluation, dataset, options.num_workers) if other_dir else None
    summary = write_evaluation(evaluation, out.path, compared)
    print_tables(summary, compared, options)
    pages = write_pages(options, out, pred_dir, dataset, summary, manifest, leak)
    if options.fit_temperature:
        fitted = fit_into_checkpoint(options.fit_temperature, manifest, evaluation.levels, len(evaluation.rows))
        console().info(format_fit(fitted, options.fit_temperature))
    out.finish()
    written = ["metrics.csv", "summary.json", "curves.json", *pages]
    console().info(f"written: {', '.join(out.shown(name) for name in written)}")
    return report_failed(evaluation)


# ---- what is evaluated -------------------------------------------------------------------------------------------


def read_results(options):
    """The folder of predictions on this machine, and its manifest, {} where it has none.

    --split replaces the recorded split. Raises `UserError` for --fit_temperature with another checkpoint.
    """
    if not options.pred_dir:
        raise UserError("--pred_dir: is needed; it names the folder of predicted masks")
    pred_dir = fetch_predictions(options.pred_dir)
    manifest = read_manifest(pred_dir)
    if options.split:
        manifest = {**manifest, "data": {**manifest.get("data", {}), "split": options.split}}
    if options.fit_temperature:
        check_origin(options.fit_temperature, manifest)
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
        copula_length=options.copula_length,
        topology=options.topology,
    )


def warn_about_data(dataset, manifest):
    """Print the data set's notes, and a warning where evaluated cases were trained on; returns that warning or None."""
    trained_on = manifest.get("config", {}).get("data", {})
    leak = leakage_warning(dataset, group_cases(dataset.cases), trained_on)
    for line in (*dataset.notes, selection_warning(dataset), leak):
        if line:
            console().warning(line)
    return leak


def compare_with(other_dir, evaluation, dataset, num_workers):
    """The comparison with another run's predictions, evaluated by the same rules."""
    rules = evaluation.settings
    settings = EvaluationSettings(rules.tolerances, rules.lesion_iou, rules.group_key)
    others = evaluate_cases(other_dir, dataset, progress_bar, settings=settings, num_workers=num_workers)
    return compare_runs(evaluation, others)


def progress_bar(units):
    """A list of cases with a progress bar."""
    return tqdm(units, desc="evaluating", unit="case", dynamic_ncols=True)


# ---- what is written ---------------------------------------------------------------------------------------------


def print_tables(summary, compared, options):
    """Print the summary, and the comparison where there is one."""
    console().info(format_summary(summary))
    if options.ensemble_curve and "ensemble_size" not in summary:
        console().warning("warning: no ensemble curve: no members are saved; sample with --save_samples True")
    if compared:
        console().info(format_comparison(compared, summary, options.compare))
    console().info(f"every figure is defined in {DEFINITIONS}")


def write_pages(options, out, pred_dir, dataset, summary, manifest, leak):
    """Write the model card, if requested, and the report; returns the names of the written files."""
    card = write_card(out.path, summary, manifest, dataset, part_of(dataset), leak) if options.card else None
    report = try_report(pred_dir, dataset, group_cases(dataset.cases), out.path)
    return [path.name for path in (card, report) if path]


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


if __name__ == "__main__":
    run_script(main)
