"""What `medsegdiff demo` does: it writes phantoms and calls the other verbs on them, and goes on where it ended."""

import math
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
from msgspec import Meta

from ..checkpoint import newest_checkpoint
from ..data.phantoms import best_threshold_dice, write_brats, write_isic
from ..data.registry import build_dataset
from ..evaluation.summary_file import read_summary
from ..io.files import check_writable, write_json
from ..io.locks import folder_lock
from ..io.texts import read_json, shown
from ..runtime.console import console, counted
from ..runtime.errors import UserError
from ..runtime.program import command, prepare_children

MODEL = (
    "--image_size 64 --num_channels 24 --channel_mult 1,2,3,4 --num_res_blocks 1 --attention_resolutions 16 "
    "--batch_size 16 --lr 1e-3 --ema_rate 0.98 --log_interval 20"
)
SAMPLING = "--num_ensemble 5 --batch_size 4 --save_samples True"


@dataclass(frozen=True)
class Task:
    """One of the demo's two runs; minutes: the time limit of its training at a `--speed` of 1."""

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


def run_demo(options):
    """Run the demo of these `DemoOptions` in its folder, where no other one is at work."""
    out_dir = Path(options.out_dir)
    record = Record(out_dir, options)
    with folder_lock(out_dir):
        run_tasks(options, out_dir, record)


def run_tasks(options, out_dir, record):
    """Run the requested tasks that no earlier demo finished, or whose figures are gone; print the results of all."""
    tasks = [task for task in TASKS if options.data in (task.data_name, "both")]
    waiting = [task for task in tasks if not (record.finished(task) and summary_file(out_dir, task).exists())]
    began = time.monotonic()
    for task in waiting:
        run_task(task, options, out_dir, record)
    console().info("")
    for task in tasks:
        print_results(task, options, out_dir, record)
    if waiting:
        console().info(f"\nthe demo took {(time.monotonic() - began) / 60:.1f} minutes")
    else:
        console().info(f"\nthis demo was finished before; to repeat it, remove {out_dir} or choose another --out_dir")


class TrainedTask(TypedDict):
    """What demo.json records of a task after its training."""

    checkpoint: Annotated[str, Meta(pattern=r"^model[0-9]+\.pt$")]
    steps: Annotated[int, Meta(ge=1)]


class TaskRecord(TrainedTask, total=False):
    """What demo.json records of a task; threshold: after its evaluation."""

    threshold: float


class DemoRecord(TypedDict):
    """demo.json."""

    made_with: dict[str, Any]
    tasks: dict[str, TaskRecord]


class Record:
    """The file demo.json: the settings of the demo in a folder and its finished parts, so that it can continue.

    Raises `UserError` for a folder with other content, or with a demo of other settings.
    """

    def __init__(self, out_dir, options):
        self.path = out_dir / "demo.json"
        settings = {"speed": options.speed, "seed": options.seed, "model": MODEL, "sampling": SAMPLING}
        if self.path.exists():
            self.content = read_json(self.path, DemoRecord)
            for name, value in settings.items():
                recorded = self.content["made_with"].get(name)
                if recorded != value:
                    flag = f"--{name} {shown(recorded)}" if name in vars(options) else "other settings"
                    raise UserError(f"{out_dir}: holds a demo made with {flag}; choose another --out_dir or remove it")
        elif out_dir.exists() and any(out_dir.iterdir()):
            raise UserError(f"{out_dir}: is not empty; remove it or choose another --out_dir")
        else:
            check_writable(out_dir)
            self.content = {"made_with": settings, "tasks": {}}
            write_json(self.path, self.content)

    def of(self, task):
        """The record of a task: "checkpoint" and "steps" after training, "threshold" after evaluation."""
        return self.content["tasks"].get(task.data_name, {})

    def finished(self, task):
        """Whether a task is done."""
        return "threshold" in self.of(task)

    def add(self, task, **facts):
        """Add facts to the record of a task and write the file."""
        self.content["tasks"][task.data_name] = self.of(task) | facts
        write_json(self.path, self.content)


def run_task(task, options, out_dir, record):
    """Write data, train, sample and evaluate; training is skipped where it is finished."""
    data, run, results = (out_dir / f"{task.data_name}_{part}" for part in ("data", "run", "results"))
    console().info(f"\n=== {task.data_name} phantoms")
    task.write(data, options.seed)
    threshold = mean_threshold_dice(build_dataset(task.data_name, data / task.test_folder, 64, need_masks=True))
    console().info(f"{data}: the best grey-value threshold of each image, chosen with its truth: Dice {threshold:.3f}")
    if not record.of(task):
        call(
            "train",
            f"--data_name {task.data_name} --data_dir {quoted(data / task.train_folder)} --out_dir {quoted(run)} "
            f"{MODEL} --max_steps {task.steps_at(options.speed)} --max_minutes {task.minutes * options.speed:g} "
            f"--cache_dir {quoted(out_dir / 'cache')} --seed {options.seed} --resume_checkpoint auto "
            "--sample_interval 0",  # the demo samples after training
        )
        checkpoint = newest_checkpoint(run)
        record.add(task, checkpoint=checkpoint.name, steps=int(checkpoint.stem.removeprefix("model")))
    call(
        "sample",
        f"--model_path {quoted(run / record.of(task)['checkpoint'])} --data_dir {quoted(data / task.test_folder)} "
        f"--out_dir {quoted(results)} {SAMPLING} --seed {options.seed}" + (" --debug True" if task.debug else ""),
    )
    call("evaluate", f"--pred_dir {quoted(results)}")
    record.add(task, threshold=threshold)


def mean_threshold_dice(dataset):
    """The best Dice of a threshold on any channel, chosen with the truth: the mean over images with a lesion."""
    scores = []
    for case in dataset.cases:
        mask = dataset.load_mask(case)[0, 0]
        if mask.any():
            scores.append(best_threshold_dice(dataset.load_image(case), mask))
    return float(np.mean(scores))


def quoted(path):
    """A path, quoted for a command line."""
    return shlex.quote(str(path))


def call(verb, arguments):
    """Print a verb's command and run it. Raises `UserError` where it fails."""
    console().info(f"\n$ {command(verb)} {arguments}")
    prepare_children()
    child = subprocess.Popen([sys.executable, "-m", "guided_diffusion", verb, *shlex.split(arguments)])
    interrupted, status = False, None
    while status is None:
        try:
            status = child.wait()
        except KeyboardInterrupt:  # the child gets Ctrl-C too; wait for it, since training saves first
            interrupted = True
    if interrupted:
        console().info("the same command continues from here")
        raise KeyboardInterrupt
    if status:
        raise UserError(f"{command(verb)} ended with status {status}")


def summary_file(out_dir, task):
    """Where the evaluation of a task writes its figures."""
    return out_dir / f"{task.data_name}_results" / "summary.json"


def print_results(task, options, out_dir, record):
    """Print the figures of one task, the paths of its pictures, and whether its training was cut short."""
    file, done, wanted = summary_file(out_dir, task), record.of(task), task.steps_at(options.speed)
    results, summary = file.parent, read_summary(file)
    unit = "volume" if task.data_name == "BRATS" else "image"
    dice = summary["ensemble"].get("dice")
    figures = [one and one["mean"] for one in (summary["coarse"], summary["sample"], dice)]
    if None in figures:
        raise UserError(f"{file}: lacks a Dice; remove {out_dir} and run the demo again")
    console().info(f"{task.data_name}: Dice over {counted(dice['n'], f'test {unit}')}")
    figures = [done["threshold"], *figures]
    labels = ("best grey-value threshold", "default answer, in one pass", "one member", "ensemble of 5 members")
    for label, figure in zip(labels, figures, strict=True):
        console().info(f"  {label:<28} {figure:.3f}")
    if done["steps"] < wanted:
        speed = math.ceil(10 * options.speed * task.steps / done["steps"]) / 10
        console().info(
            f"  cut short: {done['steps']} of {wanted} training steps in {task.minutes * options.speed:g} minutes; "
            f"for full quality add --speed {speed:g} and another --out_dir"
        )
    console().info(f"  pictures: {results / 'report.html'} and {results / 'overlay'}")
    if task.debug:
        console().info(f"  the denoising, animated: {results / 'debug'}")
