"""Files of options: reading YAML with what it includes, and the config.yaml that records a training run."""

import dataclasses
import itertools
from pathlib import Path

from ..io.files import atomic_path
from ..io.storage import fetch_file, folder_and_name, is_remote, join
from ..io.texts import read_yaml
from ..runtime.errors import UserError, describe_os_error
from .fields import ONLY_LEARNED_BY, REMOVED, unused_flags
from .options import DataOptions, DiffusionOptions, ModelOptions

RECORD = "# What ran;"  # the beginning of a run's config.yaml, since version 0.1.0


MAX_INCLUDES = 100  # files that one file includes, directly or through others; each time counts


def read_config(path, check=lambda values, path: values, above=(), count=None):
    """The values of a YAML file of options by name, over those of the files that it includes.

    `include` names a file, relative to the folder of the including file, or a list of files; later files win.
    check: called with each file's own values and its path, returns the values to use. above: the including files, the
    outermost first. count: an `itertools.count` over all files read. Raises `UserError` that names the file; an error
    that `check` raises gets the name in front.
    """
    where = f"--config {above[0]}: include {path}" if above else f"--config {path}"
    count = count or itertools.count()
    if next(count) > MAX_INCLUDES:
        raise UserError(f"--config {above[0]}: includes more than {MAX_INCLUDES} files; put the values into fewer")
    if any(path.resolve() == other.resolve() for other in above):
        raise UserError(f"{where}: is included by itself ({' > '.join(map(str, (*above, path)))})")
    try:
        values = read_yaml(path, pipes=not above)  # a pipe that a file names might never have a writer
    except OSError as error:
        reason = describe_os_error(error).removeprefix(f"{path}: ")
        raise UserError(f"{where}: {reason}; name a YAML file") from error
    except UserError as error:
        raise UserError(f"{where}{str(error).removeprefix(str(path))}") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: must hold lines of the form 'flag: value'")
    result = {}
    for included in _included(values.pop("include", []), where):
        result |= read_config(path.parent / included, check, (*above, path), count)
    try:
        return result | check(values, path)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _included(names, where):
    names = names if isinstance(names, list) else [names]
    for name in names:
        if not isinstance(name, str) or not name or not name.isprintable():
            raise UserError(f"{where}: include: must be the path of a YAML file or a list of paths")
    return names


# ---- The record of a run ---------------------------------------------------------------------------------------------


def run_values(config, settings):
    """The options of a training run as one dict by name; `--config` with them repeats the run.

    config: the option values of each group, as in a checkpoint. Flags without effect would be refused, so they are left
    out. A checkpoint in the run's own folder is left out too: the run did not begin there.
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
    """Write config.yaml in `out_dir`, whole or not at all; returns its path."""
    path = Path(out_dir) / "config.yaml"
    with atomic_path(path) as temporary:
        temporary.write_text(
            f"{RECORD} --config with this file and another --out_dir repeats it.\n{as_yaml(values)}", encoding="utf-8"
        )
    return path


def is_record(path):
    """Whether a training run wrote this YAML file."""
    if not path.is_file():  # a pipe can be read only once
        return False
    with open(path, encoding="utf-8-sig") as file:
        return file.readline().startswith(RECORD)


def record_beside(checkpoint):
    """The values of the config.yaml in a checkpoint's folder, local or remote; {} where no run wrote one there."""
    try:
        if is_remote(checkpoint):
            path = fetch_file(join(folder_and_name(checkpoint)[0], "config.yaml"))
        else:
            path = Path(checkpoint).parent / "config.yaml"
        values = read_yaml(path) if is_record(path) else {}
    except (UserError, OSError, ValueError):  # it only saves flags, whose lack has an error of its own
        return {}
    return values if isinstance(values, dict) else {}


def split_record(values, fields, training, with_data):
    """The values of a run's record that a command other than training uses, and the names that it ignores.

    fields, training: the options of the command and of training, by name. Used are the values of data (unless
    `with_data` is False), network and diffusion that differ from the command's defaults. Unknown names are among the
    used ones, so that typos are refused. Names with training's default are not listed as ignored.
    """
    usable = {
        item.name
        for group in (*([DataOptions] if with_data else []), ModelOptions, DiffusionOptions)
        for item in dataclasses.fields(group)
        if fields.get(item.name) is item  # --diffusion_steps of sampling is another option
    }
    default = {name: item.default for name, item in training.items()} | {n: REMOVED[n][0] for n in ONLY_LEARNED_BY}
    ignored = [n for n, v in values.items() if n in default and n not in usable and v != default[n]]
    used = {n: v for n, v in values.items() if n not in default or (n in usable and v != fields[n].default)}
    return used, ignored
