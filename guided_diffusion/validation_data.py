"""Which cases watch over a training: those of --val_dir, of the data's own validation part, held out, or trained on."""

from dataclasses import dataclass

from .data.dataset import SegmentationDataset
from .data.registry import build_dataset
from .data.splits import loading_of
from .runtime.console import counted
from .runtime.errors import NoCasesError, UserError


@dataclass(frozen=True)
class ValidationData:
    """A data set with masks, and what its cases are, in words that stand after a number, in the singular."""

    dataset: SegmentationDataset
    noun: str
    trained_on: bool = False

    def told(self, train):
        """A line that says how it is used. train: the run's `TrainOptions`."""
        cases = counted(min(train.val_cases, len(self.dataset)), self.noun)
        line = f"validation: {cases}, every {counted(train.sample_interval, 'step')}"
        if self.trained_on and not train.overfit:
            line += (
                ". They are trained on: their Dice, by which best.pt goes, says whether the network learns and not how "
                "it does on new images; hold some out with --val_fraction 0.1 or name others with --val_dir"
            )
        return line


def find_validation(data, train, dataset, val_dir):
    """The `ValidationData` of a run on `dataset`.

    data, train: the `DataOptions` and `TrainOptions`; data.data_dir and val_dir are local folders, val_dir that of
    --val_dir or "". Raises `UserError` for validation cases that do not fit the training cases or are among them.
    """
    if train.overfit:
        return ValidationData(dataset, "case", trained_on=True)
    if val_dir:
        shown = {"view": dataset.view, **loading_of(data), "hold_out": None}
        found = build_dataset(data.data_name, val_dir, dataset.image_size, need_masks=True, **shown)
        _check_fits(found, dataset)
        return ValidationData(found, "validation case")
    try:
        options = {"split": "val", "need_masks": True, "view": dataset.view, **loading_of(data)}
        found = build_dataset(data.data_name, data.data_dir, dataset.image_size, **options)
    except NoCasesError:
        return ValidationData(dataset, "training case", trained_on=True)
    return ValidationData(found, "held-out case" if data.val_fraction else "validation case")


def _check_fits(found, dataset):
    for name in ("image_channels", "class_names"):  # class labels are looked at where the network is told them
        have, want = getattr(found, name), getattr(dataset, name)
        if have != want:
            raise UserError(
                f"--val_dir {found.data_dir}: has the {name} {have}, the training cases have {want}; name a folder "
                "that fits"
            )
    trained_on = {path.resolve() for case in dataset.cases for path in case.images}
    for case in found.cases:
        if trained_on.intersection(path.resolve() for path in case.images):
            raise UserError(f"--val_dir {found.data_dir}: its case {case.name} is trained on; name a folder of others")
