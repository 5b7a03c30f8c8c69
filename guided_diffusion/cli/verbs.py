"""The main of each verb: it reads the command line, then imports what does the work and calls it.

`medsegdiff VERB` and the files in scripts/ call these functions. torch takes seconds to import, and --help and the
errors of a command line need none of it, so nothing that this module imports at its top may import torch. The docstring
of a verb begins its --help.
"""

import inspect
import re
import sys

from ..config.command_line import COMMANDS, parse
from ..config.demo_options import DemoOptions
from ..config.help import COMMON
from ..config.options import DiffusionOptions, ModelOptions
from ..runtime.errors import UserError, imports_done
from ..runtime.program import command

OPTION_GROUPS = {**COMMANDS, "demo": (DemoOptions,)}  # the classes of options of each verb


def check_main(argv=None):
    """Check a data set before training: count its cases, list its problems, draw cases with their masks.

    Prints a table of the splits, then the problems. A line "error: ..." names what would stop training or make its
    result worthless. A line "warning: ..." names what may be intended. The exit status is 1 with errors, 0 without.
    """
    (options, data), given = options_of(check_main, argv, "--data_dir ISIC --out_dir checked")
    if not data.data_dir:
        raise UserError("--data_dir: is needed; it names the folder that holds the data")
    from .check_data import run_check

    imports_done()
    return run_check(options, data, given)


def plan_main(argv=None):
    """Plan a training run: look at the data, time a few steps, and print the plan with a reason for each line.

    Training with the same flags follows this plan where the sizes of the network are left open. Nothing is written. The
    first word may be the folder of the data.
    """
    words = as_flags(sys.argv[1:] if argv is None else argv, "data_dir")
    options, given = options_of(plan_main, words, "--data_dir MY_DATA --val_fraction 0.2 --max_minutes 20")
    from .plan import run_plan

    imports_done()
    return run_plan(options, given, words)


def train_main(argv=None):
    """Train a diffusion model that segments medical images; see README.md for the commands."""
    words = sys.argv[1:] if argv is None else argv
    example = """--data_dir MY_DATA --val_fraction 0.2 \\
      --test_fraction 0.2 --out_dir runs/first --max_minutes 20"""
    options, given = options_of(train_main, words, example)
    from .train import run_training

    imports_done()
    return run_training(options, given, words)


def sample_main(argv=None):
    """Draw an ensemble of masks for each image from a trained checkpoint, fuse them, and write a results folder."""
    words = sys.argv[1:] if argv is None else argv
    example = "--model_path runs/first --data_dir MY_DATA --out_dir runs/first/results"
    options, given = options_of(sample_main, words, example, saved=(ModelOptions, DiffusionOptions))
    check_given(given, "model_path", "data_dir")
    from .sample import run_sampling

    imports_done()
    return run_sampling(options, given, words)


def evaluate_main(argv=None):
    """Compare predicted masks with the truth: overlap, surfaces, lesions, calibration and uncertainty, case by case."""
    (options,), given = options_of(evaluate_main, argv, "--pred_dir runs/first/results")
    if not options.pred_dir:
        raise UserError("--pred_dir: is needed; it names the folder of predicted masks")
    from .evaluate import run_evaluation

    imports_done()
    return run_evaluation(options, given)


def export_main(argv=None):
    """Export a checkpoint to share it: the weights alone (safetensors), config.json and a model card, as hubs want
    them.

    The folder holds all that segmenting needs, about a quarter of the checkpoint, and no path and no case name. It
    loads wherever a checkpoint does. The first word may be the checkpoint or the run's folder.
    """
    words = as_flags(sys.argv[1:] if argv is None else argv)
    example = "--model_path runs/first --out_dir shared/first --pred_dir runs/first/results"
    (options,), given = options_of(export_main, words, example)
    check_given(given, "model_path", "out_dir")
    from .export import run_export

    imports_done()
    return run_export(options)


def demo_main(argv=None):
    """The whole pipeline on phantom data, in minutes on a CPU: write data, train, sample an ensemble, evaluate."""
    (options,), _ = options_of(demo_main, argv, "--data ISIC --speed 0.5 --out_dir demo_isic")
    from .demo import run_demo

    imports_done()
    return run_demo(options)


def options_of(main, argv, example, saved=()):
    """What `command_line.parse` returns for the verb of a function of this module. example: flags for the help."""
    verb = main.__name__.removesuffix("_main")
    return parse(
        inspect.getdoc(main),
        OPTION_GROUPS[verb],
        argv,
        example=f"{command(verb)} {example}",
        saved=saved,
        common=COMMON.get(verb, ()),
    )


def check_given(given, *names):
    """Raise `UserError` unless the flags of these names are given."""
    for name in names:
        if name not in given:
            raise UserError(f"--{name}: is needed; see --help")


def as_flags(words, name="model_path"):
    """The words of a command line with the first one, without a flag, as --NAME, and --out as --out_dir."""
    words = list(words)
    flag = re.compile(rf"--{name.replace('_', '[_-]')}(=|$)")
    is_named = any(flag.match(word) for word in words)  # then the first word is a mistake
    if words and not words[0].startswith("-") and not is_named:
        words.insert(0, f"--{name}")
    return ["--out_dir" + word[len("--out") :] if word.partition("=")[0] == "--out" else word for word in words]
