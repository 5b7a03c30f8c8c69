"""Compare predicted masks with the truth: overlap, surfaces, lesions, calibration and doubt, by case and on average."""

from guided_diffusion.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # those below take seconds

from tqdm import tqdm

from guided_diffusion.command_line import parse
from guided_diffusion.comparison import RULES, compare, format_comparison
from guided_diffusion.data import build_dataset
from guided_diffusion.errors import UserError
from guided_diffusion.evaluation import Settings, compare_cases, write_evaluation
from guided_diffusion.files import read_json
from guided_diffusion.leakage import leakage_warning
from guided_diffusion.logger import console
from guided_diffusion.model_card import write_card
from guided_diffusion.report import try_report
from guided_diffusion.results import Predictions
from guided_diffusion.run_differences import apart
from guided_diffusion.run_options import EvalOptions
from guided_diffusion.split import given_split, hold_out_of
from guided_diffusion.storage import WorkFolder, fetch_folder, is_same_folder
from guided_diffusion.summary import format_summary
from guided_diffusion.temperature_fit import check_origin, fit_into_checkpoint, format_fit
from guided_diffusion.units import group_cases

EXAMPLE = "python scripts/segmentation_eval.py --pred_dir runs/first/results"


def main(argv=None):
    """Parse the command line, evaluate, print the table and the rules it was made by."""
    (options,), given = parse(__doc__, [EvalOptions], argv, example=EXAMPLE)
    if not options.pred_dir:
        raise UserError("--pred_dir: is needed; it names the folder of predicted masks")
    pred_dir, recorded = read_manifest(options.pred_dir)
    manifest = of_split(recorded, options.split)
    if options.fit_temperature:
        check_origin(options.fit_temperature, manifest)
    other, differences = read_other(options.compare, recorded)
    dataset = find_truth(options, manifest)
    settings = settings_of(options, given, manifest)
    out = WorkFolder(options.out_dir or options.pred_dir, "evaluation")
    out.check_writable()
    leak = leakage_warning(dataset, group_cases(dataset.cases), trained_on(manifest))
    for line in (*dataset.notes, leak, differences.get("warning")):
        if line:
            console().warning(line)
    evaluated = compare_cases(pred_dir, dataset, bar, settings=settings)
    compared = compare_with(other, evaluated, dataset) | differences if other else None
    summary = write_evaluation(evaluated, out.path, compared)
    console().info(format_summary(summary))
    if options.ensemble_curve and "ensemble_size" not in summary:
        console().warning("warning: no members to tell the ensemble's growth from; sample with --save_samples True")
    rules, written = summary["rules"], ["metrics.csv", "summary.json", "curves.json"]
    if compared:
        console().info(format_comparison(compared, summary, options.compare))
        rules = [*rules, *RULES]
    console().info("\n".join(f"- {rule}" for rule in rules))
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


def read_other(folder, manifest):
    """The folder of --compare on this machine, and what sets its run apart from that of a manifest, see
    `run_differences.apart`; None and {} without such a folder."""
    if not folder:
        return None, {}
    here, other = read_manifest(folder)
    return here, apart(manifest, other)


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
    """The `Settings` of the evaluation. given: the names of the flags that were given."""
    method = manifest.get("settings", {}).get("fuse", "staple").partition("+")[0]
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
