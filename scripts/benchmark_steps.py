"""Quality against steps: train once (or take a checkpoint), sample the test cases by every sampler with few and with
all steps, and tabulate Dice, the members' agreement, calibration and seconds."""

import csv
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import segmentation_sample
import segmentation_train
import torch

from guided_diffusion.checkpoint import load_checkpoint, newest_checkpoint
from guided_diffusion.command_line import parse
from guided_diffusion.config import option
from guided_diffusion.data import build_dataset
from guided_diffusion.ensemble import pairwise_dice
from guided_diffusion.errors import UserError, run_script
from guided_diffusion.files import atomic_path, check_writable, read_json, write_json
from guided_diffusion.logger import console
from guided_diffusion.phantom import write_isic
from guided_diffusion.results import Predictions
from guided_diffusion.statistics import bootstrap_interval
from guided_diffusion.units import group_cases

MODEL = "--image_size 64 --num_channels 24 --channel_mult 1,2,3,4 --num_res_blocks 1 --attention_resolutions 16"
TRAINING = "--batch_size 16 --lr 1e-3 --ema_rate 0.98 --sample_interval 0"
SOLVERS = {
    "ddpm": "--sampler ddpm",
    "ddim": "--sampler ddim",
    "dpm_solver": "--sampler dpm_solver",
    "dpm_solver_logsnr": "--sampler dpm_solver --time_spacing logsnr",
    "dpm_solver_sde": "--sampler dpm_solver --solver_type sde",
    "unipc": "--sampler unipc",
}


@dataclass
class StepsOptions:
    """The comparison."""

    out_dir: str = option("./steps/", "folder for all of it; what is finished in it is not done again")
    model_path: str = option("", "checkpoint to sample from; empty: train one on phantoms")
    data_dir: str = option("", "test data for --model_path")
    data_name: str = option("", "its kind; empty: as the checkpoint was trained with")
    version: str = option("v2", "variant to train on phantoms", choices=("v1", "v2"))
    train_steps: int = option(200, "optimizer steps of that training", above=0)
    total_steps: int = option(250, "its T, the steps of full DDPM", minimum=2)
    samplers: str = option("all", f"which of {', '.join(SOLVERS)}, separated by commas, or all")
    steps: str = option("4,10,20,50", "numbers of steps; all T steps of DDPM are always taken too, as the reference")
    num_ensemble: int = option(5, "masks drawn for each image", above=0)
    num_samples: int = option(0, "use only this many test cases, the first; 0: all", minimum=0)
    batch_size: int = option(4, "images per forward pass", above=0)


def main(argv=None):
    """Run what has not been run yet and print the table."""
    (options,), _ = parse(__doc__, [StepsOptions], argv)
    samplers, steps = chosen(options)
    out_dir = Path(options.out_dir)
    check_writable(out_dir)
    if options.model_path:
        if not options.data_dir:
            raise UserError("--data_dir: is needed with --model_path; it names the folder of the test data")
        checkpoint, data_name, data_dir = Path(options.model_path), options.data_name, Path(options.data_dir)
    else:
        checkpoint, data_name, data_dir = *train(options, out_dir), out_dir / "data" / "Test"
    trained = load_checkpoint(checkpoint).config
    data_name, total = data_name or trained["data"]["data_name"], trained["diffusion"]["diffusion_steps"]
    runs = [("ddpm", total), *((sampler, count) for sampler in samplers for count in steps if count < total)]
    rows = []
    for sampler, count in runs:
        folder = out_dir / f"{sampler}_{count}"
        console().info(f"\n=== {sampler}, {count} steps")
        sample(options, checkpoint, data_name, data_dir, sampler, count, folder)
        rows.append(row_of(folder, data_name, data_dir, options.num_samples) | {"sampler": sampler, "steps": count})
    compare(rows)
    table = as_table(rows)
    write_json(out_dir / "steps.json", {"checkpoint": str(checkpoint), "options": vars(options), "rows": rows})
    with atomic_path(out_dir / "steps.md") as path:
        path.write_text(table + "\n", encoding="utf-8")
    console().info(f"\n{table}\n\nwritten: {out_dir / 'steps.json'}, {out_dir / 'steps.md'}")


def chosen(options):
    """The samplers and step counts asked for."""
    samplers = list(SOLVERS) if options.samplers == "all" else options.samplers.split(",")
    for name in samplers:
        if name not in SOLVERS:
            raise UserError(f"--samplers {options.samplers}: {name!r} is none of {', '.join(SOLVERS)}")
    try:
        steps = [int(part) for part in options.steps.split(",")]
    except ValueError:
        steps = [0]
    if min(steps) < 1:
        raise UserError(f"--steps {options.steps}: must be numbers above 0 separated by commas")
    return samplers, steps


def train(options, out_dir):
    """Train on phantoms unless that has been done. Returns the checkpoint and the kind of data."""
    data, run = out_dir / "data", out_dir / "run"
    if not data.exists():
        write_isic(data, num_train=160, num_test=20, seed=0)
    where = f"--data_name ISIC --data_dir {quoted(data / 'Train')} --out_dir {quoted(run)} --resume_checkpoint auto"
    limits = f"--version {options.version} --max_steps {options.train_steps} --diffusion_steps {options.total_steps}"
    segmentation_train.main(shlex.split(f"{where} {limits} {MODEL} {TRAINING}"))
    return newest_checkpoint(run), "ISIC"


def sample(options, checkpoint, data_name, data_dir, sampler, count, folder):
    """Sample the test cases, through the script's own door."""
    where = f"--model_path {quoted(checkpoint)} --data_name {quoted(data_name)} --data_dir {quoted(data_dir)}"
    how = f"--num_ensemble {options.num_ensemble} --num_samples {options.num_samples} --diffusion_steps {count}"
    rest = f"--out_dir {quoted(folder)} --batch_size {options.batch_size} --save_samples True"
    segmentation_sample.main(shlex.split(f"{where} {how} {rest} {SOLVERS[sampler]}"))


def row_of(folder, data_name, data_dir, num_samples):
    """What one run's folder says: means over the cases, and their Dice for the paired comparison."""
    summary, manifest = read_json(folder / "summary.json"), read_json(folder / "manifest.json")
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        dice = {line["name"]: float(line["dice"]) for line in csv.DictReader(file) if line["dice"]}
    units = group_cases(build_dataset(data_name, data_dir, image_size=1, split="test").cases)[: num_samples or None]
    return {
        "dice": summary["ensemble"]["dice"]["mean"],
        "sample_dice": summary["sample"]["mean"],
        "pairwise_dice": agreement(folder, units),
        "ece": summary["calibration"]["ece"],
        "ece_band": summary["calibration"]["ece_band"],
        "seconds": manifest["seconds"] / manifest["cases_sampled"] if manifest.get("cases_sampled") else None,
        "dice_of": dice,
    }


def agreement(folder, units):
    """Mean over the cases of the members' pairwise Dice."""
    predictions, values = Predictions(folder), []
    for unit in units:
        members = predictions.members(unit.name, unit.is_volume)
        votes = torch.from_numpy(np.stack(members))  # [E, H, W] or [E, X, Y, Z]
        values.append(pairwise_dice(votes.reshape(len(votes), 1, 1, votes.shape[1], -1)).item())
    return float(np.mean(values))


def compare(rows):
    """Add to each row the paired difference in Dice to the first, full DDPM, with its 95 % interval over cases."""
    reference = rows[0]["dice_of"]
    for row in rows:
        common = [name for name in reference if name in row["dice_of"]]
        differences = [row["dice_of"][name] - reference[name] for name in common]
        row["difference"] = float(np.mean(differences)) if differences else None
        row["interval"] = bootstrap_interval(differences)


def as_table(rows):
    """The rows as a Markdown table."""
    heading = ("sampler", "steps", "Dice", "- DDPM's [95 %]", "one sample", "pairwise", "ECE", "ECE band", "s / case")
    lines = [heading, ("---",) * len(heading)]
    for row in rows:
        low, high = row["interval"]
        numbers = (f"{row[key]:.4f}" for key in ("sample_dice", "pairwise_dice", "ece", "ece_band"))
        difference = f"{row['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.2f}"
        lines.append((row["sampler"], str(row["steps"]), f"{row['dice']:.4f}", difference, *numbers, seconds))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quoted(path):
    """A path or word as one word of a command line."""
    return shlex.quote(str(path))


if __name__ == "__main__":
    run_script(main)
