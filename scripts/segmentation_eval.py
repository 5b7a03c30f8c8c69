"""Compare predicted masks with the truth: Dice, IoU, sensitivity, precision and HD95, per case and on average."""

from guided_diffusion.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # those below take seconds

from tqdm import tqdm

from guided_diffusion.command_line import parse
from guided_diffusion.data import build_dataset, given_split, group_cases
from guided_diffusion.errors import UserError
from guided_diffusion.evaluation import Settings, evaluate
from guided_diffusion.files import read_json
from guided_diffusion.leakage import leakage_warning
from guided_diffusion.logger import console
from guided_diffusion.report import try_report
from guided_diffusion.results import Predictions
from guided_diffusion.run_options import EvalOptions
from guided_diffusion.split import hold_out_of
from guided_diffusion.storage import fetch_folder
from guided_diffusion.summary import format_summary
from guided_diffusion.work_folder import work_folder

EXAMPLE = "python scripts/segmentation_eval.py --pred_dir runs/isic/results"


def main(argv=None):
    """Parse the command line, evaluate, print the table and the rules it was made by."""
    (options,), _ = parse(__doc__, [EvalOptions], argv, example=EXAMPLE)
    if not options.pred_dir:
        raise UserError("--pred_dir: is needed; it names the folder of predicted masks")
    pred_dir = fetch_folder(options.pred_dir, "folder of predicted masks")
    Predictions(pred_dir)  # a folder that is not there is refused here; --out_dir would make it
    manifest_path = pred_dir / "manifest.json"
    manifest = read_json(manifest_path) if manifest_path.exists() else {}
    recorded = manifest.get("data", {})
    data_name = options.data_name or recorded.get("data_name")
    data_dir = options.data_dir or recorded.get("data_dir")
    needed = [flag for flag, value in (("--data_name", data_name), ("--data_dir", data_dir)) if not value]
    if needed:
        raise UserError(f"{' and '.join(needed)}: needed; {options.pred_dir} has no manifest.json that names the truth")
    same = recorded if data_dir == recorded.get("data_dir") else {}
    split = given_split(same.get("split", "test"))
    dataset = build_dataset(data_name, fetch_folder(data_dir), image_size=1, split=split, hold_out=hold_out_of(same))
    out = work_folder(options.out_dir or options.pred_dir, "evaluation")
    out.check_writable()
    for line in (*dataset.notes, leakage_warning(dataset, group_cases(dataset.cases), trained_on(manifest))):
        if line:
            console().warning(line)
    settings = Settings(options.tolerances(), options.lesion_iou)
    summary = evaluate(
        pred_dir, dataset, out.path, lambda units: tqdm(units, desc="evaluating", unit="case"), settings=settings
    )
    console().info(format_summary(summary))
    console().info("\n".join(f"- {rule}" for rule in summary["rules"]))
    report = try_report(pred_dir, dataset, group_cases(dataset.cases), out.path)
    out.finish()
    names = ["metrics.csv", "summary.json", "curves.json", *([report.name] if report else [])]
    console().info(f"written: {', '.join(map(out.shown, names))}")


def trained_on(manifest):
    """The data that the checkpoint of a results folder was trained on, as its config has it; {} if it does not say."""
    return manifest.get("config", {}).get("data", {})


if __name__ == "__main__":
    run_script(main)
