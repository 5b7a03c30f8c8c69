"""The main job on phantom data, end to end, in minutes on a CPU: write data, train, sample an ensemble, evaluate."""

import math
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import newest_checkpoint
from ..config.command_line import parse
from ..config.options import option
from ..data.phantoms import best_threshold_dice, write_brats, write_isic
from ..data.registry import build_dataset
from ..io.files import check_writable, read_json, write_json
from ..runtime.console import console, counted
from ..runtime.errors import UserError, run_script
from ..training.hints import SCRIPTS

MODEL = (
    "--image_size 64 --num_channels 24 --channel_mult 1,2,3,4 --num_res_blocks 1 --attention_resolutions 16 "
    "--batch_size 16 --lr 1e-3 --ema_rate 0.98 --log_interval 20"
)
SAMPLING = "--num_ensemble 5 --diffusion_steps 10 --dpm_solver True --batch_size 4 --save_samples True"
EXAMPLE = "python scripts/demo.py --data ISIC --speed 0.5 --out_dir demo_isic"


@dataclass
class DemoOptions:
    """The demo."""

    out_dir: str = option(
        "./demo/", "folder for the phantoms, checkpoints and results: new, empty, or of a demo to go on with"
    )
    data: str = option("both", "which phantoms to run", choices=("ISIC", "BRATS", "both"))
    speed: float = option(
        1.0, "multiplies the training steps and their time limit; 0.1 gives a quick, poor run", above=0
    )
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

    def steps_at(self, speed):
        """The training steps at a `--speed`."""
        return max(1, round(self.steps * speed))

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
    """Run the tasks that are asked for, or what an interrupted demo has left of them, and say where to look."""
    (options,), _ = parse(__doc__, [DemoOptions], argv, example=EXAMPLE)
    out_dir = Path(options.out_dir)
    record = Record(out_dir, options)
    tasks = [task for task in TASKS if options.data in (task.data_name, "both")]
    waiting = [task for task in tasks if not record.finished(task)]
    began = time.monotonic()
    for task in waiting:
        run_task(task, options, out_dir, record)
    console().info("")
    for task in tasks:
        tell(task, options, out_dir, record)
    if waiting:
        console().info(f"\nall of it took {(time.monotonic() - began) / 60:.1f} minutes")
    else:
        console().info(
            f"\nthis demo was finished before; to start afresh, remove {out_dir} or choose another --out_dir"
        )


class Record:
    """What the demo in a folder was made with and which of its parts are done: `demo.json`, so that it can go on.

    Raises `UserError` for a folder that holds something else, or a demo made otherwise.
    """

    def __init__(self, out_dir, options):
        self.path = out_dir / "demo.json"
        made_with = {"speed": options.speed, "seed": options.seed, "model": MODEL, "sampling": SAMPLING}
        if self.path.exists():
            self.content = read_json(self.path)
            for name, value in made_with.items():
                before = self.content.get("made_with", {}).get(name)
                if before != value:
                    flag = f"--{name} {before}" if name in vars(options) else "other settings"
                    raise UserError(f"{out_dir}: holds a demo made with {flag}; choose another --out_dir or remove it")
        elif out_dir.exists() and any(out_dir.iterdir()):
            raise UserError(f"{out_dir}: is not empty; remove it or choose another --out_dir")
        else:
            check_writable(out_dir)
            self.content = {"made_with": made_with, "tasks": {}}
            write_json(self.path, self.content)

    def of(self, task):
        """What is known of a task: "checkpoint" and "steps" once it is trained, "threshold" once it is evaluated."""
        return self.content["tasks"].get(task.data_name, {})

    def finished(self, task):
        """Whether all of a task is done."""
        return "threshold" in self.of(task)

    def add(self, task, **facts):
        """Write down what has been done of a task."""
        self.content["tasks"][task.data_name] = self.of(task) | facts
        write_json(self.path, self.content)


def run_task(task, options, out_dir, record):
    """Write data, train, sample, evaluate, but for what is done already."""
    data, run, results = (out_dir / f"{task.data_name}_{part}" for part in ("data", "run", "results"))
    console().info(f"\n=== {task.data_name} phantoms")
    task.write(data, options.seed)
    threshold = mean_threshold_dice(build_dataset(task.data_name, data / task.test_folder, 64, need_masks=True))
    console().info(f"{data}: the best grey-value threshold of each image, chosen with its truth: Dice {threshold:.3f}")
    if not record.of(task):
        call(
            "segmentation_train.py",
            f"--data_name {task.data_name} --data_dir {quoted(data / task.train_folder)} --out_dir {quoted(run)} "
            f"{MODEL} --max_steps {task.steps_at(options.speed)} --max_minutes {task.minutes * options.speed:g} "
            f"--cache_dir {quoted(out_dir / 'cache')} --seed {options.seed} --resume_checkpoint auto "
            "--sample_interval 0",  # it samples afterwards
        )
        checkpoint = newest_checkpoint(run)
        record.add(task, checkpoint=checkpoint.name, steps=int(checkpoint.stem.removeprefix("model")))
    call(
        "segmentation_sample.py",
        f"--model_path {quoted(run / record.of(task)['checkpoint'])} --data_dir {quoted(data / task.test_folder)} "
        f"--out_dir {quoted(results)} {SAMPLING} --seed {options.seed}" + (" --debug True" if task.debug else ""),
    )
    call("segmentation_eval.py", f"--pred_dir {quoted(results)}")
    record.add(task, threshold=threshold)


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
    child = subprocess.Popen([sys.executable, str(SCRIPTS / script), *shlex.split(arguments)])
    interrupted, status = False, None
    while status is None:
        try:
            status = child.wait()
        except KeyboardInterrupt:  # Ctrl-C reaches the script too, which ends by itself: training saves first
            interrupted = True
    if interrupted:
        console().info("the same command goes on from here")
        raise KeyboardInterrupt
    if status:
        raise UserError(f"{script} ended with status {status}")


def tell(task, options, out_dir, record):
    """The figures and the pictures of one task, and whether its training was cut short."""
    results, done, wanted = out_dir / f"{task.data_name}_results", record.of(task), task.steps_at(options.speed)
    summary = read_json(results / "summary.json")
    unit = "volume" if task.data_name == "BRATS" else "image"
    dice = summary["ensemble"]["dice"]
    console().info(f"{task.data_name}: Dice over {counted(dice['n'], f'test {unit}')}")
    console().info(f"  best grey-value threshold   {done['threshold']:.3f}")
    console().info(f"  coarse mask                 {summary['coarse']['mean']:.3f}")
    console().info(f"  one sample                  {summary['sample']['mean']:.3f}")
    console().info(f"  ensemble of 5               {dice['mean']:.3f}")
    if done["steps"] < wanted:
        speed = math.ceil(10 * options.speed * task.steps / done["steps"]) / 10
        console().info(
            f"  cut short: {done['steps']} of {wanted} training steps in {task.minutes * options.speed:g} minutes; "
            f"for full quality add --speed {speed:g} and another --out_dir"
        )
    console().info(f"  pictures: {results / 'report.html'} and {results / 'overlay'}")
    if task.debug:
        console().info(f"  the denoising, animated: {results / 'debug'}")


if __name__ == "__main__":
    run_script(main)
