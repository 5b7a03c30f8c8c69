"""What `medsegdiff plan` does: it looks at the training data and prints the plan that training would follow."""

import os
from dataclasses import replace

from ..config.command_line import options_over
from ..config.fields import named_by
from ..config.options import DataOptions
from ..config.settings import settle
from ..config.train_options import TrainOptions
from ..data.fingerprint import fingerprint_rows
from ..data.registry import recognised
from ..data.resizing import WHOLE
from ..io.pictures import allow_megapixels
from ..io.storage import WorkFolder, fetch_folder, is_remote
from ..runtime.console import console, text_table
from ..runtime.distributed import Processes, keep_freed_memory, pick_device, pick_precision
from ..runtime.errors import UserError
from ..runtime.program import command
from ..runtime.threads import use_threads
from ..training.planning import find_plan
from ..training.run import Run, check_dataset, facts_of, find_data
from ..training.step_memory import estimate_line
from ..training.training_plan import SIZE_FLAGS, may_plan
from .train import data_lines


def run_plan(options, given, words):
    """Print the fingerprint of the data, the plan and the command that it stands for. Returns 0.

    options, given: see `command_line.parse`. words: the command line that they are from.
    """
    if os.environ.get("RANK", "0") != "0":  # torchrun's other processes would print the same
        return 0
    check_open(options, given)
    keep_freed_memory()
    use_threads(options[-1].threads)
    processes = Processes(0, 1, pick_device(options[-1].gpu_dev, "gpu_dev" in given))
    settings = settle(options, given)
    allow_megapixels(settings.data.max_megapixels)
    data_dir = fetch_folder(settings.data.data_dir) if is_remote(settings.data.data_dir) else settings.data.data_dir
    data = replace(settings.data, data_dir=data_dir, data_name=recognised(settings.data.data_name, data_dir))
    dataset = find_data(data, settings.image_size, WHOLE, named_by("data_name", given, ""))
    check_dataset(dataset, settings.model, None)
    for line in data_lines(dataset):
        console().info(line)
    facts, precision = facts_of(dataset, data), pick_precision(settings.device.precision, processes.device)
    found, plan = find_plan(options, given, settings, dataset, facts, precision, processes)
    console().info(
        "\n" + text_table(["what the training cases show", ""], [list(row) for row in fingerprint_rows(found)])
    )
    console().info("\nthe plan:")
    for choice in plan.choices:
        console().info(f"  {choice.line}")
    settled = settle(options_over(options, given, plan.values), given, None, facts)
    run = Run(settled, precision, dataset, WorkFolder(settled.train.out_dir, "training"))
    console().info(f"\nexpected: {plan.expectation}\n{estimate_line(run, processes.device)}")
    flags = [word for name, value in plan.values.items() for word in (f"--{name}", value)]
    out = [] if "out_dir" in given else ["--out_dir", "runs/first"]
    console().info(f"\nthe same as: {command('train', *words, *out, *flags)}")
    return 0


def check_open(options, given):
    """Raise `UserError` for options with which training plans nothing."""
    train = next(part for part in options if isinstance(part, TrainOptions))
    data = next(part for part in options if isinstance(part, DataOptions))
    sizes = [name for name in SIZE_FLAGS if name in given]
    if not data.data_dir:
        raise UserError("--data_dir: is needed; it names the folder that holds the training data")
    if sizes:
        raise UserError(f"--{sizes[0]}: training plans nothing where a size is set; leave it out to see the plan")
    if train.resume_checkpoint not in ("", "auto"):
        raise UserError("--resume_checkpoint: a run that goes on keeps its own options; leave it out to see the plan")
    if not may_plan(train, given):
        name = "init_from" if train.init_from else "overfit" if train.overfit else "recipe"
        raise UserError(
            f"--{name} {getattr(train, name)}: training plans nothing with it; leave it out to see the plan"
        )
