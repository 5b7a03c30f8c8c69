"""What an option is: a dataclass field with help and rules, and what holds for instances of option classes."""

from dataclasses import field, fields

from ..runtime.errors import UserError

# Options that this version no longer has, each with the values that had no effect; (): none had one by itself.
REMOVED = {
    "self_condition": (False,),
    "nbp_activation": ("sigmoid",),
    "concat_image": (True,),
    "condition_labels": (True,),
    "zero_terminal_snr": (False,),
    "loss_weighting": ("none",),
    "min_snr_gamma": (),
    "own_predictions": (0,),
    "solver_type": ("ode", None),
    "time_spacing": ("uniform", None),
    "begin_at": (1,),
    "dynamic_threshold": (0,),
    "neighbours": (0,),
    "noise_draws": (1,),
    "coupling": ("own", "auto"),
    "coupling_sigma": (None,),
    "border_weight": (1.0,),
}
REPLACED = {  # what to do instead of a removed option
    "coupling": "without --num_ensemble the condition model's own mask and probability are the answer",
    "coupling_sigma": "choose another --out_dir",  # it stands in manifests alone
}
# In training alone: sampling ignores them.
ONLY_LEARNED_BY = ("loss_weighting", "own_predictions", "noise_draws", "border_weight")
# The last version with an option; the others left after FIRST_VERSION.
LAST_VERSIONS = dict.fromkeys(("border_weight", "coupling", "coupling_sigma"), "0.4.0")
FIRST_VERSION = "0.1.0"


def option(
    default,
    help,
    *,
    choices=None,
    minimum=None,
    above=None,
    maximum=None,
    why="",
    required=False,
    remote=False,
    hub=False,
    path=False,
    several=False,
    needs=None,
    shown="",
    is_flag=True,
    alone="",
):
    """A dataclass field with its help and its rules.

    choices, minimum, above (an open lower bound), maximum: the allowed values. why: the reason of the maximum, for the
    error. required: the help says so; the command itself checks it. remote: the value is a path and may be one in a
    blob store. hub: it may be hf://, too. path: it is a local path. several: it may be several paths, see
    `values.path_list`. needs: {name of another option: the values at which this option has an effect}. shown: the
    default in the help, where it depends on something else. is_flag: False for a mark of the version that trained a
    network, which has no flag; files of options have it. alone: the value of the flag without one, where that is
    allowed; True for every boolean flag.
    """
    rules = {"choices": choices, "minimum": minimum, "above": above, "maximum": maximum, "why": why}
    known = {"help": help, "required": required, "remote": remote, "path": path, "needs": needs or {}, "shown": shown}
    known |= {"is_flag": is_flag, "several": several, "alone": alone, "hub": hub}
    return field(default=default, metadata=known | rules)


def build(group, values, *, whole=True):
    """An instance of an options class with these values by name, resolved.

    `resolve` runs first, with the names in `values` as the given ones. `complete` needs all values, so it runs only if
    `whole`; without, `settings.settle` calls it after the checkpoint's values are known.
    """
    options = group(**values)
    for step in ("resolve", "complete") if whole else ("resolve",):
        options = getattr(options, step)(set(values)) if hasattr(options, step) else options
    return options


def unused_flags(*groups):
    """The flags without effect, by the options' `needs`: {name: "belongs to --version v2, not v1"}.

    groups: instances of option classes. A need counts as met if no group has the needed option.
    """
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    unused = {}
    for item in (item for group in groups for item in fields(group)):
        for other, allowed in item.metadata["needs"].items():
            if values.get(other, allowed[0]) not in allowed and item.name not in unused:
                unused[item.name] = f"belongs to --{other} {' or '.join(map(str, allowed))}, not {values[other]}"
    return unused


class Given(frozenset):
    """The names of the options that the user set. from_files: {name: its file}, where no flag set it."""

    def __new__(cls, names=(), from_files=()):
        given = super().__new__(cls, names)
        given.from_files = dict(from_files)
        return given


def named_by(name, given, otherwise):
    """Which file an option's value comes from, for messages; "" where the user wrote it in this very command or call.

    given: from `command_line.parse`, or a set of names. otherwise: the file that has the value of an option not given.
    """
    return getattr(given, "from_files", {}).get(name, "" if name in given else otherwise)


def check_variant(*groups, given=()):
    """Raise `UserError` for given flags without effect, and for a plain U-Net with flags of a diffusion.

    groups: instances of option classes, among them network and diffusion. given: the names that the user set.
    """
    unused = unused_flags(*groups)
    for name in sorted(unused.keys() & set(given)):
        raise UserError(f"--{name} {unused[name]}; leave it out")
    values = {item.name: getattr(group, item.name) for group in groups for item in fields(group)}
    if values["version"] != "unet":
        return
    for name, plain in (("objective", "x0"), ("use_kl", False), ("learn_sigma", False), ("logit_skip", "none")):
        if values[name] != plain:
            flag = f"--{name} {values[name]}"
            raise UserError(f"--version unet has no diffusion: it predicts the mask itself; leave out {flag}")


def without_removed(values, who, keep=()):
    """A dict of option values without the `REMOVED` options, which must be unused except for those in `keep`.

    keep: options that stay in the dict if they are in use. who: the beginning of the error message, such as
    "run.pt: was trained with". Raises `UserError` for any other removed option in use; it names the version to use.
    """
    gone = {name for name in REMOVED if name in values and not (name in keep and _is_in_use(name, values))}
    for name in sorted(gone, key=lambda name: (last_version(name), name)):  # the oldest version has all of them
        if _is_in_use(name, values):
            instead = f"{REPLACED[name]}, or " if name in REPLACED else ""
            raise UserError(
                f"{who} {name} {values[name]}, which this version no longer has: {instead}use version "
                f"{last_version(name)}"
            )
    return {name: value for name, value in values.items() if name not in gone}


def last_version(name):
    """The last version of this program that has a `REMOVED` option."""
    return LAST_VERSIONS.get(name, FIRST_VERSION)


def _is_in_use(name, values):
    if name == "condition_labels" and not (values.get("class_cond", True) and values.get("version", "v2") == "v2"):
        return False  # there is no condition model to see labels
    value, idle = values[name], REMOVED[name]
    return bool(idle) and value not in idle and str(value).lower() not in [str(other).lower() for other in idle]
