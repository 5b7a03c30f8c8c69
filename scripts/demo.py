"""The main job on phantom data, end to end, in minutes on a CPU: write data, train, sample an ensemble, evaluate."""

import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guided_diffusion.command_line import parse
from guided_diffusion.config import option
from guided_diffusion.data import build_dataset
from guided_diffusion.errors import UserError, run_script
from guided_diffusion.files import check_writable
from guided_diffusion.logger import console
from guided_diffusion.phantom import best_threshold_dice, write_brats, write_isic

SCRIPTS = Path(__file__).resolve().parent
MODEL = (
    "--image_size 64 --num_channels 24 --channel_mult 1,2,3,4 --num_res_blocks 1 --attention_resolutions 16 "
    "--batch_size 16 --lr 1e-3 --ema_rate 0.98 --log_interval 20"
)
SAMPLING = "--num_ensemble 5 --diffusion_steps 10 --dpm_solver True --batch_size 4 --save_samples True"


@dataclass
class DemoOptions:
    """The demo."""

    out_dir: str = option("./demo/", "folder for the phantoms, checkpoints and results; must be new or empty")
    data: str = option("both", "which phantoms to run", choices=("ISIC", "BRATS", "both"))
    speed: float = option(1.0, "multiplies the training steps and minutes; 0.1 gives a quick, poor run", above=0)
    seed: int = option(0, "seed of the phantoms, the training and the sampling", minimum=0)


@dataclass(frozen=True)
class Task:
    """One of the demo's two runs. write(folder, seed) writes its phantoms."""

    data_name: str
    train_folder: str
    test_folder: str
    steps: int
    minutes: float
    debug: bool

    def write(self, folder, seed):
        """Write the phantoms of this task below `folder`."""
        if self.data_name == "ISIC":
            write_isic(folder, num_train=160, num_test=20, seed=seed)
        else:
            write_brats(folder, num_train=20, num_test=2, seed=seed)


TASKS = (
    Task("ISIC", "Train", "Test", steps=150, minutes=3.0, debug=True),
    Task("BRATS", "training", "testing", steps=100, minutes=2.5, debug=False),
)


def main(argv=None):
    """Run the tasks that are asked for and say where to look."""
    (options,), _ = parse(__doc__, [DemoOptions], argv)
    out_dir = Path(options.out_dir)
    if out_dir.exists() and any(out_dir.iterdir()):
        raise UserError(f"{out_dir}: is not empty; remove it or choose another --out_dir")
    check_writable(out_dir)
    began = time.monotonic()
    summaries = []
    for task in TASKS:
        if options.data in (task.data_name, "both"):
            summaries.append((task, *run_task(task, options, out_dir)))
    console().info("")
    for task, threshold, summary, results in summaries:
        tell(task, threshold, summary, results)
    console().info(f"\nall of it took {(time.monotonic() - began) / 60:.1f} minutes")


def run_task(task, options, out_dir):
    """Write data, train, sample, evaluate. Returns (threshold Dice, summary, results folder)."""
    data, run = out_dir / f"{task.data_name}_data", out_dir / f"{task.data_name}_run"
    results = out_dir / f"{task.data_name}_results"
    console().info(f"\n=== {task.data_name} phantoms")
    task.write(data, options.seed)
    threshold = mean_threshold_dice(build_dataset(task.data_name, data / task.test_folder, 64, need_masks=True))
    console().info(f"{data}: the best grey-value threshold of each image, chosen with its truth: Dice {threshold:.3f}")
    call(
        "segmentation_train.py",
        f"--data_name {task.data_name} --data_dir {quoted(data / task.train_folder)} --out_dir {quoted(run)} {MODEL} "
        f"--max_steps {max(1, round(task.steps * options.speed))} --max_minutes {task.minutes * options.speed:g} "
        f"--seed {options.seed}",
    )
    checkpoint = max(run.glob("model*.pt"))
    call(
        "segmentation_sample.py",
        f"--model_path {quoted(checkpoint)} --data_dir {quoted(data / task.test_folder)} --out_dir {quoted(results)} "
        f"{SAMPLING} --seed {options.seed}" + (" --debug True" if task.debug else ""),
    )
    call("segmentation_eval.py", f"--pred_dir {quoted(results)}")
    return threshold, json.loads((results / "summary.json").read_text()), results


def mean_threshold_dice(dataset):
    """Mean over the images with a lesion of the best Dice that a threshold of any channel reaches."""
    scores = []
    for case in dataset.cases:
        mask = dataset.load_mask(case)[0, 0]
        if mask.any():
            scores.append(best_threshold_dice(dataset.load_image(case), mask))
    return float(np.mean(scores))


def quoted(path):
    """A path as a word of a command line."""
    return shlex.quote(str(path))


def call(script, arguments):
    """Run one of the scripts as a user would, showing the command."""
    console().info(f"\n$ python scripts/{script} {arguments}")
    status = subprocess.run([sys.executable, str(SCRIPTS / script), *shlex.split(arguments)], check=False).returncode
    if status:
        raise UserError(f"{script} ended with status {status}")


def tell(task, threshold, summary, results):
    """The figures and the pictures of one task."""
    unit = "volumes" if task.data_name == "BRATS" else "images"
    dice = summary["ensemble"]["dice"]
    console().info(f"{task.data_name}: Dice over {dice['n']} test {unit}")
    console().info(f"  best grey-value threshold   {threshold:.3f}")
    console().info(f"  one sample                  {summary['sample']['mean']:.3f}")
    console().info(f"  ensemble of 5 (STAPLE)      {dice['mean']:.3f}")
    console().info(f"  pictures: {results / 'overview.png'} and {results / 'overlay'}")
    if task.debug:
        console().info(f"  the denoising, animated: {results / 'debug'}")


if __name__ == "__main__":
    run_script(main)
