"""The options that a checkpoint brings: a resumed run's and sampling's, as before but for the flags given now."""

import dataclasses

from .config.options import build
from .config.recipe import recipe_values
from .data.splits import HOLD_OUT_FLAGS, hold_out_of
from .io.storage import is_same_folder
from .runtime.distributed import pick_precision
from .runtime.errors import UserError

# What `changes` leaves out: paths, which are made absolute, how long the run goes on, and a name for other values.
UNLISTED_CHANGES = {"out_dir", "resume_checkpoint", "data_dir", "val_dir", "max_steps", "max_minutes", "recipe"}


def counting(given, options, config):
    """The names of the options that count against a checkpoint's `config`: those given, and of a recipe that was asked
    for, unless it is the checkpoint's own, those that it brought. options: the parsed instances, all of them."""
    values = _values(options)
    if "recipe" not in given or values["recipe"] == (config["train"].get("recipe") or "none"):
        return given
    return given | recipe_values(values["recipe"], {name: values[name] for name in given}).keys()


def go_on_with(options, saved, given):
    """A resumed run's options: as before, but for the flags given now."""
    names = {item.name for item in dataclasses.fields(options)}
    values = {name: value for name, value in saved.items() if name in names}
    values |= {name: getattr(options, name) for name in names & given}
    return build(type(options), values, whole=False)


def check_hold_out(data, config):
    """Refuse to hold out others of the cases that a run, of a checkpoint's `config`, has trained on so far: those that
    it has learned from would be scored as unseen ones."""
    before, now = config["data"], dataclasses.asdict(data)
    was, wanted = hold_out_of(before), hold_out_of(now)
    if wanted in (None, was) or not is_same_folder(data.data_dir, before["data_dir"]):
        return
    name = next(name for name in HOLD_OUT_FLAGS if now[name] != before.get(name, type(now[name])()))
    raise UserError(
        f"--{name} {now[name]}: would hold out cases of {data.data_dir} from which the run has learned so far; leave "
        "it out, or begin anew in another --out_dir"
    )


def changes(options, given, start):
    """A line on what the flags given change of the run of a `Checkpoint`, None where they change nothing. options: the
    parsed instances."""
    before = start.config["data"] | start.config["train"]
    values = _values(options)
    names = [name for name in sorted(given & before.keys() - UNLISTED_CHANGES) if values[name] != before[name]]
    told = ", ".join(f"--{name} {values[name]} (was {before[name]})" for name in names)
    return f"changed from step {start.step} on: {told}" if told else None


def _values(options):
    return {name: value for group in options for name, value in dataclasses.asdict(group).items()}


def kept_precision(config, device):
    """The precision in which the run of a checkpoint's `config` goes on, and a warning or None.

    It is the run's own, or auto where `device` lacks that.
    """
    before, auto = config.get("device", {}).get("precision", "auto"), pick_precision("auto", device)
    if (before == "bf16" and auto != "bf16") or (before == "fp16" and device.type == "cpu"):
        return (
            auto,
            f"warning: the run was in {before}, which {device} lacks: it goes on in {auto}; --precision chooses",
        )
    return pick_precision(before, device), None
