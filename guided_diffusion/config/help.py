"""The text of `--help` and `--help_all`, and the flags that most people set."""

import argparse
import dataclasses
import shutil
import textwrap

from .recipe import DEFAULT_RECIPE, recipe_values

# The flags in --help, in order. A command without an entry shows all its flags there.
COMMON = {
    "train": (
        "data_dir",
        "data_name",
        "val_fraction",
        "test_fraction",
        "classes",
        "out_dir",
        "version",
        "preset",
        "recipe",
        "image_size",
        "num_channels",
        "batch_size",
        "lr",
        "max_steps",
        "max_minutes",
        "augment",
        "resume_checkpoint",
        "overfit",
        "dry_run",
        "gpu_dev",
        "multi_gpu",
    ),
    "plan": (
        "data_dir",
        "data_name",
        "val_fraction",
        "test_fraction",
        "classes",
        "version",
        "max_minutes",
        "max_steps",
        "batch_size",
        "crop",
        "gpu_dev",
    ),
    "sample": (
        "model_path",
        "data_dir",
        "data_name",
        "out_dir",
        "split",
        "num_samples",
        "num_ensemble",
        "diffusion_steps",
        "sampler",
        "dpm_solver",
        "image_size",
        "fuse",
        "symmetries",
        "tile",
        "save_samples",
        "uncertainty_maps",
        "debug",
        "seed",
        "sample_batch_size",
        "gpu_dev",
        "multi_gpu",
        "precision",
    ),
}
METAVARS = {bool: "True|False", int: "N", float: "X", str: "TEXT"}
CONFIG_HELP = "YAML file of options by the same names; flags win over it. `include: FILE` or a list adds other files"
FROM_CHECKPOINT = (
    "Taken from the checkpoint; accepted because published commands pass them. A value that differs from the "
    "checkpoint's is an error, except for --image_size."
)


def help_text(description, groups, fields, *, example="", saved=(), common=()):
    """The help as text, wrapped to the terminal's width.

    fields: the options by name. common: the names to show, in order; empty: all, by group. saved: the groups that come
    from a checkpoint; the help shows their flags as one block of names.
    """
    paragraphs = [_wrapped(text) for text in description.strip().split("\n\n")]
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description="\n\n".join(paragraphs + ([f"example:\n  {example}"] if example else [])),
        epilog="--help_all lists every flag, and says more of these" if common else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    if common:
        section = parser.add_argument_group("the flags that most people set")
        for name in common:
            _add_flag(section, fields, fields[name], saved, is_short=True)
    else:
        for group in groups:
            if group not in saved:
                section = parser.add_argument_group(group.__doc__.splitlines()[0].rstrip("."))
                for item in _own_fields(group, fields):
                    _add_flag(section, fields, item, saved)
        if saved:
            names = ", ".join(f"--{item.name}" for group in saved for item in _own_fields(group, fields))
            parser.add_argument_group(
                "The network and its diffusion", f"{_wrapped(FROM_CHECKPOINT)}\n{_wrapped(names)}"
            )
        section = parser.add_argument_group("Other")
    section.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    return parser.format_help()


def _own_fields(group, fields):
    """The flags of a group that no earlier group has."""
    return [i for i in dataclasses.fields(group) if fields[i.name] is i and i.metadata["is_flag"]]


def _wrapped(text):
    width = max(20, shutil.get_terminal_size().columns - 4)
    return textwrap.fill(text, width, break_on_hyphens=False)


def _add_flag(section, fields, item, saved, is_short=False):
    """Add a flag to a section of the help; is_short: with the first sentence of its help alone."""
    choices, text = item.metadata["choices"], item.metadata["help"]
    text = text.partition(". ")[0] if is_short else text
    section.add_argument(
        f"--{item.name}",
        nargs="?" if item.type is bool or item.metadata["alone"] else None,
        metavar=f"{{{','.join(filter(None, choices))}}}" if choices else METAVARS[item.type],
        help=f"{text}{_remark(item, fields, saved)}".replace("%", "%%"),
    )


def _remark(item, fields, saved):
    """The end of an option's help: "(required)" or its default."""
    if item.metadata["required"]:
        return " (required)"
    if saved and (item.name == "data_name" or any(item in dataclasses.fields(group) for group in saved)):
        return " (default: the checkpoint's)"
    default = item.metadata["shown"] or item.default
    if default == "":
        return ""
    recipe = recipe_values(DEFAULT_RECIPE, {}) if "recipe" in fields else {}
    if recipe.get(item.name, item.default) == item.default:
        return f" (default: {default})"
    return f" (default: {recipe[item.name]} by --recipe {DEFAULT_RECIPE}, else {default})"
