"""Compare predicted masks with the truth: Dice, IoU, sensitivity, precision and HD95, per case and on average."""

from pathlib import Path

from tqdm import tqdm

from guided_diffusion.command_line import parse
from guided_diffusion.config import EvalOptions
from guided_diffusion.data import build_dataset
from guided_diffusion.errors import UserError, run_script
from guided_diffusion.evaluation import RULES, evaluate, format_summary
from guided_diffusion.files import check_writable, read_json
from guided_diffusion.logger import console
from guided_diffusion.results import Predictions


def main(argv=None):
    """Parse the command line, evaluate, print the table and the rules it was made by."""
    (options,), _ = parse(__doc__, [EvalOptions], argv)
    if not options.pred_dir:
        raise UserError("--pred_dir: is needed; it names the folder of predicted masks")
    Predictions(options.pred_dir)  # a folder that is not there is refused here; --out_dir would make it
    manifest_path = Path(options.pred_dir) / "manifest.json"
    recorded = read_json(manifest_path).get("data", {}) if manifest_path.exists() else {}
    data_name = options.data_name or recorded.get("data_name")
    data_dir = options.data_dir or recorded.get("data_dir")
    if not data_name or not data_dir:
        raise UserError(
            f"{options.pred_dir}: has no manifest.json that says where the truth is; add --data_name and --data_dir"
        )
    dataset = build_dataset(data_name, data_dir, image_size=1, split="test")
    out_dir = Path(options.out_dir or options.pred_dir)
    check_writable(out_dir)
    summary = evaluate(options.pred_dir, dataset, out_dir, progress=lambda units: tqdm(units, desc="evaluating"))
    console().info(format_summary(summary))
    console().info("\n".join(f"- {rule}" for rule in RULES))
    console().info(f"written: {out_dir / 'metrics.csv'}, {out_dir / 'summary.json'}")


if __name__ == "__main__":
    run_script(main)
