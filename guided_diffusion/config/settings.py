"""All options of a command, settled once: flags, recipe, checkpoint and data become one frozen `Settings`."""

import os
from dataclasses import asdict, dataclass, fields, replace

from ..io.storage import is_same_folder
from ..runtime.errors import UserError
from ..runtime.program import command_name
from .fields import build, check_variant
from .options import NO_WINDOW, DataOptions, DeviceOptions, DiffusionOptions, ModelOptions
from .presets import PRESETS
from .recipe import recipe_values
from .sample_options import SampleOptions
from .train_options import TrainOptions

HOLD_OUT_FLAGS = ("val_fraction", "test_fraction", "fold", "split_seed", "group_key")
DIVIDING_FLAGS = ("val_fraction", "test_fraction", "fold")  # each of them asks for a part to hold out
SCALES = "0.9,1.1"  # --scales auto: the range of scales in --augment light
MEMBERS_DRAWN = 5  # --num_ensemble auto, as the published command has it
# A resumed run does not list changes of these: paths become absolute, and a recipe stands for other values.
UNLISTED_CHANGES = {"out_dir", "resume_checkpoint", "data_dir", "val_dir", "max_steps", "max_minutes", "recipe"}


@dataclass(frozen=True)
class Settings:
    """The settled options of one command; nothing changes them afterwards.

    image_size: the side of the network's input in pixels, which sampling may choose. given: the names that the user
    set, by flags or in a file of options. train or sample is None in the other command.
    """

    model: ModelOptions
    diffusion: DiffusionOptions
    device: DeviceOptions
    image_size: int
    given: frozenset
    data: DataOptions | None = None
    train: TrainOptions | None = None
    sample: SampleOptions | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint's options. config: a dict of values for each group. where: the checkpoint's name in messages."""

    config: dict
    where: str


@dataclass(frozen=True)
class DataFacts:
    """Facts of the training data that decide open options.

    data_name: the loader that recognised the folder. orientation: "any" or "upright". ct_window: "LOW,HIGH" in HU,
    "none" for volumes that have z-scores though they may be CT, "" for other data. classes: in the syntax of
    --classes. count: the number of classes. is_exclusive: whether a pixel has at most one of them.
    """

    data_name: str
    orientation: str
    ct_window: str
    classes: str
    count: int
    is_exclusive: bool


def settle(options, given, saved=None, facts=None):
    """The `Settings` of a training or a sampling command.

    A pure function: training calls it with the checkpoint's options, then again with the facts of the data.

    options: instances of option classes from `command_line.parse`, flags over recipe. given: the names that the user
    set. saved: the `Saved` of the checkpoint to resume or to sample. facts: the `DataFacts` of the training data.
    Raises `UserError` for flags that contradict each other, the checkpoint or the data.
    """
    parts = {type(part): part for part in options}
    if TrainOptions in parts:
        return _training(parts, frozenset(given), saved, facts)
    return _sampling(parts, frozenset(given), saved)


def changes(settings, saved):
    """A line that lists the options that a resumed run changes, "--lr 0.1 (was 0.2), ..."; None if there are none."""
    before = saved.config["data"] | saved.config["train"]
    now = asdict(settings.data) | asdict(settings.train)
    names = sorted(settings.given & before.keys() - UNLISTED_CHANGES)
    if os.path.basename(now["data_name"]) == before["data_name"]:  # a loader's file, without its folder
        names = [name for name in names if name != "data_name"]
    return ", ".join(f"--{n} {now[n]} (was {before[n]})" for n in names if now[n] != before[n]) or None


# ---- training ------------------------------------------------------------------------------------------------------


def _training(parts, given, saved, facts):
    data, train, model, diffusion = (parts[g] for g in (DataOptions, TrainOptions, ModelOptions, DiffusionOptions))
    if saved is not None:
        binding = _binding_names(parts, given, saved)
        model = unless_contradicted(model, binding, saved.config["model"], saved.where)
        diffusion = unless_contradicted(diffusion, binding, saved.config["diffusion"], saved.where)
        data = _over(data, binding, trained_data(saved.config))
        train = _over(train, binding, saved.config["train"])
    data, train, model = (part.complete(given) for part in (data, train, model))
    if data.group_key and not is_divided(asdict(data)):
        raise UserError(
            "--group_key belongs to --val_fraction, --fold and --test_fraction, which divide the cases; leave it out"
        )
    check_variant(model, diffusion, train, given=given)
    _check_encoder(model, train, saved is None, given)
    if not data.data_dir:
        raise UserError("--data_dir: is needed; it names the folder that holds the training data")
    if train.overfit:
        model = replace(model, dropout=0.0)
    if facts is not None:
        classes = facts.classes if data.classes == "auto" else data.classes
        data = replace(data, data_name=facts.data_name, ct_window=facts.ct_window, classes=classes)
        train = replace(train, orientation=facts.orientation if train.orientation == "auto" else train.orientation)
        if saved is None:
            activation = diffusion.activation_for(facts.classes, facts.count, facts.is_exclusive)
            diffusion = replace(diffusion, class_activation=activation)
    device = next(part for part in parts.values() if isinstance(part, DeviceOptions))
    return Settings(model, diffusion, device, model.image_size, given, data=data, train=train)


def _check_encoder(model, train, is_new, given):
    """Raise `UserError` for options of --encoder that do nothing or contradict each other."""
    for name in ("encoder_weights", "freeze_encoder"):
        if name in given and getattr(train, name) and not model.encoder:
            raise UserError(f"--{name} {getattr(train, name)} belongs to --encoder NAME; leave it out, or name one")
    if model.encoder and train.fsdp:
        raise UserError(f"--encoder {model.encoder} does not go with --fsdp True, which splits no network of timm")
    if is_new and train.encoder_weights and train.init_from:
        raise UserError("--encoder_weights and --init_from: both have weights for the encoder; leave one out")
    if is_new and model.encoder and train.freeze_encoder and not (train.encoder_weights or train.init_from):
        raise UserError("--freeze_encoder True: the encoder would stay random; name its --encoder_weights")


def _binding_names(parts, given, saved):
    """The names that must agree with a checkpoint: the given ones, and those of a recipe that was given by name."""
    recipe = parts[TrainOptions].recipe
    if "recipe" not in given or recipe == (saved.config["train"].get("recipe") or "none"):
        return given
    values = {name: value for part in parts.values() for name, value in asdict(part).items()}
    return given | recipe_values(recipe, {name: values[name] for name in given}).keys()


def _over(options, given, values):
    """The options of a resumed run: the given flags over the run's own values."""
    names = {item.name for item in fields(options)}
    kept = {name: value for name, value in values.items() if name in names}
    return build(type(options), kept | {name: getattr(options, name) for name in names & given}, whole=False)


def unless_contradicted(options, given, values, where):
    """The options of a checkpoint's network or diffusion. Raises `UserError` for a given flag with another value.

    options: the parsed ones. given: the names that the user set. values: the checkpoint's values by name. where: the
    checkpoint's name in messages.
    """
    group = type(options)
    names = {item.name for item in fields(group)}
    kept = group(**{name: value for name, value in values.items() if name in names})
    if getattr(options, "diffusion_channels", 0) == -1:  # half of the checkpoint's width, not of the default
        width = replace(kept, diffusion_channels=-1).complete(given).diffusion_channels
        options = replace(options, diffusion_channels=width)
    implied = set()
    if "preset" in given & names:  # compare the sizes that it stands for, not its name
        implied = PRESETS.get(options.preset, {}).keys() - given
        given = given - {"preset"} | implied
    for name in sorted(given & names):
        asked, has = getattr(options, name), getattr(kept, name)
        if asked != has:
            preset = f" (of --preset {options.preset})" if name in implied else ""
            raise UserError(
                f"--{name} {asked}{preset} contradicts the checkpoint {where}, which was trained with {name} {has}"
            )
    return kept


# ---- sampling ------------------------------------------------------------------------------------------------------


def _sampling(parts, given, saved):
    sample, config = parts[SampleOptions], saved.config
    model = parts.get(ModelOptions, ModelOptions())
    diffusion = parts.get(DiffusionOptions, DiffusionOptions())
    # The network may run at another size: its frequency maps are resampled.
    image_size = model.image_size if "image_size" in given else config["model"]["image_size"]
    model = unless_contradicted(model, given - {"image_size"}, config["model"], saved.where)
    # In sampling --diffusion_steps is the number of steps to take, not the T of training.
    diffusion = unless_contradicted(diffusion, given - {"diffusion_steps"}, config["diffusion"], saved.where)
    has_diffusion = model.version != "unet"
    sample = replace(
        sample,
        num_ensemble=members_by_default(sample.num_ensemble, model.version, config["train"]),
        temperature=sample.temperature or config.get("calibration", {}).get("temperature", 1.0),
        tile=sample.tile if "tile" in given else config["train"]["crop"],
    )
    if "tile_overlap" in given and not sample.tile:
        raise UserError(f"--tile_overlap {sample.tile_overlap:g} belongs to --tile True; leave it out")
    if not sample.num_ensemble and sample.debug:
        raise UserError("--debug True: shows how members are drawn; add --num_ensemble N, by default none is drawn")
    sample = members_as_trained(sample, config["train"], has_diffusion=has_diffusion)
    data = parts.get(DataOptions)
    device = next(part for part in parts.values() if isinstance(part, DeviceOptions))
    return Settings(
        model,
        diffusion,
        device,
        image_size,
        given,
        data=None if data is None else _data_as_trained(data, given, config),
        sample=sample,
    )


def members_by_default(asked, version, train):
    """The number of members to draw, from --num_ensemble; 0: the condition model answers in one pass.

    asked: the flag's value, 0 where it is left open. version: of the network; a plain U-Net has one answer, which
    counts as 1. train: the values of the checkpoint's `TrainOptions` by name: a V2 trained in stages has a condition
    model that was trained to answer by itself.
    """
    if version == "unet":
        return 1
    if asked:
        return asked
    return 0 if version == "v2" and train.get("condition_steps") else MEMBERS_DRAWN


def members_as_trained(sample, train, *, has_diffusion=True):
    """The `SampleOptions` with --symmetries and --scales resolved.

    train: the values of the checkpoint's `TrainOptions` by name.
    """
    augmented = train.get("augment", "none") != "none" and has_diffusion
    symmetries, scales = sample.symmetries, sample.scales
    if symmetries == "auto":
        symmetries = "all" if augmented and train.get("orientation") == "any" else "none"
    if scales == "auto":
        scales = SCALES if augmented else "none"
    return replace(sample, symmetries=symmetries, scales=scales)


def trained_data(config):
    """A checkpoint's values of `DataOptions`. In older ones an empty ct_window may mean z-scores; it is "none" then."""
    data, kept = config["data"], config.get("loader", {})
    has_scores = kept.get("is_nifti") and not kept.get("ct_window")
    return {**data, "ct_window": NO_WINDOW} if has_scores and not data.get("ct_window") else data


def _data_as_trained(data, given, config):
    """The data options: open ones as in training, and the training folder is divided as training divided it."""
    trained = trained_data(config)
    left_open = {name: trained.get(name, "") for name in ("data_name", "classes", "ct_window", "ignore_label")}
    values = {name: value for name, value in left_open.items() if name not in given}
    if "data_name" in given and data.data_name.upper() != str(left_open["data_name"]).upper():
        values.pop("ignore_label", None)  # another layout may have no label maps
    is_same = trained.get("data_dir") and is_same_folder(data.data_dir, trained["data_dir"])
    if is_divided(trained) and is_same and not given.intersection(DIVIDING_FLAGS):
        check_division(trained)
        held = {name: trained[name] for name in HOLD_OUT_FLAGS if name in trained}
        if "group_key" in given and data.group_key != held.get("group_key", ""):
            by = f"by --group_key {held['group_key']}" if held.get("group_key") else "without --group_key"
            raise UserError(
                f"--group_key {data.group_key}: training divided {data.data_dir} {by}; leave it out (to group figures "
                f"differently, give it to {command_name('evaluate')}), or set --val_fraction or --fold to divide anew"
            )
        values |= held
    return replace(data, **values)


def is_divided(values):
    """Whether data options, a dict as in checkpoints and manifests, hold out a part of the cases."""
    return any(values.get(name) for name in DIVIDING_FLAGS)


def is_of_earlier_version(values):
    """Whether data options, a dict as in checkpoints and manifests, were divided as `check_division` says."""
    return bool(values.get("val_fraction")) and "test_fraction" not in values


def check_division(values):
    """Raise `UserError` if data options, a dict as in checkpoints and manifests, were divided by an earlier version.

    Up to version 0.2.0 --val_fraction held out the groups whose hash lay below the share, other ones than now.
    """
    if is_of_earlier_version(values):
        raise UserError(
            f"{values.get('data_dir', '')}: was divided with --val_fraction by version 0.2.0 or an earlier one, which "
            "held out other cases than this version; use version 0.2.0 with this data (all other data can be sampled)"
        )
