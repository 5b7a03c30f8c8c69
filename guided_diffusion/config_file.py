"""YAML files of options: read with what they include, and written as the record of a run from which it is repeated."""

from pathlib import Path

from .config import without_removed
from .io.files import atomic_path, read_yaml
from .runtime.errors import UserError, describe_os_error
from .variants import unheeded_flags


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


def run_values(config, model_options, diffusion_options, out_dir):
    """The options of a run as one dict by name, from which `--config` makes the same run.

    config: the option values of each group, as in a checkpoint. Flags that the variant leaves unheeded, and would
    refuse, are left out; so is a checkpoint in `out_dir` that this process went on from: the run did not begin there.
    """
    values = {name: value for group in config.values() for name, value in group.items()}
    start = values.get("resume_checkpoint")
    if start == "auto" or (start and Path(start).resolve().parent == Path(out_dir).resolve()):
        values["resume_checkpoint"] = ""
    unheeded = unheeded_flags(model_options, diffusion_options)
    return {name: value for name, value in values.items() if name not in unheeded}


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
