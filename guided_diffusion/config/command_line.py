"""The command line: options dataclasses become flags and YAML keys, and what is wrong with them is said in one line."""

import argparse
import dataclasses
import difflib
import math
import re
import sys
from pathlib import Path

from ..io.files import atomic_path, read_yaml
from ..io.storage import check_path, is_remote
from ..runtime.errors import UserError, describe_os_error
from .options import (
    LAST_VERSION,
    REMOVED,
    DiffusionOptions,
    build,
    unused_flags,
    without_removed,
)
from .recipe import DEFAULT_RECIPE, chosen_recipe, recipe_values
from .script_options import CheckOptions, EvalOptions, SampleOptions, TrainOptions

# ---- YAML files of options: read with what they include, and written as the record of a run from which it is repeated


def read_config(path, read_value):
    """The values of a YAML file of options by name, those of the files that it includes below them.

    `include` names a file, relative to the one that it stands in, or a list of files, of which later ones win; a
    file's own values win over all. read_value(name, value) -> the value in its option's type, or raises `UserError`.
    Raises `UserError` that names the file for one that cannot be read, is no such YAML, or includes itself.
    """
    return _read(Path(path), read_value, ())


def _read(path, read_value, above):
    """above: the files that led here, from the one on the command line on."""
    where = f"--config {above[0]}: include {path}" if above else f"--config {path}"
    if any(path.resolve() == other.resolve() for other in above):
        raise UserError(f"{where}: is included by itself ({' > '.join(map(str, (*above, path)))})")
    try:
        values = read_yaml(path)
    except OSError as error:
        reason = describe_os_error(error).removeprefix(f"{path}: ")
        raise UserError(f"{where}: {reason}; name a YAML file") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold lines of the form 'flag: value'")
    result = {}
    for included in _included(values.pop("include", []), where):
        result |= _read(path.parent / included, read_value, (*above, path))
    for name, value in without_removed(values, f"{where}: asks for").items():
        try:
            result[name] = read_value(name, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return result


def _included(names, where):
    names = names if isinstance(names, list) else [names]
    for name in names:
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: include: must be the path of a YAML file or a list of them")
    return names


def run_values(config, settings):
    """The options of a training run as one dict by name, from which `--config` makes the same run.

    config: the option values of each group, as in a checkpoint. Flags without effect, which would be refused, are left
    out; so is a checkpoint in the run's own folder: the run did not begin there.
    """
    values = {name: value for group in config.values() for name, value in group.items()}
    start = values.get("resume_checkpoint")
    if start == "auto" or (start and Path(start).resolve().parent == Path(settings.train.out_dir).resolve()):
        values["resume_checkpoint"] = ""
    unused = unused_flags(settings.model, settings.diffusion, settings.train)
    return {name: value for name, value in values.items() if name not in unused}


def as_yaml(values):
    """A dict of plain values as YAML text, in its own order."""
    import yaml

    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)


def write_config(values, out_dir):
    """Write OUT/config.yaml, whole or not at all; returns its path."""
    path = Path(out_dir) / "config.yaml"
    with atomic_path(path) as temporary:
        temporary.write_text(
            "# What ran; --config with this file and another --out_dir repeats it.\n" + as_yaml(values),
            encoding="utf-8",
        )
    return path


NEGATIVE = re.compile(r"-\.?\d[\d.,eE+-]*")  # a number below 0, or a list that begins with one


FROM_CHECKPOINT = "Taken from the checkpoint; to contradict it is an error, but for --image_size"


def parse(description, groups, argv=None, *, example="", saved=()):
    """Parse flags (and `--config FILE.yaml`, which they override) into one instance of each class in `groups`.

    A flag in two groups belongs to the first. example: a command that ends the help. saved: the groups whose values a
    checkpoint brings; their help, and that of --data_name then, shows no defaults. Returns the instances, in the order
    of `groups`, and the set of names that were given explicitly. Raises `UserError` in one line for whatever is wrong.
    """
    fields = _fields(groups)
    parser = _Parser(
        description=description,
        epilog=f"example:\n  {example}" if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with the same names; flags win over it. `include: FILE`, or a list, brings in others",
    )
    for group in groups:
        title = group.__doc__.splitlines()[0].rstrip(".")
        if group in saved:
            title = f"{title.partition('.')[0]}. {FROM_CHECKPOINT}"
        section = parser.add_argument_group(title)
        for item in dataclasses.fields(group):
            if fields.get(item.name) is item:
                default = "" if group in saved or item.default == "" else _told_default(item, fields)
                if saved and item.name == "data_name":
                    default = " (default: the checkpoint's)"
                _add_flag(section, item, " (required)" if item.metadata["required"] else default)
                parser.booleans |= {f"--{item.name}"} if item.type is bool else set()
    namespace, unknown = parser.parse_known_args(_with_negatives(sys.argv[1:] if argv is None else argv))
    _refuse_unknown(unknown, fields)
    given = vars(namespace)
    config_file = given.pop("config", None)
    if config_file:
        given = {**read_config(config_file, lambda *item: _read_value(fields, *item)), **given}
    values, given = _with_recipe(given, fields)
    later = groups if values.get("resume_checkpoint") else saved
    return _instances(groups, fields, values, later), given


def options_from(groups, values):
    """The same from a dict of values by name, for programs: instances of `groups`, and the names given."""
    fields = _fields(groups)
    given = {name: _read_value(fields, name, value) for name, value in values.items()}
    return _instances(groups, fields, given), set(given)


def _with_negatives(words):
    """The words of a command line with what is below 0 joined to its flag: argparse takes "-160,240" for a flag."""
    joined = []
    for word in words:
        if NEGATIVE.fullmatch(word) and joined and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _fields(groups):
    fields = {}
    for item in (item for group in groups for item in dataclasses.fields(group)):
        fields.setdefault(item.name, item)
    return fields


def _instances(groups, fields, given, later=()):
    """later: the groups of which a checkpoint brings the values that are not given (see `config.build`)."""
    for name, value in given.items():
        check_value(fields[name], value)
    parts = {group: {n: v for n, v in given.items() if _owner(groups, n) is group} for group in groups}
    return [build(group, values, whole=group not in later) for group, values in parts.items()]


def _with_recipe(given, fields):
    """All values, those that `--recipe` stands for beside what is given; and the names of those that were given."""
    if "recipe" not in fields:
        return given, set(given)
    for name, value in given.items():
        check_value(fields[name], value)
    asked = given.get("recipe", fields["recipe"].default)
    recipe = chosen_recipe(asked, given)
    values = {**recipe_values(recipe, given), **given, "recipe": recipe}
    return values, set(given) - {"recipe"} if asked == "auto" else set(given)


def check_value(item, value):
    """Raise `UserError` unless `value` satisfies what the option's field asks for."""
    rules, flag = item.metadata, f"--{item.name} {value}"
    if is_remote(value):
        if not rules["remote"]:
            raise UserError(f"{flag}: must be a local path")
        check_path(item.name, value)
    if rules["choices"] and value not in rules["choices"]:
        raise UserError(f"{flag}: must be one of {', '.join(filter(None, rules['choices']))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{flag}: is not a finite number")
    if rules["minimum"] is not None and value < rules["minimum"]:
        raise UserError(f"{flag}: must be at least {rules['minimum']}")
    if rules["above"] is not None and value <= rules["above"]:
        raise UserError(f"{flag}: must be above {rules['above']}")
    if rules["maximum"] is not None and value > rules["maximum"]:
        raise UserError(f"{flag}: must be at most {rules['maximum']}")


def _owner(groups, name):
    return next(group for group in groups if name in {item.name for item in dataclasses.fields(group)})


def _told_default(item, fields):
    """What an option is where nobody gives it, for the help: by the default recipe, in scripts that have recipes."""
    recipe = recipe_values(DEFAULT_RECIPE, {}) if "recipe" in fields else {}
    if recipe.get(item.name, item.default) == item.default:
        return f" (default: {item.default})"
    return f" (default: {recipe[item.name]} by --recipe {DEFAULT_RECIPE}, else {item.default})"


def _add_flag(section, item, remark):
    names = [f"--{item.name}"]
    if "_" in item.name:
        names.append(f"--{item.name.replace('_', '-')}")
    choices = item.metadata["choices"]
    kind = {bool: "True|False", int: "N", float: "X", str: "TEXT"}[item.type]
    section.add_argument(
        *names,
        dest=item.name,
        type=_boolean if item.type is bool else item.type,
        metavar=f"{{{','.join(filter(None, choices))}}}" if choices else kind,
        help=(item.metadata["help"] + remark).replace("%", "%%"),
    )


def _boolean(text):
    try:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False") from None


def _read_value(fields, name, value):
    """A value of a YAML file in its option's type. Raises `UserError` without the file's name."""
    if name not in fields:
        raise UserError(_unknown_flag(str(name), fields))
    kind = fields[name].type
    text = ",".join(str(part) for part in value) if isinstance(value, list) else str("" if value is None else value)
    try:  # from its text, as on the command line: int(3.7) and int(True) would pass in silence
        return _boolean(text) if kind is bool else kind(text)
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(f"{name}: {value!r} is not of type {kind.__name__}") from None


def _refuse_unknown(unknown, fields):
    for word in unknown:
        if word.startswith("-"):
            name = word.lstrip("-").partition("=")[0].replace("-", "_")
            raise UserError(_unknown_flag(name, fields))
    if unknown:
        raise UserError(f"{unknown[0]!r}: every value needs its flag before it; see --help")


def _unknown_flag(name, fields):
    if name in REMOVED:
        return f"--{name}: this version no longer has it; leave it out, or use version {LAST_VERSION}"
    elsewhere = {
        "segmentation_train.py": (TrainOptions, DiffusionOptions),
        "segmentation_sample.py": (SampleOptions,),
        "segmentation_eval.py": (EvalOptions,),
        "check_data.py": (CheckOptions,),
    }
    for script, groups in elsewhere.items():
        if any(name == item.name for group in groups for item in dataclasses.fields(group)):
            return f"--{name} is a flag of {script}, not of this script"
    close = difflib.get_close_matches(name, fields, n=1)
    return f"--{name}: no such flag" + (f"; did you mean --{close[0]}?" if close else "; see --help")


class _Parser(argparse.ArgumentParser):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.booleans = set()

    def error(self, message):
        flag = re.match(r"argument (--\w+)\S*: expected one argument", message)
        if not flag:
            raise UserError(message)
        remedy = f"write {flag[1]} True" if flag[1] in self.booleans else "write it after the flag"
        raise UserError(f"{flag[1]}: needs a value; {remedy}")
