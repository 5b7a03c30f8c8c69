"""Compare predicted masks with the truth: overlap, surfaces, lesions, calibration and doubt, by case and on average."""

from tqdm import tqdm

from ..config.command_line import parse
from ..config.sample_options import FUSE, EvalOptions
from ..data.cases import group_cases
from ..data.compatibility import leakage_warning
from ..data.registry import build_dataset
from ..data.splits import given_split, hold_out_of
from ..evaluation.comparison import compare, format_comparison
from ..evaluation.evaluate import Settings, compare_cases, write_evaluation
from ..evaluation.summary import DEFINITIONS, format_summary
from ..evaluation.temperature_fit import check_origin, fit_into_checkpoint, format_fit
from ..inference.predictions import Predictions
from ..io.files import read_json
from ..io.storage import WorkFolder, fetch_folder, is_same_folder
from ..report.model_card import write_card
from ..report.results_page import try_report
from ..runtime.console import console
from ..runtime.errors import UserError, run_script

EXAMPLE = "python scripts/segmentation_eval.py --pred_dir runs/first/results"


def main(argv=None):
    """Parse the command line, evaluate, and print the table of figures."""
    (options,), given = parse(__doc__, [EvalOptions], argv, example=EXAMPLE)
    if not options.pred_dir:
        raise UserError("--pred_dir: is needed; it names the folder of predicted masks")
    pred_dir, recorded = read_manifest(options.pred_dir)
    manifest = of_split(recorded, options.split)
    if options.fit_temperature:
        check_origin(options.fit_temperature, manifest)
    other = read_manifest(options.compare)[0] if options.compare else None
    dataset = find_truth(options, manifest)
    settings = settings_of(options, given, manifest)
    out = WorkFolder(options.out_dir or options.pred_dir, "evaluation")
    out.check_writable()
    leak = leakage_warning(dataset, group_cases(dataset.cases), trained_on(manifest))
    for line in (*dataset.notes, leak):
        if line:
            console().warning(line)
    evaluated = compare_cases(pred_dir, dataset, bar, settings=settings)
    compared = compare_with(other, evaluated, dataset) if other else None
    summary = write_evaluation(evaluated, out.path, compared)
    console().info(format_summary(summary))
    if options.ensemble_curve and "ensemble_size" not in summary:
        console().warning("warning: no members to tell the ensemble's growth from; sample with --save_samples True")
    written = ["metrics.csv", "summary.json", "curves.json"]
    if compared:
        console().info(format_comparison(compared, summary, options.compare))
    console().info(f"every figure is defined in {DEFINITIONS}")
    if options.card:
        written.append(write_card(out.path, summary, manifest, dataset, leak).name)
    report = try_report(pred_dir, dataset, group_cases(dataset.cases), out.path)
    if report:
        written.append(report.name)
    if options.fit_temperature:
        fitted = fit_into_checkpoint(options.fit_temperature, manifest, evaluated.levels, len(evaluated.rows))
        console().info(format_fit(fitted, options.fit_temperature))
    out.finish()
    console().info(f"written: {', '.join(out.shown(name) for name in written)}")


def read_manifest(folder):
    """A folder of predictions on this machine and its manifest, {} where it has none."""
    here = fetch_folder(folder, "folder of predicted masks")
    Predictions(here)  # a folder that is not there is refused here; --out_dir would make it
    path = here / "manifest.json"
    return here, read_json(path) if path.exists() else {}


def of_split(manifest, split):
    """The manifest of results of which the cases of another split, or of "" the recorded one, are scored."""
    return {**manifest, "data": {**manifest.get("data", {}), "split": split}} if split else manifest


def find_truth(options, manifest):
    """The data set that holds the truth, as the flags or else the manifest name it.

    The split and what was held out are those of the results also where --data_dir names another folder, which may be
    the same data moved: a hold-out goes by the names of cases.
    """
    recorded = manifest.get("data", {})
    data_name = options.data_name or recorded.get("data_name")
    data_dir = options.data_dir or recorded.get("data_dir")
    needed = [flag for flag, value in (("--data_name", data_name), ("--data_dir", data_dir)) if not value]
    if needed:
        raise UserError(f"{' and '.join(needed)}: needed; {options.pred_dir} has no manifest.json that names the truth")
    split, hold_out = recorded.get("split", "test"), hold_out_of(recorded)
    classes = options.classes or recorded.get("classes", "")
    chosen = {"split": given_split(split), "hold_out": hold_out, "classes": classes}
    there = recorded.get("data_dir")
    is_moved = bool(there) and not is_same_folder(data_dir, there) and not options.split
    is_part = is_moved and (hold_out is not None or split != "test")
    whose = f"its {split} cases are scored, as those of {there} were sampled; --split names others, as --split all"
    try:
        dataset = build_dataset(data_name, fetch_folder(data_dir), image_size=1, **chosen)
    except UserError as error:
        if not is_part:
            raise
        raise UserError(f"{error} ({whose})") from None
    if is_part:
        console().info(f"{data_dir}: {whose}")
    return dataset


def settings_of(options, given, manifest):
    """The `Settings` of the evaluation. given: the names of the flags that were given.

    Raises `UserError` for --ensemble_curve on results of a fusion that this version does not have.
    """
    method = manifest.get("settings", {}).get("fuse", "staple")
    if options.ensemble_curve and method not in FUSE:
        raise UserError(
            f"--ensemble_curve True: these results were fused by {method}, which this version no longer has; leave it "
            "out, or use version 0.1.0"
        )
    recorded = manifest.get("data", {}).get("group_key", "")
    return Settings(
        options.tolerances(),
        options.lesion_iou,
        group_key=options.group_key if "group_key" in given else recorded,
        sizes={"mean": "vote"}.get(method, method) if options.ensemble_curve else "",
        levels=bool(options.fit_temperature),
    )


def bar(units):
    """A list of cases in a progress bar."""
    return tqdm(units, desc="evaluating", unit="case", dynamic_ncols=True)


def compare_with(other, evaluated, dataset):
    """The comparison with another run's results, by the same rules."""
    settings = Settings(evaluated.settings.tolerances, evaluated.settings.lesion_iou, evaluated.settings.group_key)
    return compare(evaluated, compare_cases(other, dataset, bar, settings=settings))


def trained_on(manifest):
    """The data that the checkpoint of a results folder was trained on, as its config has it; {} if it does not say."""
    return manifest.get("config", {}).get("data", {})


if __name__ == "__main__":
    run_script(main)
