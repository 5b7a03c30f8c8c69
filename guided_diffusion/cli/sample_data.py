"""The data to sample: how they are found, and whether they fit the checkpoint."""

from pathlib import Path

from ..data.compatibility import check_channels, check_reading, is_read_alike
from ..data.registry import ANY_FOLDER, AUTO, build_dataset, recognised
from ..data.splits import given_split, loading_of
from ..runtime.console import console
from ..runtime.errors import NoCasesError, UserError


def find_cases(data, sampler, settings, config, origin):
    """The data to sample and the name of their loader: --data_name's, else training's, else one that recognises them.

    data: the `DataOptions` with a local data_dir. config: the checkpoint's. origin: see `fields.named_by`. A single
    file is read as FOLDER reads it. Raises `UserError` where another loader than training's may normalise the images
    otherwise.
    """
    split, chosen = given_split(settings.sample.split), "data_name" in settings.given

    def build(name, named_by=""):
        options = {"split": split, "view": sampler.view, "keep_unreadable": True, **loading_of(data)}
        return build_dataset(name, data.data_dir, sampler.image_size, named_by=named_by, **options), name

    if Path(data.data_dir).is_file():
        check_reads_a_file(data, chosen, config)
        return build(ANY_FOLDER)
    name = recognised(data.data_name, data.data_dir)
    if name != data.data_name:
        console().info(f"--data_name {name}")
    try:
        return build(name, origin)
    except NoCasesError as error:
        advice = f"{error}; the checkpoint was trained on {name}: for other data add --data_name"
        if chosen:
            raise
        if not is_read_alike(config):
            raise UserError(advice) from None
    try:
        other = recognised(AUTO, data.data_dir)
    except UserError:
        raise UserError(advice) from None
    console().info(f"--data_name {other}: {data.data_dir} has no cases for {name}, on which the checkpoint was trained")
    return build(other)


def check_reads_a_file(data, chosen, config):
    """Raise `UserError` unless a single file may be read as FOLDER reads it.

    chosen: whether the user set --data_name. config: the checkpoint's.
    """
    if chosen and data.data_name.upper() not in (AUTO, ANY_FOLDER):
        raise UserError(f"{data.data_dir}: is a file, which only FOLDER reads; leave out --data_name {data.data_name}")
    if not chosen and not is_read_alike(config):
        raise UserError(
            f"{data.data_dir}: is a file, but only {data.data_name} reads images as in training; name a folder in its "
            f"layout, or add --data_name {ANY_FOLDER} if you know that the values are alike"
        )


def check_data(dataset, checkpoint):
    """Raise `UserError` if the data do not fit the checkpoint in channels, classes or labels."""
    check_channels(dataset, checkpoint.image_channels)
    check_reading(dataset, checkpoint.config)
    old, new = checkpoint.classes, dataset.classes
    if len(old) != len(new) or ((old.values or new.values) and old.names != new.names):
        raise UserError(
            f"{dataset.data_dir}: has the classes {new.described()}, the checkpoint was trained with {old.described()}"
        )
    if old.is_exclusive != new.is_exclusive:
        raise UserError(
            f"--classes {new}: the checkpoint was trained with {old.described()}; the classes must overlap in both "
            "or in neither"
        )
    if checkpoint.config["model"]["class_cond"]:
        if list(dataset.label_names) != checkpoint.label_names:
            raise UserError(
                f"{dataset.data_dir}: has the labels {list(dataset.label_names)}, the class-conditional checkpoint was "
                f"trained with {checkpoint.label_names}"
            )
        for case in dataset.cases:
            if case.label is None:
                raise UserError(f"{case.images[0]}: has no class label, which this class-conditional checkpoint needs")
