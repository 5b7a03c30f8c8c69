"""The command line: parsing flags and option files; one error line names all mistakes."""

import argparse
import dataclasses
import difflib
import os
import re
import sys
from pathlib import Path

from ..io.texts import shown
from ..runtime.console import console
from ..runtime.errors import UserError
from ..runtime.program import command_name
from .config_file import is_record, read_config, split_record
from .export_options import ExportOptions
from .fields import REMOVED, REPLACED, Given, build, last_version, without_removed
from .help import help_text
from .options import DataOptions, DiffusionOptions, ModelOptions, ProcessOptions
from .presets import PRESETS
from .recipe import chosen_recipe, recipe_values
from .sample_options import CheckOptions, EvalOptions, SampleOptions
from .train_options import TrainOptions
from .values import NO_VALUE, is_path, read_value

TRAINING = (DataOptions, TrainOptions, ModelOptions, DiffusionOptions, ProcessOptions)
COMMANDS = {
    "train": TRAINING,
    "plan": TRAINING,
    "sample": (SampleOptions, DataOptions, ModelOptions, DiffusionOptions, ProcessOptions),
    "evaluate": (EvalOptions,),
    "check": (CheckOptions, DataOptions),
    "export": (ExportOptions,),
}
SYNONYMS = {  # other programs' names for our flags; an error suggests the first flag that the command has
    "max_steps": "epochs num_epochs max_epochs iterations num_iterations iters max_iters total_steps train_steps steps",
    "diffusion_steps": "timesteps num_timesteps t num_steps steps sampling_steps num_inference_steps ddim_steps",
    "max_minutes": "max_time time_limit",
    "lr": "learning_rate",
    "batch_size": "batch bs train_batch_size",
    "sample_batch_size": "eval_batch_size inference_batch_size",
    "weight_decay": "wd",
    "grad_clip": "clip clip_grad max_grad_norm gradient_clipping",
    "ema_rate": "ema ema_decay",
    "microbatch": "accumulate grad_accumulation gradient_accumulation_steps",
    "model_path": "model model_file weights_path checkpoint checkpoint_path ckpt",
    "resume_checkpoint": "resume checkpoint checkpoint_path ckpt",
    "init_from": "pretrained pretrained_path pretrained_model finetune finetune_from init_checkpoint",
    "version": "model arch architecture",
    "num_ensemble": "ensemble num_samples_per_image n_samples members num_members",
    "num_samples": "max_cases num_cases limit",
    "image_size": "size img_size resolution input_size",
    "num_channels": "channels width base_channels model_channels",
    "pred_dir": "pred preds predictions pred_path results results_dir",
    "data_dir": "data data_path data_root root input input_dir dataset_path",
    "data_name": "dataset dataset_name",
    "out_dir": "out output output_dir save_dir save_path log_dir",
    "val_fraction": "val_split validation_split val_size",
    "test_fraction": "test_split test_size",
    "num_workers": "workers",
    "gpu_dev": "gpu device gpu_id",
    "multi_gpu": "gpus devices gpu_ids",
    "threads": "num_threads n_threads cpus cores",
    "precision": "fp16 bf16 amp mixed_precision dtype",
    "seed": "random_seed",
}
EPOCHS = ("epochs", "num_epochs", "max_epochs")  # synonyms of --max_steps in another unit
NEGATIVE = re.compile(r"-\.?\d[\d.,eE+-]*")  # a number below 0, or a list that begins with one


# ---- Flags -----------------------------------------------------------------------------------------------------------


def parse(description, groups, argv=None, *, example="", saved=(), common=()):
    """Parse flags over the YAML file of `--config` into one instance of each class in `groups`.

    A flag in two groups belongs to the first. example: a command for the help. saved: the groups whose values come
    from a checkpoint. common: the flags in `--help`, in order; empty: all.

    Returns the instances, in the order of `groups`, and the names that the user set, a `Given`. Raises `UserError` that
    names all mistakes in one line.
    """
    fields = fields_of(groups)
    words = _with_negatives(sys.argv[1:] if argv is None else argv)
    try:
        namespace, unknown = _parser(fields).parse_known_args(words)
    except argparse.ArgumentError as error:  # such as --help=1
        raise UserError(" ".join(str(error).split())) from None
    written = vars(namespace)
    if "help" in written or "help_all" in written:
        common = () if "help_all" in written else common
        sys.stdout.write(help_text(description, groups, fields, example=example, saved=saved, common=common))
        raise SystemExit(0)
    path = written.pop("config", None)
    given, problems = _read_values(fields, written)
    problems = _unknown_words(unknown, fields) + problems
    empty = [name for name, value in given.items() if value == "" and is_path(fields[name])]
    problems += [
        f"--{name}: is empty, as where a shell's variable is not set; name a path or leave it out" for name in empty
    ]
    if path is NO_VALUE:
        problems.append(_needs_value("config"))
    elif path is not None and not path.strip():
        problems.append(_empty_path("config"))
    elif path and "\0" in path:
        problems.append(f"--config {shown(path)}: holds a NUL character; name a YAML file")
    if problems:
        raise UserError("; ".join(problems))
    files = {}
    if path:
        values, files = _from_file(path, groups, fields, given)
        files = {name: file for name, file in files.items() if name not in given}
        given = values | given
    values, given = _with_recipe(given, fields)
    later = groups if values.get("resume_checkpoint") else saved
    return _instances(groups, values, later), Given(given, files)


def options_over(options, given, values):
    """Options of a training command as if `values` had been given below the flags; their recipe is chosen anew.

    options, given: from `parse`. values: by name. A preset that the user gave wins over the sizes among them.
    """
    groups, written = [type(part) for part in options], {}
    for part in reversed(options):  # a flag in two groups belongs to the first
        written |= {item.name: getattr(part, item.name) for item in dataclasses.fields(part) if item.name in given}
    sizes = PRESETS.get(written.get("preset", ""), {})
    values = {name: value for name, value in values.items() if name not in sizes}
    if "predict_xstart" in given and "objective" not in given:
        values.pop("objective", None)
    values, _ = _with_recipe(values | written, fields_of(groups))
    return _instances(groups, values)


def options_from(groups, values):
    """`parse` for programs: the instances of `groups` from a dict of values by name, and the set of names."""
    given, problems = _read_values(fields_of(groups), values)
    if problems:
        raise UserError("; ".join(problems))
    return _instances(groups, given), set(given)


def fields_of(groups):
    """The dataclass fields of these classes by name, each from the first class that has it."""
    fields = {}
    for item in (item for group in groups for item in dataclasses.fields(group)):
        fields.setdefault(item.name, item)
    return fields


def _parser(fields):
    """A parser that reads values as text; `_read_value` checks types and ranges, as for YAML files."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--help_all", "--help-all", action="store_true")
    for name in ("config", *(name for name, item in fields.items() if item.metadata["is_flag"])):
        alone = NO_VALUE
        if name in fields:
            alone = True if fields[name].type is bool else fields[name].metadata["alone"] or NO_VALUE
        parser.add_argument(*{f"--{name}", f"--{name.replace('_', '-')}"}, dest=name, nargs="?", const=alone)
    return parser


def _with_negatives(words):
    """The words with each negative number joined to its flag by "=", since argparse takes "-160,240" for a flag."""
    joined = []
    for word in words:
        if NEGATIVE.fullmatch(word) and joined and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _with_recipe(given, fields):
    """The given values over the values of `--recipe`, and the names that the user set."""
    if "recipe" not in fields:
        return given, set(given)
    asked = given.get("recipe", fields["recipe"].default)
    recipe = chosen_recipe(asked, given)
    values = {**recipe_values(recipe, given), **given, "recipe": recipe}
    return values, set(given) - {"recipe"} if asked == "auto" else set(given)


def _instances(groups, values, later=()):
    """One instance of each group. later: groups that a checkpoint completes (see `options.build`)."""
    fields, instances = fields_of(groups), []
    for group in groups:
        own = {item.name for item in dataclasses.fields(group) if fields[item.name] is item}
        part = {name: value for name, value in values.items() if name in own}
        instances.append(build(group, part, whole=group not in later))
    return instances


# ---- Values ----------------------------------------------------------------------------------------------------------


def _read_values(fields, written):
    """The values of a dict in their options' types, and an error line for each wrong one."""
    values, problems = {}, []
    for name, value in written.items():
        try:
            values[name] = _read_value(fields, name, value)
        except UserError as error:
            problems.append(str(error))
    return values, problems


def _read_value(fields, name, value):
    """A flag's or YAML value in its option's type. Raises `UserError` for a wrong type or range."""
    if name not in fields:
        raise UserError(_unknown_flag(str(name), fields))
    return read_value(fields[name], value)


# ---- Mistakes --------------------------------------------------------------------------------------------------------


def _needs_value(name):
    return f"--{name}: needs a value"


def _empty_path(name):
    return f"--{name}: is empty, as where a variable of the shell is not set; name a path or leave it out"


def _unknown_words(words, fields):
    """An error line for each unknown flag, and for each value that follows no flag."""
    lines, has_flag = [], False
    for word in words:
        if word.startswith("-"):
            written = word.partition("=")[0]
            name = written.lstrip("-").replace("-", "_")
            # One dash, or dashes mixed with underscores.
            if name == "config" or (name in fields and fields[name].metadata["is_flag"]):
                lines.append(f"{shown(written)}: write --{name}")
            else:
                lines.append(_unknown_flag(name, fields))
            has_flag = "=" not in word
        elif has_flag:
            has_flag = False  # the word is the unknown flag's value
        else:
            lines.append(f"{shown(word)!r}: follows no flag")
    return lines


def _unknown_flag(name, fields):
    name = shown(name)
    if name in REMOVED:
        instead = f" ({REPLACED[name]})" if name in REPLACED else ""
        return f"--{name}: is no longer in this version, leave it out{instead} or use version {last_version(name)}"
    if name in fields:  # but not a flag
        return f"--{name}: is no flag; a checkpoint sets it"
    if owner := _owner(name):
        return f"--{name}: is a flag of {command_name(owner)}, not of this command"
    near = nearest_name(name, [flag for flag, item in fields.items() if item.metadata["is_flag"]])
    if (near is None or near[0] != name.lower()) and (flag := _synonym_of(name.lower())):
        return f"--{name}: no such flag; --{flag} is a flag of {command_name(_owner(flag))}, not of this command"
    if near is None:
        return f"--{name}: no such flag, see --help_all"
    if near[0] in EPOCHS:
        return f"--{name}: no such flag; training counts steps: --max_steps = epochs x images / batch_size"
    return f"--{name}: no such flag, did you mean --{near[1]}?"


def nearest_name(name, names):
    """The word nearest to `name` among these names and their `SYNONYMS`, and the name that it stands for, or None."""
    words = {word: flag for flag in reversed(SYNONYMS) if flag in names for word in SYNONYMS[flag].split()}
    words |= {flag: flag for flag in names}
    close = difflib.get_close_matches(name.lower(), words, n=1)
    return (close[0], words[close[0]]) if close else None


def _owner(name):
    """The first verb that has this flag, or None."""
    return next((verb for verb, groups in COMMANDS.items() if name in fields_of(groups)), None)


def _synonym_of(word):
    """The first flag, of any verb, that other programs call `word`, or None."""
    return next((flag for flag, words in SYNONYMS.items() if word in words.split()), None)


# ---- Files of options ------------------------------------------------------------------------------------------------


def _from_file(path, groups, fields, written):
    """The values of a `--config` file, and {name: the file that has it}. written: the values on the command line.

    Commands other than training use a part of a run's record. One line names the rest; of several processes one
    prints it.
    """
    ignored, files = [], {}

    def check(values, file):
        if TrainOptions not in groups and is_record(file):
            values, unused = split_record(values, fields, fields_of(TRAINING), with_data="data_dir" not in written)
            ignored.extend(unused)
        values = _checked(values, fields)
        files.update(dict.fromkeys(values, str(file)))
        return values

    values = read_config(Path(path), check)
    starts_processes = (values | written).get("multi_gpu")  # the first of them prints
    if ignored and os.environ.get("RANK", "0") == "0" and not starts_processes:
        names = ", ".join(ignored)
        console().info(f"--config {path}: holds a training run's settings; not used here: {names}")
    return values, files


def _checked(values, fields):
    """A file's own values in their options' types. Raises `UserError` that names all mistakes."""
    problems = []
    try:
        values = without_removed(values, "asks for")
    except UserError as error:
        problems.append(str(error))
        values = {name: value for name, value in values.items() if name not in REMOVED}
    values, wrong = _read_values(fields, values)
    if problems + wrong:
        raise UserError("; ".join(problems + wrong))
    return values
